"""Names and paths that come from outside: findings 1, 2, 12, 13 and the names of 8."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dvc.exceptions import ReproductionError
from dvc.repo import Repo

from mrmodel.config.schema import CorpusSettings, FeatureSettings, load_config, parse_config
from mrmodel.config.studies import check_studies
from mrmodel.errors import ConfigError, FeatureError, MrModelError, OrchestrationError
from mrmodel.features.importers.importer import copy_store
from mrmodel.features.index import IndexEntry
from mrmodel.features.manifest import StreamInfo
from mrmodel.features.store import FeatureStore
from mrmodel.features.writer import FeatureWriter
from mrmodel.names import STUDY, is_inside, problem_of_part
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.dvc_graph import StageGraph
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.run_branch import workspace
from mrmodel.retrain.deliveries import delivery_in, list_deliveries
from mrmodel.retrain.ingest import IngestResult, _Ingestion, _pending
from mrmodel.retrain.outcomes import Ledger
from mrmodel.stages import runner
from mrmodel.stages.paths import Paths
from mrmodel.storage import open_store

ROOT = Path(__file__).parents[2]
# What a shell, a path or an address would read as more than a name.
NO_NAMES = [
    "x; id > pwned; true #",
    "$(id > pwned)",
    "`id`",
    "a b",
    "a\nid > pwned",
    "a'\nid > pwned #",
    "a\n",
    "--help",
    "-c",
    "",
    ".",
    "..",
    "../../../escaped",
    "../../notes_of_user",
    "/tmp/escaped",
    "a/b",
    "a\\b",
    "a/../../..",
    ".hidden",
    "a..b/..",
    "a\x00b",
    "\u202ea",
    "é",
    "s3://bucket/x",
    "a:b",
    "a%2f..",
    "a" * 101,
]


@pytest.fixture(scope="module")
def sample() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def changed(raw: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    tree = copy.deepcopy(raw)
    *sections, name = path.split(".")
    section = tree
    for one in sections:
        section = section[one]
    section[name] = value
    return tree


@pytest.mark.parametrize("imports", ["own_features/none", "own_features/qvhighlights"])
@pytest.mark.parametrize("field", ["video_streams", "text_streams"])
def test_a_stream_name_is_checked_whatever_the_imports(
    sample: dict[str, Any], field: str, imports: str
) -> None:
    """Finding 1: names were checked only while `features.imports` ends in ``none``."""
    raw = changed(sample, "features.imports", imports)
    for name in NO_NAMES:
        with pytest.raises(ConfigError) as error:
            parse_config(changed(raw, f"features.{field}", [name]))
        assert error.value.path == f"features.{field}.0"
        assert "letters, digits, _ and -" in error.value.rule


@pytest.mark.parametrize(
    "place",
    [
        "corpus.name",
        "train.models",
        "tune.study",
        "promotion.registered_model",
        "orchestrate.default_pool",
        "orchestrate.pools.extract",
        "tune.model",
    ],
)
def test_every_other_name_of_params_yaml(sample: dict[str, Any], place: str) -> None:
    """Findings 1 and 2: the same of every name that is pasted into a command, path or address."""
    for name in NO_NAMES:
        if place.startswith("orchestrate") and name == "a b":
            continue
        with pytest.raises(ConfigError, match=place.rpartition(".")[0]):
            parse_config(changed(sample, place, [name] if place == "train.models" else name))


@pytest.mark.parametrize("place", ["corpus.folder", "features.imports"])
@pytest.mark.parametrize(
    ("folder", "is_taken"),
    [
        ("own_videos", True),
        ("own features/Übung 1/", True),
        ("/data/videos", True),
        ("..", False),
        ("../own_videos", False),
        ("a/../../b", False),
        ("a/..", False),
        ("/data/../etc", False),
        ("", False),
        (".", False),
        ("./", False),
        (".git/hooks", False),
        (".dvc/cache", False),
        ("./.git/hooks", False),
        (".//.dvc", False),
        (".GIT/hooks", False),
        ("~/videos", False),
        ("https://evil.example/x", False),
        ("s3://bucket/x", False),
        ("remote://other/x", False),
        ("http:evil.example", False),
        ("a\\..\\b", False),
        ("a\nb", False),
        ("a\x00", False),
    ],
)
def test_folders_stay_inside_the_repository_or_are_absolute(
    sample: dict[str, Any], place: str, folder: str, is_taken: bool
) -> None:
    """Finding 2: `..`, addresses and folders of git and DVC were accepted."""
    raw = changed(sample, place, folder)
    if is_taken:
        section, name = place.split(".")
        assert getattr(getattr(parse_config(raw), section), name) == folder
    else:
        with pytest.raises(ConfigError, match=place):
            parse_config(raw)


def test_names_of_today_stay_valid() -> None:
    """Names in all presets (see test_presets.py) and in the project of an earlier version."""
    sample = yaml.safe_load((ROOT / "params.yaml").read_text())
    for path in ROOT.glob("tests/compat/*/project/params.yaml"):
        raw = yaml.safe_load(path.read_text())
        streams = [*raw["features"]["video_streams"], *raw["features"]["text_streams"]]
        assert CorpusSettings.model_validate(raw["corpus"]).folder
        features = sample["features"] | {"imports": raw["features"]["imports"]}
        assert FeatureSettings.model_validate(features | {"video_streams": streams})
        assert STUDY.fits(raw["tune"]["study"])
        for manifest in path.parent.glob("features/*/*/manifest.json"):
            assert FeatureStore(manifest.parent).info.stream in streams
    check_studies(ROOT)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("ablation.rows", [name]) for name in NO_NAMES),
        *(("compare.models", [name]) for name in NO_NAMES),
        *(("pretraining.rows", [name]) for name in NO_NAMES),
        ("pretraining.rows", ["sg_detr"]),
        ("pretraining.rows", ["sg_detr.intervid_mr.0"]),
        *((place, "600; id") for place in ("ablation.run.steps", "compare.run.steps")),
        ("pretraining.run.pretrain_steps", "600; id"),
        ("ablation.run.steps", 0),
        ("ablation.run.steps", True),
        ("ablation.rows", []),
        ("seeds", ["1; id"]),
        ("seeds", [-1]),
        ("seeds", 1),
        ("seeds", []),
    ],
)
def test_the_parameters_of_studies(tmp_path: Path, path: str, value: object) -> None:
    """Finding 1: nobody checked studies/params.yaml, whose values are pasted into commands."""
    raw = yaml.safe_load((ROOT / "studies/params.yaml").read_text())
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies/params.yaml").write_text(yaml.safe_dump(changed(raw, path, value)))
    with pytest.raises(ConfigError) as error:
        check_studies(tmp_path)
    assert error.value.path.startswith(f"studies/params.yaml.{path}")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("stream", name) for name in NO_NAMES),
        ("model", "../x"),
        ("preset", "a;b"),
        ("row", "x.none;b"),
    ],
)
def test_arguments_of_stages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argument: str, value: str
) -> None:
    """Findings 1 and 2: a stage that is run by hand checks its names, too."""
    monkeypatch.setattr("sys.argv", ["stage", f"--{argument}={value}"])
    with pytest.raises(SystemExit) as end:
        runner.run_stage_with(lambda *_: pytest.fail("the stage ran"), (argument,))
    assert end.value.code == 2
    assert f"argument --{argument}" in capsys.readouterr().err


def test_paths_are_made_of_names(sample: dict[str, Any], tmp_path: Path) -> None:
    """Finding 2: a model of a flow parameter or an option is none in another folder."""
    paths = Paths(parse_config(sample), tmp_path)
    for name in ("../../escaped", "/etc", "..", ""):
        for ask in (
            paths.stream,
            paths.imported,
            paths.served,
            lambda name: paths.model("finetuned", name),
            lambda name: paths.model(name, "sg_detr"),
        ):
            with pytest.raises(ConfigError):
                ask(name)
    assert paths.model("finetuned", "sg_detr") == tmp_path / "models/finetuned/sg_detr"


# --- through DVC ---


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the stages of this one, its parameters, and nothing to run."""
    folder = tmp_path_factory.mktemp("outside") / "repository"
    for name in ("dvc.yaml", "params.yaml", "studies/dvc.yaml", "studies/params.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    Repo.init(str(folder)).close()
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "stages"], check=True)
    return folder


