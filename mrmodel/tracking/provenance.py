"""Provenance of a run: the running stage's parameters and input hashes from DVC, its environment.

DVC writes the stage's entry to dvc.lock only after it has ended. But its inputs were hashed before
it began, and DVC caches these hashes, so computing them again only checks each file's mtime.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mrmodel.config.base import put
from mrmodel.processes import boot_id, start_ticks

# Covered by the git revision.
_CODE = "mrmodel"


@dataclass(frozen=True, slots=True)
class StageInput:
    """Data that a stage reads.

    Attributes:
        path: as declared by the stage.
        digest: MD5 from DVC, as in dvc.lock; for a folder it ends in ``.dir``.
        source: URL of the object in the DVC remote, else the local path.
    """

    path: str
    digest: str
    source: str


@dataclass(frozen=True, slots=True)
class StageFacts:
    """A running stage as known to DVC.

    Attributes:
        name: e.g. ``finetune@sg_detr``.
        params: the declared parameters, nested, with the types of the parameter files.
        inputs: declared dependencies, without code.
        outs: output files and folders of the stage.
    """

    name: str
    params: dict[str, Any]
    inputs: list[StageInput]
    outs: list[Path]


def stage_facts(name: str | None, command: str) -> StageFacts | None:
    """The stage with that name, or without a name the one in dvc.yaml with that command.

    Raises:
        DvcException: the repository cannot be read.
    """
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        repo = Repo()
    except NotDvcRepoError:
        return None
    with repo:
        if name is not None:
            return _facts(repo, repo.stage.get_target(name))
        known = [stage for stage in repo.stage.load_file() if stage.cmd == command]
        return _facts(repo, known[0]) if known else None


def _facts(repo: Any, stage: Any) -> StageFacts:
    from dvc.dependency import ParamsDependency

    params: dict[str, Any] = {}
    inputs = []
    for dep in stage.deps:
        if isinstance(dep, ParamsDependency):
            for name, value in dep.read_params().items():
                put(params, name, value)
        elif Path(dep.def_path).parts[0] != _CODE and dep.exists:
            digest = str(dep.get_hash().value)
            inputs.append(StageInput(str(dep.def_path), digest, _source(repo, dep, digest)))
    outs = [Path(str(out.def_path)) for out in stage.outs]
    return StageFacts(str(stage.addressing), params, inputs, outs)


def _source(repo: Any, dep: Any, digest: str) -> str:
    """URL of a dependency; a folder above several outputs is not one object of the remote."""
    from dvc.config import NoRemoteError

    try:
        store = repo.cloud.get_remote_odb()
    except NoRemoteError:
        return str(dep.def_path)
    # Only now: to know all outputs, DVC reads every pipeline file, which takes half a second.
    path = Path(dep.fs_path)
    inside = any(
        path == (out := Path(one.fs_path)) or out in path.parents for one in repo.index.outs
    )
    if not inside:
        return str(dep.def_path)
    return str(store.fs.unstrip_protocol(store.oid_to_path(digest)))


def environment() -> dict[str, str]:
    """Versions of Python, system, machine, and every package that `mrmodel` requires."""
    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "machine": socket.gethostname(),
        "cores": str(os.cpu_count()),
        "memory_gb": f"{psutil.virtual_memory().total / 1e9:.1f}",
    }
    for requirement in importlib.metadata.requires("mrmodel") or []:
        name = re.match(r"[\w.-]+", requirement)
        if name is not None and "extra ==" not in requirement:
            found[name[0]] = importlib.metadata.version(name[0])
    return found


def process_tags() -> dict[str, str]:
    """Tags that identify this process, so that a later run can check whether it is alive."""
    return {"machine": socket.gethostname(), "process": _identity(os.getpid())}


def _identity(pid: int) -> str:
    """``pid:ticks@boot`` of a running process, which no change of the clock alters.

    Elsewhere than on Linux, and in records of earlier versions, it is the pid and the wall-clock
    time of its start.

    Raises:
        psutil.Error: there is no such process.
    """
    ticks, boot = start_ticks(pid), boot_id()
    return f"{pid}:{ticks}@{boot}" if ticks and boot else _earlier_identity(pid)


def _earlier_identity(pid: int) -> str:
    return f"{pid}:{psutil.Process(pid).create_time():.2f}"


def is_alive(process: str) -> bool:
    """Whether the process of a tag `process` still runs, on this machine."""
    pid, _, began = process.partition(":")
    identity = _identity if "@" in began else _earlier_identity
    try:
        return identity(int(pid)) == process
    except (psutil.Error, ValueError, OverflowError):
        return False
