"""Objects by key, in S3 or in a folder, with writes that may depend on what is there.

`open_store` turns an address into a `Store`. Both kinds behave alike, which one suite of tests
checks (tests/test_storage.py); a folder on a disk that all processes share needs no server.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mrmodel.errors import StorageError
from mrmodel.storage.base import Object, Store
from mrmodel.storage.folder import FolderStore

__all__ = ["FolderStore", "Object", "Store", "open_store"]

ENDPOINT_VARIABLE = "MRMODEL_S3_ENDPOINT"
PATIENCE_S = 60.0


def open_store(url: str, endpoint: str | None = None, patience_s: float = PATIENCE_S) -> Store:
    """The store at `url`.

    Credentials come from boto3's chain (environment, ~/.aws, the role of the machine), never from
    the address. Nothing is asked of the server yet.

    Args:
        url: ``s3://bucket/prefix``, a folder, or its ``file://`` address.
        endpoint: address of an S3 server; `MRMODEL_S3_ENDPOINT` when None, AWS when that is unset.
        patience_s: seconds for which an S3 server may be away before a call gives up.

    Raises:
        StorageError: the address is none of these.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme == "s3":
        # boto3 takes a third of a second to import, and a folder does not need it.
        from mrmodel.storage.s3 import S3Store

        return S3Store(url, endpoint or os.environ.get(ENDPOINT_VARIABLE) or None, patience_s)
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise StorageError(url, "a file:// address has three slashes: file:///folder")
        return FolderStore(Path(unquote(parts.path)))
    if scheme or not url:
        # What stands before an unknown scheme's host may be a password, so it is not repeated.
        raise StorageError(
            repr(scheme), "a store is s3://bucket/prefix, a folder or file:///folder"
        )
    return FolderStore(Path(url))
