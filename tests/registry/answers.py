"""The smoke test of a registered model, with one process for equal models of a test run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mrmodel.registry.gates import Smoke
from mrmodel.registry.smoke_test import difference, run_smoke
from tests.project import made_once

# MLflow writes the time and an id of its own into it.
_UNLIKE = ("MLmodel",)


class AnswersOnce:
    """`run_smoke`, but a model with the same files as an earlier one starts no second process.

    Its answers are those of the first process; they are compared with the expected ones each time,
    as `run_smoke` does.
    """

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory

    def __call__(
        self, model: Path, expected: list[dict[str, Any]] | None, timeout_s: float
    ) -> tuple[Smoke, list[dict[str, Any]]]:
        def make(folder: Path) -> None:
            smoke, answers = run_smoke(model, None, timeout_s)
            folder.mkdir()
            (folder / "told.json").write_text(json.dumps([asdict(smoke), answers]))

        made = made_once(self._factory, f"answers-{_digest(model)}", make)
        told, answers = json.loads((made / "told.json").read_text())
        smoke = Smoke(**told)
        if not smoke.fault and expected is not None:
            smoke = replace(smoke, fault=difference(answers, expected))
        return smoke, [] if smoke.fault else answers


def _digest(model: Path) -> str:
    """Of the names and the content of the files."""
    digest = hashlib.sha256()
    for path in sorted(model.rglob("*")):
        if path.is_file() and path.name not in _UNLIKE and "__pycache__" not in path.parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(model)} {content}\n".encode())
    return digest.hexdigest()
