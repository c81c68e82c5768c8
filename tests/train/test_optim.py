import pytest

from mrmodel.config import RunSettings
from mrmodel.train.optim import learning_rate


def run(schedule: str, warmup: int = 0) -> RunSettings:
    return RunSettings(
        epochs=None,
        steps=100,
        lr=1e-3,
        schedule=schedule,  # type: ignore[arg-type]
        drop_every_epochs=4,
        warmup_steps=warmup,
        select="last",
    )


def test_constant_never_moves() -> None:
    assert {learning_rate(run("constant"), step, 100, 10) for step in range(100)} == {1e-3}


def test_step_drops_tenfold_every_so_many_epochs() -> None:
    rates = [learning_rate(run("step"), step, 100, 10) for step in (0, 39, 40, 79, 80)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])


def test_cosine_ends_at_one_percent_and_passes_the_middle() -> None:
    assert learning_rate(run("cosine"), 0, 100, 10) == pytest.approx(1e-3)
    assert learning_rate(run("cosine"), 50, 100, 10) == pytest.approx(0.505e-3)
    assert learning_rate(run("cosine"), 100, 100, 10) == pytest.approx(1e-5)


def test_warm_up_climbs_in_equal_steps() -> None:
    rates = [learning_rate(run("cosine", warmup=4), step, 100, 10) for step in range(5)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])
