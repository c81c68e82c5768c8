"""Pins a project's weight sets in ``encoder_weights.lock`` and shares them through a store.

Weight sets lie outside of the repository, where DVC does not track them. The lock file holds the
SHA-256 of their files, and the extraction stages depend on it: changed weights trigger a new
extraction, and a machine whose weights differ from the project's raises an error.

A store (S3 or a folder) is content-addressed by SHA-256, so versions of a set share equal files::

    <set>/files/<SHA-256>           config.json, model.safetensors, tokenizer.json
    <set>/locks/<digest>.json       weights.lock; the digest covers the files and their SHA-256

Only ``mrmodel weights pull`` reads a store.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from mrmodel.components import ENCODERS
from mrmodel.encoders.user_weights import FILES, LOCK, PUBLISHED, WeightSet, chosen_sets
from mrmodel.errors import WeightsError
from mrmodel.files import digest_of, read_text, replaced_folder, write_json
from mrmodel.storage import Store

log = logging.getLogger(__name__)

# Set -> file -> SHA-256.
Pins = dict[str, dict[str, str]]


def read_pins(path: Path) -> Pins:
    """The pinned sets.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    try:
        sets = json.loads(read_text(path))["sets"]
        pins = {name: dict(files) for name, files in sets.items()}
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file; run from the root of the repository") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(f'{path}: expected {{"sets": {{set: {{file: SHA-256}}}}}}') from None
    for name, files in pins.items():
        # They become paths, so only known names are allowed.
        if name not in PUBLISHED or not files.keys() <= set(FILES):
            listed = ", ".join(files)
            raise WeightsError(
                f"{path}: {name} ({listed}) is no weight set with {', '.join(FILES)}"
            )
    return pins


def pin_sets(path: Path, names: Sequence[str], root: Path | None = None) -> Pins:
    """Pin the current lock of weight sets; other pins are kept.

    Args:
        path: the file; it must exist.
        names: sets; empty: all in the weights folder.
        root: replaces the user's weights folder.

    Raises:
        UnknownNameError: no such set.
        WeightsError: a set is missing or changed.
    """
    chosen, pins = chosen_sets(names, root), read_pins(path)
    for name in chosen:
        weights = WeightSet(name, root)
        weights.verify()
        pins[name] = weights.lock().files
    write_json(path, {"sets": dict(sorted(pins.items()))})
    return pins


def require_pinned(path: Path, stream: str) -> None:
    """Check that the user weights of a stream, if it has any, are the pinned ones.

    Unpinned weights are accepted, with a warning.

    Raises:
        WeightsError: the set is missing, or another one is pinned.
    """
    name = getattr(ENCODERS.get(stream), "set_name", None)
    if name is None:
        return
    found, pinned = WeightSet(name).lock().files, read_pins(path).get(name)
    if pinned is None:
        text = "%s: weights are not pinned, so DVC will see no change of them: mrmodel weights pin"
        log.warning(text, name)
    elif found != pinned:
        other = sorted(
            file for file in found.keys() | pinned if found.get(file) != pinned.get(file)
        )
        raise WeightsError(
            f"{name}: {', '.join(other)} in {WeightSet(name).folder} differ from what {path} pins; "
            f"bring the pinned ones, or run `mrmodel weights pin {name}` and extract anew"
        )


def push_sets(store: Store, names: Sequence[str], root: Path | None = None) -> list[str]:
    """Upload weight sets to a store, skipping files that it already has.

    Args:
        store: the target.
        names: sets; empty: all in the weights folder.
        root: replaces the user's weights folder.

    Returns:
        The sets.

    Raises:
        UnknownNameError: no such set.
        WeightsError: a set is missing or changed.
        StorageError: the store is unreachable or rejects the request.
    """
    chosen = chosen_sets(names, root)
    for name in chosen:
        weights = WeightSet(name, root)
        weights.verify()
        files = weights.lock().files
        for file, digest in files.items():
            if not store.exists(_file_key(name, digest)):
                store.upload(_file_key(name, digest), weights.folder / file)
        # Last: a set with a lock is complete.
        store.upload(_lock_key(name, files), weights.folder / LOCK)
    return chosen


def pull_sets(
    store: Store, pin_file: Path, names: Sequence[str], root: Path | None = None
) -> list[str]:
    """Download the pinned versions of weight sets to the weights folder.

    Args:
        store: the source.
        pin_file: ``encoder_weights.lock`` of the project.
        names: sets; empty: all pinned ones.
        root: replaces the user's weights folder.

    Returns:
        The downloaded sets; those already present are left alone.

    Raises:
        UnknownNameError: no such set.
        WeightsError: a set is not pinned, or the store lacks the pinned version.
        StorageError: the store is unreachable, or holds other bytes than were uploaded.
    """
    pins, pulled = read_pins(pin_file), []
    for name in chosen_sets(names) if names else pins:
        if name not in pins:
            raise WeightsError(f"{name}: not pinned in {pin_file}; known: {', '.join(pins)}")
        weights = WeightSet(name, root)
        if not _holds(weights, pins[name]):
            _pull(store, weights, pins[name])
            pulled.append(name)
    return pulled


def _pull(store: Store, weights: WeightSet, files: dict[str, str]) -> None:
    lock_key = _lock_key(weights.name, files)
    if not store.exists(lock_key):
        hint = f"where it is, run `mrmodel weights push {store.url} {weights.name}`"
        raise WeightsError(f"{weights.name}: {store.url} lacks the pinned version; {hint}")
    with replaced_folder(weights.folder, *FILES, LOCK, ".*.tmp") as folder:
        for file, digest in files.items():
            store.download(_file_key(weights.name, digest), folder / file)
        store.download(lock_key, folder / LOCK)
        WeightSet(weights.name, folder.parent).verify()
    log.info("%s: pulled into %s", weights.name, weights.folder)


def _holds(weights: WeightSet, files: dict[str, str]) -> bool:
    """Whether the weights folder holds that version, unchanged."""
    try:
        weights.verify()
    except WeightsError:
        return False
    return weights.lock().files == files


def _file_key(name: str, digest: str) -> str:
    return f"{name}/files/{digest}"


def _lock_key(name: str, files: dict[str, str]) -> str:
    return f"{name}/locks/{digest_of(files)}.json"
