"""A store in a bucket of S3, or of a compatible server.

Relies on behaviour common to SeaweedFS 4.48 and AWS: `If-None-Match: *` and `If-Match` on writes
are exclusive. On a server without them two writers could both succeed.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mrmodel.errors import ConflictError, ObjectChanged, ObjectMissing, StorageError
from mrmodel.files import atomic_path, sha256_of
from mrmodel.storage.base import (
    ENDPOINT_VARIABLE,
    Listed,
    Object,
    Version,
    check_condition,
    check_key,
    check_prefix,
    check_size,
    object_address,
)
from mrmodel.storage.outage import code_of, ride_out, sentence_of

PART_BYTES = 8 << 20
# Read timeout of a part, which is 4 MB at most.
_PART_TIMEOUT_S = 20.0
_T = TypeVar("_T")
_Call = Callable[[], _T]
# Object metadata: SHA-256 of the content, and id of the write.
_DIGEST, _WRITE = "sha256", "write"
# 404: If-Match on a missing key. (AWS responds 409 while another write of the key is in progress.)
_CONFLICTS = {"PreconditionFailed", "412", "NoSuchKey", "404"}
_ABSENT = {"NoSuchKey", "404"}
# Errors on reading a given version; InvalidRange: the object is shorter now.
_CHANGED = {"PreconditionFailed", "412", "InvalidRange", "416"}


class S3Store:
    """Objects below a prefix of a bucket; the tag is the server's ETag."""

    def __init__(self, url: str, endpoint: str | None, patience_s: float) -> None:
        self._bucket, self._prefix = _parts(url)
        self.url = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        self._patience_s = patience_s
        self._bucket_seen = False
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4
        )
        self._client = _client(self.url, endpoint)

    def put(
        self, key: str, content: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Write an object; see `Store.put`."""
        check_condition(self.url, key, if_absent, if_match)
        write = uuid.uuid4().hex
        condition = {"IfNoneMatch": "*"} if if_absent else {"IfMatch": if_match} if if_match else {}
        request = {
            **self._at(key),
            **condition,
            "Body": content,
            "Metadata": {_DIGEST: hashlib.sha256(content).hexdigest(), _WRITE: write},
        }
        try:
            answer = self._ask("put", key, lambda: self._client.put_object(**request))
        except ClientError as error:
            if not condition or code_of(error) not in _CONFLICTS:
                raise self._refusal("put", key, error) from None
            # If the response to our write was lost, the retry conflicts with it.
            there = self._head(key)
            if there is not None and there["Metadata"].get(_WRITE) == write:
                return str(there["ETag"])
            rule = "exists already" if if_absent else "is not the version that was expected"
            raise ConflictError(self.url, key, rule) from None
        return str(answer["ETag"])

    def get(self, key: str) -> Object | None:
        """Read an object; see `Store.get`."""

        def read() -> tuple[bytes, dict[str, Any]]:
            answer = self._client.get_object(**self._at(key))
            return answer["Body"].read(), answer

        try:
            content, answer = self._ask("get", key, read)
        except ClientError as error:
            self._must_be_absent("get", key, error)
            return None
        self._check(key, answer, hashlib.sha256(content).hexdigest())
        return Object(content, str(answer["ETag"]))

    def exists(self, key: str) -> bool:
        """Whether it exists; see `Store.exists`."""
        return self._head(key) is not None

    def keys(self, prefix: str = "") -> list[str]:
        """List keys; see `Store.keys`."""
        return list(self.listing(prefix))

    def listing(self, prefix: str = "") -> dict[str, Version]:
        """List keys with their ETags; see `Store.listing`."""
        start = f"{self._prefix}{check_prefix(self.url, prefix)}"

        def walk() -> dict[str, Version]:
            return {
                row["Key"]: Version(str(row["ETag"]), int(row["Size"])) for row in self._rows(start)
            }

        found = self._answer("list", prefix, walk)
        kept = sorted(key for key in found if not key.endswith("/"))
        return {key.removeprefix(self._prefix): found[key] for key in kept}

    def objects(self) -> list[Listed]:
        """All objects in the store, with any key, sorted by address."""

        def walk() -> list[Listed]:
            return [
                Listed(f"s3://{self._bucket}/{row['Key']}", row["ETag"].strip('"'), row["Size"])
                for row in self._rows(self._prefix)
                if not row["Key"].endswith("/")
            ]

        return sorted(self._answer("list", "", walk), key=lambda listed: listed.url)

    def delete(self, key: str) -> None:
        """Remove an object; see `Store.delete`."""
        self._answer("delete", key, lambda: self._client.delete_object(**self._at(key)))

    def upload(self, key: str, path: Path) -> None:
        """Write a file as an object; see `Store.upload`."""
        if not path.is_file():
            raise StorageError(self.url, f"upload: there is no file {path}", key=key)
        extra = {"Metadata": {_DIGEST: sha256_of(path)}}
        where = self._at(key).values()
        call = self._client.upload_file
        self._answer(
            "upload",
            key,
            lambda: call(str(path), *where, ExtraArgs=extra, Config=self._transfer),
        )

    def download(self, key: str, path: Path, *, most_bytes: int | None = None) -> None:
        """Write an object to a file; see `Store.download`."""
        there = self._head(key)
        if there is None:
            raise StorageError(self.url, "there is no such object", key=key)
        check_size(self.url, key, int(there["ContentLength"]), most_bytes)
        where = self._at(key).values()
        with atomic_path(path) as temporary:
            call = self._client.download_file
            self._answer(
                "download", key, lambda: call(*where, str(temporary), Config=self._transfer)
            )
            self._check(key, there, sha256_of(temporary))

    def _rows(self, start: str) -> Iterator[dict[str, Any]]:
        """Listing entries of the keys with that prefix, page by page."""
        pages = self._client.get_paginator("list_objects_v2")
        for answer in pages.paginate(Bucket=self._bucket, Prefix=start):
            yield from answer.get("Contents", ())

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}{check_key(self.url, key)}"}

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._ask(
                "look", key, lambda: self._client.head_object(**self._at(key))
            )
        except ClientError as error:
            self._must_be_absent("look", key, error)
            return None
        return found

    def _must_be_absent(self, verb: str, key: str, error: ClientError) -> None:
        """Return if only the object is missing; else raise StorageError."""
        if code_of(error) not in _ABSENT:
            raise self._refusal(verb, key, error) from None
        if not self._bucket_seen:  # HEAD does not distinguish a missing key from a missing bucket.
            self._answer("look", key, lambda: self._client.head_bucket(Bucket=self._bucket))
            self._bucket_seen = True

    def _check(self, key: str, there: dict[str, Any], digest: str) -> None:
        expected = there["Metadata"].get(_DIGEST, digest)
        if digest != expected:
            rule = f"its bytes have SHA-256 {digest}, but {expected} was written"
            raise StorageError(self.url, rule, key=key)

    def _answer(self, verb: str, key: str, call: _Call[_T]) -> _T:
        """The response to a request that cannot fail because of the key's state."""
        try:
            return self._ask(verb, key, call)
        except ClientError as error:
            raise self._refusal(verb, key, error) from None

    def _ask(self, verb: str, key: str, call: _Call[_T]) -> _T:
        """The response to a request; `ClientError` if the server rejects it."""
        try:
            return ride_out(f"{self.url}: {verb}", call, self._patience_s)
        except ClientError:
            raise
        except (BotoCoreError, Boto3Error) as error:
            # Not chained: what botocore says may quote the request.
            raise self._refusal(verb, key, error) from None

    def _refusal(self, verb: str, key: str, error: Exception) -> StorageError:
        return StorageError(self.url, f"{verb}: {sentence_of(error)}", key=key)


class S3Object:
    """One version of an object, read in parts; the writer may be external."""

    def __init__(self, version: Listed, endpoint: str | None, patience_s: float) -> None:
        self._bucket, self._key = object_address(version.url)
        self._version, self._patience_s = version, patience_s
        self._client = _shared_client(endpoint, os.getpid())

    def read(self, first: int, count: int) -> bytes:
        """Read `count` bytes from offset `first`; they must lie within the object.

        Raises:
            ObjectMissing: the object no longer exists.
            ObjectChanged: the object has another version now.
            StorageError: the server is unreachable or rejects the request.
        """
        span = f"{first}-{first + count - 1}"

        def get() -> bytes:
            answer = self._client.get_object(
                Bucket=self._bucket,
                Key=self._key,
                Range=f"bytes={span}",
                IfMatch=f'"{self._version.etag}"',
            )
            with closing(answer["Body"]) as body:
                self._check(answer, span)
                return bytes(body.read())

        try:
            return ride_out(f"{self._version.url}: read", get, self._patience_s)
        except (BotoCoreError, Boto3Error, ClientError) as error:
            # Not chained: what botocore says may quote the request.
            raise self._refusal(error) from None

    def _check(self, answer: dict[str, Any], span: str) -> None:
        """Check a response: some servers ignore `If-Match` on reads, or the range."""
        etag = str(answer.get("ETag", "missing")).strip('"')
        found = str(answer.get("ContentRange", "all"))
        total = found.rpartition("/")[2]
        if etag != self._version.etag:
            raise self._error(ObjectChanged, f"its ETag is {etag}, not {self._version.etag}")
        if found != "all" and total != str(self._version.n_bytes):
            raise self._error(ObjectChanged, f"has {total} bytes, not {self._version.n_bytes}")
        if found.partition("/")[0] != f"bytes {span}":
            rule = f"read: the server gave {found!r} where bytes {span} were asked for"
            raise self._error(StorageError, rule)

    def _refusal(self, error: Exception) -> StorageError:
        if isinstance(error, ClientError):
            code = code_of(error)
            if code in _CHANGED:
                return self._error(ObjectChanged, f"its ETag is not {self._version.etag} any more")
            if code in _ABSENT:
                return self._error(ObjectMissing, "there is no such object")
            if code == "NoSuchBucket":
                return self._error(ObjectMissing, "there is no such bucket")
        return self._error(StorageError, f"read: {sentence_of(error)}")

    def _error(self, kind: type[StorageError], rule: str) -> StorageError:
        return kind(f"s3://{self._bucket}", rule, key=self._key)


def _parts(url: str) -> tuple[str, str]:
    """Bucket and prefix (empty, or with a ``/`` at its end) of an S3 address."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if "@" in bucket or "?" in url:
        # Not repeated, because it may contain a password.
        rule = "no credentials in the address, and no ?; boto3 finds them elsewhere"
        raise StorageError("s3://...", rule)
    if not bucket or ":" in bucket:
        raise StorageError(url, "an address has the form s3://bucket/prefix")
    prefix = prefix.strip("/")
    if prefix:
        check_key(url, prefix)
    return bucket, f"{prefix}/" if prefix else ""


@lru_cache(maxsize=2)
def _shared_client(endpoint: str | None, process: int) -> Any:
    """The cached client of a process: creating one takes longer than reading a first part.

    Keyed by `process`, because a forked process must not use the parent's connections.
    """
    # A single attempt of half a minute at most: only `ride_out` retries.
    return _client("s3", endpoint, read_timeout_s=_PART_TIMEOUT_S, tries=1)


def _client(url: str, endpoint: str | None, read_timeout_s: float = 60.0, tries: int = 3) -> Any:
    """A client with its own session: clients are thread-safe, sessions are not."""
    if endpoint is not None and "@" in endpoint:
        raise StorageError(url, "no credentials in the endpoint; boto3 finds them elsewhere")
    if endpoint is not None and not re.fullmatch(r"https?://[^/\s]+/?[^\s?#]*", endpoint):
        rule = f"{ENDPOINT_VARIABLE} = {endpoint!r}: expected an address such as http://host:8333"
        raise StorageError(url, rule)
    config = Config(
        retries={"mode": "standard", "max_attempts": tries},
        connect_timeout=5,
        read_timeout=read_timeout_s,
        # A self-hosted server has no host name per bucket.
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
    except (BotoCoreError, Boto3Error, ValueError) as error:
        raise StorageError(url, f"open: {sentence_of(error)}") from None
