"""Writing a feature store: shards of rows, then the index, then the manifest."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from mrmodel.errors import FeatureError
from mrmodel.features.index import INDEX_FILE, IndexEntry, IndexRow, write_index
from mrmodel.features.manifest import (
    MANIFEST_FILE,
    Manifest,
    ShardInfo,
    StreamInfo,
    write_manifest,
)
from mrmodel.features.store import Half
from mrmodel.files import sha256_of

SHARD_BYTES = 2 << 30
# Names in a store, with those of a killed writer.
STORE_FILES = (MANIFEST_FILE, INDEX_FILE, "shard-*.npy", "shard-*.npy.tmp", ".*.tmp")
HEADER_BYTES = 128
_ITEM_BYTES = 2


class FeatureWriter:
    """Writes one stream; entries must be in key order, so that bytes depend on content alone.

    A context manager; on an exception no manifest is written, hence no store.

    Args:
        folder: created if needed; an existing store is deleted first (`files.replaced_folder`
            keeps it until the new one is complete).
        info: what the rows are.
        shard_bytes: a shard is closed before it exceeds this size; an item is never
            split, so a single larger item gets a shard of its own.
    """

    def __init__(self, folder: Path, info: StreamInfo, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._info, self._shard_bytes = folder, info, shard_bytes
        self._rows: list[IndexRow] = []
        self._shards: list[ShardInfo] = []
        self._file: BinaryIO | None = None
        self._file_rows = 0
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        for pattern in STORE_FILES:
            for stale in folder.glob(pattern):
                stale.unlink()

    def add(self, entry: IndexEntry, rows: Half) -> None:
        """Store the (n, dim) float16 rows of one item.

        Raises:
            FeatureError: keys are out of order or repeated, or rows have an unexpected shape.
        """
        if self._rows and entry.key <= self._rows[-1].entry.key:
            last = self._rows[-1].entry.key
            raise FeatureError(f"{self._folder}: key {entry.key!r} after {last!r}: not in order")
        if rows.shape != (entry.n_rows, self._info.dim) or rows.dtype != "float16":
            expected = (entry.n_rows, self._info.dim)
            found = f"{rows.dtype} {rows.shape}"
            raise FeatureError(f"{self._folder}: {entry.key!r} is {found}, not float16 {expected}")
        if entry.n_rows == 0:
            self._rows.append(IndexRow(entry, shard=-1, row_offset=0))
            return
        file = self._shard_with_room(entry.n_rows)
        self._rows.append(IndexRow(entry, len(self._shards), self._file_rows))
        file.write(np.ascontiguousarray(rows).data)
        self._file_rows += entry.n_rows

    def close(self) -> Manifest:
        """Finish the last shard, then write the index and, last, the manifest."""
        self._finish_shard()
        write_index(self._folder, self._rows)
        return write_manifest(self._folder, self._info, self._shards)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()
            Path(self._file.name).unlink(missing_ok=True)

    def _shard_with_room(self, n_rows: int) -> BinaryIO:
        row_bytes = self._info.dim * _ITEM_BYTES
        size = HEADER_BYTES + (self._file_rows + n_rows) * row_bytes
        if self._file is not None and size > self._shard_bytes:
            self._finish_shard()
        if self._file is None:
            name = f"shard-{len(self._shards):05d}.npy.tmp"
            self._file = (self._folder / name).open("wb")
            self._file.write(bytes(HEADER_BYTES))
        return self._file

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        # The number of rows is known only now; space for the header was reserved.
        self._file.seek(0)
        self._file.write(npy_header(self._file_rows, self._info.dim))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        temporary = Path(self._file.name)
        final = temporary.with_suffix("")
        temporary.replace(final)
        self._shards.append(
            ShardInfo(file=final.name, rows=self._file_rows, sha256=sha256_of(final))
        )
        self._file, self._file_rows = None, 0


def npy_header(rows: int, dim: int) -> bytes:
    """The .npy 1.0 header of a (rows, dim) little-endian float16 array, always 128 bytes."""
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    body = text.encode("ascii").ljust(HEADER_BYTES - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body
