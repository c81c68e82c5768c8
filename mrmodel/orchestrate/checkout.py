"""A fresh clone of one revision for one attempt at a stage, removed afterwards."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from configobj import ConfigObj, ConfigObjError

from mrmodel.errors import OrchestrationError, OutputError
from mrmodel.files import parse_yaml, write_text
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.processes import hide_user

REMOTE = "workers"
# A file of stages; its lock file lies beside it.
MAIN = "dvc.yaml"
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
# Never prompt, nor read the user's git configuration.
_GIT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "mrmodel",
    "GIT_AUTHOR_EMAIL": "mrmodel@localhost",
    "GIT_COMMITTER_NAME": "mrmodel",
    "GIT_COMMITTER_EMAIL": "mrmodel@localhost",
}


@contextmanager
def fresh_clone(
    environment: RuntimeEnvironment, rev: str, locks: Mapping[str, str]
) -> Iterator[Path]:
    """Yield a clone at `rev` that uses the DVC cache and remote of `environment`; remove it after.

    Clones that a killed process left are removed first.

    Args:
        environment: where to clone from, and to.
        rev: any revision that git resolves in the clone.
        locks: path of a lock file -> text; what other stages of this run have produced.

    Raises:
        OrchestrationError: the repository or the revision is not available, or a lock file is of no
            pipeline of the revision, or names a hash that is none.
        OutputError: the clone cannot be written.
    """
    folder = environment.clones / uuid4().hex
    guard = folder.with_suffix(".lock")
    try:
        environment.clones.mkdir(parents=True, exist_ok=True)
        _sweep(environment.clones)
        file = folder.with_suffix(".new").open("w")
    except OSError as error:
        raise OutputError(environment.clones, error) from error
    with file as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        # Renamed only when locked: _sweep looks at this name.
        Path(held.name).rename(guard)
        try:
            _clone(environment, rev, folder)
            _configure(environment, folder)
            _write_locks(folder, locks)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            guard.unlink(missing_ok=True)


def git(folder: Path, *arguments: str) -> str:
    """Output of a git command in `folder`.

    Raises:
        OrchestrationError: it failed; the message holds git's output, without credentials.
    """
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**os.environ, **_GIT},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = hide_user(done.stderr.strip())
        raise OrchestrationError(f"git {arguments[0]}: {said}")
    return done.stdout.strip()


def _clone(environment: RuntimeEnvironment, rev: str, folder: Path) -> None:
    git(environment.clones, "clone", "--quiet", "--no-checkout", "--", environment.git, str(folder))
    found = None
    for name in (f"origin/{rev}", rev):  # A remote branch before a local name.
        try:
            found = git(folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
            break
        except OrchestrationError:
            continue
    if found is None:
        raise OrchestrationError(f"{environment.git_shown} has no revision {rev!r}")
    git(folder, "checkout", "--quiet", "--detach", found)


def _write_locks(folder: Path, locks: Mapping[str, str]) -> None:
    pipelines = git(folder, "ls-files", "-z", "--", MAIN, f"*/{MAIN}").split("\0") if locks else []
    known = {str(Path(name).with_suffix(".lock")) for name in pipelines if name}
    for path, text in locks.items():
        if path not in known:
            rule = f"is the lock file of no pipeline (there are {', '.join(sorted(known))})"
            raise OrchestrationError(f"locks: {path[:200]!r} {rule}")
        _check_hashes(path, text)
    for path, text in locks.items():
        write_text(folder / path, text)


def _check_hashes(path: str, text: str) -> None:
    """Raise on a hash that is none: DVC makes a path in its cache of it."""
    try:
        stages = parse_yaml(text, f"locks: {path}")["stages"].values()
        entries = [
            one for stage in stages for kind in ("deps", "outs") for one in stage.get(kind, [])
        ]
        found = [(entry["path"], entry.get("md5")) for entry in entries]
    except (AttributeError, KeyError, TypeError):
        raise OrchestrationError(f"locks: {path}: is no lock file") from None
    for name, md5 in found:
        if md5 is not None and not (isinstance(md5, str) and _MD5.fullmatch(md5)):
            raise OrchestrationError(f"locks: {path}: {name}: {str(md5)[:80]!r} is no MD5")


def _configure(environment: RuntimeEnvironment, folder: Path) -> None:
    """Write the local DVC config, which git ignores; credentials stay in the environment."""
    # DVC's own format, in which a path with a comma, a # or a quotation mark is quoted.
    settings = ConfigObj(encoding="utf-8")
    settings.filename = str(folder / ".dvc" / "config.local")
    # Link instead of copying where the file system can.
    settings["core"] = {"autostage": "true"}  # else DVC prints hints to `git add`
    settings["cache"] = {"dir": str(environment.cache), "type": ["reflink", "hardlink", "copy"]}
    if environment.remote is not None:
        settings["core"]["remote"] = REMOTE
        remote = {"url": environment.remote}
        if environment.endpoint is not None and environment.remote.startswith("s3://"):
            remote["endpointurl"] = environment.endpoint
        settings[f'remote "{REMOTE}"'] = remote
    try:
        settings.write()
    except ConfigObjError as error:  # A comma, and both kinds of quotation marks.
        raise OrchestrationError(f"DVC's configuration: {error}") from None
    environment.state.mkdir(parents=True, exist_ok=True)
    (folder / ".mrmodel").symlink_to(environment.state, target_is_directory=True)


def _sweep(clones: Path) -> None:
    """Remove clones whose process is gone: their lock is free."""
    for guard in clones.glob("*.lock"):
        try:
            with guard.open("r+") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(guard.with_suffix(""), ignore_errors=True)
                guard.unlink(missing_ok=True)
        except OSError:
            continue  # In use, or being removed by another process.
