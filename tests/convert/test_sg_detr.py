"""Released checkpoints of SG-DETR: their container, what is inferred and what is refused."""

from __future__ import annotations

import builtins
import json
import os
import re
import sys
from collections import OrderedDict
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mrmodel.convert.parameter_names import our_name
from mrmodel.convert.safe_unpickle import PublishedCheckpoint, read_published
from mrmodel.convert.sg_detr import (
    infer_sg_detr,
    published_limits,
    sg_detr_settings,
    without_anchors,
)
from mrmodel.convert.streams import usual_streams
from mrmodel.errors import CheckpointError
from mrmodel.predict.serving import read_serving
from mrmodel.train.checkpoint import load_model
from tests.convert.published import Planted, foreign_modules, run_import, save_lightning
from tests.golden_parity.folder import GOLDEN, load

FOLDER = GOLDEN / "model_sg_detr"
ANCHORS = "aux_det_head.anchor_generator.cell_anchors."
STREAMS = ("--video-streams", "rows:24", "--text-streams", "words:20")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """The state dict of a small model with the options of QVHighlights."""
    with np.load(FOLDER / "default.npz") as file:
        return {
            name.removeprefix("param/"): torch.from_numpy(np.asarray(file[name]))
            for name in file.files
            if name.startswith("param/")
        }


def of_highlights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same model for a data set without windows."""
    kept = {name: t for name, t in tensors.items() if not name.startswith("query_selector.")}
    learned = {"label_enc": 32, "refpoint_embed.center": 1, "refpoint_embed.width": 1}
    return kept | {f"main_det_head.{n}.weight": torch.rand(6, d) for n, d in learned.items()}


def assert_equal(found: PublishedCheckpoint, expected: dict[str, Tensor]) -> None:
    assert list(found.tensors) == list(expected)
    for name, tensor in expected.items():
        assert found.tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=0)


class ImportRecord(MetaPathFinder):
    """Keeps the names of modules that somebody tries to import, and finds none."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        self.names.append(fullname)


