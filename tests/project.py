"""A copy of this repository to run the pipeline in, as a stranger's clone would."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import networkx as nx
import pytest
import yaml
from dvc.repo import Repo

from mrmodel import presets
from mrmodel.cli.main import main
from mrmodel.config.schema import load_config
from mrmodel.files import one_at_a_time
from mrmodel.progress import NullReporter

ROOT = Path(__file__).parents[1]


class Project:
    """A git repository with the files of the working tree and a preset applied.

    Attributes:
        folder: of the repository.
        variables: of the environment of its commands, beside what `environment` gives each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables: dict[str, str] = {}
        listed = self._git(ROOT, "ls-files", "-co", "--exclude-standard", "-z")
        for name in filter(None, listed.split("\0")):
            source, target = ROOT / name, folder / name
            if source.is_file() and not name.startswith("tests/"):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
        (folder / "dvc.lock").unlink(missing_ok=True)

    @classmethod
    def at(cls, folder: Path) -> Project:
        """The project that was made in `folder`."""
        project = cls.__new__(cls)
        project.folder = folder
        project.variables = {}
        return project

    def copy(self, folder: Path, *left_out: str) -> Project:
        """A copy of the whole folder as it is now, but for files and folders of these names."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns(*left_out))
        return self.at(folder)

    def keep_studies(self, *names: str) -> None:
        """Leave these stages in ``studies/dvc.yaml``: for each clone DVC reads all there are."""
        path = self.folder / "studies/dvc.yaml"
        studies = yaml.safe_load(path.read_text())
        studies["stages"] = {name: studies["stages"][name] for name in names}
        path.write_text(yaml.safe_dump(studies))

    def commit(self) -> None:
        """Make it a git repository whose tree is clean."""
        self._git(self.folder, "init", "-q")
        self._git(self.folder, "config", "user.name", "test")
        self._git(self.folder, "config", "user.email", "test@example.invalid")
        self._git(self.folder, "add", "-A")
        self._git(self.folder, "commit", "-q", "-m", "start")

    def apply(self, preset: str, changes: Mapping[str, Any] | None = None) -> None:
        """Write params.yaml: a preset, and changes to it."""
        text = presets.render(preset)
        (self.folder / "params.yaml").write_text(presets.overlay(text, changes or {}))

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command of the environment in this folder, output captured."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, code: int = 0, patience_s: float = 1800) -> str:
        """Run a command to its end; its exit code must be `code`."""
        process = self.start(*command)
        try:
            output, _ = process.communicate(timeout=patience_s)
        finally:
            process.kill()  # One that has ended feels nothing.
        assert process.returncode == code, f"{command} gave {process.returncode}:\n{output}"
        return output

    def invoke(self, *arguments: str, code: int = 0) -> str:
        """Run ``mrmodel`` in this process, through its entry point; what it wrote to both streams.

        Without the seconds that a process needs to import torch. tests/cli/test_processes.py runs
        commands of each group as processes.
        """
        written = io.StringIO()
        with (
            self.inside(),
            patch.object(sys, "argv", ["mrmodel", *arguments]),
            own_logging(),
            contextlib.redirect_stdout(written),
            contextlib.redirect_stderr(written),
        ):
            try:
                main()
                found: object = 0
            except SystemExit as end:
                found = end.code or 0
        output = written.getvalue()
        assert found == code, f"mrmodel {shlex.join(arguments)} gave {found}:\n{output}"
        return output

    def stage(self, command: str) -> None:
        """Run ``python -m mrmodel.stages.<stage> --name VALUE`` in this process, unrecorded."""
        pattern = r"python -m (mrmodel\.stages\.(\w+))(?: (\w+))?((?: --\w+ \S+)*)"
        found = re.fullmatch(pattern, command)
        assert found is not None, command
        module, name, part, rest = found.groups()
        arguments = dict(re.findall(r"--(\w+) (\S+)", rest))
        run = getattr(importlib.import_module(module), part or name)
        with self.inside():
            config = load_config(Path("params.yaml"))
            run(config, NullReporter(), *([arguments] if arguments or part else []))

    def make_here(self) -> None:
        """Run the stages of dvc.yaml in this process, and note each in dvc.lock."""
        for name, command in self.commands().items():
            self.stage(command)
            with self.inside(), Repo() as repo:
                repo.commit(name, force=True)

    def commands(self) -> dict[str, str]:
        """Stage of dvc.yaml -> its command, in an order in which ``dvc repro`` could run them."""
        with self.inside(), Repo() as repo:
            stages = [one for one in nx.dfs_postorder_nodes(repo.index.graph) if one.cmd]
            return {one.addressing: one.cmd for one in stages if one.path_in_repo == "dvc.yaml"}

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This folder is the current one, and `environment` is the environment of this process."""
        with contextlib.chdir(self.folder), patch.dict(os.environ, self.environment(), clear=True):
            yield

    def environment(self) -> dict[str, str]:
        """The environment of the commands: this Python's programs first, no service configured."""
        bin_folder = str(Path(sys.executable).parent)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MLFLOW_", "MRMODEL_", "DVC_", "OPTUNA_", "PREFECT_"))
        }
        path = bin_folder + os.pathsep + kept.get("PATH", "")
        # The copy's code, not the installed one, also where a console script does the import.
        own = {"PATH": path, "PYTHONPATH": str(self.folder), "NO_COLOR": "1"}
        return {**kept, **own, **self.variables}

    def read(self, name: str) -> bytes:
        """Content of a file of the project."""
        return (self.folder / name).read_bytes()

    @staticmethod
    def _git(folder: Path, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
        )
        return done.stdout

    def git(self, *arguments: str) -> str:
        """Output of a git command in this folder."""
        return self._git(self.folder, *arguments)


@contextlib.contextmanager
def own_logging() -> Iterator[None]:
    """The root logger as a new process has it; pytest's handlers would keep a command's away."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that all processes of a test run share; the first one that needs it fills it."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / name, shared / f"{name}.done"
    with one_at_a_time(shared / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            make(folder)
            done.touch()
    return folder
