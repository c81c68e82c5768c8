"""Derived files that are built once a machine, whoever asks first."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Callable
from pathlib import Path

from mrmodel.files import atomic_path

_log = logging.getLogger(__name__)


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """`target`, built by `build(temporary path)` if it does not exist.

    Other processes that want it wait; if the builder dies, its lock goes with it and one of them
    builds. A file that exists is whole.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _log.info("building %s (once a machine)", target)
            with atomic_path(target) as temporary:
                build(temporary)
    return target
