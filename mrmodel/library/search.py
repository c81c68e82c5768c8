"""Searching a library: retrieve candidates by similarity and words, then ground the best ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mrmodel.encoders.base import are_aligned
from mrmodel.errors import LibraryError
from mrmodel.features.keys import text_key
from mrmodel.library.folder import LibraryFolder, Sentence
from mrmodel.library.ranking import RANKING, RANKINGS, Scores, fused, ranks
from mrmodel.library.rows import LibraryRows
from mrmodel.library.words import search_words
from mrmodel.predict.predictor import Predictor, SearchableVideo
from mrmodel.types import QueryResult

# The similarity of so many times the videos to ground is computed again, exactly.
_EXACT = 2
_LEAST_NORM = 1e-6
# More than the rounding errors of a similarity by float16.
_ROUNDING = 0.004
_NOT_ALIGNED = (
    "clips and sentences of the model's encoders share no space, so candidates cannot be retrieved "
    "by similarity: the model looked into all videos"
)
Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LibraryHit:
    """A video that answers a query.

    Attributes:
        rank: from 1.
        path: of the video; where files have the same content, the first one that exists.
        result: the answer of the model about it.
        similarity: cosine of the sentence and the most similar clip; None if clips and sentences
            have no common space.
        evidence: the sentence that fits the query best, if any does.
    """

    rank: int
    path: Path
    result: QueryResult
    similarity: float | None
    evidence: Sentence | None

    def as_row(self, qid: int = 0) -> dict[str, object]:
        """As JSON: the record of ``mrmodel predict --json`` and what is known of the hit."""
        return self.result.as_row(qid) | {
            "rank": self.rank,
            "path": str(self.path),
            "similarity": self.similarity,
            "evidence": None if self.evidence is None else asdict(self.evidence),
        }


@dataclass(frozen=True, slots=True)
class LibraryAnswer:
    """The answer to one query.

    Attributes:
        query: the sentence.
        hits: best first.
        n_videos: in the library.
        n_grounded: those that the model answered about.
        notes: what to know about the answer, as lines for people.
    """

    query: str
    hits: tuple[LibraryHit, ...]
    n_videos: int
    n_grounded: int
    notes: tuple[str, ...] = ()


class ClipSimilarity:
    """Exact search for the most similar clips.

    Args:
        rows: of the stream of clip vectors.
    """

    def __init__(self, rows: LibraryRows) -> None:
        self._rows = rows
        self._maps = [torch.from_numpy(one) for one in rows.maps]
        self._firsts = np.cumsum(rows.counts) - rows.counts
        self._norms = np.maximum(rows.norms, _LEAST_NORM)

    def of_videos(self, sentence: Vector, n_exact: int) -> Vector:
        """Similarity of the best clip of each video, in the order of `rows.keys`.

        Those of the `n_exact` best videos are computed again in float32; the others are products
        of float16, exact to about 0.001.

        Args:
            sentence: (dim,), of unit length.
            n_exact: see above.
        """
        half = torch.from_numpy(sentence).half()
        products = torch.cat([torch.mv(one, half) for one in self._maps]).float().numpy()
        products /= self._norms
        best: Vector = np.maximum.reduceat(products, self._firsts)
        for video in np.argsort(-best, kind="stable")[:n_exact].tolist():
            first = self._firsts[video]
            own = products[first : first + self._rows.counts[video]]
            near = np.flatnonzero(own >= best[video] - _ROUNDING)
            clips = self._rows.some_of(self._rows.keys[video], near).astype(np.float32)
            norms = np.maximum(np.linalg.norm(clips, axis=1), _LEAST_NORM)
            best[video] = (clips @ sentence / norms).max()
        return best


@dataclass(frozen=True, slots=True)
class Candidates:
    """Videos that were retrieved for a query.

    Attributes:
        videos: their places among those of the library, ascending.
        similarities: of the best clip of each; None if there is no common space.
        words: rank of each by its best sentence, from 1; infinite: none fits.
        said: the best sentence of each video of the library that has one.
    """

    videos: list[int]
    similarities: Scores | None
    words: Scores
    said: dict[int, Sentence]


class LibrarySearch:
    """The videos of a library as they are now, for one predictor.

    Args:
        folder: the library.
        predictor: its streams are among those of the library.

    Attributes:
        version: of the library; see `LibraryFolder.version`.
        videos: those with all rows that the predictor reads.
        languages: see `Predictor`.

    Raises:
        LibraryError: the library lacks a stream that the predictor reads, or has no videos.
    """

    def __init__(self, folder: LibraryFolder, predictor: Predictor) -> None:
        self._folder, self._predictor = folder, predictor
        self.languages = predictor.languages
        self.version = folder.version()
        with folder.snapshot():
            self._load()

    def _load(self) -> None:
        folder, predictor = self._folder, self._predictor
        streams = _tables(folder, predictor)
        config = predictor.config
        pairs = [
            (clips, text)
            for clips, video in zip(streams, config.video_streams, strict=True)
            for text, sentence in enumerate(config.text_streams)
            if are_aligned(video.name, sentence.name)
        ]
        self._notes = () if pairs else (_NOT_ALIGNED,)
        complete = folder.complete()
        stored = [video for video in folder.videos() if video.id in complete]
        if not stored:
            raise LibraryError(f"{folder.folder}: no videos in the library yet; add some")
        counts = [dict(zip(rows.keys, rows.counts.tolist(), strict=True)) for rows in streams]
        self._places = {video.id: place for place, video in enumerate(stored)}
        self.videos = [
            SearchableVideo(
                vid=video.sha256,
                duration_s=video.report.start_s + video.report.duration_s,
                start_s=video.report.start_s,
                n_clips=min(count[video.sha256] for count in counts),
                streams=tuple(streams),
                report=video.report,
                encoders=config.video_streams,
            )
            for video in stored
        ]
        self._of_content = {video.vid: video for video in self.videos}
        self._paths: dict[int, list[Path]] = {}
        for file in folder.files():
            if file.video in self._places:
                self._paths.setdefault(self._places[file.video], []).append(file.path)
        self._similarity: ClipSimilarity | None = None
        if pairs:
            rows, self._text = pairs[0]
            self._similarity = ClipSimilarity(rows)
            # Place of each video among the keys of the rows, which may hold others.
            order = {key: place for place, key in enumerate(rows.keys)}
            self._order = np.array([order[video.sha256] for video in stored])

    def answer(self, query: str, top: int, depth: int | None) -> LibraryAnswer:
        """Search the library for one sentence.

        Args:
            query: the sentence.
            top: hits to return.
            depth: videos to ground; None: all.

        Raises:
            DataError: the query is empty, or nothing of it can be read.
        """
        found = self.retrieve(query, depth)
        chosen, similarities = found.videos, found.similarities
        results = self.ground(query, found)
        pictures = ranks(RANKINGS[RANKING](results, similarities))
        # Equally good ones by the pictures.
        order = np.lexsort((pictures, -fused([pictures, found.words])))
        hits = []
        for rank, place in enumerate(order[:top].tolist(), 1):
            path = self.path(chosen[place])
            hits.append(
                LibraryHit(
                    rank,
                    path,
                    replace(results[place], vid=path.stem),
                    None if similarities is None else float(similarities[place]),
                    found.said.get(chosen[place]),
                )
            )
        return LibraryAnswer(query, tuple(hits), len(self.videos), len(chosen), self._notes)

    def retrieve(self, query: str, depth: int | None) -> Candidates:
        """The videos to ground for a sentence.

        Args:
            query: the sentence.
            depth: how many; None: all. All, too, without a common space.

        Raises:
            FeatureError: the query is empty.
        """
        said = self._said(query)
        words = np.full(len(self.videos), np.inf)
        words[list(said)] = np.arange(1, len(said) + 1)
        similarities = self._similarities(query, depth)
        videos = list(range(len(self.videos)))
        if similarities is not None and depth is not None and depth < len(videos):
            scores = fused([ranks(similarities), words])
            videos = sorted(np.argsort(-scores, kind="stable")[:depth].tolist())
        own = None if similarities is None else similarities[videos]
        return Candidates(videos, own, words[videos], said)

    def ground(self, query: str, found: Candidates) -> list[QueryResult]:
        """The answer of the model about each candidate; `vid` is the SHA-256 of its content."""
        videos = [self.videos[one] for one in found.videos]
        return [own for (own,) in self._predictor.search_videos(videos, [query])]

    def _said(self, query: str) -> dict[int, Sentence]:
        """The sentence that fits the query, of each video in which there is one, best first."""
        found = search_words(self._folder, query).items()
        return {self._places[id_]: sentence for id_, sentence in found if id_ in self._places}

    def _similarities(self, query: str, depth: int | None) -> Scores | None:
        """(videos,) similarity of the best clip; exact where it may decide. None: not aligned."""
        if self._similarity is None:
            return None
        rows = self._predictor.encode_queries([query])[self._text]
        vector = rows.gather([text_key(query)], max_rows=1)[0][0, 0].astype(np.float32)
        sentence = vector / max(float(np.linalg.norm(vector)), _LEAST_NORM)
        n_exact = len(self.videos) if depth is None else _EXACT * depth
        best = self._similarity.of_videos(sentence, n_exact)
        found: Scores = best[self._order].astype(np.float64)
        return found

    def video(self, sha256: str) -> SearchableVideo | None:
        """The encoded video with a content; None: there is none with all its rows."""
        return self._of_content.get(sha256)

    def path(self, video: int) -> Path:
        """The file of a video; of several with one content, the first that exists."""
        paths = self._paths[video]
        return next((path for path in paths if path.exists()), paths[0])


def _tables(folder: LibraryFolder, predictor: Predictor) -> list[LibraryRows]:
    """The rows of the streams that a predictor reads, in its order."""
    have = {stream.digest: stream for stream in folder.streams(active=True)}
    wanted = predictor.config.video_streams
    lacking = [one.name for one in wanted if one.fingerprint not in have]
    if lacking:
        names = ", ".join(stream.info.stream for stream in have.values())
        raise LibraryError(
            f"{folder.folder}: the model reads {', '.join(lacking)}, and the library holds {names} "
            "(or those of other versions): `mrmodel index refresh` with the same --model encodes "
            "the videos for it"
        )
    return [folder.rows_of(have[str(one.fingerprint)]) for one in wanted]
