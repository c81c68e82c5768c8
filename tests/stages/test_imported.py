"""Published annotations and features through the pipeline, without a video; miniatures of both."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from mrmodel import presets
from mrmodel.cli.preset import config_group, group
from mrmodel.config.schema import Config, load_config, parse_config
from mrmodel.convert.checkpoint import CheckpointImportRequest, import_checkpoint
from mrmodel.data.datasets.convert import ConvertRequest, convert
from mrmodel.data.feature_check import corpus_rows
from mrmodel.errors import (
    ConfigError,
    DataError,
    FeatureError,
    FeatureMismatch,
    WeightsError,
)
from mrmodel.features.importers.importer import FeatureImportRequest, copy_store, import_archive
from mrmodel.features.store import FeatureStore
from mrmodel.files import write_jsonl
from mrmodel.predict.predictor import Predictor
from mrmodel.predict.serving import read_serving
from mrmodel.progress import NullReporter
from mrmodel.registry.candidate import leaks_of
from mrmodel.stages.corpus import corpus
from mrmodel.stages.evaluate import evaluate
from mrmodel.stages.extract import extract
from mrmodel.stages.intervid import intervid_filter, intervid_mr, intervid_select
from mrmodel.stages.package import package
from mrmodel.stages.paths import Paths
from mrmodel.stages.profile import profile
from mrmodel.stages.report import report
from mrmodel.stages.required_inputs import missing_inputs, require_inputs
from mrmodel.stages.test_set import TestSetContents
from mrmodel.stages.train import finetune, pretrain, scratch
from mrmodel.stages.video_captions import video_captions
from mrmodel.types import Annotation
from tests.convert.published import save_lightning
from tests.features.archives import npz, values
from tests.golden_parity.folder import GOLDEN
from tests.project import Project

MINIATURES = Path(__file__).parents[1] / "data/published"
STEPS = {"epochs": None, "steps": 2, "warmup": 0}
SMALL: dict[str, Any] = {
    "train": {
        "batch_size": 3,
        "eval_batch_size": 4,
        "threads": 1,
        "pretrain": STEPS,
        "finetune": STEPS,
        "scratch": STEPS | {"steps": 4},
    },
    "evaluate": {"bootstrap_resamples": 100},
    "tracking": {"enabled": False},
}
SIZES = {"hidden": 32, "heads": 4, "ffn": 48}


def render(preset: str, model: str) -> str:
    """A preset with a model small enough for a test; streams, clips and protocol are its own."""
    text = presets.overlay(presets.render(preset), SMALL)
    return presets.overlay(text, {f"models.{model}": SIZES})


def qvhighlights_archive(root: Path, rows: list[Annotation]) -> None:
    for row in rows:
        count = int(row.duration / 2)
        for folder, dim in (("slowfast_features", 2304), ("clip_features", 512)):
            npz(root / folder / f"{row.vid}.npz", features=values(row.vid, dim, count))
        states = values(row.query, 512, 6)
        npz(root / f"clip_text_features/qid{row.qid}.npz", last_hidden_state=states)


def tvsum_archive(root: Path, rows: list[Annotation]) -> None:
    (root / "video_features").mkdir(parents=True)
    for row in rows:
        for half in ("rgb", "opt"):
            halves = values(half + row.vid, 1024, len(row.saliency_scores), np.float32)
            np.save(root / f"video_features/{row.vid}_{half}.npy", halves)
        npz(root / f"query_features/{row.qid}.npz", token=values(row.query, 512, 5))


ARCHIVES = {"qvhighlights": qvhighlights_archive, "tvsum": tvsum_archive}
LAYOUTS = {"qvhighlights": "moment_detr", "tvsum": "tvsum_i3d"}


def write_synthetic_rows(own_videos: Path) -> None:
    """Rows to pre-train on, of the videos of test.jsonl, as VideoLights published its own."""
    lines = (own_videos / "test.jsonl").read_text().splitlines()
    rows = [
        {
            "qid": f"{row['vid']}_0_10.0",
            "query": f"a caption of {row['vid']}",
            "vid": row["vid"],
            "duration": row["duration"],
            "relevant_windows": [[0, 10.0]],
            "relevant_clip_ids": [0, 1],
            "saliency_scores": [[2.72], [12.18]],
        }
        for row in {row["vid"]: row for row in map(json.loads, lines)}.values()
    ]
    write_jsonl(own_videos / "pretrain.jsonl", rows)


def bring_in(
    folder: Path, name: str, domain: str | None = None, *, synthetic: bool = False
) -> None:
    """The published files of a data set and an archive, converted and imported into `folder`."""
    convert(ConvertRequest(name, MINIATURES / name, folder / "own_videos", domain))
    if synthetic:
        write_synthetic_rows(folder / "own_videos")
    rows = corpus_rows(folder / "own_videos")
    ARCHIVES[name](folder / "archive", rows)
    output = folder / "own_features" / name
    import_archive(FeatureImportRequest(LAYOUTS[name], folder / "archive", output), rows)


def config_of(preset: str, model: str) -> Config:
    return parse_config(yaml.safe_load(render(preset, model)))


@pytest.mark.parametrize(
    ("preset", "model", "domain"),
    [
        ("qvhighlights_moment_detr", "moment_detr", None),
        ("tvsum_qd_detr", "qd_detr", "BK"),
    ],
)
def test_the_whole_pipeline_without_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, model: str, domain: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load(render(preset, model))
    raw["corpus"]["pretrain_ratings"] = False
    raw["train"]["pretrain"]["loss"] = {"saliency": 0.5}
    config, reporter = parse_config(raw), NullReporter()
    synthetic = domain is None
    bring_in(tmp_path, config.corpus.name, domain, synthetic=synthetic)
    corpus(config, reporter)
    video_captions(config, reporter)
    for stream in (*config.features.video_streams, *config.features.text_streams):
        extract(config, reporter, {"stream": stream})
    profile(config, reporter)
    for stage in (intervid_filter, intervid_select, intervid_mr):
        stage(config, reporter, {})
    for stage in (pretrain, finetune, scratch, package):
        stage(config, reporter, {"model": model})
    evaluate(config, reporter)
    report(config, reporter)
    metrics = json.loads((tmp_path / "reports/metrics.json").read_text())
    headline = {"qvhighlights": "MR-full-mAP", "tvsum": "mAP"}[config.corpus.name]
    assert metrics[f"{model}.finetuned"][headline] >= 0.0
    assert "zero_shot" not in metrics
    summary = json.loads(Path("data", config.corpus.name, "corpus.json").read_text())
    assert (summary["rejected"], summary["reported_split"]) == (0, "test")
    curve = json.loads((tmp_path / f"reports/training/pretrain-{model}.json").read_text())
    assert curve["steps"] == (2 if synthetic else 0)
    pretrained, finetuned = (
        json.loads(Path("models", kind, model, "config.json").read_text())["settings"]
        for kind in ("pretrained", "finetuned")
    )
    assert pretrained["loss"]["saliency"] == 0.5 != finetuned.get("loss", {}).get("saliency")
    paths = Paths(config)
    frozen = (paths.evaluation / "test_set.json").read_text()
    leaks = leaks_of(config, paths, TestSetContents.from_json(frozen, "test_set.json"))
    assert set(leaks) == ({"pretrain"} if synthetic else set())
    # There is no encoder of I3D, and none of the others has the fingerprint of imported rows.
    with pytest.raises((FeatureError, WeightsError), match=r"another program makes|weights"):
        Predictor.load(Path("models/served") / model, "cpu")


def released_checkpoint(file: Path) -> None:
    """The container of the released SG-DETR checkpoints, with a small model of their widths."""
    with np.load(GOLDEN / "model_sg_detr/default.npz") as arrays:
        tensors = {
            name.removeprefix("param/"): torch.from_numpy(arrays[name])
            for name in arrays.files
            if name.startswith("param/")
        }
    generator = torch.Generator().manual_seed(0)
    for modality, width in (("vid", 514), ("txt", 512)):
        block = f"input_{modality}_proj.linear_mapper.0.mapper"
        hidden = len(tensors[f"{block}.2.weight"])
        tensors[f"{block}.0.weight"], tensors[f"{block}.0.bias"] = (
            torch.ones(width),
            torch.zeros(width),
        )
        tensors[f"{block}.2.weight"] = 0.05 * torch.randn(hidden, width, generator=generator)
    save_lightning(file, tensors, "qvhighlights")


def test_a_released_checkpoint_is_evaluated_on_its_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SG-DETR as released: checkpoint and features of its authors, no video and no training."""
    monkeypatch.chdir(tmp_path)
    convert(ConvertRequest("qvhighlights", MINIATURES / "qvhighlights", tmp_path / "own_videos"))
    rows = corpus_rows(tmp_path / "own_videos")
    for row in rows:
        path = tmp_path / "archive/custom_features/video" / f"{row.vid}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.from_numpy(values(row.vid, 512, int(row.duration / 2))).float(), path)
        text = values(row.query, 512, 40)
        npz(tmp_path / f"archive/custom_features/custom_text/{row.qid}.npz", features=text)
    stores = tmp_path / "own_features/qvhighlights"
    request = FeatureImportRequest("sg_detr", tmp_path / "archive", stores, clip_len_s=2.0)
    import_archive(request, rows)
    released_checkpoint(tmp_path / "best_qvhighlights.pt")
    imported = import_checkpoint(
        CheckpointImportRequest(
            tmp_path / "best_qvhighlights.pt", tmp_path / "models/imported/sg_detr"
        )
    )
    raw = yaml.safe_load(presets.overlay(presets.render("qvhighlights_sg_detr"), SMALL))
    raw["train"]["start"] = "imported"
    raw["models"]["sg_detr"] = imported.section
    config, reporter = parse_config(raw), NullReporter()
    corpus(config, reporter)
    for stream in (*config.features.video_streams, *config.features.text_streams):
        extract(config, reporter, {"stream": stream})
    profile(config, reporter)
    for stage in (intervid_filter, intervid_select, intervid_mr):
        stage(config, reporter, {})
    for stage in (pretrain, finetune, scratch, package):
        stage(config, reporter, {"model": "sg_detr"})
    evaluate(config, reporter)
    metrics = json.loads((tmp_path / "reports/metrics.json").read_text())
    for system in ("imported", "imported.decoder", "imported.anchors", "finetuned"):
        assert metrics[f"sg_detr.{system}"]["MR-full-mAP"] >= 0.0
    served = read_serving(tmp_path / "models/imported/sg_detr")
    assert served == config.postprocess
    with pytest.raises(FeatureError, match=r"internvideo2_1b\.video512: .*another program makes"):
        Predictor.load(tmp_path / "models/imported/sg_detr", "cpu")


