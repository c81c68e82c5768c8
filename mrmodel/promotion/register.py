"""From a trained and evaluated model of this repository to a version of the registry."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mrmodel.config import Config
from mrmodel.errors import RegistryError
from mrmodel.pipeline.layout import Layout
from mrmodel.promotion.candidate import Candidate, gather
from mrmodel.promotion.registry import Registry
from mrmodel.promotion.smoke import run_smoke
from mrmodel.promotion.versions import Versions
from mrmodel.track.model_files import write_mlflow_model


def register(
    registry: Registry, config: Config, layout: Layout, model: str, kind: str
) -> tuple[int, bool]:
    """Make a model folder a version, which becomes the challenger.

    The same weights with the same answers to the same test set are the same version.

    Args:
        registry: see `registry.open_registry`.
        config: the parameter file.
        layout: where the model and its evaluation are.
        model: name below `models`.
        kind: ``finetuned``, ``scratch``, ``pretrained`` or ``imported``.

    Returns:
        The version, and whether it is new.

    Raises:
        MrModelError: see `candidate.gather`.
        RegistryError: the model does not answer its example in a fresh process.
    """
    candidate = gather(config, layout, model, kind)
    registry.keep(candidate.frozen)
    known = registry.versions.find_same(candidate)
    version = known or _upload(registry.versions, candidate, config.promotion.smoke_timeout_s)
    registry.reconcile()
    return version, known is None


def _upload(versions: Versions, candidate: Candidate, timeout_s: float) -> int:
    with tempfile.TemporaryDirectory(prefix="mrmodel-register-") as folder:
        model = Path(folder) / "model"
        write_mlflow_model(model, candidate.folder, candidate.postprocess)
        smoke, answers = run_smoke(model, None, timeout_s)
        if smoke.fault:
            raise RegistryError(f"{candidate.folder}: cannot be served: {smoke.fault}")
        return versions.add(candidate, model, answers)
