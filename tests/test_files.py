import json
from pathlib import Path

import pytest

from mrmodel.errors import DataError
from mrmodel.files import (
    atomic_path,
    derive_seed,
    digest_of,
    read_text,
    write_json,
    write_jsonl,
)


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path: Path) -> None:
    target = tmp_path / "value.json"
    write_json(target, {"a": 1})

    def fail_half_way() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert json.loads(target.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    with pytest.raises(ValueError, match="JSON compliant"):
        write_jsonl(tmp_path / "a.jsonl", [{"a": float("inf")}])
    assert list(tmp_path.iterdir()) == []


def test_digests_ignore_key_order_and_nothing_else() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 1.5})


def test_seeds_tell_their_parts_apart() -> None:
    seeds = {derive_seed("ab", "c"), derive_seed("a", "bc"), derive_seed("abc"), derive_seed(1, 2)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("step", 3) == derive_seed("step", 3)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with byte order mark"])
def test_text_is_read_without_its_byte_order_mark(tmp_path: Path, mark: bytes) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(mark + "caf\u00e9\r\n".encode())
    assert read_text(file) == "caf\u00e9\r\n"
    file.write_bytes(mark + "one\n\u00e9t\u00e9 ".encode() + b"caf\xe9\n")
    with pytest.raises(DataError) as raised:
        read_text(file)
    assert str(raised.value) == (
        f"{file}:2: not UTF-8 text: byte 0xe9 at column 8; save the file as UTF-8"
    )
