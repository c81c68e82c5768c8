"""The interface and guarantees of a store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mrmodel.errors import StorageError

ENDPOINT_VARIABLE = "MRMODEL_S3_ENDPOINT"
MAX_KEY_BYTES = 700  # S3 allows 1,024 including the store's prefix.
_OBJECT = re.compile(r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]+)/(?P<key>.+)", re.DOTALL)


@dataclass(frozen=True)
class Object:
    """An object that was read.

    Args:
        content: its bytes.
        tag: its version, for `put(if_match=...)`. Equal contents may have equal tags.
    """

    content: bytes
    tag: str


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing.

    Attributes:
        url: ``s3://bucket/key``.
        etag: ETag of its version, without quotation marks.
        n_bytes: its size.
    """

    url: str
    etag: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an object in a listing.

    Attributes:
        mark: changes when the object is rewritten, except perhaps with the same bytes. In S3 it is
            the ETag, in a folder the file's size and modification time, so a touched file counts
            as changed, and one replaced by as many bytes with the old time does not. It is no tag
            for `Store.put`.
        n_bytes: its size.
    """

    mark: str
    n_bytes: int


class Store(Protocol):
    """Objects by key.

    A key is a path such as ``runs/7/train.json``; no key is a folder of another. Each write is
    atomic, and visible to every read that starts after it.

    Every method raises `StorageError` if the store is unreachable or rejects the request.
    """

    @property
    def url(self) -> str:
        """Address of the store for `open_store`, without credentials."""

    def put(
        self, key: str, content: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Write an object and return its tag.

        Of several processes that write a key with `if_absent`, or with the same `if_match`, exactly
        one succeeds, even if responses of the server are lost.

        Args:
            key: the object's key.
            content: the whole content.
            if_absent: write only if there is no such object.
            if_match: write only if the current object has this tag.

        Raises:
            ConflictError: the condition does not hold; nothing was written.
        """

    def get(self, key: str) -> Object | None:
        """Read the object; None if there is none."""

    def exists(self, key: str) -> bool:
        """Whether the object exists."""

    def keys(self, prefix: str = "") -> list[str]:
        """Keys that start with `prefix` (not necessarily up to a ``/``), sorted."""

    def listing(self, prefix: str = "") -> dict[str, Version]:
        """Key -> version, for the keys that start with `prefix`, sorted by key; reads no content.

        In a folder, a file that cannot be looked at is listed all the same, with 0 bytes.
        """

    def delete(self, key: str) -> None:
        """Remove an object if it exists."""

    def upload(self, key: str, path: Path) -> None:
        """Upload a file with its SHA-256, in parts if it is large."""

    def download(self, key: str, path: Path, *, most_bytes: int | None = None) -> None:
        """Download an object to a file, atomically, after checking its SHA-256.

        Args:
            key: of the object.
            path: of the file.
            most_bytes: a larger object is not written; None: one of any size is.

        Raises:
            StorageError: there is no such object, it is larger than `most_bytes`, or its bytes are
                not those that were uploaded.
        """


def object_address(url: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``; any key is allowed, as in external buckets.

    Raises:
        StorageError: the address is invalid.
    """
    found = _OBJECT.fullmatch(url)
    if found is None:
        # Not repeated: the part before the first slash may be a password.
        raise StorageError("s3://...", "the address of an object has the form s3://bucket/key")
    return found["bucket"], found["key"]


def check_size(store: str, key: str, n_bytes: int, most_bytes: int | None) -> None:
    """See `Store.download`.

    Raises:
        StorageError: the object is larger than that.
    """
    if most_bytes is not None and n_bytes > most_bytes:
        raise StorageError(
            store, f"has {n_bytes} bytes, more than the {most_bytes} before", key=key
        )


def check_key(store: str, key: str) -> str:
    """Validate and return `key`.

    Raises:
        StorageError: it would leave the store, or collide with the files of a `FolderStore`.
    """
    rule = "must be names joined by single '/', none of which starts with '.'"
    parts = key.split("/")
    if not all(parts) or any(part.startswith(".") for part in parts):
        raise StorageError(store, rule, key=key)
    return _check_characters(store, key)


def check_prefix(store: str, prefix: str) -> str:
    """Validate and return `prefix`, the beginning of a key or empty; raises as `check_key`."""
    folders, _, start = prefix.rpartition("/")
    if start.startswith(".") or prefix.startswith("/"):
        raise StorageError(store, "no key starts like this", key=prefix)
    if folders:
        check_key(store, folders)
    return _check_characters(store, prefix)


def check_condition(store: str, key: str, if_absent: bool, if_match: str | None) -> None:
    """Raise StorageError if both conditions of a write are given."""
    if if_absent and if_match is not None:
        raise StorageError(store, "if_absent and if_match exclude each other", key=key)


def _check_characters(store: str, key: str) -> str:
    if "\\" in key or not key.isprintable():
        raise StorageError(store, "holds a backslash or an unprintable character", key=key[:200])
    if len(key.encode()) > MAX_KEY_BYTES:
        raise StorageError(store, f"is longer than {MAX_KEY_BYTES} bytes", key=key[:60] + "...")
    return key