def test_a_row_without_features_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bring_in(tmp_path, "qvhighlights")
    train = tmp_path / "own_videos/train.jsonl"
    row = json.loads(train.read_text().splitlines()[0])
    stranger = row | {"qid": 900, "vid": "nobody_0.0_150.0"}
    silent = row | {"qid": 901, "query": "never encoded"}
    with train.open("a") as file:
        file.writelines(json.dumps(new) + "\n" for new in (stranger, silent))
    (tmp_path / "own_videos/captions.jsonl").write_text("{}\n")
    corpus(config_of("qvhighlights_moment_detr", "moment_detr"), NullReporter())
    summary = json.loads(Path("data/qvhighlights/corpus.json").read_text())
    rules = {row["id"]: row["rule"] for row in summary["rejected_rows"]}
    assert rules[900].startswith("no features of its video 'nobody_0.0_150.0'")
    assert rules[901].startswith("no features of its query")
    assert "captions need videos" in rules[None]
    assert summary["queries"]["train"] == 6


def test_what_is_missing_is_named_with_its_command(tmp_path: Path) -> None:
    config = config_of("qvhighlights_video_lights", "video_lights")
    annotations, features = missing_inputs(config, Paths(config, tmp_path))
    assert (
        f"`mrmodel data convert qvhighlights FOLDER --output {tmp_path}/own_videos`" in annotations
    )
    assert "highlight_test_with_gt.jsonl" in annotations
    videos = "slowfast.video2304, clip_b32.video512, blip2.video768"
    texts = "clip_b32.text512, blip2.text768"
    assert f"features {videos}, {texts} in {tmp_path}/own_features/qvhighlights" in features
    assert "--layout video_lights" in features
    bring_in(tmp_path, "qvhighlights")
    (left,) = missing_inputs(config, Paths(config, tmp_path))
    assert "features blip2.video768, blip2.text768 in" in left


