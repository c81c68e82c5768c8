"""The parts of a server, from start to stop."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from mrmodel.errors import LibraryError, MrModelError
from mrmodel.library.library import Library, LibraryEntry
from mrmodel.server import schema
from mrmodel.server.child import run_child
from mrmodel.server.engine import Engine, Served
from mrmodel.server.errors import ApiError
from mrmodel.server.jobs import Job, Jobs
from mrmodel.server.metrics import Metrics
from mrmodel.server.settings import ServerSettings
from mrmodel.server.threads import Threads
from mrmodel.server.uploads import Upload, Uploads

log = logging.getLogger(__name__)

T = TypeVar("T")
# Seconds between two looks at the library and the champion.
LOOK_S = 10.0
# Files that are read or checked at a time, and those that wait.
_FILES, _FILES_QUEUE = 2, 32
# Pictures that are kept, of some 10 kB.
_STILLS = 1000


class Server:
    """What the routes of `app` use.

    Args:
        settings: see there.

    Attributes:
        settings: see there.
        engine: answers queries.
        jobs: begun by requests.
        uploads: files that clients sent.
        metrics: of all of it.
        ready: it takes requests.

    Raises:
        MrModelError: the model or the library cannot be read.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        torch.set_num_threads(1)
        self.engine = Engine(settings)
        self.uploads = Uploads(settings.library, settings.uploads)
        self._searches = Threads("search", settings.workers, settings.queue, _one_thread)
        self._files = Threads("files", _FILES, _FILES_QUEUE)
        self.metrics = Metrics(
            lambda: self._searches.pending, lambda: self.jobs.open(), lambda: len(self.served.files)
        )
        self.jobs = Jobs(lambda job: self.metrics.jobs.labels(job.kind, job.state).inc())
        self.metrics.serving(self.served.name)
        self.ready = False
        self._stills: OrderedDict[tuple[str, float, int], bytes] = OrderedDict()
        self._stills_lock = threading.Lock()

    @property
    def served(self) -> Served:
        """What answers now."""
        return self.engine.served

    @asynccontextmanager
    async def running(self, _app: object) -> AsyncIterator[None]:
        """Follow library and champion until the block ends; then end all jobs."""
        known = self.served.ids
        for upload in self.uploads.all():  # of a server that was stopped before it added them
            if upload.path not in known:
                self.add(upload, "start")
        follower = asyncio.create_task(self._follow())
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            follower.cancel()
            with suppress(asyncio.CancelledError):
                await follower
            await asyncio.to_thread(self._close)

    async def search(self, call: Callable[[], T]) -> T:
        """Run something that needs the model, in turn.

        Raises:
            BusyError: too many wait already.
            ApiError: it took too long.
        """
        return await self._searches.run(call, self.settings.timeout_s)

    async def with_file(self, call: Callable[[], T]) -> T:
        """Run something that reads or checks a file, in turn; errors as in `search`."""
        return await self._files.run(call, self.settings.timeout_s + self.settings.uploads.check_s)

    def video(self, entry: LibraryEntry) -> schema.Video:
        """A video for clients."""
        return schema.Video(
            id=self.served.ids[entry.path],
            name=entry.path.name,
            duration_s=entry.duration_s,
            clip_len_s=self.served.predictor.config.clip_len_s,
            status=entry.status,
            offset_s=entry.start_s,
            uploaded=self.uploads.of(entry.path) is not None,
        )

    def add(self, upload: Upload, request_id: str) -> Job:
        """Begin to encode an upload; it is deleted if that fails.

        Raises:
            BusyError: too many jobs wait.
        """

        def work(job: Job) -> Mapping[str, Any]:
            job.message = f"{upload.path.name}: encoding"
            try:
                return {"video": self._add(upload, job.stop).model_dump()}
            except BaseException:
                self._forget(upload)
                raise

        return self.jobs.submit("add", work, request_id)

    def export(self, order: schema.ExportRequest, request_id: str) -> Job:
        """Begin to make files of hits.

        Raises:
            ApiError: there is no such video.
            BusyError: too many jobs wait.
        """
        served = self.served
        videos = {hit.video: str(served.file(hit.video).path) for hit in order.hits}
        arguments = {
            "videos": videos,
            "hits": [hit.model_dump() for hit in order.hits],
            "kind": order.format.replace("_", "-"),
            "exact": order.exact,
        }

        def work(job: Job) -> Mapping[str, Any]:
            job.message = f"{order.format}: {len(order.hits)} hits"
            folder = self.jobs.folder_of(job)
            found = self._child("export", arguments | {"folder": str(folder)}, stop=job.stop)
            job.file = folder / found["file"]
            size = job.file.stat().st_size
            return {"file": job.file.name, "bytes": size, "notes": found["notes"]}

        return self.jobs.submit("export", work, request_id)

    def still(self, video: str, time_s: float, width: int) -> bytes:
        """A picture of a video as JPEG; those of late are kept.

        Raises:
            ApiError: there is no such video, or no such picture.
        """
        path = self.served.file(video).path
        key = (video, round(time_s, 1), width)
        with self._stills_lock:
            known = self._stills.get(key)
            if known is not None:
                self._stills.move_to_end(key)
                return known
        with tempfile.TemporaryDirectory(prefix="mrmodel-still-") as folder:
            target = Path(folder) / "still.jpg"
            arguments = {"path": str(path), "time_s": key[1], "width": width}
            self._child("still", arguments | {"target": str(target)})
            content = target.read_bytes()
        with self._stills_lock:
            self._stills[key] = content
            while len(self._stills) > _STILLS:
                self._stills.popitem(last=False)
        return content

    def delete(self, video: str) -> None:
        """Delete an upload.

        Raises:
            ApiError: there is no such video, or it is no upload.
        """
        entry = self.served.file(video)
        upload = self.uploads.of(entry.path)
        if upload is None:
            message = "it was not uploaded here; `mrmodel index remove` takes it from the library"
            raise ApiError(409, "not_uploaded", message)
        Library(self.settings.library).remove([upload.path])
        upload.delete()
        self.refresh()

    def refresh(self) -> None:
        """Serve library and champion as they are now."""
        self.engine.refresh()
        self.metrics.serving(self.served.name)

    def _add(self, upload: Upload, stop: threading.Event) -> schema.Video:
        library = str(self.settings.library.absolute())
        limits = asdict(self.settings.uploads.video)
        arguments = {"library": library, "path": str(upload.path), "limits": limits}
        found = self._child("add", arguments, stop=stop)
        if found["problem"]:
            reason = found["problem"].replace(f"{upload.path.parent}/", "")
            raise ApiError(422, "not_decodable", reason)
        self.refresh()
        entry = self.served.files[self.served.ids[upload.path]]
        if entry.path != upload.path:  # The library had it already.
            self._forget(upload)
        return self.video(entry)

    def _child(
        self, task: str, arguments: Mapping[str, Any], stop: threading.Event | None = None
    ) -> dict[str, Any]:
        """Work on a video; see `run_child`."""
        limits = self.settings.uploads
        seconds = limits.check_s if stop is None else limits.video.timeout_s
        return run_child(
            task, arguments, memory_bytes=limits.memory_bytes, timeout_s=seconds, stop=stop
        )

    def _forget(self, upload: Upload) -> None:
        """Delete an upload that is not to be served."""
        with suppress(LibraryError):  # It is not in the library.
            Library(self.settings.library).remove([upload.path])
        upload.delete()
        self.refresh()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await asyncio.to_thread(self.refresh)
            except MrModelError as error:
                log.error("the library cannot be read again: %s", error)

    def _close(self) -> None:
        self.jobs.close()
        self._searches.close()
        self._files.close()


def _one_thread() -> None:
    torch.set_num_threads(1)
