from pathlib import Path
from typing import Any

import pytest
import yaml

from mrmodel import presets
from mrmodel.config.schema import parse_config
from mrmodel.errors import ConfigError, UnknownNameError
from mrmodel.models.sg_detr.settings import SgDetrSettings

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_gives_a_valid_file_and_says_what_it_is_for(name: str) -> None:
    config = parse_config(yaml.safe_load(presets.render(name)))
    assert config.train.models
    assert len(presets.summary(name)) > 20


def test_the_repository_runs_the_sample_preset() -> None:
    assert (ROOT / "params.yaml").read_text() == presets.render("sample")


def test_apply_keeps_comments_and_changes_the_values(tmp_path: Path) -> None:
    target = tmp_path / "params.yaml"
    presets.apply("miniature", target)
    text = target.read_text()
    assert "# H.264 quality" in text
    assert yaml.safe_load(text)["features"]["text_streams"] == ["tiny.text"]


def test_an_overlay_cannot_bring_an_unknown_key() -> None:
    with pytest.raises(ConfigError, match=r"corpus\.colour"):
        presets.overlay("corpus: {name: a}\n", {"corpus": {"colour": 1}})


def test_an_overlay_may_bring_a_section_where_there_was_null() -> None:
    text = presets.overlay("run: {swa: null}   # kept\n", {"run": {"swa": {"lr": 0.5}}})
    assert yaml.safe_load(text) == {"run": {"swa": {"lr": 0.5}}}
    assert text.endswith("# kept\n")


BASE = "models: {one: {width: 64, part: {a: 1, b: 2}}, two: {width: 64}}\n"


def test_models_are_replaced_as_a_whole() -> None:
    text = presets.overlay(BASE, {"models": {"one": {"part": {"a": 3}}}})
    assert yaml.safe_load(text) == {"models": {"one": {"part": {"a": 3}}}}


def test_a_dotted_model_changes_its_settings_and_may_bring_new_ones() -> None:
    text = presets.overlay(BASE, {"models.one": {"part": {"a": 3}, "gate": {"kind": "none"}}})
    one = {"width": 64, "part": {"a": 3, "b": 2}, "gate": {"kind": "none"}}
    assert yaml.safe_load(text) == {"models": {"one": one, "two": {"width": 64}}}


def test_a_dotted_model_must_be_there() -> None:
    with pytest.raises(ConfigError, match=r"models\.three"):
        presets.overlay(BASE, {"models.three": {"width": 1}})


# Runs of the authors' code: epochs, batch, peak and first rate, warm-up and milestones in epochs;
# then clip length, longest video and tokens, and settings of the model.
RECIPES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...], dict[str, Any]]] = {
    "qvhighlights": ((160, 128, 5e-4, 5e-6, 45, [100, 125]), (2.0, 75), {}),
    "charades": (
        (100, 64, 5e-4, 5e-6, 20, [40, 50]),
        (1.0, 200),
        {"prior": 0.25, "anchor_topk": 18},
    ),
    "tacos": ((120, 32, 5e-4, 5e-6, 20, [70, 85]), (2.0, 750), {"prior": 0.2, "pooling_layers": 1}),
    "tvsum": ((200, 4, 5e-4, 1e-5, 20, []), (2.0, 500), {"highlights_only": True}),
    "youtube_hl": ((200, 4, 5e-4, 5e-6, 5, [14, 22]), (1.0, 1000), {"highlights_only": True}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_sg_detr(name: str) -> None:
    config = parse_config(yaml.safe_load(presets.render(f"{name}_sg_detr")))
    features, train, run = config.features, config.train, config.train.scratch
    recipe, limits, settings = RECIPES[name]
    assert run.warmup_from is not None
    first = run.lr * run.warmup_from
    batch = train.for_run("scratch").batch_size
    found = (run.epochs, batch, run.lr, pytest.approx(first), run.warmup, run.milestones)
    assert found == recipe
    assert (features.clip_len_s, features.max_clips, features.max_tokens) == (*limits, 40)
    assert (run.schedule, run.gamma, run.warmup_unit) == ("multistep", 0.5, "epoch")
    assert (train.weight_decay, train.weight_decay_on, train.clip_norm) == (0.1, "all", 0.1)
    assert (train.precision, train.validate_every_epochs) == ("fp32", 1)
    pretrain = train.pretrain
    assert (pretrain.epochs, pretrain.milestones, pretrain.gamma) == (30, [20, 27], 0.1)
    assert train.for_run("pretrain").batch_size == 256
    assert (config.evaluate.protocol, config.corpus.source) == (name, "folder")
    model = SgDetrSettings.model_validate(config.models["sg_detr"])
    assert model == SgDetrSettings.model_validate({"preset": "released", **settings})


def test_fine_tuning_of_sg_detr_averages_its_last_epochs() -> None:
    config = parse_config(yaml.safe_load(presets.render("qvhighlights_sg_detr")))
    run = config.train.finetune
    assert run.swa is not None
    assert (run.epochs, run.swa.from_epoch, run.swa.lr, run.swa.anneal_epochs) == (50, 37, 1e-5, 3)
    assert config.train.for_run("finetune").weight_decay == 1e-4


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'sample'"):
        presets.render("sampel")


@pytest.mark.parametrize(
    "value",
    [
        1e-7,
        5.3e-5,
        1e22,
        0.1,
        3.0,
        -2e-9,
        4,
        True,
        None,
        "off",
        "1e3",
        "a: b: c",
        "a #b",
        "avg",
        "",
    ],
)
def test_every_value_is_read_as_it_was_written(value: object) -> None:
    text = presets.overlay("lr: 1.0e-3   # the rate\n", {"lr": value})
    assert yaml.safe_load(text) == {"lr": value}
    assert text.endswith("# the rate\n")
