"""The pages about published data: their commands run, and what they name is there."""

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mrmodel import presets
from mrmodel.cli.main import cli
from mrmodel.components import DATASETS, LAYOUTS
from mrmodel.config.schema import parse_config
from mrmodel.presets import feature_sets
from tests.project import ROOT
from tests.stages.test_imported import MINIATURES, corpus_rows, qvhighlights_archive

PAGES = sorted(ROOT.glob("docs/**/*.md")) + sorted(ROOT.glob("own_features/*/README.md"))
GUIDES = ("reproduce_the_papers", "import_features")


def commands_of(page: str) -> list[str]:
    text = (ROOT / f"docs/howto/{page}.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("page", GUIDES)
def test_the_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("published").symlink_to(MINIATURES / "qvhighlights")
    convert = "mrmodel data convert qvhighlights published --output own_videos"
    commands = commands_of(page)
    assert len(commands) in (2, 4)
    done = set()
    for command in ([] if convert in commands else [convert]) + commands:
        program, *words = command.split()
        if program == "dvc":
            assert words[-1] in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
            continue
        if words[:2] == ["features", "import"]:
            qvhighlights_archive(Path("archive"), corpus_rows(Path("own_videos")))
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, result.output
        done.add(words[0])
    assert "features" in done


def test_layouts_data_sets_and_features_that_are_named_exist() -> None:
    named = {"layout": set(), "dataset": set(), "features": set()}
    for page in PAGES:
        text = page.read_text()
        named["layout"] |= set(re.findall(r"--layout ([a-z0-9_]+)", text))
        named["dataset"] |= set(re.findall(r"mrmodel data convert ([a-z_]+)", text))
        named["features"] |= set(re.findall(r"--features ([a-z0-9_]+)", text))
    assert named["layout"] <= set(LAYOUTS)
    assert named["dataset"] <= set(DATASETS)
    assert named["features"] <= set(feature_sets())
    assert len(named["layout"]) > 4


def test_every_layout_and_kind_of_features_is_on_its_page() -> None:
    layouts = (ROOT / "docs/howto/import_features.md").read_text()
    assert [name for name in LAYOUTS if f"`{name}`" not in layouts] == []
    kinds = (ROOT / "docs/reference/presets.md").read_text()
    for name in feature_sets():
        found = yaml.safe_load((ROOT / f"mrmodel/presets/features/{name}.yaml").read_text())
        assert f"| `{name}` |" in kinds
        assert set(found) == {"features"}
        assert set(found["features"]) == {"video_streams", "text_streams"}


# The longest videos of SG-DETR's published runs, in clips.
SG_DETR_CLIPS = {
    "qvhighlights": 75,
    "charades": 200,
    "tacos": 750,
    "tvsum": 500,
    "youtube_hl": 1000,
}
RECIPES = [
    (name, data_set)
    for name in presets.names()
    for data_set in DATASETS
    if name.startswith(f"{data_set}_")
]


@pytest.mark.parametrize(("name", "data_set"), RECIPES)
def test_a_recipe_has_the_limits_of_its_data_set_and_the_features_on_the_page(
    name: str, data_set: str
) -> None:
    features = parse_config(yaml.safe_load(presets.render(name))).features
    dataset = DATASETS.get(data_set)()
    found = (features.clip_len_s, features.max_tokens, features.max_clips)
    tokens, max_clips = dataset.max_tokens, dataset.max_clips
    if name.endswith("sg_detr"):
        tokens, max_clips = 40, SG_DETR_CLIPS[data_set]
    elif data_set == "charades" and not name.endswith("sa_detr"):
        max_clips = 75  # lighthouse and VideoLights cut Charades-STA, too.
    # A row of VGG features stands for four frames at 24 fps.
    clip_len_s = 1 / 6 if "_vgg_" in name else dataset.clip_len_s
    assert found == (clip_len_s, tokens, max_clips)
    assert features.imports == f"own_features/{data_set}"
    assert (ROOT / features.imports / "README.md").exists()
    page = (ROOT / "docs/reference/presets.md").read_text()
    (row,) = re.findall(rf"^\| `{name}` \| \d.*", page, flags=re.MULTILINE)
    kind = row.split("|")[9].strip().strip("`")
    streams = yaml.safe_load((ROOT / f"mrmodel/presets/features/{kind}.yaml").read_text())
    assert streams["features"] == {
        "video_streams": features.video_streams,
        "text_streams": features.text_streams,
    }


def test_other_features_replace_the_streams_and_nothing_else() -> None:
    own = yaml.safe_load(presets.render("charades_qd_detr"))
    other = yaml.safe_load(presets.render("charades_qd_detr", "clip"))
    assert other["features"]["video_streams"] == ["clip_b32.video512"]
    other["features"]["video_streams"] = own["features"]["video_streams"]
    assert other == own


def test_every_recipe_is_in_a_table_of_its_paper() -> None:
    guide = (ROOT / "docs/howto/reproduce_the_papers.md").read_text()
    named = set(re.findall(r"`((?:[a-z]+_)+detr|[a-z]+_video_lights)", guide))
    known = set(presets.names())
    assert {name for name in named if "_" in name and name.split("_")[0] in DATASETS} <= known
    for published in ("qvhighlights", "charades", "tacos", "tvsum"):
        for model in ("qd_detr", "sg_detr"):
            assert f"{published}_{model}" in named
    assert {"youtube_hl_qd_detr", "youtube_hl_sg_detr"} <= named
