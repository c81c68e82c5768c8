"""The orchestrator's clone: takes parameter changes, publishes lock files on a run branch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from mrmodel import presets
from mrmodel.config.schema import Config, load_config
from mrmodel.errors import ConfigError, OrchestrationError
from mrmodel.files import read_text, write_text
from mrmodel.names import is_inside
from mrmodel.orchestrate.checkout import fresh_clone, git
from mrmodel.orchestrate.environment import RuntimeEnvironment

PARAMS = "params.yaml"


class RunBranch:
    """A clone without data, on its own run branch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Unique, and sorted by time.
        self.branch = f"runs/{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"
        git(folder, "checkout", "--quiet", "-b", self.branch)

    @property
    def rev(self) -> str:
        """The commit that workers clone."""
        return git(self.folder, "rev-parse", "HEAD")

    @property
    def config(self) -> Config:
        """params.yaml as it is in the clone."""
        return load_config(self.folder / PARAMS)

    def change(self, params: Mapping[str, Any]) -> None:
        """Validate parameters, write them, and push them for the workers.

        Args:
            params: dotted name -> value, e.g. ``{"train.finetune.lr": 0.0005}``.

        Raises:
            ConfigError: an unknown name, an invalid value, or a folder outside of the repository;
                nothing is published.
        """
        if not params:
            return
        file = self.folder / PARAMS
        write_text(file, set_parameters(read_text(file), params))
        _require_inside(self.config, params)  # Before anything is committed.
        said = ", ".join(f"{name} = {value}" for name, value in sorted(params.items()))
        self.publish([PARAMS], f"Parameters: {said}")

    def publish(self, paths: list[str], message: str) -> bool:
        """Commit the changed files of `paths` and push the branch; False: nothing had changed."""
        git(self.folder, "add", "--", *paths)
        if not git(self.folder, "diff", "--cached", "--name-only"):
            return False
        git(self.folder, "commit", "--quiet", "--message", message)
        git(self.folder, "push", "--quiet", "origin", self.branch)
        return True


@contextmanager
def workspace(environment: RuntimeEnvironment, rev: str) -> Iterator[RunBranch]:
    """Open the orchestrator's clone of `rev`."""
    with fresh_clone(environment, rev, {}) as folder:
        yield RunBranch(folder)


def fast_forward(environment: RuntimeEnvironment, rev: str, branch: str) -> str | None:
    """Fast-forward the branch that `rev` names to the end of a run branch, if that is possible.

    Args:
        environment: where the repository is.
        rev: name of a branch, or ``HEAD`` for the one that clones check out.
        branch: run branch that started from it.

    Returns:
        Why it was not moved; None if it was.
    """
    with fresh_clone(environment, branch, {}) as folder:
        name = rev
        try:
            if rev == "HEAD":
                name = git(folder, "rev-parse", "--abbrev-ref", "origin/HEAD").partition("/")[2]
            git(folder, "rev-parse", "--verify", "--quiet", f"refs/remotes/origin/{name}")
        except OrchestrationError:
            return f"{rev} is no branch"
        try:
            git(folder, "push", "--quiet", "origin", f"HEAD:refs/heads/{name}")
        except OrchestrationError as error:
            return f"{name} could not be moved: {error}"
    return None


def _require_inside(config: Config, params: Mapping[str, Any]) -> None:
    """Raise on an absolute folder: only the file in git may name one, not those who start runs."""
    folders = {"corpus.folder": config.corpus.folder, "features.imports": config.features.imports}
    for place, folder in folders.items():
        changed = any(f"{place}.".startswith(f"{name}.") for name in params)
        if changed and not is_inside(folder):
            rule = "a run cannot choose a folder outside of the repository; commit it instead"
            raise ConfigError(place, folder, rule)


def set_parameters(text: str, params: Mapping[str, Any]) -> str:
    """params.yaml with some values changed and comments kept.

    Raises:
        ConfigError: the file has no such section.
    """
    for name, value in params.items():
        parts = name.split(".")
        if parts[0] == "models" and len(parts) > 2:
            # Settings of a model are optional, so a new key is allowed.
            change: dict[str, Any] = {f"models.{parts[1]}": _nest(parts[2:], value)}
        else:
            change = _nest(parts, value)
        text = presets.overlay(text, change)
    return text


def _nest(parts: list[str], value: Any) -> dict[str, Any]:
    if not all(parts):
        raise ConfigError(
            ".".join(parts), value, "a dotted name such as train.finetune.lr is needed"
        )
    for part in reversed(parts):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested
