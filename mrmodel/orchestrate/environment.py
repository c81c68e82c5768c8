"""Where workers and orchestrator find code, data and results, read from the environment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mrmodel.addresses import scheme_of, shown
from mrmodel.errors import ConfigError
from mrmodel.processes import hide_user

# Variable -> schemes of its addresses, beside paths. Git reads MRMODEL_GIT_URL itself: host:path.
_SCHEMES = {
    "MRMODEL_DVC_REMOTE": ("s3", "gs", "azure", "ssh", "http", "https", "webdav", "webdavs"),
    "MRMODEL_HANDOVER": ("s3", "file"),
    "MRMODEL_WORK_DIR": (),
}


@dataclass(frozen=True, slots=True)
class RuntimeEnvironment:
    """Locations that a worker or an orchestrator uses.

    Attributes:
        git: repository that is cloned and to which run branches are pushed; a URL or a folder.
        remote: DVC remote, e.g. ``s3://bucket/dvc``; None: `cache` is shared by all workers.
        result_store: the result store: ``s3://bucket/prefix`` or a folder.
        endpoint: address of the S3 server; None: AWS.
        cache: DVC's cache on this machine.
        state: becomes ``.mrmodel`` of every clone: resume states, the default MLflow database.
        clones: folder in which clones are made.
    """

    git: str
    remote: str | None
    result_store: str
    endpoint: str | None
    cache: Path
    state: Path
    clones: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> RuntimeEnvironment:
        """Read ``MRMODEL_*``; without them the repository around the current folder is used.

        Raises:
            ConfigError: no repository is named, or settings contradict each other.
        """
        env = os.environ if environ is None else environ
        for name, schemes in _SCHEMES.items():
            _check(name, env.get(name) or "", schemes)
        git = env.get("MRMODEL_GIT_URL") or _repository_here()
        if git is None:
            rule = "is not set, and the current folder is in no git repository"
            raise ConfigError("MRMODEL_GIT_URL", None, rule)
        remote = env.get("MRMODEL_DVC_REMOTE") or None
        work = env.get("MRMODEL_WORK_DIR")
        here = Path(git).resolve() if Path(git).is_dir() else None
        if work is None and here is None:
            rule = "is not set; a worker that clones from a URL needs a folder of its own"
            raise ConfigError("MRMODEL_WORK_DIR", None, rule)
        if remote is None and here is None:
            rule = "is not set; results of a clone from a URL would be lost"
            raise ConfigError("MRMODEL_DVC_REMOTE", None, rule)
        state = Path(work).resolve() / "state" if work else _own(here) / ".mrmodel"
        folder = Path(work).resolve() if work else state / "flows"
        return cls(
            git=git if here is None else str(Path(git).absolute()),
            remote=remote,
            result_store=env.get("MRMODEL_HANDOVER") or _default_result_store(remote, here),
            endpoint=env.get("MRMODEL_S3_ENDPOINT") or None,
            cache=folder / "cache" if remote is not None else _own(here) / ".dvc" / "cache",
            state=state,
            clones=folder / "clones",
        )

    @property
    def git_shown(self) -> str:
        """`git` without user and password, for messages."""
        return hide_user(self.git)


def _check(name: str, value: str, schemes: tuple[str, ...]) -> None:
    """Raise ConfigError for an address of another scheme, or one that looks like a path."""
    rule = ""
    try:
        scheme = scheme_of(value)
        if scheme and scheme not in schemes:
            rule = f"expected a folder{''.join(f' or {one}://...' for one in schemes)}"
    except ValueError as error:
        rule = str(error)
    if rule:
        raise ConfigError(name, shown(value), rule)


def _default_result_store(remote: str | None, here: Path | None) -> str:
    """Next to the DVC remote, which all can reach; without one, in the repository."""
    if remote is not None:
        return f"{remote.rstrip('/')}-handover"
    return str(_own(here) / ".mrmodel" / "flows" / "handover")


def _own(folder: Path | None) -> Path:
    assert folder is not None  # from_environment has raised otherwise
    return folder


def _repository_here() -> str | None:
    command = ["git", "rev-parse", "--show-toplevel"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