def test_the_archive_of_sg_detr_or_videos(tmp_path: Path) -> None:
    config = config_of("tvsum_sg_detr", "sg_detr")
    _, features = missing_inputs(config, Paths(config, tmp_path))
    streams = "internvideo2_1b.video512, internvideo2_1b.text512"
    assert f"features {streams} in {tmp_path}/own_features/tvsum" in features
    assert "--layout sg_detr" in features
    assert "or videos" in features


def test_videos_are_asked_for_where_no_archive_helps(tmp_path: Path) -> None:
    config = config_of("youtube_hl_sg_detr", "sg_detr")
    _, videos = missing_inputs(config, Paths(config, tmp_path))
    found = "own_videos/videos/<vid>.mp4, from which internvideo2_1b.video512 is extracted"
    assert videos == f"videos {tmp_path}/{found}"
    (tmp_path / "own_videos/videos").mkdir(parents=True)
    assert len(missing_inputs(config, Paths(config, tmp_path))) == 1
    raw = yaml.safe_load(render("tacos_qd_detr", "qd_detr"))
    raw["features"]["video_streams"] = ["nobodys.video"]
    config = parse_config(raw)
    (_, line) = missing_inputs(config, Paths(config, tmp_path))
    assert "features nobodys.video: no store in" in line
    with pytest.raises(DataError, match="no archive of tacos has it"):
        extract(config, NullReporter(), {"stream": "nobodys.video"})
    assert (
        missing_inputs(parse_config(yaml.safe_load(presets.render("sample"))), Paths(config)) == []
    )


