"""Reading features by key, for a whole batch at once.

`FeatureStore` reads a folder through memory maps; `MemoryStore` holds freshly encoded rows. Both
give the same float16 rows, so training and serving see the same input.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrmodel.errors import FeatureError
from mrmodel.features.index import read_index
from mrmodel.features.keys import split_segment
from mrmodel.features.manifest import read_manifest

Half = NDArray[np.float16]
Ints = NDArray[np.int64]

# In clips. Segment times have one decimal: differences below this are rounding.
_GRID_TOLERANCE = 1e-3
_EXPONENT = 0x7C00


def to_stored(rows: NDArray[Any]) -> Half:
    """Convert encoder output to the stored type.

    Raises:
        FeatureError: a value is NaN, infinite, or beyond the range of float16.
    """
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(rows, dtype=np.float16)
    # Only NaN and infinity have all exponent bits set; comparing integers is six times as fast.
    if stored.size and int((stored.view(np.uint16) & _EXPONENT).max()) == _EXPONENT:
        bad = int(np.flatnonzero(~np.isfinite(stored).all(axis=-1))[0])
        raise FeatureError(f"row {bad} holds NaN, infinity, or a value beyond float16")
    return stored


@dataclass(frozen=True, slots=True)
class RowRanges:
    """Row locations of some keys: `count[i]` rows of `shard[i]`, from `start[i]` on.

    `start_s[i]` is the time of the first of them as a player counts it (`IndexEntry.start_s`).
    """

    shard: Ints
    start: Ints
    count: Ints
    start_s: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.count)

    def take(self, indices: Ints) -> RowRanges:
        """The ranges of a subset of the keys."""
        return RowRanges(
            self.shard[indices], self.start[indices], self.count[indices], self.start_s[indices]
        )

    def cut(self, counts: Ints) -> RowRanges:
        """The same ranges, truncated to at most `counts` rows."""
        return RowRanges(self.shard, self.start, np.minimum(self.count, counts), self.start_s)


class RowTable(ABC):
    """Rows of one stream by key; see `FeatureStore` and `MemoryStore`.

    Args:
        name: shown in error messages.
        dim: channels of a row.
        clip_len_s: seconds of a row; None where keys are texts.
        index: key -> (shard, first row, rows).
        starts_s: key -> `IndexEntry.start_s`, where it is not 0.
    """

    def __init__(
        self,
        name: str,
        dim: int,
        clip_len_s: float | None,
        index: dict[str, tuple[int, int, int]],
        starts_s: Mapping[str, float] | None = None,
    ) -> None:
        self.name, self.dim, self.clip_len_s = name, dim, clip_len_s
        self._index, self._starts_s = index, dict(starts_s or {})

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        try:
            self._find(key)
        except FeatureError:
            return False
        return True

    def resolve(self, keys: Sequence[str]) -> RowRanges:
        """Locations of the rows of `keys`, to be looked up once and reused by `gather`.

        A video id ``<base>_<start>_<end>`` that is not a key itself selects the clips
        [start, end) of the key ``<base>``, in a player's seconds.

        Raises:
            FeatureError: a key has no rows; names the key and the store.
        """
        found = [self._find(key) for key in keys]
        places = np.array([place for place, _ in found], dtype=np.int64).reshape(-1, 3)
        shard, start, count = places.T.copy()
        return RowRanges(shard, start, count, np.array([start_s for _, start_s in found]))

    def gather(
        self, rows: RowRanges | Sequence[str], max_rows: int | None = None
    ) -> tuple[Half, NDArray[np.bool_]]:
        """Rows of a batch, padded with zeros to the longest.

        Args:
            rows: B resolved ranges, or B keys.
            max_rows: longer items are truncated to this many rows.

        Returns:
            (B, L, dim) float16 and (B, L) bool, True = a row of the item.
        """
        ranges = rows if isinstance(rows, RowRanges) else self.resolve(rows)
        counts = ranges.count if max_rows is None else np.minimum(ranges.count, max_rows)
        length = int(counts.max(initial=0))
        block = np.empty((len(ranges), length, self.dim), dtype=np.float16)
        shards = self._shards()
        places = zip(ranges.shard.tolist(), ranges.start.tolist(), counts.tolist(), strict=True)
        for item, (shard, start, count) in zip(block, places, strict=True):
            item[:count] = shards[shard][start : start + count]
            item[count:] = 0
        return block, np.arange(length) < counts[:, None]

    def concatenate(self, rows: RowRanges) -> Half:
        """(sum of the counts, dim) rows of all ranges, one range after the other."""
        shards = self._shards()
        places = zip(rows.shard.tolist(), rows.start.tolist(), rows.count.tolist(), strict=True)
        parts = [shards[shard][start : start + count] for shard, start, count in places]
        return np.concatenate([np.zeros((0, self.dim), dtype=np.float16), *parts])

    @abstractmethod
    def _shards(self) -> Sequence[Half]:
        """The rows of each shard, (rows, dim)."""

    def _missing(self, key: str) -> FeatureError:
        return FeatureError(f"{self.name}: no features for {key!r}")

    def _find(self, key: str) -> tuple[tuple[int, int, int], float]:
        """(shard, first row, rows) of a key, and the player's time of the first row."""
        place = self._index.get(key)
        if place is not None:
            return place, self._starts_s.get(key, 0.0)
        segment = split_segment(key)
        if segment is None or self.clip_len_s is None:
            raise self._missing(key)
        whole = self._index.get(segment.base)
        if whole is None:
            raise self._missing(segment.base)
        shard, offset, available = whole
        start_s = self._starts_s.get(segment.base, 0.0)
        low, high = ((time - start_s) / self.clip_len_s for time in segment[1:])
        first, late = round(low), 0.0
        if start_s:  # the grid of its clips does not start at a player's 0
            first = max(0, math.ceil(low - _GRID_TOLERANCE))
            late = max(0.0, first - low)
        elif abs(first - low) > _GRID_TOLERANCE:
            rule = f"starts inside a clip; clips are {self.clip_len_s} s long"
            raise FeatureError(f"{self.name}: segment {key!r} {rule}")
        count = min(math.floor(high - low - late + _GRID_TOLERANCE), available - first)
        if count < 1:
            rule = f"holds no clip; {segment.base!r} has {available} of {self.clip_len_s} s"
            raise FeatureError(f"{self.name}: segment {key!r} {rule}")
        return (shard, offset + first, count), late * self.clip_len_s


