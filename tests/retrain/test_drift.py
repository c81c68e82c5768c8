"""Each figure finds its kind of drift, and chance alone is not taken for one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mrmodel.config.schema import Config, DriftSettings
from mrmodel.errors import DeliveryError
from mrmodel.retrain.baseline import Reference
from mrmodel.retrain.drift import Drift
from mrmodel.retrain.report import DriftMetric
from mrmodel.stages.profile import Profile, profile_of
from mrmodel.types import Annotation
from tests.project import Project
from tests.retrain.conftest import FOLDER

WORDS = [f"word{number}" for number in range(300)]


def rows_of(
    seed: int,
    count: int = 200,
    *,
    seconds: tuple[float, float] = (30.0, 90.0),
    window_s: float = 8.0,
    windows: int = 2,
    words: int = 7,
    from_words: Sequence[str] = WORDS,
) -> list[Annotation]:
    """Rows about videos, two rows each, drawn from one distribution."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        if number % 2 == 0:
            duration = draw.uniform(*seconds)
        found = []
        for _ in range(draw.randint(1, windows)):
            length = min(draw.expovariate(1 / window_s) + 0.5, duration)
            start = draw.uniform(0, duration - length)
            found.append((start, start + length))
        query = " ".join(draw.choices(from_words, k=draw.randint(words - 3, words + 3)))
        vid = f"v{seed}-{number // 2}"
        rows.append(Annotation(number, query, vid, duration, tuple(sorted(found))))
    return rows


@pytest.fixture(scope="module")
def drift(config: Config) -> Drift:
    return Drift(profile_of(rows_of(1), {}), config)


def with_limits(drift: Drift, **limits: float | None) -> Drift:
    settings = drift.config.retrain.drift.model_copy(update=limits)
    retrain = drift.config.retrain.model_copy(update={"drift": settings})
    return Drift(drift.profile, drift.config.model_copy(update={"retrain": retrain}))


def beyond(figures: Sequence[DriftMetric]) -> list[str]:
    return [figure.name for figure in figures if figure.passed is False]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seconds": (200.0, 300.0)}, "seconds of a video"),
        ({"window_s": 0.1}, "seconds of a window"),
        ({"windows": 9}, "windows a query"),
        ({"words": 25}, "words a query"),
        ({"from_words": [f"wort{number}" for number in range(300)]}, "share of unknown words"),
    ],
)
def test_each_kind_of_drift_is_found(drift: Drift, changes: dict[str, Any], name: str) -> None:
    figures = drift.compare(rows_of(2, **changes), [])
    assert len(figures) == 5
    assert name in beyond(figures)


def test_a_single_kind_of_drift_is_not_taken_for_another(drift: Drift) -> None:
    assert beyond(drift.compare(rows_of(2, words=25), [])) == ["words a query"]


@pytest.mark.parametrize("count", [2, 6, 20, 200])
def test_data_of_the_same_kind_pass(drift: Drift, count: int) -> None:
    """Also where nothing but chance is allowed: one figure in a hundred may fail."""
    names = set(DriftSettings.model_fields) - {"significance_level", "features", "videos"}
    strict = with_limits(drift, **dict.fromkeys(names, 0.0))
    tries = 100
    failed = sum(len(beyond(strict.compare(rows_of(s, count), []))) for s in range(10, 10 + tries))
    assert failed <= 0.01 * tries * 5 + 3


def test_a_limit_of_null_is_shown_and_not_judged(drift: Drift) -> None:
    lax = with_limits(drift, words_per_query=None)
    (figure,) = [one for one in lax.compare(rows_of(2, words=25), []) if "words a" in one.name]
    assert figure.passed is None
    assert figure.value > 0.9
    assert str(figure).startswith("words a query: ")
    assert ", no limit, of 200 values" in str(figure)


def write_night(path: Path, seed: int) -> Path:
    """A video of 20 s that shows almost nothing."""
    draw = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(5))
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for _ in range(100):
            pixels = draw.integers(0, 12, (96, 128, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_videos_of_another_kind_are_found(
    reference: Reference, config: Config, repository: Project, rendered: Path, tmp_path: Path
) -> None:
    drift = Drift(reference.profile, config)
    old = sorted((repository.folder / FOLDER / "videos").glob("train-*"))
    same = sorted((rendered / "videos").glob("new-train-*"))
    night = [write_night(tmp_path / f"night-{number}.mp4", number) for number in range(6)]
    found = {}
    for name, videos in {"old": old, "same": same, "night": night}.items():
        (found[name],) = drift.compare([], videos)
    assert found["old"].value == pytest.approx(0, abs=1e-3), "the encoder is the stage's"
    assert found["same"].passed
    assert found["night"].passed is False
    assert found["night"].value > 2 * found["same"].value


def test_no_more_videos_are_encoded_than_asked_for(
    reference: Reference, config: Config, repository: Project
) -> None:
    drift = with_limits(Drift(reference.profile, config), videos=3)
    videos = sorted((repository.folder / FOLDER / "videos").glob("*.mp4"))
    (first,) = drift.compare([], videos)
    assert first.count == 3
    assert drift.compare([], videos[::-1]) == [first], "always the same ones"


def test_features_made_in_another_way_are_not_compared(
    reference: Reference, config: Config
) -> None:
    features = config.features.model_copy(update={"clip_len_s": 1.0})
    with pytest.raises(DeliveryError, match=r"clip_len_s is 2\.0, expected 1\.0.*dvc repro"):
        Drift(reference.profile, config.model_copy(update={"features": features})).require_streams()
    bare = Profile(**{**reference.profile.model_dump(), "streams": {}})
    with pytest.raises(DeliveryError, match=r"lacks the stream tiny\.video"):
        Drift(bare, config).require_streams()
