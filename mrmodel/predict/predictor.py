"""Search a video file: encode it once, query it repeatedly.

Features take the same path as in training, encoder -> float16 -> `BatchBuilder` -> model, so a
video gives the model the same tensor as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mrmodel.addresses import video_path
from mrmodel.components import ENCODERS
from mrmodel.config.postprocess import PostprocessConfig
from mrmodel.data.loader import BatchBuilder, RowLimits
from mrmodel.devices import pick_device
from mrmodel.encoders.base import TokenCounts
from mrmodel.errors import DataError, FeatureError, FeatureMismatch
from mrmodel.features.extraction.encode import encode_texts, encode_video
from mrmodel.features.keys import normalise_query, text_key
from mrmodel.features.manifest import stream_fingerprint
from mrmodel.features.store import MemoryStore
from mrmodel.files import digest_of
from mrmodel.models.base import MomentModel
from mrmodel.predict.inference import decode_output
from mrmodel.predict.long_video import VideoChunk, merge_chunks, split_video
from mrmodel.predict.postprocess import Decoded, Postprocess, in_video_time
from mrmodel.predict.queries import check_queries
from mrmodel.predict.serving import read_serving
from mrmodel.train.checkpoint import ModelConfig, ModelStream, load_model
from mrmodel.types import Annotation, Moment, QueryResult
from mrmodel.video.frames import DecodeReport

# Batch size for the chunks of a long video.
_BATCH = 64


@dataclass(frozen=True, slots=True)
class SearchableVideo:
    """A video with encoded clips: one store per stream, all with the key `vid`.

    `duration_s` is its length in a player, `start_s` the time of its first clip there.
    """

    vid: str
    duration_s: float
    start_s: float
    n_clips: int
    streams: tuple[MemoryStore, ...]
    report: DecodeReport


class Predictor:
    """A trained model with the encoders that its features came from.

    Args:
        model: in eval mode.
        config: config.json of the model folder.
        postprocess: its post-processing.
        device: device of the model.

    Attributes:
        languages: that its text encoders read; empty: none in particular.

    Raises:
        FeatureError: a stream was made by another program.
        FeatureMismatch: a local encoder differs from the one that made the training features.
    """

    def __init__(
        self,
        model: MomentModel,
        config: ModelConfig,
        postprocess: PostprocessConfig,
        device: torch.device,
    ) -> None:
        self.model, self.config, self.device = model, config, device
        self._video = [_encoder_of(stream, config.clip_len_s) for stream in config.video_streams]
        self._text = [_encoder_of(stream, None) for stream in config.text_streams]
        self.languages = sorted({one for encoder in self._text for one in encoder.languages})
        self.postprocess = Postprocess.of(postprocess, config.clip_len_s)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Predictor:
        """Load a model folder such as ``models/served/sg_detr``."""
        folder = Path(folder)
        place = pick_device(device, "device")
        model, config = load_model(folder, place)
        return cls(model, config, read_serving(folder), place)

    def encode(self, path: str | Path) -> SearchableVideo:
        """Decode and encode a video file of any length.

        Raises:
            VideoError: no frames can be decoded.
        """
        path, clip_len_s = video_path(path), self.config.clip_len_s
        encoded = [encode_video(path, encoder, clip_len_s) for encoder in self._video]
        stores = [
            MemoryStore(stream.name, {path.stem: video.rows}, clip_len_s)
            for stream, video in zip(self.config.video_streams, encoded, strict=True)
        ]
        report = encoded[0].report
        n_clips = min(len(video.rows) for video in encoded)
        duration_s = report.start_s + report.duration_s
        return SearchableVideo(
            path.stem, duration_s, report.start_s, n_clips, tuple(stores), report
        )

    def search(self, video: SearchableVideo, queries: Sequence[str]) -> list[QueryResult]:
        """One result per query, in their order.

        A video longer than the model's `max_clips` is searched in overlapping chunks.

        Raises:
            DataError: a query is empty, shows nothing, or is no text that UTF-8 can encode.
        """
        check_queries(queries)
        unread = [self._unread(number, query) for number, query in enumerate(queries)]
        builder = BatchBuilder(
            video.streams,
            self._encode_queries(queries),
            RowLimits(self.config.max_clips, self.config.max_tokens),
            self.device,
        )
        parts = split_video(video.n_clips, self.config.max_clips or video.n_clips)
        rows = [self._row(video, part, query) for query in queries for part in parts]
        found = self._run(builder, rows)
        results = []
        for number, query in enumerate(queries):
            answers = found[number * len(parts) : (number + 1) * len(parts)]
            answer = merge_chunks(answers, parts, self.config.clip_len_s, self.postprocess.finish)
            (answer,) = in_video_time([answer], [video.start_s], self.config.clip_len_s)
            results.append(
                QueryResult(
                    query,
                    video.vid,
                    video.duration_s,
                    self.config.clip_len_s,
                    tuple(Moment(*window) for window in answer.windows),
                    answer.saliency,
                    unread_tokens=unread[number],
                )
            )
        return results

    def _unread(self, number: int, query: str) -> float:
        """Share of tokens that are not read, by the text stream that reads most."""
        text = normalise_query(query)
        counts: list[TokenCounts] = [encoder.token_counts(text) for encoder in self._text]
        shares = [count.unread / count.total for count in counts if count.total]
        if not shares:
            rule = "holds nothing that the text encoder reads; expected a sentence"
            raise DataError(f"query {number + 1} = {query!r} {rule}")
        return min(shares)

    def _encode_queries(self, queries: Sequence[str]) -> list[MemoryStore]:
        unique = {text_key(query): query for query in queries}
        stores = []
        for stream, encoder in zip(self.config.text_streams, self._text, strict=True):
            rows = encode_texts(list(unique.values()), encoder)
            stores.append(MemoryStore(stream.name, dict(zip(unique, rows, strict=True))))
        return stores

    def _row(self, video: SearchableVideo, part: VideoChunk, query: str) -> Annotation:
        if part.n_clips == video.n_clips:
            return Annotation(0, query, video.vid, video.duration_s - video.start_s)
        clip_len_s = self.config.clip_len_s
        start, end = part.first * clip_len_s, (part.first + part.n_clips) * clip_len_s
        return Annotation(0, query, f"{video.vid}_{start}_{end}", end - start)

    def _run(self, builder: BatchBuilder, rows: list[Annotation]) -> list[Decoded]:
        answers: list[Decoded] = []
        with torch.inference_mode():
            for first in range(0, len(rows), _BATCH):
                batch = builder.batch(rows[first : first + _BATCH])
                answers += decode_output(self.model(batch), batch, self.postprocess)
        return answers


def _encoder_of(stream: ModelStream, clip_len_s: float | None) -> Any:
    if stream.fingerprint is None or stream.name not in ENCODERS:
        known = ", ".join(sorted(ENCODERS))
        raise FeatureError(
            f"{stream.name}: the model reads rows that another program makes, so no video can be "
            "searched with it until there is an encoder for them: register one and import the "
            f"checkpoint again with its name among the streams (registered: {known})"
        )
    encoder = ENCODERS.get(stream.name)()
    found = digest_of(stream_fingerprint(encoder.fingerprint(), clip_len_s))
    if found != stream.fingerprint:
        raise FeatureMismatch(
            f"{stream.name}: the encoder here is not the one that the model was trained with "
            f"(fingerprint {found[:12]}, expected {stream.fingerprint[:12]}); other weights, "
            "settings or library versions: install the versions of constraints.txt, or train again"
        )
    return encoder
