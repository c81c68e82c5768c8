"""Object stores in S3 or in a folder, with conditional writes.

`open_store` returns the `Store` at an address. Both kinds behave alike, which a conformance suite
checks (tests/storage/test_conformance.py); a folder on a shared disk needs no server.
`list_objects` and `open_object` find external objects in a bucket and read them in parts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mrmodel.addresses import scheme_of, shown
from mrmodel.errors import StorageError
from mrmodel.storage.base import ENDPOINT_VARIABLE, Listed, Object, Store, Version
from mrmodel.storage.folder import FolderStore

if TYPE_CHECKING:
    from mrmodel.storage.s3 import S3Object

__all__ = [
    "FolderStore",
    "Listed",
    "Object",
    "Store",
    "Version",
    "list_objects",
    "open_object",
    "open_store",
]

PATIENCE_S = 60.0


def open_store(
    url: str,
    endpoint: str | None = None,
    patience_s: float = PATIENCE_S,
    variable: str | None = None,
) -> Store:
    """The store at `url`.

    Credentials come from boto3's chain (environment, ~/.aws, instance role), never from the
    address. Sends no request yet.

    Args:
        url: ``s3://bucket/prefix``, a folder, or its ``file://`` address.
        endpoint: address of an S3 server; `MRMODEL_S3_ENDPOINT` when None, AWS when that is unset.
        patience_s: seconds for which calls retry while an S3 server is unavailable.
        variable: the environment variable that holds `url`, for messages.

    Raises:
        StorageError: the address is invalid.
    """
    try:
        return _open_store(url, endpoint, patience_s)
    except StorageError as error:
        if variable is None:
            raise
        raise StorageError(f"{variable} = {shown(url)!r}", error.rule, key=error.key) from None


def _open_store(url: str, endpoint: str | None, patience_s: float) -> Store:
    scheme = _scheme(url)
    if scheme == "s3":
        # Lazy: boto3 takes a third of a second to import, and a folder does not need it.
        from mrmodel.storage.s3 import S3Store

        return S3Store(url, endpoint or _endpoint(), patience_s)
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise StorageError(url, "a file:// address has three slashes: file:///folder")
        if parts.query or parts.fragment or url.endswith(("?", "#")):
            raise StorageError(url, "in a file:// address, ? is written %3F and # is written %23")
        return FolderStore(Path(unquote(parts.path)))
    if scheme or not url:
        raise StorageError(
            repr(shown(url)), "a store is s3://bucket/prefix, a folder or file:///folder"
        )
    return FolderStore(Path(url))


def open_object(version: Listed, patience_s: float = PATIENCE_S) -> S3Object:
    """Open one version of an object, to be read in parts.

    Server and credentials as in `open_store`. Sends no request yet.

    Args:
        version: the object and its version.
        patience_s: seconds for which reads retry while the server is unavailable.

    Raises:
        StorageError: the address is invalid.
    """
    from mrmodel.storage.s3 import S3Object

    return S3Object(version, _endpoint(), patience_s)


def list_objects(url: str) -> list[Listed]:
    """List all objects below ``s3://bucket/folder``, recursively, sorted by address.

    Server and credentials as in `open_store`.

    Raises:
        StorageError: the address is invalid, or the server is unreachable or rejects the request.
    """
    if _scheme(url) != "s3":
        raise StorageError(repr(shown(url)), "expected an address of the form s3://bucket/folder")
    from mrmodel.storage.s3 import S3Store

    return S3Store(url, _endpoint(), PATIENCE_S).objects()


def _scheme(url: str) -> str:
    try:
        return scheme_of(url)
    except ValueError as error:
        raise StorageError(repr(shown(url)), str(error)) from None


def _endpoint() -> str | None:
    return os.environ.get(ENDPOINT_VARIABLE) or None
