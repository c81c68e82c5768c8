"""Searching a library: what is found, in which order, and as the predictor alone finds it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mrmodel.errors import DataError, LibraryError
from mrmodel.features.keys import text_key
from mrmodel.library.adder import AddSettings
from mrmodel.library.folder import LibraryFolder
from mrmodel.library.library import Library
from mrmodel.library.ranking import fused, ranks
from mrmodel.library.search import ClipSimilarity, LibraryAnswer
from mrmodel.predict.predictor import Predictor
from tests.cases.models import write_model
from tests.library.videos import write_videos

ONE = AddSettings(workers=1)
LENGTHS = {f"{name}.mp4": 20 * count for count, name in enumerate("abcdef", 1)}
QUERY = "a red car turns left"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`videos`, the model folder `model` and the library `library`; only to be read."""
    base = tmp_path_factory.mktemp("made")
    write_videos(base / "videos", LENGTHS)
    said = "1\n00:00:01,000 --> 00:00:02,500\n<i>The cars were</i>\n\n"
    said += "2\n00:00:02,600 --> 00:00:03,000\nturning left.\n"
    (base / "videos/c.en.srt").write_text(said)
    (base / "videos/e.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\nOnly a car.\n")
    write_model(base / "model")
    Library(base / "library", base / "model").add([base / "videos"], ONE)
    return base


@pytest.fixture(scope="module")
def predictor(made: Path) -> Predictor:
    return Predictor.load(made / "model", "cpu")


@pytest.fixture(scope="module")
def library(made: Path, predictor: Predictor) -> Library:
    return Library.open(made / "library", predictor)


def names_of(answer: LibraryAnswer) -> list[str]:
    return [hit.path.stem for hit in answer.hits]


def test_results_are_those_of_the_predictor(
    made: Path, library: Library, predictor: Predictor
) -> None:
    (answer,) = library.search([QUERY], top=6, exhaustive=True)
    assert [hit.rank for hit in answer.hits] == [1, 2, 3, 4, 5, 6]
    assert sorted(names_of(answer)) == list("abcdef")
    for hit in answer.hits:
        (alone,) = predictor.search(predictor.encode(hit.path), [QUERY])
        assert hit.result.vid == hit.path.stem
        np.testing.assert_allclose(hit.result.clip_scores, alone.clip_scores, atol=1e-4)
        windows = [[(m.start_s, m.end_s) for m in r.moments] for r in (hit.result, alone)]
        np.testing.assert_allclose(*windows, atol=1e-3)
        assert replace(hit.result, moments=(), clip_scores=()) == replace(
            alone, moments=(), clip_scores=()
        )


def test_similarity_is_that_of_the_best_clip(
    made: Path, library: Library, predictor: Predictor
) -> None:
    rows = predictor.encode_queries([QUERY])[0].gather([text_key(QUERY)])[0][0, 0]
    sentence = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64))
    (answer,) = library.search([QUERY], top=6)
    for hit in answer.hits:
        clips = predictor.encode(hit.path).streams[0].gather([hit.path.stem])[0][0]
        clips = clips.astype(np.float64)
        cosines = clips @ sentence / np.linalg.norm(clips, axis=1)
        assert hit.similarity == pytest.approx(cosines.max(), abs=1e-5)


def test_the_scan_is_exact_to_a_thousandth(made: Path) -> None:
    folder = LibraryFolder(made / "library")
    rows = folder.rows_of(folder.streams()[0])
    similarity = ClipSimilarity(rows)
    sentence = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    sentence /= np.linalg.norm(sentence)
    stored = np.concatenate(rows.maps).astype(np.float64)
    cosines = stored @ sentence / np.linalg.norm(stored, axis=1)
    exact = np.maximum.reduceat(cosines, np.cumsum(rows.counts) - rows.counts)
    np.testing.assert_allclose(similarity.of_videos(sentence, 0), exact, atol=2e-3)
    np.testing.assert_allclose(similarity.of_videos(sentence, len(exact)), exact, atol=1e-6)


def test_depth_grounds_the_most_similar_and_those_in_which_it_is_said(library: Library) -> None:
    (whole,) = library.search(["no such words"], top=6, exhaustive=True)
    by_similarity = sorted(whole.hits, key=lambda hit: -(hit.similarity or 0.0))
    (answer,) = library.search(["no such words"], depth=2)
    assert (answer.n_videos, answer.n_grounded) == (6, 2)
    assert set(names_of(answer)) == {hit.path.stem for hit in by_similarity[:2]}
    (answer,) = library.search([QUERY], depth=2)
    assert "c" in names_of(answer)


def test_what_is_said_is_found_and_shown(library: Library) -> None:
    (answer,) = library.search([QUERY], top=6)
    assert names_of(answer)[0] == "c"
    (said,) = [hit for hit in answer.hits if hit.evidence is not None]
    assert said.evidence is not None
    assert (said.path.stem, said.evidence.text) == ("c", "The cars were turning left.")
    assert (said.evidence.start_s, said.evidence.end_s) == (1.0, 3.0)
    row = said.as_row()
    assert row["evidence"] == {"start_s": 1.0, "end_s": 3.0, "text": "The cars were turning left."}


def test_a_library_that_another_process_changes_is_read_again(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "videos", tmp_path / "videos")
    mine = Library(tmp_path / "library", made / "model")
    with pytest.raises(LibraryError, match="no library there"):
        mine.search([QUERY])
    Library(tmp_path / "library", made / "model").add([tmp_path / "videos/a.mp4"], ONE)
    assert names_of(mine.search([QUERY])[0]) == ["a"]
    other = Library(tmp_path / "library")
    other.add([tmp_path / "videos"], ONE)
    other.remove([tmp_path / "videos/a.mp4"])
    assert sorted(names_of(mine.search([QUERY])[0])) == list("bcdef")
    other.remove([tmp_path / "videos"])
    with pytest.raises(LibraryError, match="no videos in the library yet"):
        mine.search([QUERY])


def test_a_query_that_says_nothing_is_one_line(library: Library) -> None:
    with pytest.raises(DataError, match="query 2 is empty"):
        library.search([QUERY, " "])


def test_ranks_are_fused_with_equal_weights() -> None:
    first, second = ranks(np.array([0.3, 0.9, 0.1])), np.array([np.inf, 2.0, 1.0])
    assert first.tolist() == [2, 1, 3]
    np.testing.assert_allclose(fused([first, second]), [1 / 62, 1 / 61 + 1 / 62, 1 / 63 + 1 / 61])


def test_a_library_made_for_zero_shot_is_searched_so(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside a trained model that reads other streams, and without saying so again."""
    shutil.copytree(made / "model", tmp_path / "models/served/moment_detr")
    monkeypatch.chdir(tmp_path)
    Library("library", "zero-shot").add([made / "videos/a.mp4"], ONE)
    library = Library.open("library")
    (answer,) = library.search([QUERY])
    assert names_of(answer) == ["a"]
    assert library.note.startswith("the videos are encoded for zero-shot and not for models/served")
    with pytest.raises(LibraryError, match="the model reads tiny"):
        Library.open("library", "models/served/moment_detr").search([QUERY])
