"""`Library`: many videos in one folder on disk, added once and searched together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mrmodel.addresses import video_path
from mrmodel.errors import LibraryError
from mrmodel.features.extraction.job_runner import describe_stream
from mrmodel.features.manifest import StreamInfo, require_fingerprint
from mrmodel.files import digest_of
from mrmodel.library import DEPTH
from mrmodel.library.adder import Adder, AddReport, AddSettings, absolute, find_videos
from mrmodel.library.folder import LibraryFolder
from mrmodel.progress import Reporter
from mrmodel.stages.served import choose_model

if TYPE_CHECKING:  # torch takes seconds
    from mrmodel.library.search import LibraryAnswer, LibrarySearch
    from mrmodel.predict.predictor import Predictor


@dataclass(frozen=True, slots=True)
class LibraryEntry:
    """A file of a library.

    Attributes:
        path: absolute.
        status: ``ok``; ``partial`` (see `reason`); ``failed``; ``missing``: there is no file any
            more, and its rows are still searched; ``not encoded``: for the streams of now.
        reason: why it is ``partial`` or ``failed``.
        duration_s: a player's length.
        n_clips, n_sentences: of its content.
        start_s: time of the first picture on a player's clock.
        sha256: of the content; empty if it could not be read.
    """

    path: Path
    status: str
    reason: str
    duration_s: float
    n_clips: int
    n_sentences: int
    start_s: float
    sha256: str

    def as_row(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self) | {"path": str(self.path)}


class Library:
    """A folder of encoded videos.

    Args:
        folder: where it is, or will be after the first `add`.
        model: a model folder, ``zero-shot``, or a loaded predictor; None: chosen as by
            ``mrmodel predict``, from the working directory.
        device: of a trained model.

    Attributes:
        note: why another model than the served one was chosen; empty if none was.
        languages: that the text encoders of the model read, after a search.
    """

    def __init__(
        self, folder: str | Path, model: str | Path | Predictor | None = None, device: str = "auto"
    ) -> None:
        self.folder = Path(folder)
        self._model, self._device = model, device
        self._predictor: Predictor | None = None
        self._folder: LibraryFolder | None = None
        self._search: LibrarySearch | None = None
        self.note = ""
        self.languages: Sequence[str] = ()

    @classmethod
    def open(
        cls, folder: str | Path, model: str | Path | Predictor | None = None, device: str = "auto"
    ) -> Library:
        """The library in a folder; see the class."""
        return cls(folder, model, device)

    def add(
        self,
        paths: Iterable[str | Path],
        settings: AddSettings | None = None,
        reporter: Reporter | None = None,
    ) -> AddReport:
        """Add video files, and those in folders; makes the library if there is none.

        What the library knows is not encoded again, wherever it lies. A file that cannot be used is
        reported, and the others are added.

        Raises:
            LibraryError: another process is writing the library, or it holds rows of other encoders
                than the model reads, or than there are here.
        """
        given = [absolute(video_path(path)) for path in paths]
        files = [file for path in given for file in find_videos(path)]
        with closing(LibraryFolder(self.folder, create=True)) as folder, folder.writing():
            if not folder.streams(active=True):
                folder.add_streams(self._streams(files), active=True)
            self._require_same_encoders(folder)
            folder.add_sources(path for path in given if path.is_dir())
            adder = Adder(folder, folder.streams(active=True), settings or AddSettings(), reporter)
            return adder.run(files)

    def refresh(
        self, settings: AddSettings | None = None, reporter: Reporter | None = None
    ) -> AddReport:
        """Look at all files again: add what is new in folders that were added, find moved files.

        Changed files are encoded again, failed ones tried again. If the encoders of the model (or,
        without one, those of the library) are not those that made the rows, every content is
        encoded for the streams that are lacking; until all are done, searches read the old rows.

        Raises:
            LibraryError: there is no library, or another process is writing it.
        """
        with closing(LibraryFolder(self.folder)) as folder, folder.writing():
            known = [file.path for file in folder.files()]
            if self._model is not None:
                wanted = self._streams(known)
            else:
                wanted = [_as_here(stream.info) for stream in folder.streams(active=True)]
            folder.add_streams(wanted, active=False)
            digests = {digest_of(info.fingerprint) for info in wanted}
            streams = [one for one in folder.streams() if one.digest in digests]
            files = [file for path in folder.sources() for file in find_videos(path)]
            files += [path for path in known if path.exists()]
            settings = replace(settings or AddSettings(), retry=True)
            report = Adder(folder, streams, settings, reporter).run(files)
            folder.activate(wanted)
            report.missing = [file.path for file in folder.files() if not file.path.exists()]
            return report

    def remove(self, paths: Iterable[str | Path]) -> list[Path]:
        """Forget files, and all those below folders; their rows are deleted.

        Returns:
            The files that were forgotten.

        Raises:
            LibraryError: there is no library, or it has no such file; or another process is
                writing it.
        """
        with closing(LibraryFolder(self.folder)) as folder, folder.writing():
            known, gone = [file.path for file in folder.files()], set[Path]()
            sources = folder.sources()
            for path in map(absolute, map(Path, paths)):
                found = [one for one in known if one.is_relative_to(path)]
                if not found and path not in sources:
                    rule = "is not in the library; `mrmodel index list` shows what is"
                    raise LibraryError(f"{path}: {rule}")
                gone.update(found)
                folder.delete_sources(one for one in sources if one.is_relative_to(path))
            folder.delete_files(sorted(gone))
            folder.delete_unused()
            return sorted(gone)

    def search(
        self,
        queries: Sequence[str],
        top: int = 10,
        *,
        depth: int = DEPTH,
        exhaustive: bool = False,
    ) -> list[LibraryAnswer]:
        """Find the videos, and the moments in them, that sentences describe.

        Candidates are retrieved by the similarity of their clips to the sentence and by their
        subtitles; the model answers about the best of them, which are then ranked. If clips and
        sentences of its encoders have no common space, it answers about all videos.

        Args:
            queries: sentences.
            top: hits for each query.
            depth: videos that the model answers about, for each query.
            exhaustive: the model answers about all videos.

        Returns:
            One answer per query, in their order.

        Raises:
            DataError: a query is empty, or nothing of it can be read.
            LibraryError: there is no library, it has no videos, or the model reads streams that it
                does not have.
        """
        from mrmodel.predict.queries import check_queries

        check_queries(queries)
        search = self.current()
        self.languages = search.languages
        limit = None if exhaustive else depth
        return [search.answer(query, top, limit) for query in queries]

    def current(self) -> LibrarySearch:
        """The library as it is now: what was loaded before, unless it was changed.

        Raises:
            LibraryError: see `search`.
        """
        from mrmodel.library.search import LibrarySearch

        if self._folder is None:
            self._folder = LibraryFolder(self.folder)
        while self._search is None or self._search.version != self._folder.version():
            streams = self._folder.streams(active=True)
            files = [file.path for file in self._folder.files()]
            predictor = self._choose(files, [stream.digest for stream in streams])
            before = self._folder.version()
            try:
                self._search = LibrarySearch(self._folder, predictor)
            except LibraryError:
                if before == self._folder.version():
                    raise
        return self._search

    def files(self) -> list[LibraryEntry]:
        """All files, by path.

        Raises:
            LibraryError: there is no library.
        """
        with closing(LibraryFolder(self.folder)) as folder, folder.snapshot():
            return _entries(folder)

    def _streams(self, files: Sequence[Path]) -> list[StreamInfo]:
        """The video streams of the model."""
        config = self._choose(files).config
        names = [stream.name for stream in config.video_streams]
        return [describe_stream(name, "video", config.clip_len_s) for name in names]

    def _choose(self, files: Sequence[Path], encoded: Collection[str] = ()) -> Predictor:
        model = self._model
        if self._predictor is None:
            if model is None or isinstance(model, str | Path):
                self._predictor, self.note = choose_model(model, files, self._device, encoded)
            else:
                self._predictor = model
        return self._predictor

    def _require_same_encoders(self, folder: LibraryFolder) -> None:
        """Check that new rows would be made as those that the library holds."""
        for stream in folder.streams(active=True):
            require_fingerprint(
                f"{self.folder}: rows of {stream.info.stream} (`mrmodel index refresh` makes them "
                "anew)",
                stream.info.fingerprint,
                _as_here(stream.info).fingerprint,
            )


def _as_here(info: StreamInfo) -> StreamInfo:
    """The stream of the same name as its encoder makes it here."""
    return describe_stream(info.stream, "video", info.clip_len_s)


def _entries(folder: LibraryFolder) -> list[LibraryEntry]:
    videos = {video.id: video for video in folder.videos()}
    counts, whole = folder.counts(), folder.complete()
    found = []
    for file in folder.files():
        if file.video is None:
            found.append(
                LibraryEntry(file.path, "failed", file.problem, 0.0, 0, 0, 0.0, file.sha256)
            )
            continue
        report = videos[file.video].report
        status: str = report.status if file.video in whole else "not encoded"
        if not file.path.exists():
            status = "missing"
        duration_s = report.start_s + report.duration_s
        found.append(
            LibraryEntry(
                file.path,
                status,
                report.reason,
                duration_s,
                *counts.get(file.video, (0, 0)),
                report.start_s,
                file.sha256,
            )
        )
    return found