def test_a_lightning_checkpoint_is_read_without_its_classes(
    tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_lightning(tmp_path / "best.ckpt", tensors, "charades")
    with pytest.raises(ModuleNotFoundError):  # another reader needs the trainer's code
        torch.load(file, weights_only=False)
    record = ImportRecord()
    monkeypatch.setattr(sys, "meta_path", [record, *sys.meta_path])
    found = read_published(file)
    assert not [name for name in record.names if name.startswith(("src", "lightning"))]
    assert_equal(found, tensors)
    assert found.options == {"metrics_mode": "charades"}
    assert found.shapes["local_saliency_head.temp"] == ()
    assert found.tensors[f"{ANCHORS}0"].dtype == torch.float64


def test_only_tensors_of_the_model_are_taken(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in tensors.items()}
    state |= {"val_metrics.count": torch.tensor(3), "criterion.empty_weight": torch.ones(2)}
    assert_equal(read_published(save_lightning(tmp_path / "a.pt", {}, state_dict=state)), tensors)


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("form", ["stripped", "bare", "versioned", "foreign"])
def test_other_forms(form: str, prefix: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    file = tmp_path / "weights.pt"
    plain = {"state_dict": state, "epoch": 18, "global_step": 100, "source": "a", "format": "b"}
    if form == "bare":
        torch.save(state, file)
    elif form == "stripped":
        torch.save(plain, file)
    elif form == "versioned":
        torch.save(plain | {"pytorch-lightning_version": "2.0"}, file)
    else:
        torch.save(plain | {"path": Path("x")}, file)
    if form == "foreign" and not prefix:  # nothing says that it is of Lightning
        with pytest.raises(CheckpointError, match=r"names pathlib\.PosixPath.*refused"):
            read_published(file)
    else:
        assert_equal(read_published(file), tensors)


def test_parts_of_storages_and_other_types_are_read(tmp_path: Path) -> None:
    storage = torch.arange(24.0)
    state = OrderedDict(
        a=storage.view(4, 6)[1:3, ::2],
        b=storage.view(4, 6).T,
        c=torch.nn.Parameter(storage[5:7].clone()),
        d=storage.half(),
        e=storage.bfloat16(),
        f=storage[0],
    )
    expected = {name: tensor.detach() for name, tensor in state.items()}
    assert_equal(read_published(save_lightning(tmp_path / "a.ckpt", state)), expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, dtype=torch.int64), r"m is of 'torch\.LongStorage'; expected real numbers"),
        (torch.tensor([float("nan")]), "m holds NaN"),
        (torch.zeros(1).expand(1 << 40), r"m is \(1099511627776,\), and its storage has 1"),
        (0.5, "'m' is a float, expected a tensor"),
        (Planted(os.mkdir, "never"), r"'m' is 'posix\.mkdir', expected a tensor"),
        (torch.zeros(2).to_sparse(), r"'m' is 'torch\._utils\._rebuild_sparse_tensor', expected"),
    ],
)
def test_what_is_no_tensor_of_the_model_is_named(
    value: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = save_lightning(tmp_path / "a.ckpt", {"m": value})
    with pytest.raises(CheckpointError, match=f"a.ckpt: {message}"):
        read_published(file)
    assert not Path("never").exists()


@pytest.mark.parametrize("name", [None, 3, Path("qvhighlights"), Planted(str, "charades")])
def test_a_data_set_that_is_no_plain_text_is_unknown(name: object, tmp_path: Path) -> None:
    file = save_lightning(tmp_path / "a.ckpt", {"a": torch.ones(1)}, name)
    options = read_published(file).options
    assert options == {}


def hostile(function: str, folder: Path) -> Planted:
    if function == "mkdir":
        return Planted(os.mkdir, str(folder))
    return Planted(builtins.exec, f"import os; os.mkdir({str(folder)!r})")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize(("function", "protocol"), [("mkdir", 2), ("exec", 2), ("exec", 4)])
@pytest.mark.parametrize("place", ["hyper_parameters", "callbacks", "loops"])
def test_planted_code_does_not_run(
    place: str, function: str, protocol: int, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    planted = tmp_path / "planted"
    code = hostile(function, planted)
    entries = {"metrics_mode": "tacos", "code": code, "codes": [code, {"deeper": (code,)}]}
    more = {"hyper_parameters": {"metrics_mode": "tacos"}} | {place: entries}
    file = save_lightning(tmp_path / "bad.ckpt", tensors, protocol=protocol, **more)
    found = read_published(file)
    assert not planted.exists()
    assert_equal(found, tensors)
    assert found.options == {"metrics_mode": "tacos"}
    # The file is as dangerous as it looks: an unguarded reader does run it.
    with foreign_modules():
        torch.load(file, weights_only=False)
    assert planted.exists()


VARIANTS = {
    "qvhighlights": {},
    "tacos": {"pooling_layers": 1},
    "tvsum_youtube": {"highlights_only": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_of_the_released_sizes(variant: str) -> None:
    listed = load(FOLDER / "parameters.json")
    entries = listed["qvhighlights_state_dict"] + listed["variants"][variant].get("added", [])
    removed = listed["variants"][variant].get("removed", [])
    shapes = {name: tuple(shape) for name, shape, *_ in entries if name not in removed}
    assert len(shapes) == listed["variants"][variant]["state_dict_entries"]
    expected = {
        "preset": "released",
        "hidden": 256,
        "heads": 8,
        "ffn": 1024,
        "projection_layers": 2,
        "pooling_layers": 2,
        "cross_attention_layers": 2,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "queries": 25,
        "highlights_only": False,
    }
    assert sg_detr_settings(shapes) == expected | VARIANTS[variant]


def test_settings_follow_the_shapes(tensors: dict[str, Tensor]) -> None:
    dropped = ("det_encoder.encoder.layers.2.", "main_det_head.decoder.layers.1.")
    kept = {name: t for name, t in of_highlights(tensors).items() if not name.startswith(dropped)}
    settings = sg_detr_settings({name: tuple(tensor.shape) for name, tensor in kept.items()})
    assert (settings["hidden"], settings["ffn"], settings["queries"]) == (32, 128, 6)
    assert (settings["encoder_layers"], settings["decoder_layers"]) == (2, 2)
    assert settings["highlights_only"]


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("qvhighlights", {}),
        ("charades", {"prior": 0.25, "anchor_topk": 18}),
        ("tacos", {"prior": 0.2}),
    ],
)
def test_settings_of_the_data_set(
    protocol: str, expected: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = infer_sg_detr(shapes, protocol)
    assert {s.name: s.value for s in found} == sg_detr_settings(shapes) | expected
    published = {s.name for s in found if s.source == "published value"}
    assert published == {"preset", "heads", "queries", *expected}
    shapes = {name: tuple(tensor.shape) for name, tensor in of_highlights(tensors).items()}
    assert {s.name: s.source for s in infer_sg_detr(shapes, "tvsum")}["queries"] == "shapes"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("dummy_encoder.dummy_rep_token", "dummy tokens"),
        ("input_aud_proj.linear_mapper.0.mapper.0.weight", "audio"),
        ("audio_merger.audio_fuser.projector.weight", "audio"),
        ("main_det_head.dn_label_enc.weight", "denoising queries"),
        ("mr2hd.layers.0.weight", "the moment-to-highlight module"),
    ],
)
def test_other_configurations_are_refused_by_name(
    name: str, what: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    file = save_lightning(tmp_path / "a.ckpt", tensors | {name: torch.ones(3, 32)})
    error = run_import(file, tmp_path / "model", *STREAMS, code=2)
    assert error == (
        f"{file}: has {name}: it was trained with {what}, which no released checkpoint of sg_detr "
        "has and which is not known here"
    )
    assert not (tmp_path / "model").exists()


def test_a_size_that_no_tensor_tells_is_named(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    kept = of_highlights(tensors)
    del kept["main_det_head.label_enc.weight"]
    error = run_import(save_lightning(tmp_path / "a", kept), tmp_path / "m", *STREAMS, code=2)
    assert "main_det_head.label_enc.weight is missing, and a size of the model follows" in error


def test_anchors_are_checked_and_dropped(tensors: dict[str, Tensor]) -> None:
    kept = without_anchors(tensors)
    assert {name for name in tensors if name not in kept} == {f"{ANCHORS}{i}" for i in range(4)}
    assert without_anchors(kept) == kept
    changed = tensors | {f"{ANCHORS}1": torch.tensor([[-3.0, 4.0]], dtype=torch.float64)}
    message = re.escape(f"{ANCHORS}1 is [[-3.0, 4.0]], expected [[-7.0, 8.0]]")
    with pytest.raises(CheckpointError, match=message):
        without_anchors(changed)


def test_the_published_streams_are_those_of_internvideo2() -> None:
    (video,) = usual_streams("sg_detr", "video", 512, {})
    (text,) = usual_streams("sg_detr", "text", 512, {})
    assert (video.name, text.name) == ("internvideo2_1b.video512", "internvideo2_1b.text512")
    with pytest.raises(CheckpointError, match="the video features have 2816 channels"):
        usual_streams("sg_detr", "video", 2816, {})


@pytest.mark.parametrize("form", ["lightning", "stripped", "bare", "unprefixed"])
def test_a_released_checkpoint_becomes_a_model_folder(
    form: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    file, output = tmp_path / "best.pt", tmp_path / "model"
    prefixed = {f"model.{name}": tensor for name, tensor in tensors.items()}
    if form == "lightning":
        save_lightning(file, tensors)
    elif form == "stripped":
        torch.save({"state_dict": prefixed, "epoch": 18, "format": "weights"}, file)
    else:
        torch.save(prefixed if form == "bare" else tensors, file)
    printed = run_import(file, output, *STREAMS)
    model, config = load_model(output)
    state = model.state_dict()
    used = {our_name("sg_detr", name): tensor for name, tensor in tensors.items()}
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, used[name].reshape(tensor.shape), rtol=0, atol=0)
    assert config.settings["preset"] == "released"
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert config.settings == sg_detr_settings(shapes)
    limits = {"clip_len_s": 2.0, "max_clips": 75, "max_tokens": 40}
    assert published_limits("qvhighlights") == limits
    assert (config.clip_len_s, config.max_clips, config.max_tokens) == tuple(limits.values())
    rows = [line.split() for line in printed.splitlines()]
    assert ["hidden", "32", "shapes"] in rows
    assert ["heads", "8", "published", "value"] in rows
    assert "preset: released" in printed
    source = ["option", "metrics_mode"] if form == "lightning" else ["published", "value"]
    assert ["evaluate.protocol", "qvhighlights", *source] in rows


@pytest.mark.parametrize(
    ("mode", "arguments", "expected"),
    [
        ("charades", (), ("charades", 1.0, 200)),
        ("tacos", (), ("tacos", 2.0, 750)),
        ("youtube", (), ("youtube_hl", 2.0, 1000)),
        ("own", (), ("qvhighlights", 2.0, 75)),
        (None, ("--dataset", "tvsum"), ("tvsum", 2.0, 500)),
        ("qvhighlights", ("--dataset", "charades", "--max-clips", "9"), ("charades", 1.0, 9)),
    ],
)
def test_the_data_set_decides_clips_and_protocol(
    mode: str | None,
    arguments: tuple[str, ...],
    expected: tuple[str, float, int],
    tensors: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    if expected[0] in ("tvsum", "youtube_hl"):
        tensors = of_highlights(tensors)
    file = save_lightning(tmp_path / "best.ckpt", tensors, mode)
    run_import(file, tmp_path / "model", *STREAMS, *arguments)
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert (config["protocol"], config["clip_len_s"], config["max_clips"]) == expected


def test_files_without_windows_become_models_of_highlights(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    file = save_lightning(tmp_path / "best.ckpt", of_highlights(tensors), "tvsum")
    run_import(file, tmp_path / "model", *STREAMS)
    config = load_model(tmp_path / "model")[1]
    assert (config.settings["highlights_only"], config.settings["queries"]) == (True, 6)
    assert config.protocol == "tvsum"


@pytest.mark.parametrize("windows", [True, False])
def test_windows_and_data_set_must_agree(
    windows: bool, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    state, mode = (tensors, "tvsum") if windows else (of_highlights(tensors), None)
    file = save_lightning(tmp_path / "best.ckpt", state, mode)
    said = "the data set is tvsum" if windows else "no query selector.*the data set is qvhighlights"
    assert re.search(said, run_import(file, tmp_path / "model", *STREAMS, code=2))
    assert not (tmp_path / "model").exists()


def test_another_model_in_the_folder_leaves_no_post_processing(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    output = tmp_path / "model"
    run_import(save_lightning(tmp_path / "best.ckpt", tensors), output, *STREAMS)
    published = read_serving(output)
    assert published.official is not None
    state = of_highlights(tensors)
    run_import(save_lightning(tmp_path / "b.ckpt", state, "tvsum"), output, *STREAMS, "--force")
    assert read_serving(output) != published


def test_a_hostile_checkpoint_still_becomes_a_model(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    planted = tmp_path / "planted"
    more = {"hyper_parameters": {"optimizer": hostile("mkdir", planted), "metrics_mode": "tacos"}}
    file = save_lightning(tmp_path / "bad.ckpt", tensors, **more)
    run_import(file, tmp_path / "model", *STREAMS)
    assert not planted.exists()
    assert load_model(tmp_path / "model")[1].protocol == "tacos"
