"""The library and the model that answers about it, exchanged as a whole when either changes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mrmodel.errors import MrModelError
from mrmodel.library import DEPTH
from mrmodel.library.folder import LibraryFolder
from mrmodel.library.library import Library, LibraryEntry
from mrmodel.library.search import LibraryAnswer, LibrarySearch
from mrmodel.predict.highlights import highlights_of, read_highlight_queries
from mrmodel.predict.predictor import Predictor, SearchableVideo
from mrmodel.predict.zero_shot import ZERO_SHOT_MODEL
from mrmodel.registry.load import champion_version, load_version
from mrmodel.server.errors import ApiError
from mrmodel.server.settings import ServerSettings
from mrmodel.stages.served import load_model_for, model_for
from mrmodel.types import Moment, QueryResult

log = logging.getLogger(__name__)

# Of the digits of a SHA-256; two of a million videos are equal in these by chance of 1e-12.
_ID_DIGITS = 20
# What a model is asked before it answers clients.
_SMOKE_QUERY = "a person walks across the street"


@dataclass(frozen=True, slots=True)
class Served:
    """What answers from one moment to the next; never changed.

    Attributes:
        predictor: the model.
        name: of the model, for people.
        note: why it is another than the served one; or empty.
        version: of the champion; None: the model is no champion.
        search: None: there are no videos that could be searched.
        files: of the library, one for each content that has rows, by the id of the video.
        ids: of the videos, by the paths of their files.
        folder: of the library.
        library_version: see `LibraryFolder.version`.
    """

    predictor: Predictor
    name: str
    note: str
    version: int | None
    search: LibrarySearch | None
    files: dict[str, LibraryEntry]
    ids: dict[Path, str]
    folder: LibraryFolder
    library_version: int

    def file(self, video: str) -> LibraryEntry:
        """The file of a video.

        Raises:
            ApiError: there is no such video.
        """
        found = self.files.get(video)
        if found is None:
            raise ApiError(404, "no_such_video", f"there is no video {video}")
        return found

    def searchable(self, video: str) -> SearchableVideo:
        """The rows of a video.

        Raises:
            ApiError: there is no such video, or it has no rows for the model.
        """
        sha256 = self.file(video).sha256
        found = None if self.search is None else self.search.video(sha256)
        if found is None:
            message = f"{video} is not encoded for the model; `mrmodel index refresh` does that"
            raise ApiError(409, "not_encoded", message)
        return found

    def answer(self, video: str, queries: Sequence[str]) -> list[QueryResult]:
        """Search one video; see `Predictor.search`."""
        return self.predictor.search(self.searchable(video), queries)

    def highlights(self, video: str, top: int) -> tuple[list[tuple[str, Moment]], list[float]]:
        """The best moments of a video without a query, and the mean score of each clip."""
        results = self.answer(video, read_highlight_queries())
        scores = torch.tensor([one.clip_scores for one in results]).mean(0)
        return highlights_of(results, top), scores.tolist()

    def try_out(self) -> None:
        """Ask one video, if there is one, so that a model which cannot answer is never served.

        Raises:
            MrModelError: there is no finite answer.
        """
        videos = () if self.search is None else self.search.videos
        self.predictor.encode_queries([_SMOKE_QUERY])
        self.predictor.search_videos(videos[:1], [_SMOKE_QUERY])

    def answer_all(self, query: str, top: int) -> LibraryAnswer:
        """Search the library; see `LibrarySearch.answer`."""
        if self.search is None:
            return LibraryAnswer(query, (), 0, 0)
        return self.search.answer(query, top, DEPTH)


class Engine:
    """Holds what is served, and exchanges it when the library or the champion changes.

    Args:
        settings: of the server.

    Attributes:
        served: what answers now. A request that took it keeps it, also when it is exchanged.

    Raises:
        MrModelError: there is no such model, or the library lacks a stream that it reads.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._refused: int | None = None  # a champion that cannot answer
        self._lock = threading.Lock()
        version = None
        if settings.champion is not None:
            version = champion_version(settings.champion, state=settings.state)
        self.served = self._load(None, version)

    def refresh(self) -> None:
        """Serve the library and the champion as they are now.

        A champion that cannot be loaded, or answers nothing, is logged once, and the one before
        goes on.

        Raises:
            MrModelError: the library cannot be read.
        """
        with self._lock:
            before, version = self.served, self._champion_now()
            if version not in (before.version, self._refused):
                try:
                    self.served = self._load(before, version)
                except MrModelError as error:
                    self._refused = version
                    name = self._settings.champion
                    log.error("%s version %s is not served: %s", name, version, error)
                else:
                    log.info("%s answers now", self.served.name)
                    return
            if before.folder.version() != before.library_version:
                self.served = self._load(before, before.version)

    def _champion_now(self) -> int | None:
        """The version to serve; the one of now where the registry does not answer."""
        settings = self._settings
        if settings.champion is None:
            return None
        try:
            return champion_version(settings.champion, state=settings.state)
        except MrModelError as error:
            log.warning("the champion cannot be looked up: %s", error)
            return self.served.version

    def _load(self, before: Served | None, version: int | None) -> Served:
        """What is there now, tried out if the model is another one than before."""
        settings = self._settings
        folder = LibraryFolder(settings.library, create=True)
        paths = [file.path for file in folder.files()]
        note = ""
        if version is not None:
            name, model = f"{settings.champion} version {version}", None
        else:
            encoded = [stream.digest for stream in folder.streams(active=True)]
            model, note = model_for(settings.model, paths, encoded)
            name = str(model or ZERO_SHOT_MODEL)
        if before is not None and before.name == name:
            predictor = before.predictor
        elif version is not None:
            assert settings.champion is not None
            predictor = load_version(
                settings.champion, version, settings.device, state=settings.state
            )
        else:
            predictor = load_model_for(model, settings.device)
        library = Library(settings.library, predictor)
        if not folder.streams(active=True):
            library.add([])
        library_version = folder.version()
        files: dict[str, LibraryEntry] = {}
        entries = {entry.path: entry for entry in library.files() if entry.n_clips}
        for entry in entries.values():
            known = files.get(_id_of(entry))
            if known is None or known.status == "missing":
                files[_id_of(entry)] = entry
        served = Served(
            predictor=predictor,
            name=name,
            note=note,
            version=version,
            search=LibrarySearch(folder, predictor) if folder.complete() else None,
            files=files,
            ids={path: _id_of(entry) for path, entry in entries.items()},
            folder=folder,
            library_version=library_version,
        )
        if before is None or before.predictor is not predictor:
            served.try_out()
        return served


def _id_of(entry: LibraryEntry) -> str:
    return entry.sha256[:_ID_DIGITS]
