"""Bootstrap over videos."""

from __future__ import annotations

import numpy as np
import pytest

from mrmodel.errors import DataError
from mrmodel.evaluate import significance
from mrmodel.evaluate.significance import (
    BootstrapSettings,
    PerQuery,
    bootstrap_over_seeds,
    confidence_interval,
    paired_bootstrap,
)

SETTINGS = BootstrapSettings(resamples=2000, seed=3)


def system(values: np.ndarray, vids: list[str] | None = None) -> PerQuery:
    n = len(values)
    return PerQuery(list(range(n)), vids or [f"v{q}" for q in range(n)], {"mAP": values})


def test_interval_of_independent_queries_has_the_width_of_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(50.0, 10.0, 400)
    interval = confidence_interval(system(values), "mAP", SETTINGS)
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 10.0 / 20.0, rel=0.1)
    assert (interval.queries, interval.videos) == (400, 400)


def test_queries_of_one_video_are_drawn_together() -> None:
    per_video = np.random.default_rng(1).normal(50.0, 10.0, 100)
    values = np.repeat(per_video, 4)
    vids = [f"v{video}" for video in range(100) for _ in range(4)]
    together = confidence_interval(system(values, vids), "mAP", SETTINGS)
    apart = confidence_interval(system(values), "mAP", SETTINGS)
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(2.0, rel=0.15)


def test_videos_weigh_by_their_queries() -> None:
    values = np.array([0.0, 0.0, 0.0, 100.0])
    interval = confidence_interval(system(values, ["a", "a", "a", "b"]), "mAP", SETTINGS)
    assert interval.value == 25.0
    assert (interval.low, interval.high) == (0.0, 100.0)


def test_a_clear_and_an_absent_difference() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(50.0, 20.0, 300)
    better = paired_bootstrap(system(base), system(base + rng.normal(2, 5, 300)), "mAP", SETTINGS)
    assert better.difference.low > 0.0
    assert better.share_above_zero > 0.99
    same = paired_bootstrap(system(base), system(base), "mAP", SETTINGS)
    assert (same.difference.low, same.difference.high, same.share_above_zero) == (0.0, 0.0, 0.0)


def test_pairs_are_found_by_qid_and_the_order_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=50), rng.normal(size=50)
    straight = paired_bootstrap(system(first), system(second), "mAP", SETTINGS)
    turned = system(second)
    turned = PerQuery(turned.qids[::-1], turned.vids[::-1], {"mAP": second[::-1]})
    assert paired_bootstrap(system(first), turned, "mAP", SETTINGS) == straight


def test_queries_outside_the_mean_do_not_enter() -> None:
    values = np.array([10.0, np.nan, 30.0, np.nan])
    interval = confidence_interval(system(values), "mAP", SETTINGS)
    assert (interval.value, interval.queries, interval.videos) == (20.0, 2, 2)
    assert 10.0 <= interval.low <= interval.high <= 30.0


def test_the_seed_decides_and_memory_blocks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(6).normal(size=60)
    whole = confidence_interval(system(values), "mAP", SETTINGS)
    assert whole == confidence_interval(system(values), "mAP", SETTINGS)
    other = BootstrapSettings(resamples=2000, seed=4)
    assert whole != confidence_interval(system(values), "mAP", other)
    monkeypatch.setattr(significance, "_BLOCK", 60 * 7)
    blocks = confidence_interval(system(values), "mAP", SETTINGS)
    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high))


def runs_around(base: np.ndarray, *shifts: float) -> list[PerQuery]:
    return [system(base + shift) for shift in shifts]


def test_one_run_a_system_is_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(7)
    first, second = system(rng.normal(50, 20, 80)), system(rng.normal(52, 20, 80))
    expected = paired_bootstrap(first, second, "mAP", SETTINGS)
    found = bootstrap_over_seeds([first], [second], "mAP", SETTINGS)
    assert found.as_json() == pytest.approx(expected.as_json())


def test_runs_are_drawn_with_the_variance_of_their_mean() -> None:
    # All queries alike, so videos add nothing: only the runs 0, 3, 6 against 10 differ.
    flat = np.full(20, 10.0)
    found = bootstrap_over_seeds(
        runs_around(flat, -10.0, -7.0, -4.0), [system(flat)], "mAP", SETTINGS
    )
    assert found.difference.value == pytest.approx(7.0)
    # Two of three are drawn: means 0, 1.5, 3, 4.5, 6 with chances 1, 2, 3, 2, 1 of nine.
    assert (found.difference.low, found.difference.high) == pytest.approx((4.0, 10.0))
    halves = BootstrapSettings(resamples=20_000, confidence=0.6)
    found = bootstrap_over_seeds(
        runs_around(flat, -10.0, -7.0, -4.0), [system(flat)], "mAP", halves
    )
    assert (found.difference.low, found.difference.high) == pytest.approx((5.5, 8.5))
    assert found.share_above_zero == 1.0


def test_videos_are_paired_and_runs_are_not() -> None:
    hard = np.random.default_rng(8).normal(50.0, 30.0, 200)
    ahead = bootstrap_over_seeds(
        runs_around(hard, 0.0, 0.0), runs_around(hard, 1.0, 1.0), "mAP", SETTINGS
    )
    # What the videos do, they do to both.
    assert (ahead.difference.low, ahead.difference.high) == pytest.approx((1.0, 1.0))
    # Runs that differ alike in both systems still leave a difference in doubt.
    shaky = bootstrap_over_seeds(
        runs_around(hard, -6.0, 6.0), runs_around(hard, -5.0, 7.0), "mAP", SETTINGS
    )
    assert shaky.difference.value == pytest.approx(1.0)
    assert (shaky.difference.low, shaky.difference.high) == pytest.approx((-11.0, 13.0))
    # Gains of -11, 1, 1, 13 are as likely.
    assert shaky.share_above_zero == pytest.approx(0.75, abs=0.03)


def test_runs_pair_their_queries_by_qid_and_skip_those_outside_the_mean() -> None:
    values = np.array([10.0, np.nan, 40.0])
    straight = system(values)
    turned = PerQuery(straight.qids[::-1], straight.vids[::-1], {"mAP": values[::-1] + 2.0})
    found = bootstrap_over_seeds([straight, straight], [turned, straight], "mAP", SETTINGS)
    assert found.difference.value == pytest.approx(1.0)
    assert (found.difference.queries, found.difference.videos) == (2, 2)
    with pytest.raises(DataError, match="different queries"):
        bootstrap_over_seeds([straight], [straight, system(values[:2])], "mAP")


def test_what_cannot_be_compared_is_refused() -> None:
    values = np.arange(4.0)
    with pytest.raises(DataError, match="different queries"):
        paired_bootstrap(system(values), system(values[:3]), "mAP")
    with pytest.raises(DataError, match="no metric 'R1'"):
        confidence_interval(system(values), "R1")
    with pytest.raises(DataError, match="no query counts for"):
        confidence_interval(system(np.full(4, np.nan)), "mAP")
    with pytest.raises(ValueError, match="resamples"):
        BootstrapSettings(resamples=0)
