"""Highlights: runs of clips that fit generic queries."""

from pathlib import Path

import pytest

from mrmodel.errors import DataError
from mrmodel.predict.highlights import highlights_of, read_highlight_queries
from mrmodel.types import QueryResult


def result_of(query: str, scores: list[float], duration_s: float = 23.0) -> QueryResult:
    return QueryResult(query, "lake", duration_s, 2.0, (), tuple(scores))


FLAT = [0.0] * 12


def test_a_clip_that_fits_several_queries_is_a_highlight() -> None:
    """Whatever the scale of a query's scores; the last clip is shorter than the others."""
    cheering, dancing = list(FLAT), list(FLAT)
    cheering[4:6], cheering[11] = [900.0, 900.0], 300.0
    dancing[4:6] = [0.001, 0.002]
    dancing[11] = 0.002
    found = highlights_of([result_of("cheering", cheering), result_of("dancing", dancing)], 5)
    assert [(m.start_s, m.end_s) for _, m in found] == [(8.0, 12.0), (22.0, 23.0)]
    assert [query for query, _ in found] == ["cheering", "dancing"]
    assert found[0][1].score > found[1][1].score
    assert len(highlights_of([result_of("cheering", cheering)], 1)) == 1


def test_a_video_in_which_nothing_stands_out_has_a_highlight_all_the_same() -> None:
    ((query, moment),) = highlights_of([result_of("cheering", FLAT)], 5)
    assert (query, moment.start_s, moment.end_s, moment.score) == ("cheering", 0.0, 2.0, 0.0)


def test_queries_are_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "queries.txt"
    path.write_text("# of football\n\n  a goal \r\nthe audience cheering\n")
    assert read_highlight_queries(path) == ["a goal", "the audience cheering"]
    path.write_text("# nothing\n")
    with pytest.raises(DataError, match=r"queries\.txt: no queries in it"):
        read_highlight_queries(path)
    own = read_highlight_queries()
    assert len(own) == len(set(own)) >= 5
