"""The commands in the documents run as they stand there."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mrmodel.presets import overlay
from tests.convert.published import save_official, with_widths
from tests.golden_parity.test_models import GOLDEN, Case
from tests.project import ROOT, Project

# What makes a run of the preset small enough for a test; everything else is as the reader has it.
SMALL = {
    "features": {"video_streams": ["tiny.video"], "text_streams": ["tiny.text"], "workers": 1},
    "train": {
        "models": ["moment_detr"],
        "batch_size": 8,
        "threads": 1,
        "pretrain": {"steps": 6},
        "finetune": {"steps": 6},
        "scratch": {"steps": 12},
    },
    "models": {"moment_detr": {"hidden": 32, "heads": 4, "ffn": 64}},
    "evaluate": {"bootstrap_resamples": 100},
    "tracking": {"enabled": False},
}


def blocks_of(document: str, language: str) -> list[str]:
    text = (ROOT / "docs" / document).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands_of(document: str) -> list[str]:
    blocks = blocks_of(document, "sh")
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def follow(project: Project, command: str) -> str:
    """Run a line of a document, in this process where it is a plain `mrmodel` command."""
    if command.startswith("mrmodel ") and not set(command) & set("|&;<>$`*~"):
        return project.invoke(*shlex.split(command)[1:])
    return project.run("sh", "-c", command)


def with_own_videos(reproduced: Project, clone: Path) -> Project:
    """A clone with a person's folder: videos and windows; no ratings, test split or captions."""
    project = Project(clone)
    project.commit()
    source = reproduced.folder / "data/miniature"
    folder = project.folder / "own_videos"
    shutil.copytree(source / "videos", folder / "videos")
    first = sorted((folder / "videos").glob("val-*.mp4"))[0]
    for split in ("train", "val"):
        rows = [json.loads(line) for line in (source / f"{split}.jsonl").read_text().splitlines()]
        for row in rows:
            del row["relevant_clip_ids"], row["saliency_scores"]
            row["vid"] = "lake" if row["vid"] == first.stem else row["vid"]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first.rename(folder / "videos/lake.mp4")
    return project


