"""From dimensions to the values of a trial, and from these to params.yaml."""

from typing import Any

import optuna
import pytest
import yaml

from mrmodel import presets
from mrmodel.components import MODELS
from mrmodel.config.schema import Config, parse_config
from mrmodel.config.search_space import Choice, FloatRange, IntRange
from mrmodel.errors import ConfigError
from mrmodel.tune.space import (
    THREADS,
    SearchPlan,
    Target,
    changed_config,
    objectives_of,
    post_hoc_plan,
    threads_of,
    training_plan,
)


def config_of(preset: str = "sample", **changes: Any) -> Config:
    text = presets.overlay(presets.render(preset), changes)
    return parse_config(yaml.safe_load(text))


def plan_of(config: Config, **space: Any) -> SearchPlan:
    return SearchPlan(config, Target("sg_detr", "finetune"), space)


def draw(plan: SearchPlan, seed: int = 0) -> dict[str, Any]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return plan.suggest(study.ask())


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("preset", ["sample", "published"])
def test_every_corner_and_every_draw_of_a_models_space_is_a_valid_configuration(
    model: str, preset: str
) -> None:
    config = config_of(tune={"model": model})
    if preset == "published":
        config = config_of(tune={"model": model}, models={model: {}}, train={"models": [model]})
    for plan in (training_plan(config), post_hoc_plan(config)):
        assert plan.space
        raw = config.model_dump()
        assert plan.changes(plan.starting_values()) == {}
        for name, dimension in plan.space.items():
            ends = (
                dimension.choices
                if isinstance(dimension, Choice)
                else [dimension.low, dimension.high]
            )
            for end in ends:
                changed_config(raw, plan.changes({name: end}))
        for seed in range(20):
            changed_config(raw, plan.changes(draw(plan, seed)))


@pytest.mark.parametrize("model", list(MODELS))
def test_published_values_lie_in_the_space(model: str) -> None:
    paper = config_of(f"qvhighlights_{model}")
    plan = training_plan(config_of(tune={"model": model}))
    values = plan.values_of(paper)
    assert set(values) == set(plan.starting_values())
    cut = {name for name in values if values[name] != plan.setting(paper, name)}
    # A null stands for a value; the published weight decay of SG-DETR and SA-DETR lies outside.
    assert cut <= {"quality.margin", "train.weight_decay", "train.run.lr"}


def test_what_the_run_has_of_its_own_is_searched_there() -> None:
    config = config_of(train={"finetune": {"weight_decay": 2e-3}})
    plan = training_plan(config)
    assert plan.start["train.weight_decay"] == 2e-3
    assert plan.changes({"train.weight_decay": 5e-3}) == {"train.finetune.weight_decay": 5e-3}
    assert plan.setting(config_of(), "train.weight_decay") == 1e-4
    plan = training_plan(config_of(train={"pretrain": {"weight_decay": 2e-3}}))
    assert plan.changes({"train.weight_decay": 5e-3}) == {"train.weight_decay": 5e-3}


def test_the_range_holds_the_starting_point() -> None:
    plan = training_plan(config_of())
    rate = plan.space["train.run.lr"]
    assert isinstance(rate, FloatRange)
    assert (rate.low, rate.high) == (1e-4, 1e-3)  # The model says 8e-4, params.yaml 1e-3.
    assert plan.start["train.run.lr"] == 1e-3
    config = config_of(**{"models.sg_detr": {"drop_path": 0.4, "anchor_topk": 15}})
    plan = training_plan(config)
    path, topk = plan.space["drop_path"], plan.space["anchor_topk"]
    assert isinstance(path, FloatRange)
    assert path.high == 0.4
    assert isinstance(topk, Choice)
    assert topk.choices == [6, 9, 12, 18, 15]


