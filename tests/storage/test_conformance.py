"""What both stores promise; the S3 one asks a real SeaweedFS."""

import multiprocessing as mp
import secrets
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from mrmodel.errors import ConflictError, StorageError
from mrmodel.storage import Object, Store, open_store

RACERS, ROUNDS = 8, 10  # Two races a round.


def test_round_trip(store: Store) -> None:
    assert store.get("a/b.json") is None
    assert not store.exists("a/b.json")
    tag = store.put("a/b.json", b"one")
    assert store.get("a/b.json") == Object(b"one", tag)
    assert store.exists("a/b.json")
    assert not store.exists("a")
    other = store.put("a/b.json", b"")
    assert other != tag
    assert store.get("a/b.json") == Object(b"", other)
    store.delete("a/b.json")
    store.delete("a/b.json")
    assert store.get("a/b.json") is None
    assert not store.exists("a/b.json")


def test_another_process_would_see_the_same_store(store: Store) -> None:
    store.put("a", b"one")
    again = open_store(store.url)
    assert again.url == store.url
    assert again.keys() == ["a"]


def test_keys_are_found_by_the_beginning_of_their_name(store: Store) -> None:
    for key in ("run/b/2", "run/b/10", "run/a", "runs", "rubber", "x/é ü+%20"):
        store.put(key, b"")
    assert store.keys() == ["rubber", "run/a", "run/b/10", "run/b/2", "runs", "x/é ü+%20"]
    assert store.keys("run") == ["run/a", "run/b/10", "run/b/2", "runs"]
    assert store.keys("run/") == ["run/a", "run/b/10", "run/b/2"]
    assert store.keys("run/b/1") == ["run/b/10"]
    assert store.keys("no/such") == []


def test_a_listing_marks_versions(store: Store) -> None:
    for key in ("run/b", "run/a", "other"):
        store.put(key, b"one")
    first = store.listing("run/")
    assert list(first) == ["run/a", "run/b"]
    assert store.listing("run/") == first
    store.put("run/b", b"two")
    second = store.listing("run/")
    assert second["run/a"] == first["run/a"]
    assert second["run/b"] != first["run/b"]
    assert store.listing("no/such") == {}
    assert second["run/b"].n_bytes == 3


def test_more_keys_than_one_page_of_s3(store: Store) -> None:
    names = [f"many/{number:04}" for number in range(1010)]
    for name in names:
        store.put(name, b"")
    assert store.keys("many/") == names


def test_if_absent_writes_once(store: Store) -> None:
    tag = store.put("lock", b"mine", if_absent=True)
    with pytest.raises(ConflictError, match=r"key 'lock': exists already") as caught:
        store.put("lock", b"theirs", if_absent=True)
    assert caught.value.store == store.url
    assert store.get("lock") == Object(b"mine", tag)
    # Equal bytes of another writer are a conflict too: only one may believe that it was first.
    with pytest.raises(ConflictError):
        store.put("lock", b"mine", if_absent=True)
    store.delete("lock")
    store.put("lock", b"theirs", if_absent=True)


def test_if_match_writes_over_the_expected_version_only(store: Store) -> None:
    first = store.put("state", b"1")
    second = store.put("state", b"2", if_match=first)
    with pytest.raises(ConflictError, match="not the version that was expected"):
        store.put("state", b"3", if_match=first)
    assert store.get("state") == Object(b"2", second)
    store.delete("state")
    with pytest.raises(ConflictError):
        store.put("state", b"4", if_match=second)
    assert store.get("state") is None


def test_a_write_cannot_expect_nothing_and_something(store: Store) -> None:
    with pytest.raises(StorageError, match="exclude each other"):
        store.put("a", b"", if_absent=True, if_match="tag")


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", ".locks/00", "a\\b", "a\nb", "k" * 701]
)
def test_keys_that_would_leave_the_store_are_refused(
    store: Store, key: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    calls: list[Callable[[], object]] = [
        lambda: store.put(key, b""),
        lambda: store.get(key),
        lambda: store.exists(key),
        lambda: store.delete(key),
        lambda: store.upload(key, file),
        lambda: store.download(key, file),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="key"):
            call()
    assert store.keys() == []


@pytest.mark.parametrize("prefix", ["/", "../", "a/../b", "a//b", ".locks"])
def test_prefixes_that_would_leave_the_store_are_refused(store: Store, prefix: str) -> None:
    with pytest.raises(StorageError):
        store.keys(prefix)


def test_large_files(store: Store, tmp_path: Path) -> None:
    content = secrets.token_bytes(12 << 20)
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(content)
    store.upload("large/file.bin", source)
    store.download("large/file.bin", target)
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]
    found = store.get("large/file.bin")
    assert found is not None
    assert found.content == content


def test_a_missing_file_or_object_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"key 'a/b'.*no such object"):
        store.download("a/b", tmp_path / "target")
    with pytest.raises(StorageError, match=r"key 'a/b'.*missing\.bin"):
        store.upload("a/b", tmp_path / "missing.bin")
    assert [path for path in tmp_path.iterdir() if path.name != "store"] == []


def test_an_upload_goes_over_an_object_and_a_failed_download_keeps_the_file(
    store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"new")
    store.put("a", b"old")
    store.upload("a", file)
    store.download("a", file)
    assert file.read_bytes() == b"new"
    with pytest.raises(StorageError):
        store.download("b", file)
    assert file.read_bytes() == b"new"


def _race(url: str, who: int, barrier: Barrier, wins: "mp.Queue[tuple[str, int, int]]") -> None:
    store = open_store(url)
    for number in range(ROUNDS):
        barrier.wait(60)
        tag = None
        for kind in ("first", "next"):
            try:
                # All write the same bytes, so that only the store can tell the writers apart.
                store.put(f"race/{number}", kind.encode(), if_absent=tag is None, if_match=tag)
                wins.put((kind, number, who))
            except ConflictError:
                pass
            barrier.wait(60)
            found = store.get(f"race/{number}")
            assert found is not None
            tag = found.tag
            barrier.wait(60)


def test_of_racing_processes_exactly_one_wins(store: Store) -> None:
    context = mp.get_context("spawn")
    barrier, wins = context.Barrier(RACERS), context.Queue()
    racers = [
        context.Process(target=_race, args=(store.url, who, barrier, wins)) for who in range(RACERS)
    ]
    for racer in racers:
        racer.start()
    found = [wins.get(timeout=120)[:2] for _ in range(2 * ROUNDS)]
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert wins.empty()
    assert sorted(found) == sorted((kind, n) for kind in ("first", "next") for n in range(ROUNDS))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gs://bucket/x",
        "s3://",
        "s3:///x",
        "s3://planted:planted@bucket/x",
        "s3://planted@bucket",
        "s3://bucket/x?secret=planted",
        "s3://bucket/../x",
        "http://planted:planted@host/x",
        "file://host/x",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_store(url)
    assert "planted" not in str(caught.value)


def test_an_endpoint_that_is_none() -> None:
    with pytest.raises(StorageError, match="MRMODEL_S3_ENDPOINT = 'no address'"):
        open_store("s3://bucket", endpoint="no address")
    with pytest.raises(StorageError) as caught:
        open_store("s3://bucket", endpoint="http://key:planted@host")
    assert "planted" not in str(caught.value)


def test_a_folder_may_be_given_as_an_address(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    store = open_store(folder.as_uri())  # file:///.../a%20b
    assert store.url == str(folder)
    store.put("x", b"1")
    assert (folder / "x").read_bytes() == b"1"
    assert open_store(f"file://localhost{tmp_path}/a%20b").keys() == ["x"]
