"""Rows of a library: shards that grow at their ends, and all rows of a stream as a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrmodel.errors import LibraryError, OutputError
from mrmodel.features.manifest import StreamInfo
from mrmodel.features.store import Half, Ints, RowTable
from mrmodel.features.writer import HEADER_BYTES, npy_header
from mrmodel.files import sync_folder

Lengths = NDArray[np.float32]

_ITEM_BYTES = 2


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard of a feature store, of which only the first rows may count.

    Attributes:
        path: of the .npy file.
        dim: channels of a row.
    """

    path: Path
    dim: int

    def bytes_of(self, count: int) -> int:
        """Size of the file with `count` rows."""
        return HEADER_BYTES + count * self.dim * _ITEM_BYTES

    def append(self, count: int, parts: Iterable[Half]) -> int:
        """Write (n, dim) parts behind the first `count` rows; the header stays as it is.

        Returns:
            All rows.

        Raises:
            OutputError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if count else "w+b") as file:
                file.seek(self.bytes_of(count))
                for part in parts:
                    file.write(np.ascontiguousarray(part).data)
                    count += len(part)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self.path.parent)
        except OSError as error:
            raise OutputError(self.path, error) from error
        return count

    def keep(self, count: int) -> None:
        """Cut the file after `count` rows, and let its header say so.

        Raises:
            LibraryError: it has fewer.
        """
        if not self.path.exists() or self.path.stat().st_size < self.bytes_of(count):
            raise self._damaged()
        with self.path.open("r+b") as file:
            file.truncate(self.bytes_of(count))
            file.write(npy_header(count, self.dim))

    def rows(self, count: int) -> Half:
        """The first (count, dim) rows, memory-mapped.

        Raises:
            LibraryError: there are fewer.
        """
        shape = (count, self.dim)
        try:
            # Copy on write, because torch warns of arrays that cannot be written.
            mapped = np.memmap(self.path, "<f2", mode="c", offset=HEADER_BYTES, shape=shape)
        except (OSError, ValueError):
            raise self._damaged() from None
        # A plain view: slicing a memmap object costs several microseconds per slice.
        return np.asarray(mapped)

    def _damaged(self) -> LibraryError:
        rule = "is missing or has lost rows; remove the library and add the videos again"
        return LibraryError(f"{self.path}: {rule}")


class LibraryRows(RowTable):
    """Rows of one stream of a library, keyed by the SHA-256 of the video's content.

    Args:
        info: the stream.
        places: key, shard, first row and rows of each video, in the order of the rows.
        maps: (rows, dim) float16 of each shard; every row belongs to a video.
        norms: float32 Euclidean length of every row, in the order of `maps`.

    Attributes:
        keys, counts: key and rows of each video, in the order of the rows.
    """

    def __init__(
        self,
        info: StreamInfo,
        places: Sequence[tuple[str, int, int, int]],
        maps: Sequence[Half],
        norms: Lengths,
    ) -> None:
        # Without `starts_s`: as in a `MemoryStore`, times count from the first row.
        index = {key: (shard, first, count) for key, shard, first, count in places}
        super().__init__(info.stream, info.dim, info.clip_len_s, index)
        self.info, self.maps, self.norms = info, maps, norms
        self.keys = [place[0] for place in places]
        self.counts = np.array([place[3] for place in places], dtype=np.int64)

    def some_of(self, key: str, places: Ints) -> Half:
        """The (n, dim) rows of a video at these places."""
        shard, first, _ = self._index[key]
        return self.maps[shard][first + places]

    def _shards(self) -> Sequence[Half]:
        return self.maps
