"""Search a video file: encode it once, query it repeatedly.

Features take the same path as in training, encoder -> float16 -> `BatchBuilder` -> model, so a
video gives the model the same tensor as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mrmodel.addresses import video_path
from mrmodel.components import ENCODERS
from mrmodel.config.postprocess import PostprocessConfig
from mrmodel.data.loader import BatchBuilder, RowLimits
from mrmodel.devices import pick_device
from mrmodel.encoders.base import (
    TextEncoder,
    TokenCounts,
    VideoEncoder,
    are_aligned,
    build_encoder,
)
from mrmodel.errors import DataError, FeatureError, FeatureMismatch
from mrmodel.features.extraction.encode import encode_streams, encode_texts
from mrmodel.features.keys import normalise_query, text_key
from mrmodel.features.manifest import stream_fingerprint
from mrmodel.features.store import MemoryStore, RowTable
from mrmodel.files import digest_of
from mrmodel.models.base import MomentModel
from mrmodel.predict.inference import decode_output
from mrmodel.predict.long_video import VideoChunk, merge_chunks, split_video
from mrmodel.predict.postprocess import Decoded, Postprocess, in_video_time
from mrmodel.predict.queries import check_queries
from mrmodel.predict.serving import read_serving
from mrmodel.predict.zero_shot import THRESHOLD_STD, ZERO_SHOT_MODEL, answer_by_similarity
from mrmodel.train.checkpoint import ModelConfig, ModelStream, load_model
from mrmodel.types import Annotation, Moment, QueryResult
from mrmodel.video.frames import DecodeReport

# Batch size for queries, and for the chunks of a long video. With 64, queries about 150 s need more
# memory than `_keep_freed_memory` lets the C library keep, and take longer.
_BATCH = 32
# The encoders that every installation has.
_BUILT_IN = ("embedded.video", "embedded.text")
_CLIP_LEN_S = 2.0


@dataclass(frozen=True, slots=True)
class SearchableVideo:
    """A video with encoded clips: one store per stream, all with the key `vid`.

    `duration_s` is its length in a player, `start_s` the time of its first clip there; `encoders`
    describe the streams.
    """

    vid: str
    duration_s: float
    start_s: float
    n_clips: int
    streams: tuple[RowTable, ...]
    report: DecodeReport
    encoders: tuple[ModelStream, ...]


# Answers about each video to each query, from their rows (those of queries by `text_key`): all
# queries about the first video, and so on. Times count from the first picture.
Grounding = Callable[
    [Sequence[SearchableVideo], Sequence[str], Sequence[MemoryStore]], list[Decoded]
]


class Predictor:
    """Answers queries about videos, with a trained model (`load`) or without one (`zero_shot`).

    Args:
        config: streams and clip length; config.json of a model folder.
        grounding: gives the answers.

    Attributes:
        languages: that its text encoders read; empty: none in particular.

    Raises:
        FeatureError: a stream was made by another program.
        FeatureMismatch: a local encoder differs from the one that made the training features.
    """

    def __init__(self, config: ModelConfig, grounding: Grounding) -> None:
        self.config, self.grounding = config, grounding
        self._video = [_encoder_of(stream, config.clip_len_s) for stream in config.video_streams]
        self._text = [_encoder_of(stream, None) for stream in config.text_streams]
        self.languages = sorted({one for encoder in self._text for one in encoder.languages})

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Predictor:
        """Load a model folder such as ``models/served/sg_detr``; ``zero-shot`` is `zero_shot()`.

        Raises:
            CheckpointError: it is no model folder, or one that this version cannot read.
            FeatureError, FeatureMismatch: see the class.
        """
        if str(folder) == ZERO_SHOT_MODEL:
            return cls.zero_shot()
        folder = Path(folder)
        place = pick_device(device, "device")
        model, config = load_model(folder, place)
        return cls(config, ModelGrounding(model, config, read_serving(folder), place))

    @classmethod
    def zero_shot(
        cls,
        streams: tuple[str, str] = _BUILT_IN,
        clip_len_s: float = _CLIP_LEN_S,
        threshold_std: float = THRESHOLD_STD,
    ) -> Predictor:
        """Answers by similarity of clips and sentence alone; nothing was trained on any corpus.

        Args:
            streams: encoders of clips and of sentences that share a space.
            clip_len_s: seconds of a clip.
            threshold_std: a window is a run of clips above mean + this many standard deviations
                of the similarities in the video.

        Raises:
            UnknownNameError: no such encoder.
            FeatureError: the two share no space.
        """
        if not are_aligned(*streams):
            raise FeatureError(
                f"{streams[0]} and {streams[1]}: clips and sentences of these encoders share no "
                f"space, so their similarity means nothing; {' and '.join(_BUILT_IN)} do"
            )
        video, text = map(build_encoder, streams)
        config = ModelConfig(
            model=ZERO_SHOT_MODEL,
            settings={},
            video_streams=(stream_of(video, clip_len_s),),
            text_streams=(stream_of(text, None),),
            clip_len_s=clip_len_s,
            max_clips=None,
            max_tokens=1,
            protocol="qvhighlights",
            training={},
        )
        return cls(config, SimilarityGrounding(threshold_std))

    @property
    def is_zero_shot(self) -> bool:
        """Whether scores of moments are similarities, which may be negative."""
        return isinstance(self.grounding, SimilarityGrounding)

    def encode(self, path: str | Path) -> SearchableVideo:
        """Decode and encode a video file of any length; it is decoded once for all streams.

        Raises:
            VideoError: no frames can be decoded.
        """
        path, clip_len_s = video_path(path), self.config.clip_len_s
        encoded = encode_streams(path, self._video, clip_len_s)
        stores = [
            MemoryStore(stream.name, {path.stem: video.rows}, clip_len_s)
            for stream, video in zip(self.config.video_streams, encoded, strict=True)
        ]
        report = encoded[0].report
        return SearchableVideo(
            path.stem,
            report.start_s + report.duration_s,
            report.start_s,
            min(len(video.rows) for video in encoded),
            tuple(stores),
            report,
            self.config.video_streams,
        )

    def search(self, video: SearchableVideo, queries: Sequence[str]) -> list[QueryResult]:
        """One result per query, in their order.

        A video longer than the model's `max_clips` is searched in overlapping chunks.

        Raises:
            DataError: a query is empty, shows nothing, or is no text that UTF-8 can encode.
            FeatureMismatch: the video was encoded by other encoders.
        """
        return self.search_videos([video], queries)[0]

    def search_videos(
        self, videos: Sequence[SearchableVideo], queries: Sequence[str]
    ) -> list[list[QueryResult]]:
        """For each video one result per query; the model runs on batches of several videos.

        Args:
            videos: whose `streams` are the same.
            queries: sentences.

        Raises:
            DataError, FeatureMismatch: see `search`.
        """
        check_queries(queries)
        for video in videos:
            self._require_rows(video)
        if not videos or not queries:
            return [[] for _ in videos]
        unread = [self._unread(number, query) for number, query in enumerate(queries)]
        clip_len_s = self.config.clip_len_s
        found = self.grounding(videos, queries, self.encode_queries(queries))
        starts_s = [video.start_s for video in videos for _ in queries]
        answers = iter(in_video_time(found, starts_s, clip_len_s))
        return [
            [
                QueryResult(
                    query,
                    video.vid,
                    video.duration_s,
                    clip_len_s,
                    tuple(Moment(*window) for window in answer.windows),
                    answer.saliency,
                    unread_tokens=share,
                )
                for query, answer, share in zip(queries, answers, unread, strict=False)
            ]
            for video in videos
        ]

    def _require_rows(self, video: SearchableVideo) -> None:
        if video.encoders != self.config.video_streams:
            here, there = (
                ", ".join(f"{one.name} {str(one.fingerprint)[:12]}" for one in streams)
                for streams in (self.config.video_streams, video.encoders)
            )
            raise FeatureMismatch(
                f"{video.vid}: encoded by {there}, and this model reads {here}; encode the video "
                "with the predictor that searches it"
            )

    def _unread(self, number: int, query: str) -> float:
        """Share of tokens that are not read, by the text stream that reads most."""
        text = normalise_query(query)
        counts: list[TokenCounts] = [encoder.token_counts(text) for encoder in self._text]
        shares = [count.unread / count.total for count in counts if count.total]
        if not shares:
            rule = "holds nothing that the text encoder reads; expected a sentence"
            raise DataError(f"query {number + 1} = {query!r} {rule}")
        return min(shares)

    def encode_queries(self, queries: Sequence[str]) -> list[MemoryStore]:
        """The rows of each text stream, by `text_key`; equal sentences are encoded once."""
        unique = {text_key(query): query for query in queries}
        stores = []
        for stream, encoder in zip(self.config.text_streams, self._text, strict=True):
            rows = encode_texts(list(unique.values()), encoder)
            stores.append(MemoryStore(stream.name, dict(zip(unique, rows, strict=True))))
        return stores


class ModelGrounding:
    """Answers of a trained model.

    Args:
        model: in eval mode, on `device`.
        config: config.json of the model folder.
        postprocess: its post-processing.
        device: see above.
    """

    def __init__(
        self,
        model: MomentModel,
        config: ModelConfig,
        postprocess: PostprocessConfig,
        device: torch.device,
    ) -> None:
        self.model, self._config, self._device = model, config, device
        if device.type == "cpu":
            _keep_freed_memory()
        self._postprocess = Postprocess.of(postprocess, config.clip_len_s)

    def __call__(
        self,
        videos: Sequence[SearchableVideo],
        queries: Sequence[str],
        texts: Sequence[MemoryStore],
    ) -> list[Decoded]:
        """See `Grounding`."""
        longest = self._config.max_clips
        limits = RowLimits(longest, self._config.max_tokens)
        builder = BatchBuilder(videos[0].streams, texts, limits, self._device)
        pairs = [
            (video, query, split_video(video.n_clips, longest or video.n_clips))
            for video in videos
            for query in queries
        ]
        rows = [self._row(video, part, query) for video, query, parts in pairs for part in parts]
        found = iter(self._run(builder, rows))
        clip_len_s, finish = self._config.clip_len_s, self._postprocess.finish
        return [
            merge_chunks([next(found) for _ in parts], parts, clip_len_s, finish)
            for _, _, parts in pairs
        ]

    def _row(self, video: SearchableVideo, part: VideoChunk, query: str) -> Annotation:
        if part.n_clips == video.n_clips:
            return Annotation(0, query, video.vid, video.duration_s - video.start_s)
        clip_len_s = self._config.clip_len_s
        start, end = part.first * clip_len_s, (part.first + part.n_clips) * clip_len_s
        return Annotation(0, query, f"{video.vid}_{start}_{end}", end - start)

    def _run(self, builder: BatchBuilder, rows: list[Annotation]) -> list[Decoded]:
        answers: dict[int, Decoded] = {}
        # Together with those of its length, a row needs no padding.
        order = sorted(range(len(rows)), key=lambda place: rows[place].duration)
        with torch.inference_mode():
            for first in range(0, len(rows), _BATCH):
                places = order[first : first + _BATCH]
                batch = builder.batch([rows[place] for place in places])
                found = decode_output(self.model(batch), batch, self._postprocess)
                answers |= zip(places, found, strict=True)
        return [answers[place] for place in range(len(rows))]


class SimilarityGrounding:
    """Answers by similarity of clips and sentence alone; `threshold_std` as in `zero_shot`."""

    def __init__(self, threshold_std: float) -> None:
        self._threshold_std = threshold_std

    def __call__(
        self,
        videos: Sequence[SearchableVideo],
        queries: Sequence[str],
        texts: Sequence[MemoryStore],
    ) -> list[Decoded]:
        """See `Grounding`."""
        clips, keys = videos[0].streams[0], [text_key(query) for query in queries]
        clip_len_s = clips.clip_len_s
        assert clip_len_s is not None
        sentences = texts[0].gather(keys, max_rows=1)[0][:, 0]
        rows = [clips.gather([video.vid])[0][0] for video in videos]
        return [
            answer_by_similarity(own, one, clip_len_s, self._threshold_std)
            for own in rows
            for one in sentences
        ]


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next batch; with other C libraries nothing changes.

    It returns large blocks to the system and then gets them anew page by page: up to 1.7 of the
    28 ms of CPU time of a query in a batch. "Large" grows with each larger block that is freed, up
    to 32 MiB. This block is never written and so takes no memory.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def stream_of(encoder: VideoEncoder | TextEncoder, clip_len_s: float | None) -> ModelStream:
    """The stream that an encoder makes; `clip_len_s` is None for texts."""
    fingerprint = stream_fingerprint(encoder.fingerprint(), clip_len_s)
    return ModelStream(encoder.name, encoder.dim, digest_of(fingerprint))


def _encoder_of(stream: ModelStream, clip_len_s: float | None) -> Any:
    if stream.fingerprint is None or stream.name not in ENCODERS:
        known = ", ".join(sorted(ENCODERS))
        raise FeatureError(
            f"{stream.name}: the model reads rows that another program makes, so no video can be "
            "searched with it until there is an encoder for them: register one and import the "
            f"checkpoint again with its name among the streams (registered: {known})"
        )
    encoder = build_encoder(stream.name)
    found = stream_of(encoder, clip_len_s).fingerprint
    if found != stream.fingerprint:
        raise FeatureMismatch(
            f"{stream.name}: the encoder here is not the one that the model was trained with "
            f"(fingerprint {str(found)[:12]}, expected {stream.fingerprint[:12]}); other weights, "
            "settings or library versions: install the versions of constraints.txt, or train again"
        )
    return encoder
