from mrmodel.registry.model_record import find_leaks
from mrmodel.stages.test_set import TestSetContents

TEST = TestSetContents(
    "test",
    ({"qid": 1, "vid": "a_0_10"}, {"qid": 2, "vid": "b"}),
    {"a": "sha-a", "b": "sha-b", "c": ""},
)


def test_nothing_in_common_is_no_leak() -> None:
    assert find_leaks(TEST, {"train": ["x", "y_0_10"]}, {"x": "sha-x", "y": ""}) == {}


def test_a_video_or_a_part_of_it_under_its_own_name() -> None:
    assert find_leaks(TEST, {"train": ["a_30_40"], "val": ["b"]}, {}) == {
        "train": ["a"],
        "val": ["b"],
    }


def test_a_copy_under_another_name_is_found_by_its_bytes() -> None:
    found = find_leaks(TEST, {"train": ["copy", "part_0_2"]}, {"copy": "sha-b", "part": "sha-a"})
    assert found == {"train": ["a", "b"]}
