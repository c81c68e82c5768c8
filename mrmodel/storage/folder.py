"""A store in a folder, for one machine or a shared disk."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from mrmodel.errors import ConflictError, StorageError
from mrmodel.files import atomic_path, one_at_a_time, sha256_of
from mrmodel.storage.base import (
    Object,
    Version,
    check_condition,
    check_key,
    check_prefix,
    check_size,
)

# Writers of a key hold one of 256 file locks. The files are kept, because removing a lock while
# another process waits for it breaks mutual exclusion.
LOCKS = ".locks"
_CHUNK_BYTES = 1 << 20


class FolderStore:
    """Objects as files below a folder; the tag is the SHA-256 of the content."""

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()
        self.url = str(self._root)

    def put(
        self, key: str, content: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Write an object; see `Store.put`."""
        check_condition(self.url, key, if_absent, if_match)
        with self._writing(key) as target:
            if if_absent and target.exists():
                raise ConflictError(self.url, key, "exists already")
            if if_match is not None and not (target.is_file() and sha256_of(target) == if_match):
                raise ConflictError(self.url, key, "is not the version that was expected")
            with atomic_path(target) as temporary:
                temporary.write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    def get(self, key: str) -> Object | None:
        """Read an object; see `Store.get`."""
        with self._errors(key):
            try:
                content = self._path(key).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None
        return Object(content, hashlib.sha256(content).hexdigest())

    def exists(self, key: str) -> bool:
        """Whether it exists; see `Store.exists`."""
        with self._errors(key):
            return self._path(key).is_file()

    def keys(self, prefix: str = "") -> list[str]:
        """List keys; see `Store.keys`."""
        folder = self._root / check_prefix(self.url, prefix).rpartition("/")[0]
        with self._errors(prefix):
            return sorted(key for key in self._walk(folder) if key.startswith(prefix))

    def listing(self, prefix: str = "") -> dict[str, Version]:
        """Keys with size and modification time; see `Store.listing`."""
        found = {}
        for key in self.keys(prefix):
            try:
                state = (self._root / key).stat()
            except FileNotFoundError:  # Deleted since it was listed.
                continue
            except OSError:  # A link to itself, a closed folder: one file must not hide the others.
                found[key] = Version("cannot be read", 0)
            else:
                found[key] = Version(f"{state.st_size}-{state.st_mtime_ns}", state.st_size)
        return found

    def delete(self, key: str) -> None:
        """Remove an object; see `Store.delete`. Empty folders are kept."""
        with self._writing(key) as target:
            if target.is_file():
                target.unlink()

    def upload(self, key: str, path: Path) -> None:
        """Copy a file into the store; see `Store.upload`."""
        with self._writing(key) as target, atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)

    def download(self, key: str, path: Path, *, most_bytes: int | None = None) -> None:
        """Copy an object to a file; see `Store.download`. The SHA-256 is not checked.

        No link in the folder is followed: somebody else may have placed it there.
        """
        if not self.exists(key):
            raise StorageError(self.url, "there is no such object", key=key)
        with ExitStack() as files:
            with self._errors(key):
                source = files.enter_context(self._open(key))
            left = os.fstat(source.fileno()).st_size
            check_size(self.url, key, left, most_bytes)
            # Outside of `_errors`: a full disk here is no fault of the store.
            target = files.enter_context(files.enter_context(atomic_path(path)).open("wb"))
            # No more than that: somebody else may write on and on.
            while left > 0 and (chunk := source.read(min(left, _CHUNK_BYTES))):
                target.write(chunk)
                left -= len(chunk)

    def _path(self, key: str) -> Path:
        return self._root / check_key(self.url, key)

    def _open(self, key: str) -> BinaryIO:
        """A regular file, opened without following a link below the root."""
        *folders, name = check_key(self.url, key).split("/")
        # A pipe would wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        here = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for folder in folders:
                below = os.open(folder, flags | os.O_DIRECTORY, dir_fd=here)
                os.close(here)
                here = below
            file = os.open(name, flags, dir_fd=here)
        except OSError as error:
            # A link is ELOOP, one in place of a folder ENOTDIR.
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise StorageError(self.url, "is a link; store the file itself", key=key) from error
        finally:
            os.close(here)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise StorageError(self.url, "is no regular file", key=key)
        return os.fdopen(file, "rb")

    def _walk(self, folder: Path) -> Iterator[str]:
        # Not `os.walk`, which calls itself for every level: somebody else makes the folders.
        left = [str(folder)]
        while left:
            try:
                entries = list(os.scandir(left.pop()))
            except OSError:  # Removed meanwhile, closed, or its path is too long.
                continue
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not _is_folder(entry):
                    yield Path(entry.path).relative_to(self._root).as_posix()
                elif not entry.is_symlink():
                    left.append(entry.path)

    @contextmanager
    def _writing(self, key: str) -> Iterator[Path]:
        """Lock a key for writing and yield its path."""
        path = self._path(key)
        stripe = hashlib.sha256(key.encode()).hexdigest()[:2]
        with self._errors(key), one_at_a_time(self._root / LOCKS / stripe):
            yield path

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            place = "" if error.filename is None else f": {error.filename}"
            raise StorageError(self.url, f"{error.strerror or error}{place}", key=key) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False
