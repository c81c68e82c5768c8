"""Reading people's text files line by line, and JSON lines: one object on each line.

Lines end as in Unix, Windows or old Mac files, and nowhere else: other separators of Unicode may
stand inside JSON strings. A byte order mark is dropped at the start of a file, and of a line of ids
or JSON, where joined files leave it.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mrmodel.errors import DataError, FileFormatError
from mrmodel.files import decode_text, encoding_problem, read_text
from mrmodel.text import shortened

_MARK = b"\xef\xbb\xbf"
# Escapes in JSON of the two halves of a surrogate pair. UTF-8 itself cannot hold a half.
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_SHOWN = 60
# Bytes of a line, which is read as a whole. One about every clip of a day takes a megabyte.
_LONGEST = 16 << 20
# Bytes of a file that is read as a whole, to see whether it is one JSON value.
_WHOLE = 256 << 20


class JsonLine(NamedTuple):
    """A line that is not blank.

    Attributes:
        number: counted from 1.
        raw: its bytes, without white space around them.
        record: its object; or the error, with file and line, where it is none.
    """

    number: int
    raw: bytes
    record: dict[str, Any] | DataError


def byte_lines(path: Path) -> Iterator[bytes]:
    """All lines of a file, without their ends; memory does not grow with the file.

    Files named ``.gz``, ``.zst`` or ``.zstd`` are decompressed.

    Raises:
        DataError: the file cannot be read, or its compressed data are cut off; with the line.
        FileFormatError: it is not UTF-8 text as a whole, for instance UTF-16, or a line is longer
            than any that this project reads.
    """
    line = 0
    try:
        with _opened(path) as file:
            for content in _lines_of(file, path):
                line += 1
                yield content
    except FileNotFoundError:
        raise DataError("no such file", file=path) from None
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"cannot be read: {error.strerror}", file=path) from None
        rule = f"the compressed file is damaged or cut off after line {line}: {error}"
        raise DataError(rule, file=path, line=line + 1) from None


def _opened(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix in (".zst", ".zstd"):
        import pyarrow as pa  # lazy: takes 0.1 s

        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    return path.open("rb")


def _lines_of(file: Any, path: Path) -> Iterator[bytes]:
    problem = encoding_problem(file.peek(4)[:4])
    if problem is not None:
        raise FileFormatError(problem, file=path)
    # Not by a seek: the file may be a pipe.
    chunk, rest = file.readline(_LONGEST).removeprefix(_MARK), b""
    while chunk:
        chunk, rest = rest + chunk, b""
        lines = chunk.splitlines()
        if not chunk.endswith(b"\n"):
            # It goes on, or ends as in old Mac files, perhaps between \r and \n.
            rest = chunk.splitlines(keepends=True)[-1]
            lines.pop()
        yield from lines
        if len(rest) > _LONGEST:
            rule = f"a line has more than {_LONGEST >> 20} MiB; expected a record a line"
            raise FileFormatError(rule, file=path)
        chunk = file.readline(_LONGEST)
    yield from rest.splitlines()


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8 text.
    """
    for number, raw in enumerate(byte_lines(path), start=1):
        if raw.strip():
            yield number, decode_text(raw, path, number)


def json_lines(path: Path, *, nan: bool = False) -> Iterator[JsonLine]:
    """The lines of a file with one JSON object a line; goes on after a line that is none.

    Every string of an object is text that UTF-8 can encode.

    Args:
        path: the file.
        nan: accept NaN and Infinity, which are not JSON.

    Raises:
        DataError: the file cannot be read.
        FileFormatError: it is not UTF-8 text, or one JSON value over several lines.
    """
    first = True
    for number, line in enumerate(byte_lines(path), start=1):
        raw = line.removeprefix(_MARK)
        if not raw.strip():
            continue
        record: dict[str, Any] | DataError
        try:
            record = _object(raw, path, number, nan)
        except DataError as error:
            if first and path.is_file():  # a pipe cannot be read again
                _refuse_one_value(path)
            record = error
        first = False
        yield JsonLine(number, raw.strip(), record)


def _object(raw: bytes, path: Path, number: int, nan: bool) -> dict[str, Any]:
    def fault(rule: str) -> DataError:
        return DataError(rule, file=path, line=number)

    def refuse_constant(name: str) -> None:
        raise fault(f"{name} is not a JSON number")

    text = decode_text(raw, path, number)
    try:
        record = json.loads(text, parse_constant=None if nan else refuse_constant)
        half = _half_a_pair(record) if _HALF.search(raw) else None
    except json.JSONDecodeError as error:
        rule = f"not valid JSON: {error.msg} at column {error.colno}"
        raise fault(f"{rule}; expected one JSON object a line") from None
    except (RecursionError, ValueError) as error:
        raise fault(f"not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise fault(f"expected a JSON object, found {_kind(record)}")
    if half is not None:
        raise fault(half).at(path, number, record.get("qid"))
    return record


def _half_a_pair(record: Any) -> str | None:
    """The rule that a field with half of a surrogate pair breaks; None where there is none."""
    for key, value in record.items() if isinstance(record, dict) else ():
        try:
            json.dumps([key, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            shown = shortened(json.dumps(value), _SHOWN)
            half = ascii(error.object[error.start]).strip("'")
            rule = f"holds {half}, half of a surrogate pair, which is no character"
            return f"{json.dumps(key)[1:-1]} = {shown}: {rule}"
    return None


def _refuse_one_value(path: Path) -> None:
    """Raise where a file, whose first line is no object, is one JSON value over several lines.

    Raises:
        FileFormatError: says so, and how to convert it.
    """
    if path.stat().st_size > _WHOLE:
        return
    try:
        text = read_text(path)
    except DataError:
        return
    start = len(text) - len(text.lstrip())
    kind = "array" if text.startswith("[", start) else "object"
    wanted = "expected one JSON object a line"
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as error:
        if _begins_a_long_value(text[start:]):
            place = f"line {error.lineno}, column {error.colno}"
            rule = f"is one JSON {kind} over several lines, and not valid: {error.msg} at {place}"
            raise FileFormatError(f"the file {rule}; {wanted}", file=path) from None
        return
    except (RecursionError, ValueError):
        return
    rest = text[end:].strip()
    is_long = isinstance(value, list | dict) and len(text[start:end].splitlines()) > 1
    if isinstance(value, list) and not rest:
        rule, way = f"is one JSON array of {len(value)} values", "jq -c '.[]'"
    elif is_long and rest:
        rule, way = f"holds JSON {kind}s over several lines", "jq -c ."
    elif is_long:
        rule, way = "is one JSON object over several lines", "jq -c . (or '.[]', for its values)"
    else:
        return
    raise FileFormatError(f"the file {rule}; {wanted}; convert it: {way}", file=path)


def _begins_a_long_value(text: str) -> bool:
    """Whether a damaged text looks like one value over several lines, not like JSON lines."""
    first, second = ([line for line in text.splitlines() if line.strip()] + ["", ""])[:2]
    if not first.startswith("[") and first.strip() != "{":
        return False
    try:
        return bool(second) and not isinstance(json.loads(second), dict)
    except (RecursionError, ValueError):
        return True


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