def test_conditions_look_at_the_trial_before_the_file() -> None:
    space = {
        "gauss.mode": Choice(choices=["none", "add_log"]),
        "gauss.alpha": FloatRange(low=1.0, high=6.0, when={"gauss.mode": ["add_log"]}),
        "dn.groups": IntRange(low=2, high=8, when={"highlights_only": [True]}),
    }
    plan = SearchPlan(config_of(), Target("sa_detr", "finetune"), space)
    seen = [draw(plan, seed) for seed in range(20)]
    for values in seen:
        assert ("gauss.alpha" in values) == (values["gauss.mode"] == "add_log")
        assert "dn.groups" not in values
    assert {values["gauss.mode"] for values in seen} == {"none", "add_log"}


def test_a_condition_may_look_at_what_is_declared_later() -> None:
    later = {"auxiliary_queries": {"type": "choice", "choices": [True, False]}}
    plan = training_plan(config_of(tune={"space": later}))
    for seed in range(20):
        values = draw(plan, seed)
        assert ("loss.weights.auxiliary" in values) == values["auxiliary_queries"]
    circle = {
        "alignment": {"type": "choice", "choices": [True], "when": {"anchor_topk": [6]}},
        "anchor_topk": {"when": {"alignment": [True]}},
    }
    with pytest.raises(ConfigError, match=r"look at each other"):
        training_plan(config_of(tune={"space": circle}))


def test_an_end_that_breaks_a_rule_is_told_before_the_first_trial() -> None:
    space = {"train.run.warmup": {"type": "int", "low": -3, "high": 20}}
    with pytest.raises(ConfigError, match=r"train\.finetune\.warmup = -3.*breaks a rule"):
        training_plan(config_of(tune={"space": space})).check_ends()


def test_a_weight_of_zero_on_a_log_scale_is_not_searched() -> None:
    config = config_of(**{"models.sg_detr": {"loss": {"weights": {"auxiliary": 0.0}}}})
    plan = training_plan(config)
    assert "loss.weights.auxiliary" not in plan.space
    assert "loss.weights.iou" in plan.space


def test_one_number_of_a_list_changes_the_list() -> None:
    plan = post_hoc_plan(config_of())
    changes = plan.changes(
        {"postprocess.fusion.weights.1": 0.5, "postprocess.alpha": plan.start["postprocess.alpha"]}
    )
    assert changes == {"postprocess.fusion.weights": [1.0, 0.5]}
    changed = changed_config(config_of().model_dump(), changes)
    assert post_hoc_plan(changed).start["postprocess.fusion.weights.1"] == 0.5


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"loss.weights.iuo": {"type": "float", "low": 1.0, "high": 2.0}},
         r"models\.sg_detr\.loss\.weights\.iuo.*no such setting.*'iou'"),
        ({"train.run.lr_drop": {"type": "int", "low": 1, "high": 2}}, r"train\.finetune\.lr_drop"),
        ({"postprocess.fusion.weights.2": {"type": "float", "low": 1.0, "high": 2.0}},
         r"weights\.2"),
        ({"preset": {"type": "int", "low": 1, "high": 2}}, r"preset = 'robust'.*no number"),
        ({"train.run.epochs": {"type": "int", "low": 1, "high": 9}},
         r"train\.finetune\.epochs.*null"),
        ({"queries": {"type": "int", "low": 10, "high": 50, "step": 20}}, r"queries = 25.*steps"),
    ],
)  # fmt: skip
def test_a_dimension_that_fits_no_setting_is_named(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        training_plan(config_of(tune={"space": space}))


def test_figures_and_threads_follow_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    assert objectives_of(config_of()) == ["MR-full-mAP"]
    pareto = config_of(tune={"figures": ["MR-full-mAP", "HL-min-VeryGood-Hit1"]})
    assert objectives_of(pareto) == ["MR-full-mAP", "HL-min-VeryGood-Hit1"]
    monkeypatch.delenv(THREADS, raising=False)
    assert threads_of() == {}
    monkeypatch.setenv(THREADS, "3")
    assert threads_of() == {"train.threads": 3}


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tune\.model = 'sg_dert'.*'sg_detr'"):
        config_of(tune={"model": "sg_dert"})
