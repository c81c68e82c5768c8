"""A model that MLflow serves: in a process without `mrmodel`, from files, S3 and feature stores."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest

from mrmodel.errors import DataError, FeatureError, FeatureMismatch
from mrmodel.predict.serving import read_serving
from mrmodel.storage import open_store
from mrmodel.tracking.inputs import EXAMPLE, PLACES_VARIABLE, Source
from mrmodel.tracking.mlflow_model import write_mlflow_model
from tests.project import Project
from tests.services import Service
from tests.tracking.serving import invoke, serving

MODEL = "models/served/moment_detr"
QUERIES = ["A thing moves to the left", "A cat sleeps"]

# Answers a request on standard input where neither `mrmodel` is installed nor anything that the
# model's requirements do not bring; says where its `mrmodel` is from.
FRESH = """
import json, sys
hidden = set(json.loads(sys.argv[2]))
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"not a requirement: {name}", name=name)
sys.meta_path = [Hidden(), *(found for found in sys.meta_path if "editable" not in repr(found))]
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
answers = model.predict(pandas.DataFrame(json.load(sys.stdin)))
import mrmodel
print(json.dumps([answers, mrmodel.__file__]))
"""


@pytest.fixture(scope="module")
def served(reproduced: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model as an MLflow model."""
    target = tmp_path_factory.mktemp("served") / "model"
    folder = reproduced.folder / MODEL
    write_mlflow_model(target, folder, read_serving(folder))
    return target


