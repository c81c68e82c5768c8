"""Curves of block characters."""

from statistics import fmean

import pytest

from mrmodel.text import sparkline


@pytest.mark.parametrize(
    ("values", "bars"),
    [((0.0, 0.5, 1.0), "▁▅█"), ((0.3, 0.3), "▁▁"), ((1.0,), "▁"), ((-2.0, 5.0), "▁█")],
)
def test_few_values_have_a_character_each(values: tuple[float, ...], bars: str) -> None:
    assert sparkline(values, 40, max) == bars
    assert sparkline(values, 40, fmean) == bars
    assert sparkline(values, len(values), max) == bars


@pytest.mark.parametrize("count", [41, 79, 80, 1000, 43210])
def test_many_values_share_characters(count: int) -> None:
    rising = [float(number) for number in range(count)]
    bars = sparkline(rising, 40, fmean)
    assert len(bars) == 40
    assert list(bars) == sorted(bars)
    assert (bars[0], bars[-1]) == ("▁", "█")


def test_the_maximum_shows_what_the_mean_hides() -> None:
    """One high clip in a long video whose first half is a little higher than the rest."""
    scores = [0.5] * 5000 + [0.4] * 5000
    scores[7512] = 1.0
    assert sparkline(scores, 80, max)[60] == "█"
    assert sparkline(scores, 80, max).count("█") == 1
    assert sparkline(scores, 80, fmean)[60] == "▁"


def test_no_room_is_one_character() -> None:
    assert sparkline([0.0, 1.0], 0, max) == "▁"
    assert sparkline([0.0, 1.0], -5, max) == "▁"
