from hypothesis import given, settings
from hypothesis import strategies as st

from mrmodel.features.keys import Segment, normalise_query, split_segment, text_key


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
