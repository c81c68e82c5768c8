import random
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmodel.features.keys import Segment, composed, normalise_query, split_segment, text_key


def test_spelling_variants_of_a_query_share_a_key():
    assert text_key(" A  man\twalks ") == text_key("A man walks")
    assert text_key("\ufb01sh") == text_key("fish")
    assert text_key("a man walks") != text_key("A man walks")


def test_key_is_stable():
    # Keys live in stored indices: changing this value orphans every text store.
    assert text_key("a red ball") == "t-aacb52bb89c0d846"


@settings(deadline=None)
@given(st.text())
def test_normalising_twice_changes_nothing(text):
    once = normalise_query(text)
    assert normalise_query(once) == once
    assert text_key(once) == text_key(text)


def test_segments():
    assert split_segment("NUsG9BgSes0_210.0_360.0") == Segment("NUsG9BgSes0", 210.0, 360.0)
    assert split_segment("a_b_0_2") == Segment("a_b", 0.0, 2.0)
    for vid in ("plain", "a_1.0", "a_4.0_2.0", "_1.0_2.0", "a_-1.0_2.0", "a_1.0_x"):
        assert split_segment(vid) is None


ODD = "\u0301\u0316\u0344\u0f73\u0f75\u1100\u1161\u11a8\u00e9\u1e69\u0323\ufb01\u3099か a"


def test_long_texts_have_the_normal_form_of_unicode() -> None:
    """Whatever accents of whatever order; as `unicodedata` gives it."""
    choose = random.Random(1)
    for _ in range(50):
        text = "".join(choose.choices(ODD, k=choose.randint(251, 600)))
        assert composed(text) == unicodedata.normalize("NFC", text)
        assert normalise_query(text) == " ".join(unicodedata.normalize("NFKC", text).split())


@pytest.mark.parametrize("accents", ["\u0301\u0316", "\u0344\u0316", "\u0f73"])
def test_a_letter_of_many_accents_takes_no_hours(accents: str) -> None:
    """Time grew with the square of their number: a row of 16 MB held up all deliveries."""
    started = time.process_time()
    composed("a" + accents * 100_000)
    normalise_query("a" + accents * 100_000)
    assert time.process_time() - started < 5
