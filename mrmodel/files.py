"""Atomic writes, hashing, JSON and YAML: a killed process leaves complete files or none."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mrmodel.errors import DataError, FileFormatError, OutputError, is_of_the_machine

# Levels of a YAML text.
_DEEPEST = 1000


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path next to `target`; on success rename it to `target`.

    File and folder are synced, so that it outlasts a power failure.

    Raises:
        OutputError: it cannot be written, or is a device or a pipe, which a file would replace.
    """
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            raise OSError(errno.EINVAL, "is no regular file", str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise OutputError(target, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        # mkstemp creates private files; outputs should be readable by all.
        temporary.chmod(0o644)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if is_of_the_machine(error) or str(error.filename) == name:
            raise OutputError(target, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux.


@contextmanager
def replaced_folder(target: Path, *ours: str) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place once the block has ended.

    If the block fails or the process is killed, `target` stays as it is. The next call for it
    removes what a killed process left.

    Args:
        target: the folder, or where it will be. Behind a symbolic link its real place is used.
        *ours: patterns of the names that the block may write. Whatever else the old folder holds
            is the user's, and is in the new one, too.

    Raises:
        OutputError: it cannot be written, or another process is writing it.
    """
    shown, target = target, target.resolve()
    beside = target.parent / f".{target.name}.new"
    new, old = beside / target.name, beside / ".old"
    try:
        if target.exists() and not target.is_dir():
            raise OutputError(shown, FileExistsError())
        beside.mkdir(parents=True, exist_ok=True)
        with locked_folder(beside):
            try:
                if old.exists() and not target.exists():
                    old.rename(target)  # of a process that was killed between two renames
                for left in (new, old):
                    if left.exists():
                        shutil.rmtree(left)
                new.mkdir()
                yield new
                if target.exists():
                    shutil.copymode(target, new)
                    _add_links(target, new, ours)
                sync_folder(new)
                _swap(new, target, old)
                sync_folder(target.parent)
            finally:
                if target.exists() or not old.exists():
                    shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        if is_of_the_machine(error) or _is_below(error.filename, beside):
            raise OutputError(shown, error) from error
        raise


def _is_below(path: object, folder: Path) -> bool:
    return isinstance(path, str) and folder in (Path(path), *Path(path).parents)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a lock on an existing folder, which ends with the process.

    Raises:
        OSError: another process holds it (EWOULDBLOCK), or the folder cannot be opened.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rule = "another process is writing it"
            raise OSError(errno.EWOULDBLOCK, rule, str(folder)) from None
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP):
                raise  # some network file systems have no locks of folders
        yield
    finally:
        os.close(handle)


def _add_links(source: Path, target: Path, without: Iterable[str]) -> None:
    """Link the entries of a folder into another, but those that it has, and some patterns."""
    for entry in source.iterdir():
        own = target / entry.name
        if own.exists() or any(fnmatch(entry.name, pattern) for pattern in without):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, own, symlinks=True, copy_function=link_or_copy)
        else:
            link_or_copy(entry, own)


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """Make `target` a hard link to the file `source`, or a copy where there are no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or no support for links
        shutil.copy2(source, target, follow_symlinks=False)


def _swap(new: Path, target: Path, old: Path) -> None:
    """Put the folder `new` at `target`; whatever is there moves to the place of `new` or `old`."""
    if not target.exists():
        new.rename(target)
        return
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    paths = os.fsencode(new), os.fsencode(target)
    if exchange is not None and exchange(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0:
        return
    # This system or file system cannot exchange two names.
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise


def sync_folder(folder: Path) -> None:
    """Make sure that names in a folder outlast a power failure."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return  # a folder may be writable and not readable
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems do not offer it
            raise
    finally:
        os.close(handle)


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Run the block under an exclusive lock on the file `lock`, across processes."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without its byte order mark if it has one.

    Raises:
        DataError: other bytes; with the line, and the byte's value and column.
        FileFormatError: UTF-16 or UTF-32.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    problem = encoding_problem(content[:4])
    if problem is not None:
        raise FileFormatError(problem, file=path)
    return decode_text(content, path)


def read_yaml(path: Path) -> Any:
    """The value in a YAML file; see `parse_yaml`.

    Raises:
        DataError: it is no UTF-8 text, or see `parse_yaml`.
        OSError: the file cannot be read.
    """
    return parse_yaml(read_text(path), path)


def parse_yaml(text: str, file: Path | str | None = None) -> Any:
    """The value of a YAML text as DVC reads it (YAML 1.2), so what runs is what DVC records.

    ``010`` is 10, ``1e3`` a number, ``1:30`` and ``on`` are texts.

    Args:
        text: one document.
        file: its place, for errors.

    Raises:
        DataError: it is not valid; with the line. Or a key is given twice; with both lines.
    """
    from ruamel.yaml import YAML  # lazy: takes 0.1 s
    from ruamel.yaml.constructor import DuplicateKeyError

    if _is_too_deep(text):
        rule = f"not valid YAML: lists or mappings in more than {_DEEPEST} others"
        raise DataError(rule, file=file)
    try:
        return YAML(typ="safe").load(text)
    except DuplicateKeyError as error:
        name, first, second = _repeated_key(text, error)
        rule = f"the key {name!r} is given twice; it is in line {first} already"
        raise DataError(rule, file=file, line=second) from None
    # A timestamp or a number out of range raises other errors than those of YAML.
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        rule = f"not valid YAML: {' '.join(problem.split())}"
        line = None if mark is None else mark.line + 1
        raise DataError(rule, file=file, line=line) from None


def _is_too_deep(text: str) -> bool:
    """Whether values are nested so deeply that the parser, which is in C, could crash."""
    depth = 0
    for mark in re.findall(r"[][{}]", text):
        depth += 1 if mark in "[{" else -1
        if depth > _DEEPEST:
            return True
    return re.search(rf"(?:[-?][ \t]+){{{_DEEPEST}}}", text) is not None


def _repeated_key(text: str, error: Any) -> tuple[str, int, int]:
    """The key that `error` is about, and the lines where it is first and second."""
    from ruamel.yaml import YAML

    place = error.problem_mark.line, error.problem_mark.column
    nodes, seen = [YAML(typ="safe").compose(text)], set[int]()
    for node in nodes:
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        pairs = node.value if node.id == "mapping" else []
        for number, (key, _) in enumerate(pairs):
            if (key.start_mark.line, key.start_mark.column) == place:
                same = [one for one, _ in pairs[: number + 1] if one.value == key.value]
                return str(key.value), same[0].start_mark.line + 1, place[0] + 1
        nodes += [value for pair in pairs for value in pair]
        nodes += node.value if node.id == "sequence" else []
    return "?", error.context_mark.line + 1, place[0] + 1


def decode_text(content: bytes, path: Path, line: int = 1) -> str:
    """UTF-8 text without a byte order mark; `content` begins at `line` of the file `path`.

    Raises:
        DataError: other bytes, or a NUL byte; with the line, and the byte's value and column.
    """
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        text = content.decode()
        at, remedy = content.find(b"\0"), "the file is damaged"
    except UnicodeDecodeError as error:
        at, remedy = error.start, "save the file as UTF-8"
    if at < 0:
        return text
    before = content[:at]
    column = len(before.rpartition(b"\n")[2].decode()) + 1
    rule = f"not UTF-8 text: byte 0x{content[at]:02x} at column {column}; {remedy}"
    raise DataError(rule, file=path, line=line + before.count(b"\n"))


def encoding_problem(start: bytes) -> str | None:
    """Why a file that starts with these four bytes is no UTF-8 text as a whole; None if it may be.

    Text in UTF-16 or UTF-32 is recognised without a byte order mark, too, as in JSON.
    """
    if start and not start.strip(b"\0"):
        return "the file begins with NUL bytes; it is damaged, or no text"
    found = json.detect_encoding(start)
    if found.startswith("utf-8"):
        return None
    return f"the file is {found[:6].upper()} text; save it as UTF-8"


def stand_in(path: Path) -> str | None:
    """What stands in place of a binary file that cannot be read; None: nothing that is known.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(1024)
    text = head.decode("utf-8-sig", errors="replace").strip()
    if not text:
        return "an empty file"
    # The last character may be cut through.
    if not all(char.isprintable() or char.isspace() for char in text) or "\ufffd" in text[:-3]:
        return None
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (git lfs pull fetches it)"
    if re.search(r"^outs:\s*\n\s*- ", text, re.MULTILINE):
        return "a DVC pointer, not the file itself (dvc pull fetches it)"
    if text.startswith("<"):
        return "a web page or XML, perhaps of an error or a login, not the file itself"
    return f"a text that begins with {text.splitlines()[0][:40]!r}"


# What a zip file may unpack to: its own size times this, and some bytes. Numbers of a model or of
# features compress by far less, and torch writes them uncompressed.
_UNPACKED, _UNPACKED_BYTES = 20, 1 << 24


def require_no_zip_bomb(path: Path) -> None:
    """Check, before a file of torch is read, that it does not unpack to a multiple of its size.

    Raises:
        ValueError: it does.
        BadZipFile: it begins as a zip file, and is none.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > _UNPACKED * size + _UNPACKED_BYTES:
        raise ValueError(f"{size} bytes that unpack to {unpacked}")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it is not UTF-8 or not JSON, or a pointer to the file is in its place.
        OSError: the file cannot be read.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        at_once = isinstance(error, json.JSONDecodeError) and error.pos == 0
        found = stand_in(path) if at_once else None
        hint = f"; it is {found}" if found else ""
        raise DataError(f"not valid JSON: {error}{hint}", file=path) from None


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object; raises as `read_json`, and if it does not.

    Raises:
        DataError: see above.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        kind = "a list" if isinstance(found, list) else repr(found)[:60]
        raise DataError(f"expected a JSON object, found {kind}", file=path)
    return found


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically; NaN is rejected."""
    write_text(target, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_jsonl(target: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object per line, atomically; NaN is rejected."""
    lines = (json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows)
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(lines)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(folder: Path) -> int:
    """Total size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def digest_of(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from (run seed, purpose, item id ...), independent of process and order."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
