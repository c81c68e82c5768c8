"""Checks of sentences before anything is decoded for them, and what is not read of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mrmodel.errors import DataError
from mrmodel.text import is_visible
from mrmodel.types import QueryResult

# Python's stand-ins for bytes of the command line that are not UTF-8: 0xdc80 to 0xdcff.
_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF


def check_queries(queries: Iterable[str]) -> None:
    """Raise unless every query is a sentence that UTF-8 can encode.

    Raises:
        DataError: with the number of the first other one, from 1; or `queries` is one text.
    """
    if isinstance(queries, str):
        raise DataError(f"queries = {queries!r:.60}: expected a list of sentences")
    for number, query in enumerate(queries, start=1):
        if not is_visible(query):
            rule = "is empty, or has only characters that show nothing; expected a sentence"
            raise DataError(f"query {number} {rule}")
        try:
            query.encode()
        except UnicodeEncodeError as error:
            code = ord(query[error.start])
            found = f"holds \\u{code:04x}, half of a surrogate pair"
            if _FIRST_BYTE <= code <= _LAST_BYTE:
                found = f"is not valid UTF-8: byte 0x{code - _FIRST_BYTE + 0x80:02x}"
            place = f"at character {error.start + 1} of {ascii(query)[:60]}"
            raise DataError(f"query {number} {found} {place}; write it as UTF-8") from None


def unread_note(result: QueryResult, languages: Sequence[str]) -> str:
    """The note about a query that the text encoder does not read as a whole."""
    reads = f" (it reads {', '.join(languages)})" if languages else ""
    if result.unread_tokens == 1.0:
        found = "none of it: the answer has nothing to do with the query"
    else:
        share = f"{100 * (1 - result.unread_tokens):.0f} % of its tokens"
        found = f"only {share}: the answer does not depend on the others"
    return f"query {result.query!r}: the text encoder{reads} can read {found}"