@pytest.fixture(scope="module")
def own_project(reproduced: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return with_own_videos(reproduced, tmp_path_factory.mktemp("own") / "clone")


def follow_your_own_videos(project: Project, repro: Callable[[], object]) -> None:
    """Run the commands of the guide, with `repro` for ``dvc repro``, and look at the results."""
    commands = commands_of("howto/your_own_videos.md")
    assert "dvc repro" in commands
    for command in commands:
        if command == "dvc repro":
            repro()
            continue
        output = follow(project, command)
        if command.startswith("mrmodel preset apply"):
            params = project.folder / "params.yaml"
            params.write_text(overlay(params.read_text(), SMALL))
        if command.startswith("mrmodel predict"):
            assert json.loads(output)["vid"] == "lake"
    metrics = json.loads(project.read("reports/metrics.json"))
    assert "R1@0.7" in metrics["moment_detr.finetuned"]
    report = project.read("reports/report.html").decode()
    assert "No generated queries: the corpus has no caption table" in report
    assert "toy domain" not in report


def test_your_own_videos(own_project: Project) -> None:
    """DVC runs the first stage; the commands of the others, as it has them, run in this process."""

    def repro() -> None:
        own_project.run("dvc", "repro", "corpus")
        first, *others = own_project.commands().items()
        assert (first[0], others[-1][0]) == ("corpus", "report")
        for _, command in others:
            own_project.stage(command)

    follow_your_own_videos(own_project, repro)


@pytest.mark.slow
def test_your_own_videos_with_dvc(reproduced: Project, tmp_path: Path) -> None:
    """The shorter proof is `test_your_own_videos`."""
    project = with_own_videos(reproduced, tmp_path / "clone")
    follow_your_own_videos(project, lambda: project.run("dvc", "repro"))


def test_a_new_video_of_yours_runs_what_depends_on_it(own_project: Project) -> None:
    folder = own_project.folder / "own_videos"
    row = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    row |= {"qid": 99999, "vid": "new", "query": "something quite new"}
    shutil.copyfile(folder / "videos/lake.mp4", folder / "videos/new.mp4")
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    output = own_project.run("dvc", "repro", "--dry", "corpus")
    assert "Running stage 'corpus'" in output


@pytest.fixture(scope="module")
def owner_of_checkpoints(own_project: Project) -> Project:
    """The project with two published checkpoints, and the preset of one's own videos."""
    case = Case(GOLDEN / "model_qd_detr/default.npz")
    for file, (video, text) in {"model_best": (2816, 512), "own_features": (32, 32)}.items():
        weights = with_widths(case.weights, video + 2, text)
        save_official(own_project.folder / f"{file}.ckpt", weights, case.options)
    own_project.invoke("preset", "apply", "own_videos")
    return own_project


def with_tiny_encoders(text: str) -> str:
    for name in ("embedded.video,embedded.motion", "embedded.video, embedded.motion"):
        text = text.replace(name, "tiny.video")
    return text.replace("embedded.text", "tiny.text").replace("qvhighlights", "own")


@pytest.mark.slow
def test_official_checkpoint(owner_of_checkpoints: Project) -> None:
    project, document = owner_of_checkpoints, "howto/use_my_official_checkpoint.md"
    written = yaml.safe_load(with_tiny_encoders(blocks_of(document, "yaml")[0]))
    params = project.folder / "params.yaml"
    for command in commands_of(document):
        output = project.run("sh", "-c", with_tiny_encoders(command))
        if command.startswith("mrmodel weights import"):
            printed = yaml.safe_load(re.findall(r"^params\.yaml: (.*)", output, re.MULTILINE)[0])
        if command.startswith("mrmodel predict"):
            # What the page says to write, with the sizes that the import of this file printed.
            model = {"models": printed["models"]}
            params.write_text(overlay(overlay(overlay(params.read_text(), SMALL), written), model))
    metrics = json.loads(project.read("reports/metrics.json"))
    assert {f"qd_detr.{way}" for way in ("imported", "scratch", "finetuned")} <= metrics.keys()
    config = json.loads(project.read("models/finetuned/qd_detr/config.json"))
    assert config["settings"]["heads"] == 4
    use = (
        "from mrmodel.data.annotations import read_annotations\n"
        "rows = read_annotations(Path('data/own/val.jsonl'))\n"
        "print(model(builder.batch(rows[:2])).scores.shape)\n"
    )
    python = with_tiny_encoders(blocks_of(document, "python")[0]) + use
    assert "[2, 6]" in project.run(sys.executable, "-c", python)


def test_the_tutorial_names_commands_that_exist(reproduced: Project) -> None:
    skipped = ("make ", "dvc repro", "mlflow ui")
    for command in commands_of("tutorial.md"):
        if command.startswith(skipped):
            continue
        command = command.replace("data/sample/", "data/miniature/")
        if command.startswith("dvc metrics diff"):
            command = "dvc metrics show"
        follow(reproduced, command)


def kinds_of_lines(text: str) -> list[str]:
    """Each once, with placeholders for numbers and curves; queries may have few windows."""
    text = re.sub(r"[▁▂▃▄▅▆▇█]+", "CURVE", text)
    text = re.sub(r" +", " ", re.sub(r"\d+(\.\d+)?", "N", text))
    return list(dict.fromkeys(text.splitlines()))


def test_what_the_readme_shows_runs(
    reproduced: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its command prints lines of that form and draws the picture; its Python prints a window."""
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    shown = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    command = re.search(r"^\.venv/bin/(mrmodel predict (?:[^\n\\]|\\\n)*)$", text, re.MULTILINE)
    assert code is not None
    assert shown is not None
    assert command is not None
    video = sorted((reproduced.folder / "data/miniature/videos").glob("test-*.mp4"))[0]
    here = str(video.relative_to(reproduced.folder))
    _, *words = shlex.split(command[1].replace("\\\n", " "))
    words = [here if word.endswith(".mp4") else word for word in words]
    printed = reproduced.invoke(*words)
    assert kinds_of_lines(printed) == kinds_of_lines(shown[1])
    assert (reproduced.folder / "timeline.png").read_bytes().startswith(b"\x89PNG")

    lines = re.sub(r"data/sample/videos/[\w-]+\.mp4", here, code[1])
    with reproduced.inside():
        exec(lines.replace("models/served/sg_detr", "models/served/moment_detr"), {})
    assert re.fullmatch(r".+: \d+\.\d to \d+\.\d s, confidence \d\.\d\d\n", capsys.readouterr().out)


def test_the_readme_names_what_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in set(re.findall(r"(?:`|^)make ([a-z]+)", text, flags=re.MULTILINE)):
        assert target in targets, target
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    graph = text[text.index("corpus ─") : text.index("`dvc.yaml` is the only")]
    for stage in stages:
        assert stage in graph, stage


@pytest.mark.parametrize("document", sorted(ROOT.glob("docs/**/*.md")), ids=lambda path: path.stem)
def test_links_in_documents_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
        assert (document.parent / link).exists(), link
