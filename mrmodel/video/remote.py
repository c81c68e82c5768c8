"""Videos in S3: a small pointer file stands for the object, which is read in parts.

A pointer, ``<vid>.s3``, names an object and its version: ``{"url": "s3://bucket/lake.mp4", "etag":
"...", "bytes": 123}``. In a folder of videos it counts as a video file; its hash changes with the
version of the object.
"""

from __future__ import annotations

import errno
import io
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mrmodel.config.base import first_mistake
from mrmodel.errors import ObjectChanged, ObjectMissing, StorageError, VideoError
from mrmodel.files import write_json
from mrmodel.storage import Listed, open_object
from mrmodel.storage.base import object_address

POINTER_SUFFIX = ".s3"
# A pointer is far shorter; guards against a video with the suffix of a pointer.
_MOST_BYTES = 1 << 16

BLOCK_BYTES = 256 << 10
# Maximum number of blocks per request: 4 MB.
_LONGEST_RUN = 16
# Blocks in memory: 16 MB, which tolerates audio and video that are loosely interleaved.
_KEPT_BLOCKS = 64


class _Pointer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    url: str
    etag: str = Field(pattern=r"^[!#-~]+$")
    n_bytes: int = Field(alias="bytes", ge=0)


def is_pointer(path: Path) -> bool:
    """Whether a file is a pointer to a video in S3, by its name."""
    return path.suffix.lower() == POINTER_SUFFIX


def read_video_pointer(path: Path) -> Listed:
    """The version of an object that a pointer names.

    Raises:
        VideoError: ``not_found``, ``unreadable``, or ``invalid_pointer``.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except FileNotFoundError as error:
        raise VideoError(path, "not_found", "no such file") from error
    except OSError as error:
        raise VideoError(path, "unreadable", str(error)) from error
    try:
        found = _Pointer.model_validate_json(content)
        object_address(found.url)
    except ValidationError as error:
        mistake = first_mistake(error, "the file")
        detail = f"{mistake}; `mrmodel data link` writes pointers"
        raise VideoError(path, "invalid_pointer", detail) from None
    except StorageError as error:
        raise VideoError(path, "invalid_pointer", f"url: {error.rule}") from None
    return Listed(found.url, found.etag, found.n_bytes)


def write_pointer(path: Path, version: Listed) -> None:
    """Write a pointer atomically; equal versions give equal bytes."""
    write_json(path, {"url": version.url, "etag": version.etag, "bytes": version.n_bytes})


class RemoteVideo:
    """The object of a pointer as a binary file for PyAV, for sequential and random access.

    Sequential reads fetch increasingly large parts, eventually prefetching; a seek fetches a small
    part. So a first frame costs little, and a whole video is fetched about once. Memory is bounded.

    PyAV drops exceptions of a file object, or FFmpeg takes them for its end. So nothing is raised:
    the first error is kept in `error`, after which reads return nothing. Callers must check it.

    Args:
        path: the pointer.
        check: called before each read; the VideoError that it may raise ends reading.

    Attributes:
        name: for FFmpeg, which guesses formats by suffixes and opens what a name says. The owner
            of the bucket chose that of the object.
        error: the error that ended reading; a VideoError if caused by object or server:
            ``not_found``, ``changed`` or ``unreadable``.

    Raises:
        VideoError: see `read_video_pointer`.
        StorageError: no client can be created, for instance because the endpoint is invalid.
    """

    name = "video"

    def __init__(self, path: Path, check: Callable[[], None]) -> None:
        version = read_video_pointer(path)
        self.error: BaseException | None = None
        self._check = check
        self._path, self._n_bytes = path, version.n_bytes
        self._object = open_object(version)
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._run = 1
        self._position = 0
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._ahead: tuple[int, Future[bytes]] | None = None

    def close(self) -> None:
        """Release everything but the error, whose traceback refers to this object."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._blocks.clear()
        self._ahead = None

    def read(self, count: int) -> bytes:
        """At most `count` bytes; none at the end, and none after an error."""
        if self.error is not None or self._position >= self._n_bytes:
            return b""
        try:
            self._check()
            block = self._block(self._position // BLOCK_BYTES)
        # Includes KeyboardInterrupt, which FFmpeg would take for the end of the file.
        except BaseException as error:
            self.error = self._as_video_error(error)
            return b""
        start = self._position % BLOCK_BYTES
        content = block[start : start + count]
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Seek, possibly beyond the end; returns a negative error number of FFmpeg on failure."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._n_bytes}[whence]
        if origin + offset < 0:
            return -errno.EINVAL
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            self._collect()
            if number not in self._blocks:
                self._fetch(number)
            if self._run == _LONGEST_RUN:
                self._read_ahead(number)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _fetch(self, number: int) -> None:
        """Fetch a block, and the following ones if access is sequential."""
        self._run = min(2 * self._run, _LONGEST_RUN) if number - 1 in self._blocks else 1
        self._keep(number, self._object.read(*self._part(number)))

    def _read_ahead(self, number: int) -> None:
        """Prefetch the next part while that of `number` is decoded."""
        while number in self._blocks:
            number += 1
        if number * BLOCK_BYTES < self._n_bytes:
            self._ahead = number, self._thread.submit(self._object.read, *self._part(number))

    def _collect(self) -> None:
        if self._ahead is not None:
            (number, part), self._ahead = self._ahead, None
            self._keep(number, part.result())

    def _part(self, number: int) -> tuple[int, int]:
        """First byte and length of a run of missing blocks."""
        last = number + 1
        while last < number + self._run and last not in self._blocks:
            last += 1
        first = number * BLOCK_BYTES
        return first, min(last * BLOCK_BYTES, self._n_bytes) - first

    def _keep(self, number: int, content: bytes) -> None:
        for place in range(0, len(content), BLOCK_BYTES):
            self._blocks[number + place // BLOCK_BYTES] = content[place : place + BLOCK_BYTES]
        while len(self._blocks) > _KEPT_BLOCKS:
            self._blocks.popitem(last=False)

    def _as_video_error(self, error: BaseException) -> BaseException:
        if not isinstance(error, StorageError):
            return error
        code = "unreadable"
        if isinstance(error, ObjectMissing):
            code = "not_found"
        if isinstance(error, ObjectChanged):
            code = "changed"
        found = VideoError(self._path, code, str(error))
        found.__cause__ = error
        return found
