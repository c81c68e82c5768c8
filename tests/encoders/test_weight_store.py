"""Pinned weights go through a store to another machine, whole and unchanged."""

import json
import shutil

import pytest

from mrmodel.convert.encoders.convert import lock_again
from mrmodel.encoders.user_weights import WeightSet
from mrmodel.encoders.weights_lock import pin_sets, pull_sets, push_sets
from mrmodel.errors import StorageError, UnknownNameError, WeightsError
from mrmodel.storage import open_store
from tests.encoders.tiny_sets import make_slowfast


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_slowfast(folder / "here", folder)
    return folder


@pytest.fixture
def machine(made, tmp_path):
    """The sets `here`, an empty store, pins, and a weights folder `there` that is not made yet."""
    shutil.copytree(made / "here", tmp_path / "here")
    (tmp_path / "pins").write_text('{"sets": {}}')
    pin_sets(tmp_path / "pins", [], tmp_path / "here")
    return tmp_path


def content(root):
    return {path.name: path.read_bytes() for path in (root / "slowfast").iterdir()}


def change(machine):
    config = machine / "here/slowfast/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"compat": "fixed"}))
    lock_again("slowfast", machine / "here")


def test_a_pushed_set_is_pulled_once(machine):
    store = open_store(str(machine / "store"))
    assert push_sets(store, [], machine / "here") == ["slowfast"]
    assert pull_sets(store, machine / "pins", [], machine / "there") == ["slowfast"]
    assert content(machine / "there") == content(machine / "here")
    assert pull_sets(store, machine / "pins", [], machine / "there") == []


def test_the_pinned_version_is_pulled_not_the_latest(machine):
    store = open_store(str(machine / "store"))
    push_sets(store, ["slowfast"], machine / "here")
    pinned = content(machine / "here")
    change(machine)
    push_sets(store, ["slowfast"], machine / "here")
    pull_sets(store, machine / "pins", ["slowfast"], machine / "there")
    assert content(machine / "there") == pinned
    weights = store.keys("slowfast/files/")
    assert len(weights) == 3, "two configurations, and the tensors once"


def test_a_changed_set_is_replaced_by_the_pinned_one(machine):
    store = open_store(str(machine / "store"))
    push_sets(store, [], machine / "here")
    pinned = content(machine / "here")
    change(machine)
    assert pull_sets(store, machine / "pins", [], machine / "here") == ["slowfast"]
    assert content(machine / "here") == pinned


def test_what_cannot_be_pulled_is_said(machine):
    store = open_store(str(machine / "store"))
    with pytest.raises(WeightsError, match=r"lacks the pinned version; .*weights push"):
        pull_sets(store, machine / "pins", [], machine / "there")
    assert not (machine / "there").exists()
    with pytest.raises(WeightsError, match="clip_b32: not pinned"):
        pull_sets(store, machine / "pins", ["clip_b32"], machine / "there")
    for use in (lambda: pull_sets(store, machine / "pins", ["x"]), lambda: push_sets(store, ["x"])):
        with pytest.raises(UnknownNameError):
            use()


def test_damaged_sets_are_not_pushed(machine):
    (machine / "here/slowfast/config.json").write_text("{}")
    store = open_store(str(machine / "store"))
    with pytest.raises(WeightsError, match=r"config\.json has SHA-256"):
        push_sets(store, [], machine / "here")
    assert store.keys() == []


def test_a_damaged_object_leaves_no_set_that_loads(machine):
    store = open_store(str(machine / "store"))
    push_sets(store, [], machine / "here")
    digest = WeightSet("slowfast", machine / "here").lock().files["model.safetensors"]
    (machine / "store/slowfast/files" / digest).write_bytes(b"damaged")
    with pytest.raises((StorageError, WeightsError)):
        pull_sets(store, machine / "pins", [], machine / "there")
    with pytest.raises(WeightsError):
        WeightSet("slowfast", machine / "there").verify()
