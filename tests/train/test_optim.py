import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.optim.swa_utils import SWALR

from mrmodel.config.schema import RunSettings
from mrmodel.models.layers.attention import MultiheadAttention
from mrmodel.train.optim import build_optimizer, learning_rate, split_parameters
from tests.golden_parity.folder import GOLDEN, load
from tests.train.conftest import make_model

# Runs of SG-DETR's published code: peak rate, first rate, epochs of warm-up, milestones, gamma.
OFFICIAL = {
    "qvhighlights": (5e-4, 5e-6, 45, [100, 125], 0.5),
    "qvhighlights_finetune": (5e-4, 1e-5, 5, [10, 30], 0.5),
    "pretrain": (5e-4, 1e-5, 4, [20, 27], 0.1),
    "charades": (5e-4, 5e-6, 20, [40, 50], 0.5),
    "charades_finetune": (5e-4, 5e-6, 5, [8, 12], 0.5),
    "tacos": (5e-4, 5e-6, 20, [70, 85], 0.5),
    "tacos_finetune": (5e-4, 5e-6, 5, [14, 22], 0.5),
    "tvsum": (5e-4, 1e-5, 20, [12, 18], 0.5),
    "youtube": (5e-4, 5e-6, 5, [14, 22], 0.5),
    "youtube_finetune": (1e-5, 5e-6, 5, [14, 22], 0.5),
}
# Rate of each epoch, recorded from the published scheduler.
RATES = load(GOLDEN / "model_sg_detr" / "schedule.json")["lr"]


def run(schedule: str, **changes: object) -> RunSettings:
    settings = {
        "epochs": None,
        "steps": 100,
        "lr": 1e-3,
        "schedule": schedule,
        "step_size": 4,
        "milestones": [],
        "gamma": 0.5,
        "warmup": 0,
        "warmup_unit": "step",
        "select": "last",
    }
    return RunSettings.model_validate(settings | changes)


def test_constant_never_moves() -> None:
    assert {learning_rate(run("constant"), step, 100, 10) for step in range(100)} == {1e-3}


def test_step_drops_tenfold_every_so_many_epochs() -> None:
    rates = [learning_rate(run("step"), step, 100, 10) for step in (0, 39, 40, 79, 80)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])


def test_cosine_ends_at_one_percent_and_passes_the_middle() -> None:
    assert learning_rate(run("cosine"), 0, 100, 10) == pytest.approx(1e-3)
    assert learning_rate(run("cosine"), 50, 100, 10) == pytest.approx(0.505e-3)
    assert learning_rate(run("cosine"), 100, 100, 10) == pytest.approx(1e-5)


def test_linear_is_constant_and_then_falls_to_nothing() -> None:
    settings = run("linear", milestones=[4])
    rates = [learning_rate(settings, step, 100, 10) for step in (0, 40, 41, 70, 99, 100)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3 * 59 / 60, 0.5e-3, 1e-3 / 60, 0.0])


def test_linear_with_a_milestone_after_the_end_is_constant() -> None:
    settings = run("linear", milestones=[10])
    assert {learning_rate(settings, step, 100, 10) for step in range(100)} == {1e-3}


@pytest.mark.parametrize("milestones", [[], [4, 8]])
def test_linear_needs_one_milestone(milestones: list[int]) -> None:
    with pytest.raises(ValidationError, match="needs one, the epoch after"):
        run("linear", milestones=milestones)


def test_warm_up_climbs_in_equal_steps() -> None:
    rates = [learning_rate(run("cosine", warmup=4), step, 100, 10) for step in range(5)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])


def test_multistep_has_the_values_of_the_design() -> None:
    """QVHighlights: 57 steps an epoch, milestones 100 and 125, 45 steps of warm-up from 0.1 %."""
    settings = run("multistep", lr=5e-4, milestones=[100, 125], warmup=45)
    table = {
        0: 5e-7,
        44: 5e-4 * (0.001 + 0.999 * 44 / 45),  # 4.889e-4
        45: 5e-4,
        5699: 5e-4,
        5700: 2.5e-4,  # 100 epochs of 57 steps
        7124: 2.5e-4,
        7125: 1.25e-4,
        8549: 1.25e-4,
    }
    rates = [learning_rate(settings, step, 8550, 57) for step in table]
    assert rates == pytest.approx(list(table.values()), rel=1e-12)


def test_multistep_without_warm_up_and_milestones_is_constant() -> None:
    assert {learning_rate(run("multistep"), step, 100, 10) for step in range(100)} == {1e-3}


def test_a_milestone_within_the_warm_up_halves_what_is_climbed() -> None:
    settings = run("multistep", milestones=[1], warmup=2, warmup_unit="epoch")
    rates = [learning_rate(settings, step, 100, 10) for step in (0, 9, 10, 20)]
    assert rates == pytest.approx([1e-6, 1e-3 * (0.001 + 0.999 * 0.45), 0.25025e-3, 0.5e-3])


