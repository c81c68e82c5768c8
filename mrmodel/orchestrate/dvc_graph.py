"""The DVC graph of a clone without data: its stages, and which of them must run.

DVC's own dry run compares a missing dependency only with an output of exactly the same path, so it
misses that ``data/sample/train.jsonl`` changed inside the output ``data/sample``, or that an
output below the dependency ``features/sample`` did. Here the hash of every dependency is computed
from the lock files, through DVC's data index, and compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
from dvc.dependency import ParamsDependency
from dvc.fs.dvc import DVCFileSystem
from dvc.repo import Repo
from dvc.utils.serialize import modify_yaml
from dvc_data.hashfile.build import build
from dvc_data.index.index import DataIndexDirError

from mrmodel.config.studies import check_studies
from mrmodel.errors import OrchestrationError, nearest_names
from mrmodel.files import digest_of, parse_yaml, read_yaml
from mrmodel.names import STREAM
from mrmodel.orchestrate.checkout import MAIN


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Whether a stage must run, determined before it runs.

    Attributes:
        reason: why it must run; None: nothing has changed.
        key: digest of its command, parameters and the content of its dependencies.
    """

    reason: str | None
    key: str


class StageGraph:
    """Stages by name (``finetune@sg_detr``, ``studies/dvc.yaml:seeds``) in topological order."""

    def __init__(
        self, folder: Path, remote: str | None, wait_for_store: Callable[[], None] | None = None
    ) -> None:
        """Read the graph of the clone in `folder`.

        Args:
            folder: a clone whose DVC config names its cache and its remote.
            remote: name of the DVC remote; None: the cache holds all data.
            wait_for_store: called when data seem missing; returns when the store is reachable.

        Raises:
            ConfigError: studies/params.yaml is invalid.
            OrchestrationError: a value of params.yaml that names a stage is no name.
        """
        check_studies(folder)
        self.folder, self._remote = folder, remote
        self._wait_for_store = wait_for_store
        # Of files of the revision; while the graph is in use only lock files change (`merge`).
        self._parameters: dict[str, dict[str, dict[str, Any]]] = {}
        self._hashes: dict[str, str | None] = {}
        self._open()
        self._recorded = {
            (self.folder / path, stage)
            for path, text in self.locks().items()
            for stage in parse_yaml(text, path)["stages"]
        }

    def names(self, targets: Iterable[str] = ()) -> list[str]:
        """The targets and their upstream stages, in topological order.

        Without targets: all stages of the main ``dvc.yaml``. A target without a matrix value
        (``finetune``) means all stages of its matrix.

        Raises:
            OrchestrationError: no such stage; the message names the closest match.
        """
        wanted = set(self._expand(list(targets)))
        wanted |= {up for name in wanted for up in self._ancestors(name)}
        return [name for name in self._stages if name in wanted]

    def upstream(self, name: str) -> set[str]:
        """Stages whose outputs `name` reads."""
        direct = self._graph.successors(self._stages[name])
        return {_name(stage) for stage in direct if stage.cmd}

    def status(self, name: str) -> StageStatus:
        """Whether a stage must run, given the lock files of all upstream stages.

        Raises:
            OrchestrationError: no such stage.
        """
        if self._stale:
            self._open()
        if name not in self._stages:
            raise OrchestrationError(f"no stage is called {name[:200]!r}")
        stage, hashes = self._stages[name], self.contents(name)
        key = digest_of(
            {
                "stage": name,
                "command": stage.cmd,
                "deps": hashes,
                "params": self.parameters(name),
                "outs": sorted(str(out.def_path) for out in stage.outs),
            }
        )
        return StageStatus(self._reason(stage, hashes), key)

    def contents(self, name: str) -> dict[str, str | None]:
        """Path -> hash of each dependency; None: an upstream stage has not produced it yet."""
        deps = _files(self._stages[name].deps)
        return {str(dep.def_path): self._hash(dep) for dep in deps}

    def listing(self, path: str) -> list[str]:
        """Names of the files in an output folder, whose data need not be in the workspace."""
        view = DVCFileSystem(repo=self.repo)
        here = view.from_os_path(str(self.folder / path))
        return sorted(Path(name).name for name in view.ls(here, detail=False))

    def parameters(self, name: str) -> dict[str, dict[str, Any]]:
        """Parameter file -> name -> value, of all parameters that a stage depends on."""
        if name not in self._parameters:
            params = _params(self._stages[name].deps)
            read = {str(dep.def_path): dict(dep.read_params()) for dep in params}
            self._parameters[name] = read
        return self._parameters[name]

    def inputs(self, name: str) -> list[str]:
        """Dependencies that other stages produce, relative to the root, without duplicates."""
        found: dict[str, None] = {}
        for dep in _files(self._stages[name].deps):
            for out in self._outs_at(dep.fs_path):
                inside = dep.fs_path if len(dep.fs_path) > len(out.fs_path) else out.fs_path
                found[str(Path(inside).relative_to(self.folder))] = None
        return list(found)

    def metrics(self, name: str) -> list[Path]:
        """Files that a stage declares as metrics; a folder is expanded to its files."""
        paths = [Path(out.fs_path) for out in self._stages[name].outs if out.metric]
        return [
            file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])
        ]

    def plots(self, name: str) -> dict[Path, str]:
        """Files that a stage declares as plots -> the plotted column."""
        outs = [out for out in self._stages[name].outs if isinstance(out.plot, dict)]
        return {Path(out.fs_path): out.plot["y"] for out in outs if "y" in out.plot}

    def entry(self, name: str) -> dict[str, Any]:
        """The lock-file entry of a stage.

        Raises:
            OrchestrationError: there is none.
        """
        path, stage = self._lock_of(name)
        content = read_yaml(path) if path.exists() else {}
        entry: dict[str, Any] | None = (content or {}).get("stages", {}).get(stage)
        if entry is None:
            raise OrchestrationError(f"{path.name} says nothing of the stage {name}")
        return entry

    def merge(self, name: str, entry: Mapping[str, Any]) -> None:
        """Write a stage's entry into its lock file; new stages are appended."""
        path, stage = self._lock_of(name)
        plan = [one.name for one in self._stages.values()]
        with modify_yaml(str(path)) as data:
            if not data:
                data["schema"] = "2.0"
            stages = data.setdefault("stages", {})
            stages[stage] = dict(entry)
            # Independent of the order in which stages finish: the same graph gives the same file.
            new = [one for one in stages if (path, one) not in self._recorded]
            for one in sorted(new, key=plan.index):
                stages[one] = stages.pop(one)
        self._stale = True

    def locks(self) -> dict[str, str]:
        """Path -> text of every lock file of the stages."""
        paths = {self._lock_of(name)[0] for name in self._stages}
        return {
            str(path.relative_to(self.folder)): path.read_text(encoding="utf-8")
            for path in sorted(paths)
            if path.exists()
        }

    def _open(self) -> None:
        """Reload everything: DVC caches lock files for as long as the repository is open."""
        self.repo = Repo(str(self.folder))
        self._stale = False
        index = self.repo.index
        for stage in index.stages:
            _check_names(_name(stage), stage)
        self._graph, self._outs = index.graph, list(index.outs)
        # Upstream stages first, as in `dvc repro`.
        ordered = nx.dfs_postorder_nodes(self._graph)
        self._stages: dict[str, Any] = {_name(stage): stage for stage in ordered if stage.cmd}

    def _expand(self, targets: list[str]) -> list[str]:
        if not targets:
            return [name for name, stage in self._stages.items() if stage.path_in_repo == MAIN]
        found: list[str] = []
        for target in targets:
            group = [name for name in self._stages if name.startswith(f"{target}@")]
            if target not in self._stages and not group:
                near = nearest_names(target, self._stages)
                hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise OrchestrationError(f"no stage is called {target!r}{hint}")
            found += [target] if target in self._stages else group
        return found

    def _ancestors(self, name: str) -> list[str]:
        # DVC's edges lead from a stage to its dependencies.
        needed = nx.descendants(self._graph, self._stages[name])
        return [_name(stage) for stage in needed if stage.cmd]

    def _reason(self, stage: Any, hashes: Mapping[str, str | None]) -> str | None:
        if stage.frozen:
            return None
        if stage.always_changed or stage.is_callback:
            return "runs every time"
        if not any(out.hash_info for out in stage.outs):
            return "never ran"
        if stage.cmd_changed:
            return "its command changed"
        read = self.parameters(_name(stage))
        for dep in _params(stage.deps):
            changed = _changed(dep, read[str(dep.def_path)])
            if changed:
                return f"parameter {min(changed)} changed"
        for dep in _files(stage.deps):
            if hashes[str(dep.def_path)] != dep.hash_info.value:
                return f"{dep.def_path} changed"
        return self._missing(stage)

    def _missing(self, stage: Any) -> str | None:
        for out in stage.outs:
            if not out.hash_info:
                return f"{out.def_path} was never made"
            if out.use_cache and not self._stored(out) and not self._stored(out, again=True):
                return f"{out.def_path} is not in the store"
        return None

    def _stored(self, out: Any, again: bool = False) -> bool:
        """The listing of a folder is stored after its last file, so it implies the whole output."""
        if again and self._wait_for_store is not None:
            self._wait_for_store()
        cloud, cache = self.repo.cloud, self.repo.cache.local
        store = cache if self._remote is None else cloud.get_remote_odb(self._remote)
        if again:
            store.fs.fs.invalidate_cache()
        found: bool = store.exists(out.hash_info.value)
        return found

    def _hash(self, dep: Any) -> str | None:
        """Current hash of a dependency: from the lock file if a stage makes it, else from disk."""
        if not self._outs_at(dep.fs_path):
            if dep.fs_path not in self._hashes:
                self._hashes[dep.fs_path] = str(dep.get_hash().value) if dep.exists else None
            return self._hashes[dep.fs_path]
        try:
            return self._recorded_hash(dep)
        except FileNotFoundError:  # An upstream stage has not run yet.
            return None
        except DataIndexDirError:
            # Lost, or the store is unreachable: the retry below tells which.
            if self._wait_for_store is not None:
                self._wait_for_store()
        try:
            return self._recorded_hash(dep)
        except DataIndexDirError:
            return None

    def _recorded_hash(self, dep: Any) -> str:
        view = DVCFileSystem(repo=self.repo)
        path = view.from_os_path(dep.fs_path)
        _, _, made = build(self.repo.cache.local, path, view, "md5", dry_run=True)
        value: str = made.hash_info.value
        return value

    def _outs_at(self, path: str) -> list[Any]:
        """Outputs that are `path`, are inside it, or contain it."""
        here = path + os.sep
        return [
            out
            for out in self._outs
            if here.startswith(there := out.fs_path + os.sep) or there.startswith(here)
        ]

    def _lock_of(self, name: str) -> tuple[Path, str]:
        stage = self._stages[name]
        return Path(stage.path).with_suffix(".lock"), stage.name