class FeatureStore(RowTable):
    """A folder of features, read through memory maps that each process opens lazily.

    Args:
        folder: holds manifest.json, index.parquet and the shards.

    Raises:
        FeatureError: the folder is not a finished store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.info = self.manifest.info
        rows = read_index(folder)
        index = {
            row.entry.key: (row.shard, row.row_offset, row.entry.n_rows)
            for row in rows
            if row.entry.status != "failed"
        }
        self.failed = {
            row.entry.key: row.entry.reason for row in rows if row.entry.status == "failed"
        }
        self._maps: list[Half] | None = None
        starts_s = {row.entry.key: row.entry.start_s for row in rows if row.entry.start_s}
        super().__init__(str(folder), self.info.dim, self.info.clip_len_s, index, starts_s)

    def has_failed(self, key: str) -> bool:
        """Whether extraction failed for `key`, or for the video that it is a segment of."""
        segment = split_segment(key)
        return key in self.failed or (segment is not None and segment.base in self.failed)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}

    def _shards(self) -> Sequence[Half]:
        if self._maps is None:
            self._maps = [self._open(shard.file, shard.rows) for shard in self.manifest.shards]
        return self._maps

    def _open(self, file: str, rows: int) -> Half:
        path = self.folder / file
        try:
            mapped: Half = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise FeatureError(f"{path}: cannot be read: {error}") from None
        if mapped.dtype != np.float16 or mapped.shape != (rows, self.dim):
            found = f"{mapped.dtype} {mapped.shape}"
            raise FeatureError(f"{path}: is {found}, expected float16 {(rows, self.dim)}")
        # A plain view: slicing a memmap object costs several microseconds per slice.
        return np.asarray(mapped)

    def _missing(self, key: str) -> FeatureError:
        if key in self.failed:
            return FeatureError(f"{self.name}: extraction of {key!r} failed: {self.failed[key]}")
        return super()._missing(key)


class MemoryStore(RowTable):
    """Freshly encoded rows, in the stored type.

    Args:
        name: shown in error messages.
        rows: key -> (n, dim) encoder output, at least one key and one row each.
        clip_len_s: seconds of a row; None where keys are texts.

    Raises:
        FeatureError: a key has no rows, or a value cannot be stored.
    """

    def __init__(
        self, name: str, rows: Mapping[str, NDArray[Any]], clip_len_s: float | None = None
    ) -> None:
        index, first = {}, 0
        for key, values in rows.items():
            if len(values) == 0:
                raise FeatureError(f"{name}: {key!r} has no rows")
            index[key] = (0, first, len(values))
            first += len(values)
        if not index:
            raise FeatureError(f"{name}: nothing to hold")
        self._block = np.concatenate([to_stored(values) for values in rows.values()])
        super().__init__(name, self._block.shape[1], clip_len_s, index)

    def _shards(self) -> Sequence[Half]:
        return [self._block]
