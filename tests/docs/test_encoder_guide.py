"""The commands of the guide to production encoders, with tiny files in place of the published."""

import re

import pytest
import yaml
from click.testing import CliRunner

from mrmodel.cli.weights import group
from mrmodel.components import ENCODERS
from mrmodel.encoders.user_weights import PUBLISHED, WEIGHTS_VARIABLE
from tests.docs.test_commands import blocks_of, commands_of
from tests.encoders.tiny_sets import make_all
from tests.project import ROOT

GUIDE = "howto/use_production_encoders.md"
# Published file -> what stands in its place; sizes that a tiny network needs to be told.
FILES = {
    "ViT-B-32.pt": "clip.safetensors",
    "bpe_simple_vocab_16e6.txt.gz": "merges.txt.gz",
    "SLOWFAST_8x8_R50.pkl": "slowfast.pyth",
    "InternVideo2-stage2_1b-224p-f4.pt": "internvideo2.pt",
    " model.safetensors": " model.safetensors.index.json",
    "tokenizer.json": "blip2.txt",
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    make_all(folder)
    return folder / "published"


def test_the_commands_of_the_guide(published, tmp_path, tmp_path_factory, monkeypatch):
    store = tmp_path_factory.mktemp("store")
    monkeypatch.chdir(published)
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    # The import and the search after it are in tests/convert/test_search.py.
    names = ("convert", "lock", "verify", "pin", "push", "pull")
    ours = tuple(f"mrmodel weights {command}" for command in names)
    commands = [line for line in commands_of(GUIDE) if line.startswith(ours)]
    (published / "encoder_weights.lock").write_text('{"sets": {}}')
    for command in commands:
        for name, tiny in FILES.items():
            command = command.replace(name, tiny).replace("s3://my-bucket", str(store))
        result = CliRunner().invoke(group, command.split()[2:], catch_exceptions=False)
        assert result.exit_code == 0, (command, result.output)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PUBLISHED)
    assert any(" lock " in command for command in commands)


def test_the_guide_names_every_set_and_stream():
    text = (ROOT / "docs" / GUIDE).read_text()
    streams = {name for name in ENCODERS if name.partition(".")[0] in PUBLISHED}
    assert set(re.findall(r"`(\w+\.\w*(?:video|text)\d+)`", text)) == streams
    named = yaml.safe_load(blocks_of(GUIDE, "yaml")[0])["features"]
    assert {*named["video_streams"], *named["text_streams"]} <= streams