def _name(stage: Any) -> str:
    """Unlike DVC's `addressing`, independent of the current folder."""
    name: str = getattr(stage, "name", "")
    return name if stage.path_in_repo == MAIN else f"{stage.path_in_repo}:{name}"


def _check_names(name: str, stage: Any) -> None:
    """Raise on a stage that DVC must not run: it deletes the outputs first."""
    value = name.partition("@")[2]
    if value and not STREAM.fits(value):
        raise OrchestrationError(f"stage {name[:200]!r}: {value[:200]!r} {STREAM.rule}")
    for out in stage.outs:
        if not out.is_in_repo:
            raise OrchestrationError(f"stage {name}: its output {out.def_path} is elsewhere")


def _changed(dep: ParamsDependency, read: Mapping[str, Any]) -> list[str]:
    """Parameters that are missing, or differ from those of the last run."""
    recorded = dep.hash_info.value or {}
    names = dep.params or {**read, **recorded}
    return [
        name
        for name in names
        if name not in read or name not in recorded or read[name] != recorded[name]
    ]


def _params(deps: Iterable[Any]) -> list[Any]:
    return [dep for dep in deps if isinstance(dep, ParamsDependency)]


def _files(deps: Iterable[Any]) -> list[Any]:
    return [dep for dep in deps if not isinstance(dep, ParamsDependency)]
