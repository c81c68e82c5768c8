from pathlib import Path

import pytest
import yaml

from mrmodel import presets
from mrmodel.config import parse_config
from mrmodel.errors import ConfigError, UnknownNameError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_gives_a_valid_file_and_says_what_it_is_for(name: str) -> None:
    config = parse_config(yaml.safe_load(presets.render(name)))
    assert config.train.models
    assert len(presets.summary(name)) > 20


def test_the_repository_runs_the_sample_preset() -> None:
    assert (ROOT / "params.yaml").read_text() == presets.render("sample")


def test_apply_keeps_comments_and_changes_the_values(tmp_path: Path) -> None:
    target = tmp_path / "params.yaml"
    presets.apply("miniature", target)
    text = target.read_text()
    assert "# H.264 quality" in text
    assert yaml.safe_load(text)["features"]["text_streams"] == ["tiny.text"]


def test_an_overlay_cannot_bring_an_unknown_key() -> None:
    with pytest.raises(ConfigError, match=r"corpus\.colour"):
        presets.overlay("corpus: {name: a}\n", {"corpus": {"colour": 1}})


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'sample'"):
        presets.render("sampel")