@pytest.fixture(scope="module")
def places(reproduced: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variable that names what requests may read."""
    named = (reproduced.folder, tmp_path_factory.getbasetemp(), "s3://mrmodel/served")
    return {PLACES_VARIABLE: ",".join(map(str, named))}


@pytest.fixture(scope="module")
def loaded(served: Path, places: dict[str, str]) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLACES_VARIABLE, places[PLACES_VARIABLE])
        yield mlflow.pyfunc.load_model(str(served))


@pytest.fixture(scope="module")
def expected(reproduced: Project) -> list[dict[str, Any]]:
    """What `mrmodel predict` says of the first test video."""
    queries = [part for query in QUERIES for part in ("--query", query)]
    options = ["--json", "--top", "1000", "--model", MODEL]
    output = reproduced.run("mrmodel", "predict", str(first_video(reproduced)), *queries, *options)
    return [json.loads(line) for line in output.splitlines()]


def first_video(project: Project) -> Path:
    return sorted((project.folder / "data/miniature/videos").glob("test-*.mp4"))[0]


def rows_about(video: str) -> list[dict[str, str]]:
    return [{"query": query, "video": video} for query in QUERIES]


def closure(requirements: list[str]) -> set[str]:
    """Names of the distributions that `requirements` bring."""
    found: set[str] = set()
    waiting = [name_of(line) for line in requirements]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            below = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # Of another platform.
            continue
        found.add(name)
        waiting += [name_of(line) for line in below if "extra ==" not in line]
    return found


def name_of(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return name[0].lower().replace("_", "-").replace(".", "-")


def test_a_fresh_process_answers_with_the_models_own_code_and_requirements(
    reproduced: Project, served: Path, places: dict[str, str], expected: list[dict[str, Any]]
) -> None:
    brought = closure((served / "requirements.txt").read_text().splitlines())
    hidden = [
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if module != "mrmodel" and not {name_of(owner) for owner in owners} & brought
    ]
    assert {"prefect", "dvc"} <= set(hidden)
    done = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, str(served), json.dumps(hidden)],
        input=json.dumps(rows_about(str(first_video(reproduced)))),
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, code = json.loads(done.stdout.splitlines()[-1])
    assert answers == expected
    assert Path(code).is_relative_to(served)


def test_no_pickle_is_in_it(served: Path) -> None:
    files = [path for path in served.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files if path.parent.name != "__pycache__"}
    assert kinds == {"", ".py", ".json", ".yaml", ".txt", ".mp4", ".safetensors", ".lock"}
    assert "python_model" not in (served / "MLmodel").read_text()


@pytest.fixture
def server(
    served: Path, places: dict[str, str], tmp_path: Path, reproduced: Project
) -> Iterator[str]:
    with serving(str(served), tmp_path, reproduced.environment() | places) as address:
        yield address


@pytest.mark.services
def test_mlflow_models_serve_answers_as_mrmodel_predict_does(
    reproduced: Project, served: Path, server: str, expected: list[dict[str, Any]]
) -> None:
    assert invoke(server, rows_about(str(first_video(reproduced)))) == expected
    example = json.loads((served / "serving_input_example.json").read_text())["inputs"]
    assert {row["vid"] for row in invoke(server, example)} == {"example"}
    with pytest.raises(urllib.error.HTTPError, match="400"):
        invoke(server, rows_about("no.mp4"))


def assert_same_answers(
    loaded: Any, sources: list[dict[str, str]], expected: list[dict[str, Any]]
) -> None:
    rows = [{"query": query, **source} for source in sources for query in QUERIES]
    answers = loaded.predict(pd.DataFrame(rows))
    assert [row["qid"] for row in answers] == list(range(len(rows)))
    plain = [{key: value for key, value in row.items() if key != "qid"} for row in answers]
    wanted = [{key: value for key, value in row.items() if key != "qid"} for row in expected]
    assert plain == wanted * len(sources)


def test_cached_features_give_the_same_answers(
    reproduced: Project, loaded: Any, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    video, features = first_video(reproduced), reproduced.folder / "features/miniature"
    sources = [{"video": str(video)}, {"features": str(features), "vid": video.stem}]
    assert_same_answers(loaded, sources, expected)
    with pytest.raises(FeatureError, match=r"tiny\.video: .*not a feature store"):
        loaded.predict(pd.DataFrame([{"query": "a", "features": str(tmp_path), "vid": video.stem}]))


def test_a_video_in_s3_and_cached_features_give_the_same_answers(
    reproduced: Project, loaded: Any, expected: list[dict[str, Any]], s3_env: Service
) -> None:
    video, bucket = first_video(reproduced), "s3://mrmodel/served"
    features = reproduced.folder / "features/miniature"
    store = open_store(bucket)
    store.upload(f"videos/{video.name}", video)
    for file in (features / "tiny.video").iterdir():
        store.upload(f"features/tiny.video/{file.name}", file)
    sources = [
        {"video": f"{bucket}/videos/{video.name}"},
        {"features": str(features), "vid": video.stem},
        {"features": f"{bucket}/features", "vid": video.stem},
    ]
    assert_same_answers(loaded, sources, expected)
    for row in ({"video": f"{bucket}/videos/none.mp4"}, {"features": bucket, "vid": video.stem}):
        with pytest.raises(DataError, match="is not there, or in no place that"):
            loaded.predict(pd.DataFrame([{"query": "a", **row}]))


def test_a_part_of_a_stored_video_is_searched_alone(reproduced: Project, loaded: Any) -> None:
    source = {"features": str(reproduced.folder / "features/miniature")}
    vid = f"{first_video(reproduced).stem}_6_16"
    (answer,) = loaded.predict(pd.DataFrame([{"query": QUERIES[0], **source, "vid": vid}]))
    assert answer["duration"] == 10.0
    assert len(answer["pred_saliency_scores"]) == 5
    assert all(end <= 10.0 for _, end, _ in answer["pred_relevant_windows"])


def test_features_of_another_encoder_are_refused(
    reproduced: Project, loaded: Any, tmp_path: Path
) -> None:
    store = reproduced.folder / "features/miniature/tiny.video"
    (tmp_path / "tiny.video").mkdir()
    for file in store.iterdir():
        (tmp_path / "tiny.video" / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["info"]["fingerprint"]["encoder"] = "another"
    (tmp_path / "tiny.video/manifest.json").write_text(json.dumps(manifest))
    row = {"query": "a", "features": str(tmp_path), "vid": first_video(reproduced).stem}
    with pytest.raises(FeatureMismatch, match="not those that the model was trained with"):
        loaded.predict(pd.DataFrame([row]))


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"video": ""},
        {"video": "a.mp4", "features": "f", "vid": "a"},
        {"features": "f"},
        {"vid": "a"},
        {"video": ["a.mp4"]},
    ],
)
def test_a_row_names_one_source(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"row 3: give `video`, or `features` and `vid`"):
        Source.of_row(row, 3)


def test_the_example_needs_nothing_of_the_user(loaded: Any) -> None:
    (answer,) = loaded.predict(pd.DataFrame([{"query": "A cat", "video": EXAMPLE}]))
    assert answer["duration"] == 20.0