@pytest.fixture
def clone(pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipeline, tmp_path / "outside/clone"))


@pytest.fixture
def environment(pipeline: Path, tmp_path: Path) -> RuntimeEnvironment:
    return RuntimeEnvironment(
        git=str(pipeline),
        remote=None,
        result_store=str(tmp_path / "handover"),
        endpoint=None,
        cache=tmp_path / "cache",
        state=tmp_path / "state",
        clones=tmp_path / "clones",
    )


def commands(folder: Path) -> dict[str, str]:
    """Stage -> its command."""
    return {stage.name: stage.cmd for stage in Repo(str(folder)).index.stages if stage.cmd}


def test_commands_are_those_of_before(pipeline: Path) -> None:
    """Finding 1: the commands in lock files of today are the ones that quoting gives."""
    found = commands(pipeline)
    assert found["extract@embedded.video"] == (
        "python -m mrmodel.stages.extract --stream embedded.video"
    )
    assert found["finetune@sg_detr"] == "python -m mrmodel.stages.train finetune --model sg_detr"
    assert found["package@sg_detr"] == "python -m mrmodel.stages.package --model sg_detr"
    assert found["seed_run@sg_detr-1"] == (
        "python -m mrmodel.experiments.seeds run --model sg_detr --seed 1"
    )
    assert found["ablation_run@sg_detr_ablation_a-2"] == (
        "python -m mrmodel.experiments.ablation run --preset sg_detr_ablation_a --seed 2 "
        "--steps 600"
    )
    assert found["compare_run@sa_detr-3"] == (
        "python -m mrmodel.experiments.compare run --model sa_detr --seed 3 --steps 600"
    )
    assert found["pretraining_run@sg_detr.intervid_mr.300-2"] == (
        "python -m mrmodel.experiments.pretraining run --row sg_detr.intervid_mr.300 --seed 2 "
        "--pretrain_steps 400 --finetune_steps 500"
    )


