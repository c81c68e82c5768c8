"""What DVC knows of the running stage (parameters, hashes of inputs), its machine and versions.

Its own entry in dvc.lock is written when it has ended. Its inputs were hashed before it began, and
DVC remembers that, so asking again costs a look at each file's time.
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

# The git revision covers it.
_CODE = "mrmodel"


@dataclass(frozen=True, slots=True)
class StageInput:
    """Data that a stage reads.

    Attributes:
        path: as the stage declares it.
        digest: MD5 by DVC, as dvc.lock will have it; of a folder it ends in ``.dir``.
        source: address of the object in the DVC remote, else of the path here.
    """

    path: str
    digest: str
    source: str


@dataclass(frozen=True, slots=True)
class StageFacts:
    """A stage as DVC sees it while it runs.

    Attributes:
        name: e.g. ``finetune@sg_detr``.
        params: the declared parameters, nested, with the types that the parameter files give them.
        inputs: declared data; code is left out.
        outs: files and folders that the stage writes.
    """

    name: str
    params: dict[str, Any]
    inputs: list[StageInput]
    outs: list[Path]


def stage_facts(name: str | None, command: str) -> StageFacts | None:
    """The stage of that name, or, when it runs by hand, the one of dvc.yaml with that command.

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
                _put(params, name.split("."), value)
        elif Path(dep.def_path).parts[0] != _CODE and dep.exists:
            digest = str(dep.get_hash().value)
            inputs.append(StageInput(str(dep.def_path), digest, _source(repo, dep, digest)))
    outs = [Path(str(out.def_path)) for out in stage.outs]
    return StageFacts(str(stage.addressing), params, inputs, outs)


def _put(tree: dict[str, Any], parts: list[str], value: Any) -> None:
    for child_run in parts[:-1]:
        tree = tree.setdefault(child_run, {})
    tree[parts[-1]] = value


def _source(repo: Any, dep: Any, digest: str) -> str:
    """A folder above several outputs is no object of the remote; its parts are."""
    from dvc.config import NoRemoteError

    path = Path(dep.fs_path)
    inside = any(
        path == (out := Path(one.fs_path)) or out in path.parents for one in repo.index.outs
    )
    if not inside:
        return str(dep.def_path)
    try:
        store = repo.cloud.get_remote_odb()
    except NoRemoteError:
        return str(dep.def_path)
    return str(store.fs.unstrip_protocol(store.oid_to_path(digest)))


def environment() -> dict[str, str]:
    """Python, system, machine, and the version of every package that `mrmodel` asks for."""
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
    """By which a later run knows whether this process still lives."""
    process = psutil.Process()
    return {
        "machine": socket.gethostname(),
        "process": f"{process.pid}:{process.create_time():.2f}",
    }


def is_alive(process: str) -> bool:
    """Whether the process of a tag `process` still runs, on this machine."""
    pid, _, began = process.partition(":")
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" == began
    except (psutil.Error, ValueError):
        return False
