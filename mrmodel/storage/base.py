"""What a store promises, whatever holds its objects."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mrmodel.errors import StorageError

MAX_KEY_BYTES = 700  # S3 allows 1,024 with the store's prefix.
_OBJECT = re.compile(r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]+)/(?P<key>.+)", re.DOTALL)


@dataclass(frozen=True)
class Object:
    """An object as it was read.

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
        etag: mark of its version, without quotation marks.
        n_bytes: its size.
    """

    url: str
    etag: str
    n_bytes: int


class Store(Protocol):
    """Objects by key.

    A key is a path such as ``runs/7/train.json``; one object is no folder of another. Each write
    is whole or absent, and seen by every read that starts after it.

    Every method raises `StorageError` when the store cannot be reached or refuses.
    """

    @property
    def url(self) -> str:
        """Address of the store, without credentials; `open_store` takes it."""

    def put(
        self, key: str, content: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Write an object and return its tag.

        Of several processes that write a key with `if_absent`, or with one `if_match`, exactly one
        succeeds, also when answers of the server get lost on the way.

        Args:
            key: where.
            content: all of it.
            if_absent: write only when there is no such object.
            if_match: write only over the object that has this tag.

        Raises:
            ConflictError: the condition does not hold; nothing was written.
        """

    def get(self, key: str) -> Object | None:
        """The object, or None when there is none."""

    def exists(self, key: str) -> bool:
        """Whether there is an object of that key."""

    def keys(self, prefix: str = "") -> list[str]:
        """Keys that start with `prefix` (it need not end at a ``/``), sorted."""

    def listing(self, prefix: str = "") -> dict[str, str]:
        """Key -> mark of its version, of the keys that start with `prefix`, sorted by key.

        An object that was written anew has another mark, or the same one where its bytes are the
        same; no content is read for it. In S3 it is the ETag. In a folder it is the file's size
        and the time of its last change, so a file that was only touched counts as changed, and one
        that was replaced by as many bytes with the old time does not. No mark is a tag for `put`.
        """

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens when there is none."""

    def upload(self, key: str, path: Path) -> None:
        """Write a file as an object, in parts when it is large, with its SHA-256."""

    def download(self, key: str, path: Path) -> None:
        """Write an object to a file, atomically, after its SHA-256 was checked.

        Raises:
            StorageError: there is no such object, or its bytes are not those that were uploaded.
        """


def object_address(url: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``; a key may be anything, as in other people's buckets.

    Raises:
        StorageError: it is no such address.
    """
    found = _OBJECT.fullmatch(url)
    if found is None:
        # Not repeated: what stands before the first slash may be a password.
        raise StorageError("s3://...", "the address of an object has the form s3://bucket/key")
    return found["bucket"], found["key"]


def check_key(store: str, key: str) -> str:
    """Return `key`.

    Raises:
        StorageError: it would leave the store, or collide with the files of a `FolderStore`.
    """
    rule = "must be names joined by single '/', none of which starts with '.'"
    parts = key.split("/")
    if not all(parts) or any(part.startswith(".") for part in parts):
        raise StorageError(store, rule, key=key)
    return _check_characters(store, key)


def check_prefix(store: str, prefix: str) -> str:
    """Return `prefix`, which is the beginning of a key or empty; raises as `check_key`."""
    folders, _, start = prefix.rpartition("/")
    if start.startswith(".") or prefix.startswith("/"):
        raise StorageError(store, "no key starts like this", key=prefix)
    if folders:
        check_key(store, folders)
    return _check_characters(store, prefix)


def check_condition(store: str, key: str, if_absent: bool, if_match: str | None) -> None:
    """Refuse a write that must find nothing and something; raises StorageError."""
    if if_absent and if_match is not None:
        raise StorageError(store, "if_absent and if_match exclude each other", key=key)


def _check_characters(store: str, key: str) -> str:
    if len(key.encode()) > MAX_KEY_BYTES:
        raise StorageError(store, f"is longer than {MAX_KEY_BYTES} bytes", key=key[:60] + "...")
    if "\\" in key or not key.isprintable():
        raise StorageError(store, "holds a backslash or an unprintable character", key=key)
    return key
