"""The loop on a real model: it learns, resumes to the same bits, and stops on a broken loss."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mrmodel.config.schema import RunSettings, SwaSettings, TrainSettings
from mrmodel.data.loader import MomentDataset
from mrmodel.errors import TrainingError
from mrmodel.models.base import MomentModel, build_model
from mrmodel.progress import NullReporter
from mrmodel.train import loop
from mrmodel.train.checkpoint import load_resume_state
from mrmodel.train.loop import Plan, Progress, fit
from mrmodel.types import Batch, Targets
from tests.reporters import RecordingReporter
from tests.train.conftest import DIM, make_model


class Figures:
    """Keeps every row."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, Mapping[str, float]]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.rows.append((step, metrics))


class KilledError(Exception):
    pass


class KillAt(NullReporter):
    """Stops the run after some steps, as a signal would."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, steps: int = 1, **info: object) -> None:
        if "loss" in info:
            self.left -= 1
            if self.left == 0:
                raise KilledError


def validation(model: MomentModel) -> dict[str, float]:
    """A figure that depends on the weights, so that the best step is not simply the last."""
    weights = torch.cat([value.detach().flatten() for value in model.parameters()])
    return {"score": float(torch.sin(weights.sum() * 50))}


def train(
    settings: TrainSettings, run: RunSettings, data: MomentDataset, folder: Path, reporter=None
) -> tuple[MomentModel, Progress, Figures]:
    model, metrics = make_model(), Figures()
    plan = Plan(settings, run, 7, folder / "state.pt")
    progress = fit(model, data, plan, validation, (metrics, reporter or NullReporter()))
    return model, progress, metrics


def same_weights(first: MomentModel, second: MomentModel) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_the_loss_falls(train_settings, run, dataset, tmp_path) -> None:
    _, progress, metrics = train(train_settings, run, dataset, tmp_path)
    losses = [row["train/loss"] for _, row in metrics.rows]
    assert progress.step == 24
    assert [step for step, _ in metrics.rows] == [3, 6, 9, 12, 15, 18, 21, 24]
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture(scope="module")
def undisturbed(train_settings, run, dataset, tmp_path_factory):
    """Rule of selection, averaging -> the run with them, and its model, progress and record."""

    @cache
    def trained(
        select: str, swa: SwaSettings | None
    ) -> tuple[RunSettings, tuple[MomentModel, Progress, Figures]]:
        chosen = run.model_copy(update={"select": select, "swa": swa})
        return chosen, train(train_settings, chosen, dataset, tmp_path_factory.mktemp("whole"))

    return trained


# The last five of eight epochs: the first mean is that of step 12, of the end of epoch 4.
LAST_FIVE = SwaSettings(from_epoch=4, lr=1e-3, anneal_epochs=2)


@pytest.mark.parametrize(
    ("swa", "select", "killed_at"),
    [
        *((None, "last", step) for step in (1, 11, 23)),
        *((None, "best", step) for step in (4, 5, 20)),
        *((LAST_FIVE, "last", step) for step in (4, 13, 23)),
        *((LAST_FIVE, "best", step) for step in (1, 5, 11, 20)),
    ],
)
def test_a_killed_run_ends_in_the_same_bits(
    train_settings, undisturbed, dataset, tmp_path, swa, select, killed_at
) -> None:
    run, (whole, whole_progress, recorded) = undisturbed(select, swa)
    with pytest.raises(KilledError):
        train(train_settings, run, dataset, tmp_path / "cut", KillAt(killed_at))
    resumed, progress, again = train(train_settings, run, dataset, tmp_path / "cut")
    assert same_weights(whole, resumed)
    assert progress.history == whole_progress.history
    assert again.rows == recorded.rows, "the record of the second run is whole"
    assert progress.best_step == whole_progress.best_step


def test_a_killed_run_with_two_parameter_groups_ends_in_the_same_bits(
    train_settings, run, dataset, tmp_path
) -> None:
    settings = train_settings.model_copy(
        update={"weight_decay_on": "matrices", "weight_decay": 0.1}
    )
    run = run.model_copy(update={"schedule": "multistep", "milestones": [2, 5], "warmup": 4})
    whole, _, _ = train(settings, run, dataset, tmp_path / "whole")
    with pytest.raises(KilledError):
        train(settings, run, dataset, tmp_path / "cut", KillAt(11))
    resumed, _, _ = train(settings, run, dataset, tmp_path / "cut")
    assert same_weights(whole, resumed)


class Epochs(KillAt):
    """Keeps the epoch by which the losses were weighted in each step."""

    def __init__(self, model: MomentModel, steps: int) -> None:
        super().__init__(steps)
        criterion, self.seen = model.criterion(), []
        total = criterion.total

        def noted(losses: Mapping[str, Tensor], epoch: int = 0) -> Tensor:
            self.seen.append(epoch)
            return total(losses, epoch)

        criterion.total = noted
        model.criterion = lambda: criterion


def test_losses_know_the_epoch_also_after_a_kill(train_settings, run, dataset, tmp_path) -> None:
    """VideoLights weighs two losses by it, so that a wrong epoch would show in the weights too."""

    def fit_one(folder: str, kill_at: int) -> tuple[MomentModel, Epochs]:
        torch.manual_seed(0)
        model = build_model("video_lights", DIM + 2, DIM, {"hidden": 16, "heads": 4, "ffn": 16})
        plan, epochs = Plan(train_settings, run, 7, tmp_path / folder), Epochs(model, kill_at)
        fit(model, dataset, plan, None, (Figures(), epochs))
        return model, epochs

    whole, epochs = fit_one("whole", 99)
    assert epochs.seen == [step // 3 for step in range(24)]
    with pytest.raises(KilledError):
        fit_one("cut", 11)
    resumed, epochs = fit_one("cut", 99)
    assert epochs.seen == [step // 3 for step in range(8, 24)]
    assert same_weights(whole, resumed)


def test_a_resumed_run_does_not_begin_anew(train_settings, run, dataset, tmp_path) -> None:
    with pytest.raises(KilledError):
        train(train_settings, run, dataset, tmp_path, KillAt(10))
    reporter = RecordingReporter()
    train(train_settings, run, dataset, tmp_path, reporter)
    assert reporter.events[0] == ("train", 24, {"done": 8})
    assert sum(1 for event in reporter.events if "loss" in event[2]) == 16


def test_a_model_knows_how_far_its_training_is(
    train_settings, run, dataset, tmp_path, monkeypatch
) -> None:
    """The fraction of the steps that is done, also where a killed run goes on."""
    seen, make = [], make_model

    def note(model: MomentModel, arguments: tuple[object, ...]) -> None:
        if model.training:
            seen.append(arguments[2])

    def make_watched() -> MomentModel:
        model = make()
        model.register_forward_pre_hook(note)
        return model

    monkeypatch.setitem(globals(), "make_model", make_watched)
    with pytest.raises(KilledError):
        train(train_settings, run, dataset, tmp_path, KillAt(10))
    train(train_settings, run, dataset, tmp_path)
    # Ten steps, of which the last checkpoint has eight; then the other sixteen.
    assert seen == [step / 24 for step in [*range(10), *range(8, 24)]]


class Clock:
    """Stands where it is put."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class SlowSet:
    """A data set whose batches take a minute each."""

    def __init__(self, data: MomentDataset, clock: Clock) -> None:
        self._data, self._clock = data, clock

    def epoch_batches(self, epoch: int) -> Sequence[Any]:
        return self._data.epoch_batches(epoch)

    def batch(self, indices: Any, epoch: int) -> tuple[Batch, Targets]:
        self._clock.now += 60.0
        return self._data.batch(indices, epoch)


