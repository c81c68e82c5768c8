"""The training split in figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mrmodel.errors import DataError
from mrmodel.features.store import FeatureStore
from mrmodel.stages.profile import Profile, Sample, profile_of, words_of
from mrmodel.types import Annotation
from tests.project import Project


def row(qid: int, vid: str, query: str, *windows: tuple[float, float]) -> Annotation:
    return Annotation(qid, query, vid, 20.0, windows)


def test_rows_in_figures() -> None:
    found = profile_of(
        [
            row(1, "a", "A dog runs, a dog.", (0.0, 4.0), (6.0, 7.5)),
            row(2, "a", "A cat!", (1.0, 2.0)),
            row(3, "b", "the DOG's cat", (0.0, 20.0)),
        ],
        {},
    )
    assert found.rows == 3
    assert found.duration_s == Sample(count=2, values=[20.0, 20.0])
    assert found.window_s == Sample(count=4, values=[1.0, 1.5, 4.0, 20.0])
    assert found.windows_per_query.values == [1.0, 1.0, 2.0]
    assert found.words_per_query.values == [2.0, 3.0, 5.0]
    assert found.words == ["a", "cat", "dog", "dog's", "runs", "the"]
    # Of ten words only the two of `cat` are in both videos.
    assert found.unknown_words == 0.8


def test_words() -> None:
    assert words_of("  Ｔhe dog’s 2nd “run”, über_all—now ") == [
        "the",
        "dog’s",
        "2nd",
        "run",
        "über",
        "all",
        "now",
    ]


def test_many_values_keep_their_distribution() -> None:
    values = np.random.default_rng(0).exponential(size=50_000)
    sample = Sample.of(values)
    assert (sample.count, len(sample.values)) == (50_000, 1001)
    grid = np.linspace(0, 8, 200)
    kept = np.searchsorted(sample.values, grid) / len(sample.values)
    assert np.abs(kept - np.searchsorted(np.sort(values), grid) / 50_000).max() < 0.002


def test_the_stage(reproduced: Project) -> None:
    found = Profile.read(reproduced.folder / "reports/profile.json")
    rows = reproduced.read("data/miniature/train.jsonl").splitlines()
    assert found.rows == len(rows)
    stream = found.streams["tiny.video"]
    store = FeatureStore(reproduced.folder / "features/miniature/tiny.video")
    assert stream.fingerprint == store.info.fingerprint
    vids = [vid for vid in store if vid.startswith("train-")]
    means = np.stack([store.gather([vid])[0][0].astype(float).mean(axis=0) for vid in vids])
    assert stream.videos == len(vids) == 6
    assert stream.mean == pytest.approx(means.mean(axis=0).tolist(), rel=1e-5)
    assert stream.sd == pytest.approx(means.std(axis=0, ddof=1).tolist(), rel=1e-5)


def test_another_file_is_no_profile(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text("{}")
    with pytest.raises(DataError, match=r"profile\.json: holds no profile of training data"):
        Profile.read(tmp_path / "profile.json")
