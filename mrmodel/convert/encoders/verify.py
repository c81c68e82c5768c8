"""Checks encoder weights against their locks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mrmodel.encoders.bundled_weights import WeightsLock
from mrmodel.encoders.user_weights import PUBLISHED, WeightSet
from mrmodel.errors import UnknownNameError, WeightsError


@dataclass(frozen=True, slots=True)
class Finding:
    """Result for one packaged file or one set, as a line."""

    line: str
    sound: bool


def verify_weights(names: Sequence[str] = (), root: Path | None = None) -> list[Finding]:
    """Check the files inside packages, then weight sets; continues after failures.

    Args:
        names: sets; empty: all in the weights folder.
        root: replaces the user's weights folder.

    Raises:
        UnknownNameError: no such set.
    """
    for name in names:
        if name not in PUBLISHED:
            raise UnknownNameError("weight set", name, PUBLISHED)
    lock = WeightsLock()
    findings = [_packaged(lock, name) for name in lock.files]
    present = [name for name in PUBLISHED if WeightSet(name, root).folder.is_dir()]
    return findings + [_set(WeightSet(name, root)) for name in names or present]


def _packaged(lock: WeightsLock, name: str) -> Finding:
    try:
        lock.path(name)
    except WeightsError as error:
        return Finding(str(error), False)
    return Finding(f"{name}: sound", True)


def _set(weights: WeightSet) -> Finding:
    try:
        weights.verify()
    except WeightsError as error:
        return Finding(str(error), False)
    return Finding(f"{weights.name}: sound, {weights.folder}", True)