@pytest.mark.parametrize(
    ("file", "place", "stage"),
    [
        ("params.yaml", "features.video_streams", "extract"),
        ("params.yaml", "features.text_streams", "extract_text"),
        ("params.yaml", "train.models", "finetune"),
        ("studies/params.yaml", "compare.models", "compare_run"),
        ("studies/params.yaml", "ablation.rows", "ablation_run"),
        ("studies/params.yaml", "pretraining.rows", "pretraining_run"),
    ],
)
def test_a_shell_reads_one_word(clone: Path, file: str, place: str, stage: str) -> None:
    """Finding 1: what a plain `dvc repro` gives to the shell is one word, whatever the name."""
    name = "x; echo 'pwned' > pwned; $(touch pwned) `touch pwned` #"
    raw = yaml.safe_load((clone / file).read_text())
    (clone / file).write_text(yaml.safe_dump(changed(raw, place, [name])))
    found = [text for key, text in commands(clone).items() if f"{stage}@{name}" in key]
    shown = found[0].replace("python -m", "printf '%s\\n'")
    words = subprocess.run(
        ["sh", "-c", shown], cwd=clone, capture_output=True, text=True, check=True
    )
    assert name in words.stdout.splitlines()
    assert not (clone / "pwned").exists()


@pytest.mark.parametrize(
    ("file", "place", "value", "error"),
    [
        ("params.yaml", "features.video_streams", ["../../../escaped"], OrchestrationError),
        ("params.yaml", "features.video_streams", ["../../studies"], OrchestrationError),
        ("params.yaml", "features.text_streams", ["x; id"], OrchestrationError),
        ("params.yaml", "train.models", ["../../../escaped"], OrchestrationError),
        ("params.yaml", "corpus.name", "../../escaped", OrchestrationError),
        ("studies/params.yaml", "seeds", ["1; id"], ConfigError),
        ("studies/params.yaml", "ablation.run.steps", "600; id", ConfigError),
    ],
)
def test_workers_run_no_stage_of_another_name(
    clone: Path, file: str, place: str, value: object, error: type[Exception]
) -> None:
    """Findings 1 and 2: a worker loads the graph of a revision that nobody checked."""
    outside = clone.parent / "escaped"
    outside.mkdir()
    raw = yaml.safe_load((clone / file).read_text())
    (clone / file).write_text(yaml.safe_dump(changed(raw, place, value)))
    with pytest.raises(error):
        StageGraph(clone, None)
    assert outside.exists()