def test_the_seconds_are_those_of_the_steps(
    train_settings, run, dataset, tmp_path, monkeypatch
) -> None:
    clock, make, judge = Clock(), make_model, validation

    def tick(model: MomentModel, _: object) -> None:
        clock.now += 1.0

    def make_ticking() -> MomentModel:
        model = make()
        model.register_forward_pre_hook(tick)
        return model

    def slow_validation(model: MomentModel) -> dict[str, float]:
        clock.now += 3600.0
        return judge(model)

    monkeypatch.setitem(globals(), "make_model", make_ticking)
    monkeypatch.setitem(globals(), "validation", slow_validation)
    monkeypatch.setattr(loop, "time", clock)
    _, progress, _ = train(train_settings, run, SlowSet(dataset, clock), tmp_path)
    assert progress.seconds == 24.0
    assert clock.now > 24 * 61 + 3600


def test_the_seconds_of_a_killed_run_go_on(train_settings, run, dataset, tmp_path) -> None:
    with pytest.raises(KilledError):
        train(train_settings, run, dataset, tmp_path, KillAt(10))
    kept = load_resume_state(tmp_path / "state.pt")["progress"]["seconds"]
    _, progress, _ = train(train_settings, run, dataset, tmp_path)
    assert 0 < kept < progress.seconds


class EpochEnds(NullReporter):
    """Keeps the weights that the steps of an epoch end with."""

    def __init__(self, model: MomentModel) -> None:
        self.model, self.steps, self.weights = model, 0, []

    def advance(self, steps: int = 1, **info: object) -> None:
        if "loss" in info:
            self.steps += 1
            if self.steps % 3 == 0:
                self.weights.append(flat(self.model))


def flat(model: MomentModel) -> Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()]).clone()


