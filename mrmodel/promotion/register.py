"""From a trained and evaluated model of this repository to a version of the registry."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mrmodel.config import Config
from mrmodel.errors import RegistryError
from mrmodel.pipeline.layout import Layout
from mrmodel.progress import Reporter, Steps
from mrmodel.promotion.candidate import Candidate, gather
from mrmodel.promotion.registry import Registry
from mrmodel.promotion.smoke import run_smoke
from mrmodel.promotion.versions import Versions
from mrmodel.track.model_files import write_mlflow_model


def register(
    registry: Registry,
    config: Config,
    layout: Layout,
    model: str,
    kind: str,
    reporter: Reporter | None = None,
) -> tuple[int, bool]:
    """Make a model folder a version, which becomes the challenger.

    The same weights with the same answers to the same test set are the same version.

    Args:
        registry: see `registry.open_registry`.
        config: the parameter file.
        layout: where the model and its evaluation are.
        model: name below `models`.
        kind: ``finetuned``, ``scratch``, ``pretrained`` or ``imported``.
        reporter: shows the steps; None: nobody.

    Returns:
        The version, and whether it is new.

    Raises:
        MrModelError: see `candidate.gather`.
        RegistryError: the model does not answer its example in a fresh process.
    """
    with Steps(reporter, "register", 4) as steps:
        steps.begin("scoring the predictions")
        candidate = gather(config, layout, model, kind)
        steps.begin("looking for the same version")
        registry.keep(candidate.frozen)
        known = registry.versions.find_same(candidate)
        timeout_s = config.promotion.smoke_timeout_s
        version = known or _upload(registry.versions, candidate, timeout_s, steps)
        registry.reconcile()
    return version, known is None


def _upload(versions: Versions, candidate: Candidate, timeout_s: float, steps: Steps) -> int:
    with tempfile.TemporaryDirectory(prefix="mrmodel-register-") as folder:
        model = Path(folder) / "model"
        steps.begin("smoke test in a fresh process")
        write_mlflow_model(model, candidate.folder, candidate.postprocess)
        smoke, answers = run_smoke(model, None, timeout_s)
        if smoke.fault:
            raise RegistryError(f"{candidate.folder}: cannot be served: {smoke.fault}")
        steps.begin("storing the version")
        return versions.add(candidate, model, answers)
