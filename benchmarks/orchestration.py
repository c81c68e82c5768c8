"""What the orchestration costs: asking the whole graph, and the way from an order to its command.

Runs in a repository whose pipeline is up to date and committed, such as after `make repro` and
`git commit dvc.lock`. Prefect's own part (polling, starting a flow's process) is not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.dvc_graph import StageGraph
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import StageRequest
from mrmodel.orchestrate.run_branch import set_parameters
from mrmodel.orchestrate.stage_process import Listener, run_stage_process

STAGE = "evaluate"


class Stop(Exception):
    """The command has begun: nothing more to measure."""


class Watch(Listener):
    """Notes when each step begins, and stops everything once the stage's command does."""

    def __init__(self) -> None:
        self.started = time.time()
        self.steps: dict[str, float] = {}

    def event(self, event: dict[str, Any]) -> None:
        """Note a step."""
        if event["event"] == "step":
            self.steps[event["name"]] = event["at"] - self.started

    def line(self, text: str) -> None:
        """DVC says the command just before it starts it."""
        if text.startswith("> "):
            self.steps["command"] = time.time() - self.started
            raise Stop


def ask_graph(environment: RuntimeEnvironment, rev: str) -> dict[str, float]:
    """Seconds to clone, to open the graph, and to ask every stage of the main pipeline."""
    started = time.perf_counter()
    with fresh_clone(environment, rev, {}) as folder:
        cloned = time.perf_counter()
        graph = StageGraph(folder, None)
        opened = time.perf_counter()
        reasons = [graph.status(name).reason for name in graph.names()]
        asked = time.perf_counter()
    return {
        "clone_s": round(cloned - started, 3),
        "open_s": round(opened - cloned, 3),
        "ask_s": round(asked - opened, 3),
        "stages": len(reasons),
        "changed": sum(reason is not None for reason in reasons),
    }


def order_to_command(rev: str) -> dict[str, float]:
    """Seconds from the call to each step of a stage; its command is stopped as it begins."""
    watch = Watch()
    with contextlib.suppress(Stop):
        run_stage_process(StageRequest(STAGE, rev), watch)
    return {f"{name}_at_s": round(at, 2) for name, at in watch.steps.items()}


def with_change(environment: RuntimeEnvironment, folder: Path) -> str:
    """Make a repository of our own in which `STAGE` must run, with the data of the given one."""
    subprocess.run(["git", "clone", "--quiet", environment.git, str(folder)], check=True)
    params = folder / "params.yaml"
    params.write_text(set_parameters(params.read_text(), {"evaluate.bootstrap_resamples": 123}))
    author = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    subprocess.run(["git", *author, "commit", "--quiet", "-am", "x"], cwd=folder, check=True)
    (folder / ".dvc" / "cache").symlink_to(environment.cache)
    return str(folder)


def main() -> None:
    """Print one line of figures, the best of some rounds each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    environment = RuntimeEnvironment.from_environment()
    asked = min(
        (ask_graph(environment, "HEAD") for _ in range(arguments.rounds)),
        key=lambda found: found["clone_s"] + found["open_s"] + found["ask_s"],
    )
    with tempfile.TemporaryDirectory() as name:
        os.environ["MRMODEL_GIT_URL"] = with_change(environment, Path(name) / "repository")
        started = min(
            (order_to_command("HEAD") for _ in range(arguments.rounds)),
            key=lambda found: found["command_at_s"],
        )
    figures = {"graph": asked, "order_to_command": started}
    print(
        json.dumps(figures, allow_nan=False)
        if arguments.json
        else json.dumps(figures, indent=2, allow_nan=False)
    )


if __name__ == "__main__":
    main()
