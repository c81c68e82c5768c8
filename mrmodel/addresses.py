"""Addresses (``scheme://...``): made from paths, told from paths, and shown without passwords."""

from __future__ import annotations

import re
from pathlib import Path

from mrmodel.errors import DataError, VideoError

# What people mistype; a relative folder of such a name, followed by two slashes, is none.
_SCHEMES = (
    *("file", "http", "https", "s3", "gs", "sqlite", "mysql", "mariadb", "mssql"),
    *("postgres", "postgresql"),
)


def sqlite_address(file: Path) -> str:
    """Address of a SQLite database for SQLAlchemy, for a path of any characters.

    Raises:
        DataError: the path is not UTF-8 text.
    """
    from sqlalchemy import URL  # Not installed everywhere that this module is.

    # The driver is named because MLflow makes the folder of whatever follows ``sqlite:///``, still
    # percent-encoded.
    made = URL.create("sqlite+pysqlite", database=str(file.absolute()))
    try:
        return made.render_as_string()
    except UnicodeEncodeError:
        rule = "a folder's name is not UTF-8 text, which a database's address must be; rename it"
        raise DataError(rule, file=file) from None


def scheme_of(text: str) -> str:
    """The scheme of ``scheme://...``, in lower case; empty if `text` is a path.

    Raises:
        ValueError: it is neither; the message is the violated rule.
    """
    if text.startswith(("/", "./", "../", "~")):
        return ""
    scheme, separator, _ = text.partition("://")
    if separator:
        if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) is None:
            raise ValueError("is no address: what stands before :// is no scheme")
        return scheme.lower()
    if ":" in text.partition("/")[0]:
        hint = "a folder of that name is written with ./ in front"
        raise ValueError(f"looks like an address but has no ://; {hint}")
    if "//" in text and text.partition("//")[0].partition("+")[0].lower() in _SCHEMES:
        raise ValueError("looks like an address but has no ://")
    return ""


def video_path(given: str | Path) -> Path:
    """The path of a video file.

    Raises:
        VideoError: it is the address of something that is no file here.
    """
    # A `Path` has lost one of the two slashes of an address.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(given)) and not _exists(Path(given)):
        rule = "addresses are not read, only files and the pointers that `mrmodel data link` writes"
        raise VideoError(shown(str(given)), "unreadable", rule)
    return Path(given)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # Too long for a name.
        return False


def shown(address: str) -> str:
    """An address, also a mistyped one, without user, password and query, for messages."""
    plain = address.partition("?")[0]
    if plain.startswith(("sqlite", "file")):  # These name no user, and a folder may have an @.
        return plain
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*:/+)?.*@", r"\1", plain, flags=re.DOTALL)
