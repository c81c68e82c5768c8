"""Compares the rows of two feature stores, e.g. of an archive and of an encoder, by key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrmodel.errors import FeatureError, FeatureMismatch
from mrmodel.features.store import FeatureStore, Ints
from mrmodel.text import columns

Doubles = NDArray[np.float64]
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Extreme:
    """The smallest or largest of some values, and the row (from 0) of the key that has it."""

    value: float
    key: str
    row: int


@dataclass(frozen=True, slots=True)
class StoreComparison:
    """How the rows of the stores A and B differ; pairs are (of A, of B).

    Attributes:
        stores: folders.
        streams: their names.
        only: number of keys that the other store lacks.
        row_counts: key -> number of rows, for all keys in both. The first rows of a key, as many
            as both stores have, are compared.
        n_rows: number of rows compared.
        n_zero: of them, rows that are zero in A or B and have no cosine.
        cosine: mean over the rows; None if all are zero.
        lowest: smallest cosine; None if all rows are zero.
        largest: largest absolute difference of two values.
    """

    stores: tuple[Path, Path]
    streams: tuple[str, str]
    only: tuple[int, int]
    row_counts: dict[str, tuple[int, int]]
    n_rows: int
    n_zero: int
    cosine: float | None
    lowest: Extreme | None
    largest: Extreme


def compare_stores(a: Path, b: Path) -> StoreComparison:
    """Compare all rows of two stores whose key and position are the same.

    Keys whose extraction or import failed count as absent.

    Raises:
        FeatureError: a folder is not a finished store, or no key is in both.
        FeatureMismatch: rows have another number of channels, or of seconds.
    """
    first, second = FeatureStore(a), FeatureStore(b)
    for what in ("dim", "clip_len_s"):
        found = getattr(first.info, what), getattr(second.info, what)
        if found[0] != found[1]:
            rule = "the stores must have the same number"
            raise FeatureMismatch(f"{a}: {what} = {found[0]}, {b}: {what} = {found[1]}: {rule}")
    keys = sorted(set(first) & set(second))
    if not keys:
        shown = (repr(next(iter(store), None)) for store in (first, second))
        raise FeatureError(f"no key is in both: {a} has e.g. {next(shown)}, {b} {next(shown)}")
    counts = [store.resolve(keys).count for store in (first, second)]
    shared = np.minimum(*counts)
    gaps, cosines = _rows_compared(first, second, keys, shared)
    is_zero = np.isnan(cosines)
    has_cosines = not is_zero.all()
    return StoreComparison(
        stores=(a, b),
        streams=(first.info.stream, second.info.stream),
        only=(len(first) - len(keys), len(second) - len(keys)),
        row_counts=dict(zip(keys, zip(*(c.tolist() for c in counts), strict=True), strict=True)),
        n_rows=len(gaps),
        n_zero=int(is_zero.sum()),
        cosine=float(np.nanmean(cosines)) if has_cosines else None,
        lowest=_extreme(cosines, int(np.nanargmin(cosines)), keys, shared) if has_cosines else None,
        largest=_extreme(gaps, int(gaps.argmax()), keys, shared),
    )


def _rows_compared(
    a: FeatureStore, b: FeatureStore, keys: list[str], counts: Ints
) -> tuple[Doubles, Doubles]:
    """Largest difference and cosine of each row, NaN where a row is zero, in the order of keys."""
    gaps, cosines = [], []
    for key, count in zip(keys, counts.tolist(), strict=True):
        x, y = (store.gather([key], count)[0][0].astype(np.float32) for store in (a, b))
        gaps.append(np.abs(x - y).max(axis=1))
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        unknown = np.full_like(lengths, np.nan)
        cosines.append(np.divide((x * y).sum(axis=1), lengths, out=unknown, where=lengths > 0))
    return np.concatenate(gaps).astype(np.float64), np.concatenate(cosines).astype(np.float64)


def _extreme(values: Doubles, place: int, keys: list[str], counts: Ints) -> Extreme:
    """The value at a place among the rows of all keys."""
    ends = np.cumsum(counts)
    number = int(np.searchsorted(ends, place, side="right"))
    row = place - int(ends[number] - counts[number])
    return Extreme(float(values[place]), keys[number], row)


def format_comparison(found: StoreComparison) -> str:
    """A comparison as text."""
    counts = list(zip(*found.row_counts.values(), strict=True))
    table = [
        ("", "A", "B"),
        ("stream", *found.streams),
        ("keys in both", *(str(len(found.row_counts)),) * 2),
        ("keys in this only", *map(str, found.only)),
        ("rows per key in both", *(f"{min(of)} to {max(of)}" for of in counts)),
    ]
    lines = [f"{name}: {store}" for name, store in zip("AB", found.stores, strict=True)]
    lines += columns(table)
    differing = [(key, pair) for key, pair in found.row_counts.items() if pair[0] != pair[1]]
    shown = "".join(f"; {key}: {rows} and {others}" for key, (rows, others) in differing[:_SHOWN])
    lines.append(f"keys with other numbers of rows in A and B: {len(differing)}{shown}")
    lines.append(f"rows compared: {found.n_rows}, of which {found.n_zero} are zero in A or B")
    if found.lowest is not None:
        lines.append(f"cosine: mean {found.cosine:.6f}, smallest {_shown(found.lowest)}")
    lines.append(f"largest difference: {_shown(found.largest)}")
    return "\n".join(lines)


def _shown(extreme: Extreme) -> str:
    return f"{extreme.value:.6f} ({extreme.key}, row {extreme.row})"