def test_captions_that_cannot_be_compared_with_clips_are_refused_at_once(tmp_path: Path) -> None:
    params, own = tmp_path / "params.yaml", tmp_path / "own_videos"
    params.write_text(render("qvhighlights_qd_detr", "qd_detr"))
    own.mkdir()
    (own / "captions.jsonl").write_text("{}\n")
    check = ["check", str(params)]
    # Without videos they are left out.
    assert CliRunner().invoke(config_group, check).exit_code == 0
    (own / "videos").mkdir()
    found = CliRunner().invoke(config_group, check)
    rule = "clip_b32.text512 has no sentence vectors in the space of slowfast"
    assert rule in str(found.exception)
    with pytest.raises(ConfigError, match="move the captions away"):
        require_inputs(load_config(params), Paths(load_config(params), tmp_path))
    params.write_text(render("qvhighlights_sg_detr", "sg_detr"))
    assert CliRunner().invoke(config_group, check).exit_code == 0


def test_imported_features_are_not_spread_over_workers() -> None:
    raw = yaml.safe_load(render("tacos_qd_detr", "qd_detr"))
    raw["orchestrate"]["extract_shards"]["count"] = 2
    with pytest.raises(ConfigError, match=r"extract_shards\.count = 2: imported features"):
        parse_config(raw)


def test_a_store_is_checked_when_it_is_brought_in(tmp_path: Path) -> None:
    bring_in(tmp_path, "qvhighlights")
    name = "clip_b32.video512"
    source, target = tmp_path / "own_features/qvhighlights" / name, tmp_path / "features" / name
    copy_store(source, target, name, 2.0)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == {
        path.name: path.read_bytes() for path in target.iterdir()
    }
    with pytest.raises(FeatureMismatch, match=r"a row stands for 2 s, features\.clip_len_s is 1"):
        copy_store(source, target, name, 1.0)
    with pytest.raises(FeatureMismatch, match=r"holds the stream clip_b32\.video512, not blip2"):
        copy_store(source, target, "blip2.video768", 2.0)
    shard = source / "shard-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x00")
    with pytest.raises(FeatureError, match="SHA-256 differs from the manifest's"):
        copy_store(source, target, name, 2.0)
    with pytest.raises(FeatureError, match="did not finish"):
        FeatureStore(target)
    shard.unlink()
    with pytest.raises(FeatureError, match=r"shard-00000\.npy: is missing"):
        copy_store(source, target, name, 2.0)


def test_applying_a_preset_says_what_is_missing(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    arguments = ["apply", "tacos_qd_detr", "--features", "clip", "--output", str(params)]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(params.read_text())["features"]["video_streams"] == ["clip_b32.video512"]
    assert len(re.findall("^missing: ", result.output, flags=re.MULTILINE)) == 2
    assert "bring these in, then dvc repro" in result.output
    optional = f"optional: captions {tmp_path / 'own_videos/captions.jsonl'}, or {tmp_path}"
    assert optional in result.output
    (tmp_path / "own_videos").mkdir()
    (tmp_path / "own_videos/pretrain.jsonl").touch()
    assert "optional:" not in CliRunner().invoke(group, arguments).output
    listed = CliRunner().invoke(group, ["list"]).output
    assert "--features embedded" in listed


def contents(folder: Path) -> Mapping[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def project_at(folder: Path) -> Project:
    project = Project(folder)
    (folder / "params.yaml").write_text(render("qvhighlights_moment_detr", "moment_detr"))
    project.commit()
    return project


def test_dvc_repro_asks_for_what_is_missing(tmp_path: Path) -> None:
    output = project_at(tmp_path / "clone").run("dvc", "repro", code=255)
    assert "own_videos/train.jsonl, own_videos/val.jsonl: `mrmodel data convert" in output
    assert "--layout moment_detr --corpus own_videos --output own_features/qvhighlights`" in output


@pytest.mark.slow
def test_dvc_takes_imported_stores_as_they_are_and_leaves_them(tmp_path: Path) -> None:
    """The shorter proof calls the stages: `test_the_whole_pipeline_without_a_video`."""
    project = project_at(tmp_path / "clone")
    bring_in(project.folder, "qvhighlights")
    assert project.git("status", "--short", "own_features", "own_videos") == ""
    stores = project.folder / "own_features/qvhighlights"
    imported = contents(stores)
    stages = ("extract@clip_b32.video512", "extract_text@clip_b32.text512")
    project.run("dvc", "repro", *stages)
    for stream in ("clip_b32.video512", "clip_b32.text512"):
        made = project.folder / "features/qvhighlights" / stream
        assert contents(made) == contents(stores / stream)
    assert "Running stage" not in project.run("dvc", "repro", *stages)
    train = project.folder / "own_videos/train.jsonl"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:-1]))
    output = project.run("dvc", "repro", *stages)
    assert "Running stage 'corpus'" in output
    assert contents(stores) == imported
