"""Tickets: each is taken once, those of dead workers come back, none is lost or doubled."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from mrmodel.errors import StorageError, TuningError
from mrmodel.tune.storage import open_storage
from mrmodel.tune.study import RETRY_OF, Owner, TrialQueue, origin_of, owner_of
from mrmodel.tune.worker import load_objective, run_trial
from tests.tune.conftest import make_study

ME = Owner("me", "here", "1:1.00")
OTHER = Owner("other", "here", "2:2.00")


def claim(study: TrialQueue, owner: Owner = ME) -> optuna.Trial:
    trial = study.claim(owner, NopPruner())
    assert trial is not None
    return trial


def states(study: TrialQueue) -> Counter[str]:
    return Counter(trial.state.name for trial in study.trials())


def test_every_enqueued_trial_is_taken_by_one_worker(address: str) -> None:
    make_study(address, "Sleeping").fill(40)

    def take(worker: int) -> list[int]:
        mine = TrialQueue(open_storage(address), "main")
        owner, numbers = Owner(f"w{worker}", "here", "1:1.00"), []
        while (trial := mine.claim(owner, NopPruner())) is not None:
            numbers.append(trial.number)
        return numbers

    with ThreadPoolExecutor(4) as pool:
        taken = [number for numbers in pool.map(take, range(4)) for number in numbers]
    assert sorted(taken) == list(range(40))
    assert states(make_study(address, "Sleeping")) == {"RUNNING": 40}


def test_filling_counts_what_is_done_runs_or_waits(address: str) -> None:
    study = make_study(address, "Sleeping")
    study.enqueue({"x": 0.25})
    study.fill(4)
    objective = load_objective(study.facts)
    run_trial(study, objective, claim(study))
    claim(study)
    study.fill(4)
    assert states(study) == {"COMPLETE": 1, "RUNNING": 1, "WAITING": 2}
    assert study.trials()[0].params == {"x": 0.25}
    study.fill(6)
    assert study.live() == 6
    assert study.best_value() == pytest.approx(-(0.05**2))


def test_a_lost_trial_is_tried_again_with_its_values(address: str) -> None:
    study = make_study(address, "Sleeping")
    study.fill(2)
    lost = claim(study, OTHER)
    x = lost.suggest_float("x", 0.0, 1.0)
    kept = claim(study)
    assert study.sweep(lambda owner: owner == OTHER) == 1
    assert study.sweep(lambda owner: owner == OTHER) == 0
    failed, running, waiting = study.trials()
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs["reason"] == "its worker was killed"
    assert running.number == kept.number
    assert owner_of(running) == ME
    assert (origin_of(waiting), waiting.user_attrs[RETRY_OF]) == (0, 0)
    again = claim(study)
    assert again.number == waiting.number
    assert again.suggest_float("x", 0.0, 1.0) == x


def test_a_sweep_that_was_killed_halfway_doubles_nothing(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(address, "Sleeping")
    study.fill(1)
    claim(study, OTHER)
    with monkeypatch.context() as patch:
        patch.setattr(TrialQueue, "tell", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            study.sweep(lambda owner: owner == OTHER)
    assert states(study) == {"RUNNING": 1, "WAITING": 1}
    study.sweep(lambda owner: owner == OTHER)
    assert states(study) == {"FAIL": 1, "WAITING": 1}


def test_after_some_attempts_other_values_take_the_place(address: str) -> None:
    study = make_study(address, "Sleeping", attempts=2)
    study.enqueue({"x": 0.5}, source="paper")
    for _ in range(2):
        assert claim(study, OTHER).suggest_float("x", 0.0, 1.0) == 0.5
        study.sweep(lambda owner: owner == OTHER)
    assert states(study) == {"FAIL": 2, "WAITING": 1}
    last = study.trials(TrialState.WAITING)[0]
    assert "source" not in last.user_attrs
    assert claim(study).suggest_float("x", 0.0, 1.0) != 0.5


def test_a_trial_that_must_run_and_is_killed_each_time_is_an_error(address: str) -> None:
    study = make_study(address, "Sleeping", attempts=2)
    study.enqueue({"x": 0.5}, required=True)
    claim(study, OTHER)
    study.sweep(lambda owner: owner == OTHER)
    assert study.trials(TrialState.WAITING)[0].user_attrs["required"]
    claim(study, OTHER)
    with pytest.raises(TuningError, match=r"killed 2 times.*smaller train\.batch_size"):
        study.sweep(lambda owner: owner == OTHER)
    assert states(study) == {"FAIL": 2}


def test_a_name_belongs_to_one_search(address: str) -> None:
    study = make_study(address, "Sleeping")
    assert make_study(address, "Sleeping").trials() == study.trials()
    with pytest.raises(TuningError, match="other parameters"):
        make_study(address, "Sleeping", seconds=1.0)
    with pytest.raises(TuningError, match="no study 'mian'"):
        TrialQueue(open_storage(address), "mian")
    optuna.create_study(storage=open_storage(address), study_name="foreign")
    with pytest.raises(TuningError, match="not made by"):
        TrialQueue(open_storage(address), "foreign")


def test_equal_seeds_and_results_give_equal_draws(address: str) -> None:
    drawn = []
    for name in ("one", "two"):
        study = make_study(address, "Sleeping", name)
        study.fill(14)  # Beyond the sampler's random start.
        objective = load_objective(study.facts)
        while (trial := study.claim(ME, objective.pruner)) is not None:
            run_trial(study, objective, trial)
        drawn.append([trial.params["x"] for trial in study.trials()])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 14


def test_what_a_killed_writer_left_of_a_line_is_dropped(no_servers: Path) -> None:
    address = str(no_servers / "journal.log")
    make_study(address, "Sleeping").fill(2)
    with Path(address).open("ab") as file:
        file.write(b'{"op_code":4,"worker_id"')
    make_study(address, "Sleeping").fill(3)
    assert states(make_study(address, "Sleeping")) == {"WAITING": 3}


@pytest.mark.parametrize(
    "line", [b"\0\xff", b"nonsense\n{}", b"{}", b"[]", b"3", b'{"op_code":99}']
)
def test_a_file_that_is_no_journal_is_one_line(no_servers: Path, line: bytes) -> None:
    address = str(no_servers / "journal.log")
    Path(address).write_bytes(line + b"\n")
    with pytest.raises(StorageError, match=r"journal\.log: is no journal of Optuna, or damaged"):
        open_storage(address)
