"""Weight sets in a store (S3 or a folder), for machines that have to have what a project pins.

A file lies under its SHA-256, so versions of a set stand side by side and share what is equal::

    <set>/files/<SHA-256>           config.json, model.safetensors, tokenizer.json
    <set>/locks/<digest>.json       weights.lock; the digest is of the files and their SHA-256

Nothing asks a store for weights but ``mrmodel weights pull``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mrmodel.encoders.published_sets import LOCK, PUBLISHED
from mrmodel.encoders.weight_sets import WeightSet
from mrmodel.errors import UnknownNameError, WeightsError
from mrmodel.files import digest_of
from mrmodel.pipeline.weight_pins import read_pins
from mrmodel.storage import Store

log = logging.getLogger(__name__)


def push_sets(store: Store, names: Sequence[str], root: Path | None = None) -> list[str]:
    """Bring weight sets into a store; what is there already is not sent again.

    Args:
        store: where to.
        names: sets; empty: all that the weights folder holds.
        root: another weights folder than the user's.

    Returns:
        The sets.

    Raises:
        UnknownNameError: no such set.
        WeightsError: a set is missing or changed.
        StorageError: the store cannot be reached or refuses.
    """
    _require_known(names)
    present = [name for name in PUBLISHED if WeightSet(name, root).folder.is_dir()]
    for name in names or present:
        weights = WeightSet(name, root)
        weights.verify()
        files = weights.lock().files
        for file, digest in files.items():
            if not store.exists(_file_key(name, digest)):
                store.upload(_file_key(name, digest), weights.folder / file)
        # Last: a set whose lock is there is whole.
        store.upload(_lock_key(name, files), weights.folder / LOCK)
    return list(names or present)


def pull_sets(
    store: Store, pin_file: Path, names: Sequence[str], root: Path | None = None
) -> list[str]:
    """Bring the pinned versions of weight sets into the weights folder.

    Args:
        store: where from.
        pin_file: ``encoder_weights.lock`` of the project.
        names: sets; empty: all that are pinned.
        root: another weights folder than the user's.

    Returns:
        The sets that were brought; those that are there already are left alone.

    Raises:
        UnknownNameError: no such set.
        WeightsError: a set is not pinned, or the store lacks the pinned version.
        StorageError: the store cannot be reached, or holds other bytes than were sent.
    """
    _require_known(names)
    pins, brought = read_pins(pin_file), []
    for name in names or pins:
        if name not in pins:
            raise WeightsError(f"{name}: not pinned in {pin_file}; known: {', '.join(pins)}")
        weights = WeightSet(name, root)
        if not _holds(weights, pins[name]):
            _pull(store, weights, pins[name])
            brought.append(name)
    return brought


def _pull(store: Store, weights: WeightSet, files: dict[str, str]) -> None:
    lock_key = _lock_key(weights.name, files)
    if not store.exists(lock_key):
        hint = f"where it is, run `mrmodel weights push {store.url} {weights.name}`"
        raise WeightsError(f"{weights.name}: {store.url} lacks the pinned version; {hint}")
    weights.folder.mkdir(parents=True, exist_ok=True)
    (weights.folder / LOCK).unlink(missing_ok=True)
    for file, digest in files.items():
        store.download(_file_key(weights.name, digest), weights.folder / file)
    store.download(lock_key, weights.folder / LOCK)
    weights.verify()
    log.info("%s: pulled into %s", weights.name, weights.folder)


def _holds(weights: WeightSet, files: dict[str, str]) -> bool:
    """True where the weights folder holds that version, unchanged."""
    try:
        weights.verify()
    except WeightsError:
        return False
    return weights.lock().files == files


def _require_known(names: Sequence[str]) -> None:
    for name in names:
        if name not in PUBLISHED:
            raise UnknownNameError("weight set", name, PUBLISHED)


def _file_key(name: str, digest: str) -> str:
    return f"{name}/files/{digest}"


def _lock_key(name: str, files: dict[str, str]) -> str:
    return f"{name}/locks/{digest_of(files)}.json"
