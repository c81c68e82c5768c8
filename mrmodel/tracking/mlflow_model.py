"""A model folder as an MLflow model: its own code, safetensors weights, signature and example.

The result loads in a process without `mrmodel`: the modules needed for serving are copied into it.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from mrmodel.config.postprocess import PostprocessConfig
from mrmodel.encoders.bundled_weights import WeightsLock
from mrmodel.predict.serving import write_serving
from mrmodel.synthetic.annotations import draw_queries
from mrmodel.synthetic.script import plan_video
from mrmodel.synthetic.video_writer import PictureFormat, render_video
from mrmodel.tracking.experiment import prepare_mlflow
from mrmodel.tracking.inputs import EXAMPLE
from mrmodel.train.checkpoint import CONFIG, WEIGHTS, read_model_config
from mrmodel.version import PACKAGE


def model_signature() -> Any:
    """Input columns (see `inputs.Source`) and the fields of a prediction."""
    texts = ("video", "features", "vid")
    inputs = [ColSpec(DataType.string, "query")]
    inputs += [ColSpec(DataType.string, name, required=False) for name in texts]
    outputs = [
        ColSpec(DataType.long, "qid"),
        ColSpec(DataType.string, "query"),
        ColSpec(DataType.string, "vid"),
        ColSpec(Array(Array(DataType.double)), "pred_relevant_windows"),
        ColSpec(Array(DataType.double), "pred_saliency_scores"),
        ColSpec(DataType.double, "duration"),
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


# The packages and modules that `pyfunc_model` imports, including registered encoders and models; a
# test loads the model where nothing else of `mrmodel` is available.
_CODE = (
    "__init__.py",
    "addresses.py",
    "components.py",
    "config",
    "data",
    "devices.py",
    "encoders",
    "errors.py",
    "features",
    "files.py",
    "lines.py",
    "losses",
    "models",
    "names.py",
    "predict",
    "progress.py",
    "spans.py",
    "startup.py",
    "storage",
    "text.py",
    "tracking",
    "train",
    "types.py",
    "version.py",
    "video",
)
_REQUIRED = (
    "av",
    "boto3",
    "mlflow",
    "numpy",
    "onnx",
    "onnxruntime",
    "pandas",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "rich",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
)
_EXAMPLE_FILE = "example.mp4"
_EXAMPLE_S, _EXAMPLE_SEED, _EXAMPLE_QUERIES = 20.0, 2026, 2


def write_mlflow_model(
    target: Path, folder: Path, postprocess: PostprocessConfig, *, rendered: bool | None = None
) -> None:
    """Write the model folder `folder` as an MLflow model to the new folder `target`.

    Its serving.json is of `postprocess` and `rendered` (`write_serving`).

    Raises:
        CheckpointError: `folder` is not a model folder.
    """
    prepare_mlflow()
    import mlflow.pyfunc

    config = read_model_config(folder)
    with tempfile.TemporaryDirectory(prefix="mrmodel-log-") as name:
        workshop = Path(name)
        example = workshop / _EXAMPLE_FILE
        queries = write_example(example, config.clip_len_s)
        mlflow.pyfunc.save_model(
            path=str(target),
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            code_paths=[str(_copy_code(workshop / "mrmodel"))],
            artifacts={
                # As addresses, since MLflow decodes %20 in paths too.
                "model": _copy_model(folder, workshop / "model", postprocess, rendered).as_uri(),
                "example": example.as_uri(),
            },
            signature=model_signature(),
            input_example=[{"query": query, "video": EXAMPLE} for query in queries],
            pip_requirements=requirements(),
            model_config={"device": "auto"},
        )


def write_example(target: Path, clip_len_s: float) -> list[str]:
    """Render a short video like those of the sample corpus; returns its query sentences."""
    plan = plan_video("example", "test", _EXAMPLE_SEED, _EXAMPLE_S)
    render_video(plan, PictureFormat(width=128, height=96, fps=5, crf=26), target)
    queries = draw_queries(plan, _EXAMPLE_QUERIES, clip_len_s, taken=())
    return [str(query.row["query"]) for query in queries]


def requirements() -> list[str]:
    """Requirements of the model, at the versions installed here (without build labels)."""
    names = {*_REQUIRED, *(file.package for file in WeightsLock().files.values())}
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in sorted(names)]


def _copy_code(target: Path) -> Path:
    source = PACKAGE
    for name in _CODE:
        if (source / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source / name, target / name, ignore=ignored)
        else:
            target.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)
    return target


def _copy_model(
    folder: Path, target: Path, postprocess: PostprocessConfig, rendered: bool | None
) -> Path:
    """Copy the files of a model folder; any other files in it are left out."""
    target.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(folder / name, target / name)
    write_serving(target, postprocess, rendered=rendered)
    return target
