"""Uploads: one file of a form, checked in a process with limits, in a folder of the library."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mrmodel.data.ingest.videos import VIDEO_SUFFIXES
from mrmodel.server.child import run_child
from mrmodel.server.errors import ApiError
from mrmodel.server.settings import UploadLimits

FOLDER = "uploads"
# Of files that have not arrived or been accepted.
_ARRIVING = ".arriving-"
_FIELD = "file"
# Bytes of a file name.
_LONGEST_NAME = 200
_NO_NAME = re.compile(r"[\x00-\x1f\x7f/\\]|^\.|^\s*$")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was accepted; it is alone in its folder."""

    path: Path

    def delete(self) -> None:
        """Delete it with its folder."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


class Uploads:
    """The uploads of a library.

    Args:
        library: its folder.
        limits: of each file.
    """

    def __init__(self, library: Path, limits: UploadLimits) -> None:
        self._folder, self._limits = library.absolute() / FOLDER, limits
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(f"{_ARRIVING}*"):  # of a server that was killed
            left.unlink()

    def of(self, path: Path) -> Upload | None:
        """The upload that a file of the library is; None: it was added from elsewhere."""
        return Upload(path) if path.parent.parent == self._folder else None

    def all(self) -> list[Upload]:
        """All that were accepted."""
        return [Upload(path) for path in sorted(self._folder.glob("[!.]*/*"))]

    async def receive(self, content_type: str, body: AsyncIterator[bytes]) -> tuple[Path, str]:
        """Write the file of a form; returns where it is and its name.

        Args:
            content_type: of the request.
            body: in parts.

        Raises:
            ApiError: the form is not one of exactly one file, or the file has no usable name.
        """
        path = self._folder / f"{_ARRIVING}{secrets.token_hex(10)}"
        try:
            with path.open("xb") as file:
                form = _Form(content_type, file)
                async for part in body:
                    form.write(part)
                return path, form.finish()
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def accept(self, path: Path, name: str) -> Upload:
        """Check a file that arrived, and keep it under its name; it is deleted otherwise.

        Raises:
            ApiError: it is no video, or beyond a limit.
        """
        limits = self._limits
        arguments = {"path": str(path), "limits": asdict(limits.video)}
        try:
            run_child(
                "check", arguments, memory_bytes=limits.memory_bytes, timeout_s=limits.check_s
            )
            # In the order of uploads: of two files with one content the library names the first.
            folder = self._folder / f"{time.time_ns():016x}-{secrets.token_hex(4)}"
            folder.mkdir()
            return Upload(path.rename(folder / name))
        except ApiError as error:
            raise ApiError(
                error.status_code, error.code, error.message.replace(path.name, name)
            ) from error
        finally:
            path.unlink(missing_ok=True)


class _Form:
    """Parses a form as it comes, and writes its only part, a file; the parser limits its headers.

    Args:
        content_type: of the request.
        file: takes the bytes.
    """

    def __init__(self, content_type: str, file: IO[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise ApiError(415, "no_form", "expected multipart/form-data with one file")
        self._file = file
        self._header: dict[bytes, bytes] = {}
        self._field = self._value = b""
        self._name: str | None = None
        self._parts = 0
        self._ended = False
        callbacks: Any = {
            "on_part_begin": self._part,
            "on_header_field": self._add_field,
            "on_header_value": self._add_value,
            "on_header_end": self._header_ended,
            "on_headers_finished": self._headers_ended,
            "on_part_data": self._data,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise _damaged(f": {error}") from error

    def write(self, part: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(part)
        except FormParserError as error:
            raise _damaged(f": {error}") from error

    def finish(self) -> str:
        """The name of the file."""
        if self._name is None or not self._ended:
            raise _damaged()
        return self._name

    def _part(self) -> None:
        self._parts += 1
        if self._parts > 1:
            raise ApiError(400, "too_many_parts", "the form has more than one part")

    def _add_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ended(self) -> None:
        self._header[self._field.lower()] = self._value
        self._field = self._value = b""

    def _headers_ended(self) -> None:
        given = self._header.get(b"content-disposition", b"")
        _, options = parse_options_header(given)
        if options.get(b"name") != _FIELD.encode() or b"filename" not in options:
            raise ApiError(400, "bad_form", f"expected one part, a file named {_FIELD}")
        self._name = _checked_name(options[b"filename"])

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._file.write(data[start:end])

    def _end(self) -> None:
        self._ended = True


def _damaged(reason: str = "") -> ApiError:
    return ApiError(400, "bad_form", f"the form is damaged, or ends early{reason}")


def _checked_name(given: bytes) -> str:
    """A name for a file.

    Raises:
        ApiError: it is a path, or no name of a video.
    """
    try:
        name = given.decode()
    except UnicodeDecodeError:
        raise ApiError(400, "bad_name", "the file's name is not UTF-8") from None
    if _NO_NAME.search(name) or len(given) > _LONGEST_NAME:
        rule = f"a file's name has no / and no \\, and at most {_LONGEST_NAME} bytes"
        raise ApiError(400, "bad_name", rule)
    if Path(name).suffix.lower() not in VIDEO_SUFFIXES:
        kinds = " ".join(sorted(VIDEO_SUFFIXES))
        raise ApiError(415, "unknown_container", f"{name}: expected a name that ends in {kinds}")
    return name
