"""Presets of data sets against the tables of the designs, and the page that lists all presets."""

import re
from functools import cache
from typing import Any, NamedTuple

import pytest
import yaml

from mrmodel import presets
from mrmodel.components import MODELS
from mrmodel.config.schema import Config, RunSettings, parse_config
from mrmodel.models import build_model
from mrmodel.models.sa_detr.settings import SaDetrSettings
from mrmodel.models.video_lights.settings import VideoLightsSettings
from tests.project import ROOT

SETS = ("qvhighlights", "charades", "tacos", "tvsum", "youtube_hl")
PAGE = (ROOT / "docs/reference/presets.md").read_text()


class Recipe(NamedTuple):
    """A row of the table in section 8.2 of the design of the baselines."""

    batch: int
    lr: float
    lr_drop: int
    epochs: int
    clip: float
    max_clips: int | None
    tokens: int
    eval_batch: int
    settings: dict[str, Any]


ALIGNED = {"loss": {"contrastive": 0.3, "video_text": 0.3}}  # lambda_al; its default is 0.2
HEAVY = {"loss": {"saliency": 4.0}}
ONLY = {"highlights_only": True}
BASELINES = {
    "qvhighlights_moment_detr": Recipe(32, 1e-4, 400, 200, 2.0, 75, 32, 100, {}),
    "qvhighlights_qd_detr": Recipe(32, 1e-4, 400, 200, 2.0, 75, 32, 100, {}),
    "charades_moment_detr": Recipe(32, 2e-4, 40, 200, 1.0, 75, 32, 100, HEAVY),
    "charades_qd_detr": Recipe(32, 2e-4, 40, 200, 1.0, 75, 32, 100, HEAVY),
    "tacos_moment_detr": Recipe(32, 2e-4, 40, 200, 2.0, None, 100, 32, HEAVY),
    "tacos_qd_detr": Recipe(32, 2e-4, 40, 200, 2.0, None, 100, 32, HEAVY),
    "tvsum_moment_detr": Recipe(4, 1e-3, 2000, 2000, 2.0, 1000, 100, 4, ONLY),
    "tvsum_qd_detr": Recipe(4, 1e-3, 2000, 2000, 2.0, 1000, 100, 4, ONLY),
    "youtube_hl_moment_detr": Recipe(4, 2e-4, 2000, 1000, 1.0, 1000, 100, 4, HEAVY | ONLY),
    "youtube_hl_qd_detr": Recipe(4, 2e-4, 2000, 1000, 1.0, 1000, 100, 4, HEAVY | ONLY),
    "qvhighlights_video_lights": Recipe(32, 1e-4, 400, 200, 2.0, 75, 32, 100, {}),
    "charades_video_lights": Recipe(32, 1e-4, 100, 100, 1.0, 75, 32, 4, ALIGNED),
    "tvsum_video_lights": Recipe(4, 1e-3, 2000, 2000, 2.0, 1000, 100, 4, ONLY),
}


# Table 9 of SA-DETR's paper, and section 4 of its design: batch, epochs, rate, seconds of a clip,
# samples of temporal align, weight of matched spans in the quality loss, lambdas A, S, M, Q.
SA_DETR = {
    "qvhighlights_sa_detr": (32, 200, 1e-4, 2.0, 10, 1.0, (1.0, 1.0, 1.0, 1.0)),
    "charades_sa_detr": (32, 200, 2e-4, 1.0, 15, 10.0, (0.0, 4.0, 1.0, 1.0)),
    "charades_vgg_sa_detr": (16, 100, 1e-4, 1 / 6, 10, 10.0, (0.0, 4.0, 1.0, 1.0)),
    "tacos_sa_detr": (32, 200, 2e-4, 2.0, 15, 10.0, (0.0, 4.0, 1.0, 1.0)),
    "tvsum_sa_detr": (4, 1000, 1e-3, 2.0, 10, 1.0, (0.0, 1.0, 0.0, 0.0)),
    "youtube_hl_sa_detr": (4, 1000, 2e-4, 1.0, 10, 1.0, (0.0, 1.0, 0.0, 0.0)),
}


@cache
def config_of(preset: str) -> Config:
    return parse_config(yaml.safe_load(presets.render(preset)))


def split(preset: str) -> tuple[str, str] | None:
    """Data set and model of a preset's name, where it has both."""
    found = re.fullmatch(rf"({'|'.join(SETS)})\w*?_({'|'.join(MODELS)})", preset)
    return (found[1], found[2]) if found else None


RECIPES = [name for name in presets.names() if split(name)]