@pytest.mark.parametrize(
    ("place", "name", "stage"),
    [
        ("features.video_streams", "../../../escaped", "extract@"),
        ("features.video_streams", "../../notes_of_user", "extract@"),
        ("features.text_streams", "../../../escaped/", "extract_text@"),
        ("train.models", "../../../escaped", "package@"),
        ("train.models", "../../notes_of_user", "package@"),
        ("corpus.name", "../../escaped", "corpus"),
        ("corpus.name", "../notes_of_user", "corpus"),
    ],
)
def test_plain_dvc_deletes_nothing_that_a_name_points_to(
    clone: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: str, stage: str
) -> None:
    """Finding 2: DVC deletes outputs before it runs the command that checks its names."""
    kept = [clone.parent / "escaped/keep.txt", clone / "notes_of_user/keep.txt"]
    for path in kept:
        path.parent.mkdir()
        path.write_text("keep")
    raw = yaml.safe_load((clone / "params.yaml").read_text())
    value = name if place == "corpus.name" else [name]
    (clone / "params.yaml").write_text(yaml.safe_dump(changed(raw, place, value)))
    target = f"{stage}{name}" if stage.endswith("@") else stage
    (found,) = [one for one in Repo(str(clone)).index.stages if one.name == target]
    for dep in found.deps:
        if not dep.exists:
            Path(dep.fs_path).mkdir(parents=True)
    python = clone.parent / "bin/python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > ../ran\nexit 2\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", str(python.parent), prepend=":")
    monkeypatch.chdir(clone)
    with pytest.raises(ReproductionError):
        Repo().reproduce([target], single_item=True)
    if (clone.parent / "ran").exists() and stage != "corpus":  # The stage itself refuses the name.
        assert (clone.parent / "ran").read_text().splitlines()[-1] == name
    assert all(path.read_text() == "keep" for path in kept)


@pytest.mark.parametrize(
    ("study", "option"),
    [("ablation", "steps"), ("compare", "steps"), ("pretraining", "pretrain_steps")],
)
def test_options_of_studies_are_quoted(clone: Path, study: str, option: str) -> None:
    """Finding 1: `ablation.steps` stood in the command as it was."""
    file = clone / "studies/params.yaml"
    raw = changed(yaml.safe_load(file.read_text()), f"{study}.run.{option}", "600; touch pwned")
    file.write_text(yaml.safe_dump(raw))
    run = [text for name, text in commands(clone).items() if f"{study}_run@" in name]
    assert len(run) > 3
    assert all(text.endswith(f"--{option} '600; touch pwned'") for text in run)


def test_a_run_cannot_leave_the_repository(
    environment: RuntimeEnvironment, pipeline: Path, tmp_path: Path
) -> None:
    """Finding 2: `--set` and the flow parameter `params` choose no folder of the machine."""
    subprocess.run(["git", "-C", str(pipeline), "config", "receive.denyCurrentBranch", "ignore"])
    with workspace(environment, "HEAD") as space:
        for params in (
            {"corpus.folder": "/etc"},
            {"features.imports": str(tmp_path)},
            {"features": {"imports": "/etc"}},
            {"features.video_streams": ["../../../escaped"]},
            {"features.imports": "own_features/x", "features.video_streams": ["a; id"]},
            {"corpus.folder": "../other"},
        ):
            with pytest.raises(ConfigError):
                space.change(params)
        assert "runs/" not in _branches(pipeline)
    with workspace(environment, "HEAD") as space:
        space.change({"features.imports": "own_features/other"})
        assert load_config(space.folder / "params.yaml").features.imports == "own_features/other"
        assert "runs/" in _branches(pipeline)


