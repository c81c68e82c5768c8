"""Queries that the text encoder cannot read are told to the user; nothing at all is an error."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from mrmodel.cli.main import main
from mrmodel.components import ENCODERS
from mrmodel.encoders.base import TokenCounts, count_tokens
from mrmodel.encoders.builtin import AlignedTextEncoder
from mrmodel.encoders.bundled_weights import WeightsLock
from mrmodel.encoders.minilm import load_tokenizer
from mrmodel.encoders.tiny import TinyTextEncoder
from mrmodel.errors import DataError
from mrmodel.predict.predictor import Predictor
from mrmodel.text import is_visible

# Query -> tokens and unread ones, of the default encoder.
READ = {
    "a dog runs": (3, 0),
    "A dog, a cat & 2 birds!": (9, 0),
    "café crème": (3, 0),
    "cafe\u0301": (1, 0),
    "ein Hund läuft": (5, 0),  # Latin script: that it is German cannot be seen.
    "an α particle": (3, 0),
    "le chien\u200b court": (4, 0),
    "...": (3, 0),
    "a dog 🐶 runs": (4, 1),
    "dog在跑": (3, 2),
    "狗在跑": (3, 3),
    "猫在跑": (3, 3),
    "🎉": (1, 1),
    "🐶": (1, 1),
    "собака бежит": (10, 10),
    "σκύλος τρέχει": (11, 11),
    "कुत्ता दौड़ता": (5, 5),
    "犬が走る": (4, 4),
    "한국어 개": (10, 10),
    "كلب يجري": (7, 7),
}
NOTHING = [
    "",
    " ",
    "\t\n",
    "\u200b",
    "\ufeff \u2060",
    "\u00ad",
    "\u3164",
    "\u2800",
    "\ufe0f",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(WeightsLock().path("minilm.tokenizer"))


@pytest.fixture
def as_default(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny encoder with the vocabulary of the default one."""

    def counted(self: TinyTextEncoder, text: str) -> TokenCounts:
        return count_tokens(tokenizer, text)

    monkeypatch.setattr(TinyTextEncoder, "token_counts", counted)
    monkeypatch.setattr(TinyTextEncoder, "languages", AlignedTextEncoder.languages)


def run(monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mrmodel", *shlex.split(line)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(("query", "counts"), READ.items())
def test_what_the_default_encoder_reads(
    tokenizer: Tokenizer, query: str, counts: tuple[int, int]
) -> None:
    assert count_tokens(tokenizer, query) == counts


@pytest.mark.parametrize("query", NOTHING)
def test_a_query_that_shows_nothing_is_an_error(
    made: Path, as_default: None, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_visible(query)
    predictor = Predictor.load(made / "model", "cpu")
    video = predictor.encode(made / "video.mp4")
    with pytest.raises(
        DataError, match=r"query 2 is empty, or has only characters that show nothing"
    ):
        predictor.search(video, ["red", query])


def test_a_query_of_marks_without_letters_is_an_error(made: Path, as_default: None) -> None:
    predictor = Predictor.load(made / "model", "cpu")
    with pytest.raises(DataError, match="holds nothing that the text encoder reads"):
        predictor.search(predictor.encode(made / "video.mp4"), ["\u0301"])


def test_the_user_is_told_what_is_not_read(
    made: Path,
    as_default: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    search = f"predict {made}/video.mp4 --model {made}/model --device cpu"
    queries = ("狗在跑", "a dog 🐶 runs", "a dog runs")
    asked = " ".join(f"--query '{query}'" for query in queries)
    assert run(monkeypatch, f"{search} {asked} --json") == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [row.get("unread_tokens") for row in rows] == [1.0, 0.25, None]
    notes = [
        "note: query '狗在跑': the text encoder (it reads English) can read none of it: "
        "the answer has nothing to do with the query",
        "note: query 'a dog 🐶 runs': the text encoder (it reads English) can read only 75 % of "
        "its tokens: the answer does not depend on the others",
    ]
    assert captured.err.splitlines() == notes
    assert run(monkeypatch, f"{search} {asked}") == 0
    assert capsys.readouterr().err.splitlines() == notes


def test_a_healthy_query_gives_the_bytes_it_gave(made: Path, as_default: None) -> None:
    predictor = Predictor.load(made / "model", "cpu")
    (found,) = predictor.search(predictor.encode(made / "video.mp4"), ["a dog runs"])
    assert found.unread_tokens == 0.0
    assert list(found.as_row()) == [
        "qid",
        "query",
        "vid",
        "pred_relevant_windows",
        "pred_saliency_scores",
        "duration",
    ]


def test_every_text_encoder_names_its_languages() -> None:
    languages = {
        name: ENCODERS.get(name).languages
        for name in ENCODERS
        if ENCODERS.get(name).modality == "text"
        and ENCODERS.get(name).__module__.startswith("mrmodel.")  # not those of other tests
    }
    assert languages.pop("tiny.text") == (), "a word is a random vector, in any language"
    assert set(languages.values()) == {("English",)}