@pytest.mark.parametrize("name", BASELINES)
def test_recipes_of_the_baselines(name: str) -> None:
    recipe, config = BASELINES[name], config_of(name)
    features, train, run = config.features, config.train, config.train.scratch
    assert (
        Recipe(
            train.batch_size,
            run.lr,
            run.step_size,
            run.epochs or 0,
            features.clip_len_s,
            features.max_clips,
            features.max_tokens,
            train.eval_batch_size,
            config.models[train.models[0]],
        )
        == recipe
    )
    # Section 8.1: one group, everything decays, gradients clipped, no warm-up, steps of 0.1.
    assert (train.weight_decay, train.weight_decay_on, train.clip_norm) == (1e-4, "all", 0.1)
    assert (run.schedule, run.warmup, run.select) == ("step", 0, "best")
    assert (train.max_windows, train.precision) == (5, "fp32")
    # The published pre-training; fine-tuning is the same recipe from those weights.
    pretrain = train.pretrain
    epochs = 50 if train.models == ["video_lights"] else 100
    assert (pretrain.epochs, pretrain.lr, pretrain.step_size) == (epochs, 1e-4, 400)
    assert (pretrain.schedule, pretrain.warmup) == ("step", 0)
    assert train.finetune == run
    if train.models == ["video_lights"]:
        assert (train.for_run("pretrain").batch_size, pretrain.select) == (256, "best")
        assert pretrain.loss == {"contrastive": 0.01, "video_text": 0.01}
        assert not config.corpus.pretrain_ratings
    # Loaders of the family draw five windows, and round the bounds of unrated ones down.
    for one in (pretrain, run):
        assert one.targets is not None
        assert (one.targets.keep, one.targets.clip_rule) == ("random", "first_window")
    # Section 9: windows of the published systems are multiples of a clip.
    assert config.postprocess.round_to_clips != recipe.settings.get("highlights_only", False)


def test_defaults_of_video_lights_are_the_published_values() -> None:
    model = VideoLightsSettings()
    layers = (model.fusion.layers, model.encoder_layers, model.decoder_layers)
    assert (*layers, model.hidden, model.queries, model.ffn) == (1, 3, 3, 256, 10, 1024)
    weights = model.loss
    assert (weights.contrastive, weights.video_text) == (0.2, 0.2)
    assert (weights.hard_negative, weights.hard_positive) == (10.0, 10.0)
    assert (weights.task_specific, weights.task_coupled) == (1.0, 1.0)
    assert model.contrastive
    assert model.moment_to_highlight


@pytest.mark.parametrize("name", SA_DETR)
def test_recipes_of_sa_detr(name: str) -> None:
    config = config_of(name)
    train, run = config.train, config.train.scratch
    model = SaDetrSettings.model_validate(config.models["sa_detr"])
    weights = model.loss
    lambdas = (weights.align, weights.saliency, weights.moment, weights.quality)
    found = (train.batch_size, run.epochs, run.lr, config.features.clip_len_s)
    assert (*found, model.align.samples, model.quality.w_matched, lambdas) == SA_DETR[name]
    # What all columns share: queries, noise groups and scales, alpha, weights of spans, margin.
    dn = model.dn
    assert (model.init.queries, dn.groups, dn.sigma_p) == (10, 5, 0.2)
    assert dn.sigma_p + dn.delta == pytest.approx(0.6)
    assert (model.gauss.alpha, weights.l1, weights.giou, model.margin) == (2.0, 10.0, 1.0, 0.4)
    assert (model.hidden, model.heads, model.ffn, model.preset) == (256, 8, 1024, "paper")
    assert (train.weight_decay, train.clip_norm) == (1e-4, 0.1)
    # Only on QVHighlights does the rate fall, and are windows rounded.
    falls = name.startswith("qvhighlights")
    assert (run.schedule, run.milestones) == (("linear", [40]) if falls else ("constant", []))
    assert config.postprocess.round_to_clips == falls
    assert train.finetune == run


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_for_its_data_set_and_builds_its_model(name: str) -> None:
    data_set, model = split(name) or ("", "")
    config = config_of(name)
    assert (config.corpus.name, config.corpus.source) == (data_set, "folder")
    assert config.evaluate.protocol == data_set
    assert config.train.models == list(config.models) == [model]
    built = build_model(model, 34, 16, config.models[model])
    assert built.settings.highlights_only == (data_set in ("tvsum", "youtube_hl"))
    for run in (config.train.pretrain, config.train.finetune, config.train.scratch):
        assert run.epochs is not None
    assert config.intervid.preset == "robust"


def rows_of(heading: str) -> list[list[str]]:
    """Cells of the rows of the table below a heading of the page."""
    text = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_page_lists_every_preset_as_the_command_does() -> None:
    found = {row[0]: row[1] for row in rows_of("All of them")}
    assert found == {f"`{name}`": presets.summary(name) for name in presets.names()}


def test_the_page_has_the_recipe_of_every_data_set() -> None:
    found = {row[0]: row[1:8] for row in rows_of("Recipes by data set")}
    expected = {f"`{name}`": recipe_cells(config_of(name)) for name in RECIPES}
    assert found == expected


def recipe_cells(config: Config) -> list[str]:
    run, features = config.train.scratch, config.features
    return [
        str(run.epochs),
        str(config.train.for_run("scratch").batch_size),
        f"{run.lr:.1e}".replace(".0e-0", "e-").replace("e-0", "e-"),
        course_of(run),
        f"{features.clip_len_s:g} s",
        str(features.max_clips or "no limit"),
        str(features.max_tokens),
    ]


def course_of(run: RunSettings) -> str:
    """How the rate falls, in words."""
    epochs = run.epochs or 0
    if run.schedule == "step" and run.step_size < epochs:
        return f"× 0.1 every {run.step_size} epochs"
    if run.schedule == "multistep" and run.milestones:
        return f"× {run.gamma:g} at {', '.join(map(str, run.milestones))}"
    if run.schedule == "linear":
        return f"constant to epoch {run.milestones[0]}, then down to 0"
    assert run.schedule in ("step", "multistep", "constant")
    return "constant"
