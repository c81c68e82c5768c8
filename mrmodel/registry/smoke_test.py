"""Runs a registered model in its own process: does it load, with the same predictions as before?"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mrmodel.processes import die_with_parent, read_no_other_process, unreadable
from mrmodel.registry.gates import Smoke

# Allowed difference of scores: other machines round differently.
TOLERANCE = 1e-3
_SCRIPT = Path(__file__).with_name("smoke_script.py")
# The model's code gets no server URLs and no credentials, neither here nor from the environment of
# other processes: its example needs none.
_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
_SHOWN = 300


def run_smoke(
    model: Path, expected: list[dict[str, Any]] | None, timeout_s: float
) -> tuple[Smoke, list[dict[str, Any]]]:
    """Load a model in a fresh process and run it on its example.

    Args:
        model: folder of the MLflow model.
        expected: the predictions at registration; None when registering.
        timeout_s: the process is killed after this time.

    Returns:
        The result, and the predictions; empty if there is a fault.
    """
    with tempfile.TemporaryDirectory(prefix="mrmodel-smoke-") as folder:
        try:
            with unreadable():
                done = subprocess.run(
                    # -I: neither the current folder nor PYTHONPATH can provide another `mrmodel`.
                    [sys.executable, "-I", str(_SCRIPT), str(model.resolve())],
                    cwd=folder,
                    env=_environment(folder),
                    capture_output=True,
                    text=True,
                    timeout=timeout_s,
                    check=False,
                    preexec_fn=_apart,
                )
        except subprocess.TimeoutExpired:
            return Smoke(f"no prediction within {timeout_s:g} s", None), []
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["nothing"])[-1][:_SHOWN]
        return Smoke(f"the process ended with {done.returncode}: {words}", None), []
    said = json.loads(done.stdout.splitlines()[-1])
    fault = _fault(said, model)
    if not fault and expected is not None:
        fault = difference(said["answers"], expected)
    return Smoke(fault, float(said["latency_s"])), [] if fault else said["answers"]


def difference(found: Any, expected: Any, place: str = "answers") -> str:
    """The first place where two predictions differ by more than `TOLERANCE`; empty: nowhere."""
    if isinstance(found, dict) and isinstance(expected, dict):
        pairs = [(f".{key}", found.get(key), expected.get(key)) for key in {**expected, **found}]
    elif isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return f"{place} has {len(found)} items, {len(expected)} at registration"
        pairs = [
            (f"[{number}]", one, other)
            for number, (one, other) in enumerate(zip(found, expected, strict=True))
        ]
    else:
        equal = found == expected
        if isinstance(found, int | float) and isinstance(expected, int | float):
            equal = abs(found - expected) <= TOLERANCE
        return "" if equal else f"{place} is {found!r}, {expected!r} at registration"
    faults = (difference(one, other, f"{place}{part}") for part, one, other in pairs)
    return next((fault for fault in faults if fault), "")


def _fault(said: dict[str, Any], model: Path) -> str:
    if not Path(said["code"]).is_relative_to(model.resolve()):
        return f"the predictions came from code outside of the model: {said['code']}"
    for number, row in enumerate(said["answers"], start=1):
        for start, end, score in row["pred_relevant_windows"]:
            if not (0.0 <= start < end <= row["duration"] and 0.0 <= score <= 1.0):
                return (
                    f"prediction {number} has a window outside of the video: {[start, end, score]}"
                )
        if not all(map(math.isfinite, row["pred_saliency_scores"])):
            return f"prediction {number} has a clip score that is not a number"
    return ""


def _apart() -> None:
    die_with_parent()
    read_no_other_process()


def _environment(home: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {
        **kept,
        "HOME": home,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
