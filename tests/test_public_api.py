"""`import mrmodel` gives the public names and loads nothing heavy."""

import subprocess
import sys

import pytest

import mrmodel
from mrmodel.config.schema import load_config
from mrmodel.export.hits import Hit, hits_of
from mrmodel.export.write import export_hits
from mrmodel.library.library import Library
from mrmodel.predict.predictor import Predictor
from mrmodel.registry.load import load_champion
from mrmodel.train.checkpoint import load_model


def test_the_public_names_are_those_of_their_modules() -> None:
    assert (
        mrmodel.Library,
        mrmodel.Predictor,
        mrmodel.load_champion,
        mrmodel.load_config,
        mrmodel.load_model,
    ) == (
        Library,
        Predictor,
        load_champion,
        load_config,
        load_model,
    )
    assert (mrmodel.Hit, mrmodel.hits_of, mrmodel.export_hits) == (Hit, hits_of, export_hits)
    names = {"Hit", "Library", "Predictor", "__version__", "export_hits", "hits_of", "load_config"}
    assert set(mrmodel.__all__) == names | {"load_champion", "load_model"}
    with pytest.raises(AttributeError, match="'mrmodel' has no attribute 'nothing'"):
        mrmodel.nothing  # noqa: B018


def test_importing_it_loads_neither_torch_nor_mlflow() -> None:
    script = "import sys, mrmodel; print(sorted({'torch', 'mlflow', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


HEAVY = {"torch", "mlflow", "optuna", "pandas", "dvc", "av", "matplotlib"}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("mrmodel.cli.main", set()),
        ("mrmodel.orchestrate.stage_process", set()),
        ("mrmodel.orchestrate.stage_runner", {"dvc"}),
        ("mrmodel.tracking.run", set()),
        ("mrmodel.tune.result", set()),
        ("mrmodel.processes", set()),
        ("mrmodel.stages.intervid", {"av", "pandas"}),
        ("flows.stages", set()),
        ("flows.provision", set()),
    ],
)
def test_what_every_command_and_stage_imports_stays_light(module: str, allowed: set[str]) -> None:
    """Each of these starts with a command or a stage; torch alone would cost it two seconds."""
    script = f"import sys, {module}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= allowed