@pytest.mark.parametrize("name", RATES)
def test_the_published_schedule_of_sg_detr(name: str) -> None:
    lr, first, warmup, milestones, gamma = OFFICIAL[name]
    settings = run(
        "multistep",
        lr=lr,
        warmup=warmup,
        warmup_unit="epoch",
        warmup_from=first / lr,
        milestones=milestones,
        gamma=gamma,
    )
    rates, steps = RATES[name], 57
    for step in range(len(rates) * steps):
        rate = learning_rate(settings, step, len(rates) * steps, steps)
        assert rate == pytest.approx(rates[step // steps], rel=1e-12, abs=0.0), step


def test_a_first_rate_in_steps_rises_in_every_step_also_before_other_schedules() -> None:
    settings = run("multistep", warmup=4, warmup_from=0.2, milestones=[1, 2])
    rates = [learning_rate(settings, step, 100, 4) for step in range(9)]
    # The first milestone is where the warm-up ends, so it has no effect.
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3, 1e-3, 1e-3, 5e-4])
    settings = run("cosine", warmup=2, warmup_unit="epoch", warmup_from=0.5)
    rates = [learning_rate(settings, step, 100, 2) for step in range(5)]
    assert rates == pytest.approx([5e-4, 5e-4, 7.5e-4, 7.5e-4, 1e-3])
    plain = settings.model_copy(update={"warmup_from": None})
    for step in range(4, 100):
        assert learning_rate(settings, step, 100, 2) == learning_rate(plain, step, 100, 2)


def test_averaged_epochs_have_the_rates_of_torch() -> None:
    swa = {"from_epoch": 37, "lr": 1e-5, "anneal_epochs": 3}
    lr, first, warmup, milestones, gamma = OFFICIAL["qvhighlights_finetune"]
    scheduled = {"warmup": warmup, "warmup_unit": "epoch", "warmup_from": first / lr}
    settings = run("multistep", lr=lr, milestones=milestones, gamma=gamma, swa=swa, **scheduled)
    plain = RATES["qvhighlights_finetune"]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=plain[36])
    annealed = SWALR(optimizer, swa_lr=1e-5, anneal_epochs=3)
    expected = plain[:36]
    for _ in range(36, 50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        annealed.step()
    rates = [learning_rate(settings, step, 50 * 4, 4) for step in range(50 * 4)]
    assert rates[::4] == pytest.approx(expected, rel=1e-9)
    assert rates[::4] == rates[3::4]
    assert rates[-1] == 1e-5


def test_averaging_begins_within_the_run() -> None:
    swa = {"from_epoch": 9, "lr": 1e-5, "anneal_epochs": 3}
    assert run("constant", epochs=9, steps=None, swa=swa).swa is not None
    with pytest.raises(ValidationError, match=r"from_epoch = 9 is later than the last epoch"):
        run("constant", epochs=8, steps=None, swa=swa)


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "multistep"])
def test_warm_up_in_epochs_is_warm_up_in_their_steps(schedule: str) -> None:
    in_epochs = run(schedule, warmup=2, warmup_unit="epoch")
    in_steps = run(schedule, warmup=20)
    for step in range(0, 100, 7):
        assert learning_rate(in_epochs, step, 100, 10) == learning_rate(in_steps, step, 100, 10)


@pytest.mark.parametrize("milestones", [[5, 3], [3, 3], [0, 3]])
def test_milestones_rise_from_one(milestones: list[int]) -> None:
    with pytest.raises(ValidationError, match="milestones"):
        run("multistep", milestones=milestones)


class Parts(nn.Module):
    """One of each kind of parameter that a model has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.conv, self.activation = nn.Conv1d(4, 4, 3), nn.PReLU()
        self.attention = MultiheadAttention(4, 1, 0.0)
        self.table = nn.Embedding(5, 4)
        self.tokens, self.alpha = nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(()))
        self.tied = self.linear


def test_matrices_are_weights_of_maps_only() -> None:
    module = Parts()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    matrices, others = split_parameters(module)
    assert {names[id(parameter)] for parameter in matrices} == {
        "linear.weight",
        "conv.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }
    assert len(matrices) + len(others) == len(names)
    _, kept = split_parameters(make_model())
    assert all(parameter.ndim == 1 or parameter.shape == (10, 32) for parameter in kept)


def test_decay_pulls_at_what_it_is_set_to() -> None:
    for decay, moved in (("all", {"linear", "norm"}), ("matrices", {"linear"})):
        module = Parts()
        with torch.no_grad():
            module.norm.weight.fill_(1.0)
        before = {name: value.detach().clone() for name, value in module.named_parameters()}
        optimizer = build_optimizer(module, 0.1, 0.5, decay)  # type: ignore[arg-type]
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for name in ("linear", "norm"):
            share = 0.95 if name in moved else 1.0  # 1 - rate x decay
            after = dict(module.named_parameters())[f"{name}.weight"]
            torch.testing.assert_close(after, before[f"{name}.weight"] * share)