def _branches(folder: Path) -> str:
    asked = ["git", "-C", str(folder), "branch", "--list"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


def test_the_two_forms_of_folders() -> None:
    """Finding 2: only an absolute folder lies elsewhere."""
    assert is_inside("own_videos")
    assert not is_inside("/own_videos")


# --- lock files of a run ---

LOCK = """schema: '2.0'
stages:
  corpus:
    cmd: python -m mrmodel.stages.corpus
    outs:
    - path: data/sample
      hash: md5
      md5: {md5}
"""
GOOD = LOCK.format(md5="0123456789abcdef0123456789abcdef.dir")


@pytest.mark.parametrize(
    "path",
    [
        "../../pwned_lock",
        "OUTSIDE/pwned_lock_abs",
        "dvc.yaml",
        "params.yaml",
        "mrmodel/__init__.py",
        ".git/hooks/post-checkout",
        ".dvc/config",
        "studies/../dvc.lock",
        "./dvc.lock",
        "studies/../../../dvc.lock",
        "other/dvc.lock",
        "dvc.lock/../dvc.lock",
        "",
        "DVC.LOCK",
        "dvc.lock\n",
    ],
)
def test_locks_of_a_stage_are_lock_files(
    environment: RuntimeEnvironment, tmp_path: Path, path: str
) -> None:
    """Finding 12: the parameter `locks` of the flow run-stage wrote any file."""
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    name = path.replace("OUTSIDE", str(tmp_path))
    with (
        pytest.raises(OrchestrationError, match="is the lock file of no pipeline"),
        fresh_clone(environment, "HEAD", {"dvc.lock": GOOD, name: "stages: {}\n"}),
    ):
        pytest.fail("a clone with it")
    after = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert after == before


@pytest.mark.parametrize(
    "text",
    [
        LOCK.format(md5="../../../../etc/passwd"),
        LOCK.format(md5="ab/../../x"),
        LOCK.format(md5="0123456789ABCDEF0123456789ABCDEF"),
        LOCK.format(md5="[1]"),
        "stages: [",
        "[]",
        "stages: {a: 1}",
        "",
    ],
)
def test_a_hash_in_a_lock_is_a_hash(environment: RuntimeEnvironment, text: str) -> None:
    """Finding 12: DVC makes a path in its cache of the hash, and links what is there."""
    with (
        pytest.raises(MrModelError, match=r"locks: dvc\.lock:"),
        fresh_clone(environment, "HEAD", {"dvc.lock": text}),
    ):
        pytest.fail("a clone with it")


def test_lock_files_of_both_pipelines_are_taken(environment: RuntimeEnvironment) -> None:
    """Finding 12: what `StageGraph.locks` gives."""
    locks = {"dvc.lock": GOOD, "studies/dvc.lock": "schema: '2.0'\nstages: {}\n"}
    with fresh_clone(environment, "HEAD", locks) as folder:
        assert {name: (folder / name).read_text() for name in locks} == locks
        assert StageGraph(folder, None).locks() == locks


def test_a_stage_that_is_none(environment: RuntimeEnvironment) -> None:
    """The parameter `stage` of the flow run-stage is a name of the graph."""
    with fresh_clone(environment, "HEAD", {}) as folder:
        graph = StageGraph(folder, None)
        for name in ("extract", "../../x", "extract@../../x", ""):
            with pytest.raises(OrchestrationError, match="no stage is called"):
                graph.status(name)


# --- files of a store ---


def store_at(folder: Path, rows: np.ndarray) -> Path:
    info = StreamInfo(
        stream="tiny.video", dim=2, modality="video", keyed_by="vid", clip_len_s=2.0, fingerprint={}
    )
    with FeatureWriter(folder, info) as writer:
        writer.add(IndexEntry("a", 1), rows)
    return folder


@pytest.mark.parametrize(
    "file",
    [
        "../../../mrmodel/__init__.py",
        "/etc/passwd",
        "../shard-00000.npy",
        "manifest.json",
        "index.parquet",
        "shard-0.npy",
        "shard-000000.npy",
        "shard-00000.npy\n",
        "shard-०००००.npy",
        "",
    ],
)
def test_files_of_a_store_are_its_shards(tmp_path: Path, file: str) -> None:
    """Finding 13: a ready-made store overwrote code, before a digest was looked at."""
    source = store_at(tmp_path / "imports/a/b/tiny.video", np.ones((1, 2), np.float16))
    manifest = source / "manifest.json"
    content = json.loads(manifest.read_text())
    content["shards"][0]["file"] = file
    manifest.write_text(json.dumps(content))
    victim = tmp_path / "mrmodel/__init__.py"
    victim.parent.mkdir()
    victim.write_text("good")
    target = tmp_path / "features/corpus/tiny.video"
    with pytest.raises(FeatureError, match=r"shards\.0\.file"):
        copy_store(source, target, "tiny.video", 2.0)
    with pytest.raises(FeatureError, match=r"shards\.0\.file"):
        FeatureStore(source)
    assert victim.read_text() == "good"
    assert not target.exists()


def test_a_store_of_today_is_copied(tmp_path: Path) -> None:
    """Finding 13: byte for byte."""
    source = store_at(tmp_path / "a", np.ones((1, 2), np.float16))
    copy_store(source, tmp_path / "b", "tiny.video", 2.0)
    for name in ("manifest.json", "index.parquet", "shard-00000.npy"):
        assert (tmp_path / "b" / name).read_bytes() == (source / name).read_bytes()


# --- deliveries ---

LONG = "v" * 246
BAD_PARTS = [
    "n" * 201,
    "n" * 255,
    "é" * 101,
    "bad\udcff",
    "line\nbreak",
    "back\\slash",
    "\u202eright",
]


@pytest.mark.parametrize("part", BAD_PARTS)
def test_a_name_that_cannot_be_stored_holds_up_its_delivery_alone(
    tmp_path: Path, part: str
) -> None:
    """Finding 8: a long name, or one that is no text, stopped all deliveries."""
    incoming = tmp_path / "incoming"
    for path in ("good/train.jsonl", f"{part}/train.jsonl", f"inside/videos/{part[:246]}.mp4"):
        (incoming / path).parent.mkdir(parents=True)
        (incoming / path).write_text("")
        (incoming / path.partition("/")[0] / "COMPLETE").write_text("")
    found = {one.name: one for one in list_deliveries(open_store(str(incoming)))}
    assert len(found) == 3
    assert found.pop("good").problem is None
    assert "the name of the file" in str(found.pop("inside").problem)
    ((name, delivery),) = found.items()
    assert "its name " in str(delivery.problem)
    assert delivery.complete

    ingestion = object.__new__(_Ingestion)
    ingestion._ledger = Ledger(open_store(str(tmp_path / "ledger")), "moments")
    ingestion._result = IngestResult()
    report = ingestion._conclude(ingestion._look(delivery))
    assert report.state == "quarantined"
    assert max(len(reason) for reason in report.reasons) < 200
    (entry,) = ingestion._ledger.entries()
    assert (entry.delivery, entry.digest) == (name, delivery.digest)
    assert not _pending([delivery], [entry], [])


def test_the_short_name_of_a_delivery_is_a_name_of_its_own(tmp_path: Path) -> None:
    """Finding 8: two long names have two ledger entries; the same name has the same one."""
    for last in "ab":
        (tmp_path / f"{'n' * 201}{last}").mkdir()
        (tmp_path / f"{'n' * 201}{last}/train.jsonl").write_text("")
    store = open_store(str(tmp_path))
    names = [one.name for one in list_deliveries(store)]
    assert len(set(names)) == 2
    assert names == [one.name for one in list_deliveries(store)]
    assert all(problem_of_part(name) is None for name in names)


def test_names_of_deliveries_that_stay(tmp_path: Path) -> None:
    """Finding 8: spaces, accents and other scripts are names; other files are not looked at."""
    files = ["train.jsonl", "videos/Übung 1 (neu).mp4", "videos/視頻.mp4", f"notes/{LONG}.txt"]
    for path in files:
        (tmp_path / "2026 März" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "2026 März" / path).write_text("")
    (delivery,) = list_deliveries(open_store(str(tmp_path)))
    assert (delivery.name, delivery.problem) == ("2026 März", None)
    assert delivery.known == files[:3]
    assert len(delivery.ignored[0]) < 60
    assert delivery_in(tmp_path / "2026 März").problem is None