def test_weights_of_epoch_ends_are_averaged_and_validated(
    train_settings, run, dataset, tmp_path
) -> None:
    run = run.model_copy(update={"swa": LAST_FIVE})
    model, validated = make_model(), []

    def judge(one: MomentModel) -> dict[str, float]:
        validated.append(flat(one))
        return validation(one)

    ends = EpochEnds(model)
    plan = Plan(train_settings, run, 7, tmp_path / "state.pt")
    fit(model, dataset, plan, judge, (Figures(), ends))
    mean = torch.stack(ends.weights[3:]).mean(0)
    torch.testing.assert_close(flat(model), mean, rtol=0.0, atol=1e-6)
    assert not torch.allclose(mean, ends.weights[-1], rtol=0.0, atol=1e-4)
    # Validated after every other epoch: before the averages, with one, with three, with five.
    assert torch.equal(validated[0], ends.weights[1])
    assert torch.equal(validated[1], ends.weights[3])
    for found, last in zip(validated[2:], (6, 8), strict=True):
        mean = torch.stack(ends.weights[3:last]).mean(0)
        torch.testing.assert_close(found, mean, rtol=0.0, atol=1e-6)


def test_training_itself_does_not_see_the_averages(train_settings, run, dataset, tmp_path) -> None:
    """With a rate that stays, every step is that of the run without averages."""
    constant = run.model_copy(update={"schedule": "constant"})
    ends = []
    for name, swa in (("plain", None), ("averaged", LAST_FIVE.model_copy(update={"lr": 3e-3}))):
        model = make_model()
        ends.append(EpochEnds(model))
        plan = Plan(train_settings, constant.model_copy(update={"swa": swa}), 7, tmp_path / name)
        fit(model, dataset, plan, validation, (Figures(), ends[-1]))
    for one, other in zip(ends[0].weights, ends[1].weights, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("killed_at", "averaged"), [(11, None), (15, 1), (23, 3)])
def test_a_checkpoint_has_averages_once_there_are_any(
    train_settings, run, dataset, tmp_path, killed_at, averaged
) -> None:
    """After 8, 12 and 20 steps; without averages it is what it was before there were any."""
    run = run.model_copy(update={"swa": LAST_FIVE})
    with pytest.raises(KilledError):
        train(train_settings, run, dataset, tmp_path, KillAt(killed_at))
    state = load_resume_state(tmp_path / "state.pt")
    assert set(state) - {"average"} == {"model", "optimizer", "progress"}
    if averaged is None:
        assert "average" not in state
    else:
        assert state["average"]["n_averaged"] == averaged


@pytest.mark.parametrize("swa", [None, LAST_FIVE], ids=["plain", "averaged"])
def test_best_takes_the_weights_of_the_best_validation(
    train_settings, run, dataset, tmp_path, swa
) -> None:
    run = run.model_copy(update={"select": "best", "swa": swa})
    model, progress, _ = train(train_settings, run, dataset, tmp_path)
    values = {row["step"]: row["val/score"] for row in progress.history if "val/score" in row}
    assert progress.best_step == max(values, key=lambda step: values[step])
    assert validation(model)["score"] == values[progress.best_step]


def test_another_seed_gives_other_weights(train_settings, run, dataset, tmp_path) -> None:
    first, _, _ = train(train_settings, run, dataset, tmp_path / "a")
    model = make_model()
    plan = Plan(train_settings, run, 8, tmp_path / "b" / "state.pt")
    fit(model, dataset, plan, validation, (Figures(), NullReporter()))
    assert not same_weights(first, model)


def test_a_loss_that_is_not_finite_names_step_loss_and_queries(
    train_settings, run, dataset, tmp_path
) -> None:
    model = make_model()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    plan = Plan(train_settings, run, 7, tmp_path / "state.pt")
    with pytest.raises(TrainingError, match=r"step 0: loss.* = nan.*qids \[1") as error:
        fit(model, dataset, plan, None, (Figures(), NullReporter()))
    assert "data check" in str(error.value)


def test_epochs_and_steps_count_the_same(train_settings, run, dataset, tmp_path) -> None:
    by_epochs = run.model_copy(update={"steps": None, "epochs": 8})
    first, _, _ = train(train_settings, run, dataset, tmp_path / "steps")
    second, _, _ = train(train_settings, by_epochs, dataset, tmp_path / "epochs")
    assert same_weights(first, second)


def test_bf16_trains(train_settings, run, dataset, tmp_path) -> None:
    settings = train_settings.model_copy(update={"precision": "bf16"})
    _, _, metrics = train(settings, run, dataset, tmp_path)
    losses = [row["train/loss"] for _, row in metrics.rows]
    assert losses[-1] < losses[0]
