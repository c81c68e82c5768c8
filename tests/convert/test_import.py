"""A published checkpoint gives the published numbers, or says why it cannot."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mrmodel.errors import FeatureError
from mrmodel.models.base import MomentModel
from mrmodel.predict.predictor import Predictor
from mrmodel.train.checkpoint import load_model, read_model_config
from mrmodel.types import Batch
from tests.convert.published import run_import, save_lighthouse, save_official
from tests.golden_parity.test_models import FILES, GOLDEN, Case

CASES = [path for path in FILES if path.stem != "audio"]


STREAMS = ("--video-streams", "rows:20", "--text-streams", "words:12")


def golden(name: str) -> Case:
    return Case(GOLDEN / f"{name}.npz")


def options_of(case: Case) -> dict[str, Any]:
    return case.options | {"ctx_mode": "video_tef"}


def streams_of(case: Case) -> tuple[str, ...]:
    if case.path.stem == "fullsize_recipe":
        return ()  # the widths of the published features need no names
    video, text = case.options["v_feat_dim"] - 2, case.options["t_feat_dim"]
    return ("--video-streams", f"rows:{video}", "--text-streams", f"words:{text}")


def assert_published(model: MomentModel, batch: Batch, expected: dict[str, Tensor]) -> None:
    assert not model.training
    with torch.no_grad():
        output = model(batch)
    start_end = output.last.extras.get("start_end_logits")
    spans = output.last.spans_cxw if start_end is None else start_end.flatten(-2)
    close = {"rtol": 0.0, "atol": 1e-5}
    torch.testing.assert_close(output.last.logits, expected["pred_logits"], **close)
    torch.testing.assert_close(spans, expected["pred_spans"], **close)
    clips = batch.video_mask  # nobody may read the scores of padded clips
    saliency = expected["saliency_scores"][clips]
    torch.testing.assert_close(output.saliency[clips], saliency, **close)


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_official_files_give_the_published_outputs(path: Path, tmp_path: Path) -> None:
    case = Case(path)
    file = save_official(tmp_path / "model_best.ckpt", case.weights, options_of(case))
    legacy, ours = tmp_path / "legacy", tmp_path / "ours"
    run_import(file, legacy, *streams_of(case), "--legacy")
    assert_published(load_model(legacy)[0], case.batch, case.group("out/"))
    run_import(file, ours, *streams_of(case), "--format", case.model_name)
    expected = case.group("out_fixedmask/") or case.group("out/")
    model, config = load_model(ours)
    assert_published(model, case.batch, expected)
    assert config.model == case.model_name
    assert not any(value for name, value in config.settings.items() if name.startswith("legacy_"))
    assert config.settings["loss"]["giou"] == case.options["giou_loss_coef"]
    assert config.settings.get("highlights_only", False) == (case.options["dset_name"] == "tvsum")


@pytest.mark.parametrize("name", ["model_moment_detr/default", "model_qd_detr/default"])
def test_lighthouse_files_give_the_published_outputs(name: str, tmp_path: Path) -> None:
    case = golden(name)
    options = options_of(case) | {"model_name": case.model_name, "max_v_l": -1, "max_q_l": -1}
    file = save_lighthouse(tmp_path / "best.ckpt", case.weights, options)
    run_import(file, tmp_path / "m", *streams_of(case), "--format", "lighthouse", "--legacy")
    model, config = load_model(tmp_path / "m")
    assert_published(model, case.batch, case.group("out/"))
    assert (config.max_clips, config.max_tokens) == (None, 100)


def test_audio_of_lighthouse_moves_before_the_end_points(tmp_path: Path) -> None:
    """The golden case has [video; end-points; audio]; ours is [video; audio; end-points]."""
    case = golden("model_qd_detr/audio")
    options = options_of(case) | {"model_name": "qd_detr", "ctx_mode": "video_audio_tef"}
    file = save_lighthouse(tmp_path / "best.ckpt", case.weights, options)
    streams = ("--video-streams", "rows:20,sound:10", "--text-streams", "words:12")
    run_import(file, tmp_path / "model", *streams, "--legacy")
    video, end_points, audio = case.batch.video.split([20, 2, 10], dim=-1)
    batch = replace(case.batch, video=torch.cat((video, audio, end_points), dim=-1))
    assert_published(load_model(tmp_path / "model")[0], batch, case.group("out/"))


@pytest.mark.parametrize("container", ["state_dict", "bare", "module", "half", "safetensors"])
def test_other_containers(container: str, tmp_path: Path) -> None:
    case = golden("model_qd_detr/default")
    tensors, file = case.weights, tmp_path / "weights.pt"
    if container == "safetensors":
        file = tmp_path / "weights.safetensors"
        save_file(tensors, file)
    elif container == "state_dict":
        torch.save({"state_dict": tensors}, file)
    elif container == "module":
        torch.save({"model": {f"module.{name}": t for name, t in tensors.items()}}, file)
    elif container == "half":
        torch.save({name: tensor.half() for name, tensor in tensors.items()}, file)
    else:
        torch.save(tensors, file)
    printed = run_import(file, tmp_path / "model", *streams_of(case), "--heads", "4", "--legacy")
    assert "the file has no options" in printed
    model = load_model(tmp_path / "model")[0]
    if container == "half":
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    else:
        assert_published(model, case.batch, case.group("out/"))


def test_losses_of_video_lights_are_weighed_as_published(tmp_path: Path) -> None:
    """The trainer adds them into the saliency loss (weight 2 here), ours have weights each."""
    case = golden("model_videolights/uniform")
    changed = {"lw_saliency": 2.0, "cos_sim_loss_coef": 3.0, "hard_pos_neg_loss_coef": 10.0}
    options = options_of(case) | changed
    run_import(save_official(tmp_path / "a.ckpt", case.weights, options), tmp_path / "a", *STREAMS)
    loss = read_model_config(tmp_path / "a").settings["loss"]
    assert (loss["saliency"], loss["task_specific"], loss["hard_negative"]) == (2.0, 6.0, 20.0)
    options["hard_pos_neg_loss"] = False
    run_import(save_official(tmp_path / "b.ckpt", case.weights, options), tmp_path / "b", *STREAMS)
    config = read_model_config(tmp_path / "b")
    assert config.settings["loss"]["hard_positive"] == 0.0
    assert config.settings["fusion"]["layers"] == case.options["bicmf_layers"]
    assert config.settings["moment_to_highlight"]
    assert "refinement" not in config.settings


def test_refinement_keeps_its_published_dropout(tmp_path: Path) -> None:
    """The published code writes 0.1 into it, whatever the option of all other layers is."""
    case = golden("model_videolights/uniform")
    file = save_official(tmp_path / "a.ckpt", case.weights, options_of(case) | {"dropout": 0.2})
    run_import(file, tmp_path / "a", *STREAMS)
    model, config = load_model(tmp_path / "a")
    assert (config.settings["dropout"], config.settings["refinement"]) == (0.2, {"dropout": 0.1})
    assert model.get_submodule("refinement.dropout").p == 0.1


def test_factors_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    case = golden("model_videolights/uniform")
    options = options_of(case) | {"cos_sim_loss_coef": "big"}
    file = save_official(tmp_path / "a.ckpt", case.weights, options)
    error = run_import(file, tmp_path / "model", *streams_of(case), code=2)
    assert error == f"{file}: cos_sim_loss_coef is 'big'; expected a number"


def test_the_report_says_where_values_come_from(tmp_path: Path) -> None:
    case = golden("model_qd_detr/default")
    options = options_of(case) | {"dset_name": "charades", "clip_length": 1}
    file = save_official(tmp_path / "a.ckpt", case.weights, options)
    printed = run_import(file, tmp_path / "m", *streams_of(case), "--max-clips", "40")
    rows = [line.split() for line in printed.splitlines()]
    assert ["hidden", "32", "shapes"] in rows
    assert ["heads", "4", "option", "nheads"] in rows
    assert ["features.clip_len_s", "1", "option", "clip_length"] in rows
    assert ["features.max_clips", "40", "--max-clips"] in rows
    assert "txt_position_embed (3 tensors)" in printed
    assert "rows (20, of another program)" in printed
    section = "{clip_len_s: 1, max_clips: 40, max_tokens: 32}, models: {qd_detr: {ffn: 64, heads:"
    assert section in printed
    config = read_model_config(tmp_path / "m")
    assert (config.clip_len_s, config.max_clips, config.protocol) == (1.0, 40, "charades")
    assert config.training["file"] == "a.ckpt"
    bare = tmp_path / "bare.pt"
    torch.save(case.weights, bare)
    printed = run_import(bare, tmp_path / "bare", *streams_of(case))
    assert ["heads", "8", "published", "value"] in [line.split() for line in printed.splitlines()]


def test_what_does_not_fit_is_a_table_and_nothing_is_written(tmp_path: Path) -> None:
    case = golden("model_qd_detr/default")
    tensors = dict(case.weights)
    tensors["saliency_proj9.weight"] = torch.zeros(3, 4)
    tensors["class_embed.bias"] = torch.zeros(5)
    del tensors["global_rep_token"]
    file = save_official(tmp_path / "a.ckpt", tensors, options_of(case))
    printed = run_import(file, tmp_path / "model", *streams_of(case), code=2)
    rows = [line.split() for line in printed.splitlines()]
    assert ["saliency_proj9.weight", "(3,", "4)", "-"] in rows
    assert ["class_embed.bias", "(5,)", "(2,)"] in rows
    assert ["detr.token.state", "-", "(32,)"] in rows
    assert "3 tensors do not fit: nothing is written" in printed
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ctx_mode": "video"}, "ctx_mode is 'video'.*end-points"),
        ({"no_norm_vfeat": True}, "no_norm_vfeat is set"),
        ({"position_embedding": "learned"}, "only sine codes"),
        ({"a_feat_dir": "features/pann"}, "a_feat_dir is set.*twice"),
        ({"model_name": "cg_detr"}, "holds a cg_detr, which is not known here"),
        ({"nheads": "8"}, "models.qd_detr.heads = '8'"),
        ({"nheads": 5}, "32 is not a multiple of heads 5"),
        ({"clip_length": "two"}, "clip_length is 'two'; expected a number above 0"),
        ({"clip_length": float("inf")}, "clip_length is inf; expected a number above 0"),
        ({"set_cost_giou": float("inf")}, "matcher.giou = inf: input should be a finite number"),
        ({"max_v_l": 0}, "max_v_l is 0; expected a whole number above 0"),
        ({"use_txt_pos": True, "max_q_l": -1}, "max_tokens is 100.* 32 token positions"),
        ({"model_name": ["qd_detr"]}, r"holds a \['qd_detr'\], which is not known here"),
        ({"a_feat_dim": 30}, "a_feat_dim is 30; expected .* within the 22"),
    ],
)
def test_files_that_read_other_input_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    case = golden("model_qd_detr/default")
    file = save_official(tmp_path / "a.ckpt", case.weights, options_of(case) | change)
    error = run_import(file, tmp_path / "model", *streams_of(case), code=2)
    assert error.startswith(f"{file}: ")
    assert re.search(message, error), error
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "moment_detr"), "has the tensors of qd_detr, not of moment_detr"),
        (("--format", "lighthouse"), "no options of lighthouse"),
        ((), "the video features have 20 channels, which says nothing"),
        (("--video-streams", "rows"), "'rows' is no registered encoder.*rows:WIDTH"),
        (("--video-streams", "rows:x"), "'rows:x': expected NAME or NAME:WIDTH"),
        (("--video-streams", "rows:²"), "'rows:²': expected NAME or NAME:WIDTH"),
        ((*STREAMS, "--clip-len", "inf"), "'--clip-len': inf is not in the range"),
        ((*STREAMS, "--clip-len", "nan"), "'--clip-len': nan is not a finite number"),
        (("--video-streams", "a:8,b:10"), "a 8 [+] b 10 have 18 channels.*reads 20 beside"),
        (("--video-streams", "tiny.video"), "tiny.video 32 have 32 channels"),
        (("--video-streams", "tiny.video:20"), "tiny.video has 32 channels, not 20"),
        (("--video-streams", "tiny.text"), "tiny.text encodes text, expected a video stream"),
    ],
)
def test_requests_that_do_not_fit_the_file(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    case = golden("model_qd_detr/default")
    file = save_official(tmp_path / "a.ckpt", case.weights, options_of(case))
    error = run_import(file, tmp_path / "model", *arguments, code=2)
    assert re.search(message, error), error


def test_options_of_no_use_for_names_are_said(tmp_path: Path) -> None:
    case = golden("model_qd_detr/default")
    options = options_of(case) | {"v_feat_dirs": 5, "dset_name": ["hl"]}
    file = save_official(tmp_path / "a.ckpt", case.weights, options)
    error = run_import(file, tmp_path / "model", code=2)
    assert "v_feat_dirs is 5; expected a folder or a list of them" in error
    run_import(file, tmp_path / "model", *STREAMS)  # the folders are not needed


@pytest.mark.parametrize("wanted", [80, None])
def test_classes_of_windows_must_do_for_the_clips(wanted: int | None, tmp_path: Path) -> None:
    case = golden("model_moment_detr/span_ce")
    options = options_of(case) | {"max_v_l": wanted or -1}
    file = save_official(tmp_path / "a.ckpt", case.weights, options)
    error = run_import(file, tmp_path / "model", *streams_of(case), code=2)
    assert re.search(r"max_clips is (80|unlimited), and the model has 75 window classes", error)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    case = golden("model_qd_detr/default")
    file = save_official(tmp_path / "a.ckpt", case.weights, options_of(case))
    for output in (file, file / "model"):
        assert run_import(file, output, *STREAMS, code=2).startswith(f"{output}: cannot be written")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_embed.weight": torch.zeros(4)}, r"class_embed.weight is \(4,\), expected 2 axes"),
        ({"query_embed.weight": None}, "query_embed.weight is missing, and a size"),
        ({"input_txt_proj.0.LayerNorm.weight": None}, "missing, and the width of the features"),
    ],
)
def test_a_tensor_that_tells_a_size_must_be_there(
    changed: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    case = golden("model_qd_detr/default")
    tensors = {n: t for n, t in (case.weights | changed).items() if t is not None}
    file = save_official(tmp_path / "a.ckpt", tensors, options_of(case))
    assert re.search(message, run_import(file, tmp_path / "model", *STREAMS, code=2))


def test_a_claimed_size_is_not_allocated(tmp_path: Path) -> None:
    """Layers of 65536 channels would need half a terabyte; the file has some of them only."""
    case = golden("model_qd_detr/default")
    tensors = dict(case.weights)
    tensors["class_embed.weight"] = torch.zeros(2, 1 << 16)
    file = save_official(tmp_path / "a.ckpt", tensors, options_of(case))
    assert "tensors do not fit" in run_import(file, tmp_path / "model", *STREAMS, code=2)


def test_a_model_is_replaced_only_on_demand(tmp_path: Path) -> None:
    case = golden("model_moment_detr/default")
    file = save_official(tmp_path / "a.ckpt", case.weights, options_of(case))
    run_import(file, tmp_path / "model", *streams_of(case))
    before = json.loads((tmp_path / "model/config.json").read_text())
    assert "--force" in run_import(file, tmp_path / "model", *streams_of(case), code=2)
    run_import(file, tmp_path / "model", *streams_of(case), "--clip-len", "1", "--force")
    after = json.loads((tmp_path / "model/config.json").read_text())
    assert (before["clip_len_s"], after["clip_len_s"]) == (2.0, 1.0)


def test_features_of_another_program_have_no_fingerprint(tmp_path: Path) -> None:
    case = golden("model_moment_detr/default")
    file = save_official(tmp_path / "a.ckpt", case.weights, options_of(case))
    run_import(file, tmp_path / "model", *streams_of(case))
    video = json.loads((tmp_path / "model/config.json").read_text())["video_streams"]
    assert video == [{"name": "rows", "dim": 20, "fingerprint": None}]


def test_a_video_cannot_be_searched_with_features_of_another_program(tmp_path: Path) -> None:
    case = golden("model_moment_detr/default")
    file = save_official(tmp_path / "a.ckpt", case.weights, options_of(case))
    run_import(file, tmp_path / "model", *streams_of(case))
    with pytest.raises(FeatureError, match=r"rows: .*another program.*registered: .*embedded"):
        Predictor.load(tmp_path / "model", "cpu")
