"""A mistake of the user is one line and exit code 2, wherever it is seen; a defect is 70.

Broken model folders, files that cannot be written, weights that are no numbers.
"""

from __future__ import annotations

import ast
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mrmodel import presets
from mrmodel.cli import predict
from mrmodel.cli.main import main
from mrmodel.config.schema import parse_config
from mrmodel.errors import (
    DEFECT,
    MISTAKE,
    CheckpointError,
    DataError,
    OutputError,
    UnknownNameError,
)
from mrmodel.files import atomic_path, read_object, write_json, write_jsonl
from mrmodel.predict.predictor import Predictor
from mrmodel.progress import NullReporter
from mrmodel.stages.runner import run_stage_with
from mrmodel.stages.train import finetune
from mrmodel.train.checkpoint import CONFIG, WEIGHTS, load_model, load_resume_state
from tests.evaluate.rows_for_tests import random_rows
from tests.project import ROOT

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
DVC = "outs:\n- md5: 0123456789abcdef0123456789abcdef\n  size: 12345\n  path: model.safetensors\n"
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model to damage and a video."""
    (tmp_path / "model").mkdir()
    for path in (made / "model").iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "video.mp4").symlink_to(made / "video.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> int:
    """Exit code of ``mrmodel`` with these arguments, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mrmodel", *shlex.split(line)])
        with pytest.raises(SystemExit) as end:
            main()
    return int(end.value.code or 0)


def refused(capsys: Captured, line: str) -> str:
    """The one line of an error of a command."""
    assert run(line) == MISTAKE
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    return error.removeprefix("error: ").rstrip("\n")


SEARCH = "predict video.mp4 --query red --device cpu --model"


def without(*path: str) -> Callable[[Path], None]:
    """Remove a value of config.json."""
    return changed(lambda tree: tree.pop(path[-1]), *path[:-1])


def changed(change: Callable[[Any], object], *path: str) -> Callable[[Path], None]:
    """Change config.json."""

    def damage(folder: Path) -> None:
        tree = json.loads((folder / CONFIG).read_text())
        below = tree
        for key in path:
            below = below[key]
        change(below)
        (folder / CONFIG).write_text(json.dumps(tree))

    return damage


def text(name: str, content: str) -> Callable[[Path], None]:
    """Write something else into a file."""
    return lambda folder: (folder / name).write_text(content)


def only_pointer(name: str) -> Callable[[Path], None]:
    """A file that `dvc pull` has not fetched yet."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / f"{name}.dvc").write_text(DVC)

    return damage


def a_folder(name: str) -> Callable[[Path], None]:
    """A folder in place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def cut(name: str, length: int) -> Callable[[Path], None]:
    """A download that broke off."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


DAMAGES = {
    "lfs weights": (
        text(WEIGHTS, LFS),
        "is no safetensors file: it is a Git LFS pointer",
    ),
    "dvc weights": (text(WEIGHTS, DVC), "is no safetensors file: it is a DVC pointer"),
    "web page": (
        text(WEIGHTS, "<!DOCTYPE html>"),
        "is no safetensors file: it is a web page",
    ),
    "empty weights": (
        text(WEIGHTS, ""),
        "is no safetensors file: it is an empty file",
    ),
    "blank weights": (
        text(WEIGHTS, " \n"),
        "is no safetensors file: it is an empty file",
    ),
    "cut header": (cut(WEIGHTS, 100), "model.safetensors: is no safetensors file: a download that"),
    "cut tensors": (cut(WEIGHTS, -8), "model.safetensors: is no safetensors file: a download that"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "model: no model.safetensors there"),
    "unfetched": (only_pointer(WEIGHTS), "there; run `dvc pull model/model.safetensors.dvc`"),
    "weights folder": (a_folder(WEIGHTS), "model/model.safetensors: is a folder"),
    "no config": (lambda f: (f / CONFIG).unlink(), "model: no config.json there"),
    "lfs config": (text(CONFIG, LFS), "model/config.json: not valid JSON: Expecting value"),
    "list": (text(CONFIG, "[1]"), "model/config.json: expected a JSON object, found a list"),
    "number": (text(CONFIG, "1"), "model/config.json: expected a JSON object, found 1"),
    "null": (text(CONFIG, "null"), "model/config.json: expected a JSON object, found None"),
    "deep": (text(CONFIG, "[" * 100_000), "model/config.json: not valid JSON"),
    "latin-1": (lambda f: (f / CONFIG).write_bytes(b'{"a": "\xe9"}'), "config.json:1: not UTF-8"),
    "config folder": (a_folder(CONFIG), "model/config.json: is a folder"),
    "no model": (without("model"), "model/config.json: model: Field required"),
    "model list": (changed(lambda t: t.update(model=[])), "model/config.json: model = []"),
    "other model": (
        changed(lambda t: t.update(model="nope", format=7)),
        "config.json: unknown model 'nope'",
    ),
    "streams": (changed(lambda t: t.update(video_streams={})), "config.json: video_streams = {}"),
    "stream": (
        changed(lambda t: t.update(text_streams=["x"])),
        "text_streams.0 = 'x'",
    ),
    "clip": (changed(lambda t: t.update(clip_len_s=0)), "model/config.json: clip_len_s = 0"),
    "clip nan": (
        text(CONFIG, '{"clip_len_s": NaN}'),
        "model/config.json: written by another format",
    ),
    "clip text": (changed(lambda t: t.update(clip_len_s="2")), "config.json: clip_len_s = '2'"),
    "clips": (changed(lambda t: t.update(max_clips=-1)), "model/config.json: max_clips = -1"),
    "settings": (changed(lambda t: t.update(settings=[])), "model/config.json: settings = []"),
    "setting": (
        changed(lambda t: t.update(hidden="x"), "settings"),
        "models.moment_detr.hidden",
    ),
    "lfs serving": (text("serving.json", LFS), "model/serving.json: not valid JSON"),
    "serving list": (text("serving.json", "[]"), "model/serving.json: written by another format"),
    "serving folder": (a_folder("serving.json"), "model/serving.json: is a folder"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_model_folder_is_one_line(
    here: Path, capsys: Captured, damage: Callable[[Path], object], said: str
) -> None:
    damage(here / "model")
    assert said in refused(capsys, f"{SEARCH} model")


@pytest.mark.parametrize("name", [CONFIG, "serving.json"])
def test_a_pointer_in_place_of_json_says_what_to_run(here: Path, name: str) -> None:
    (here / "model" / name).write_text(LFS)
    with pytest.raises(CheckpointError, match=r"Git LFS pointer.*git lfs pull"):
        Predictor.load(here / "model", "cpu")


@pytest.mark.parametrize("place", ["no-such-folder", "video.mp4", "", "model/config.json"])
def test_a_folder_that_is_none(here: Path, capsys: Captured, place: str) -> None:
    assert refused(capsys, f"{SEARCH} '{place}'")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused(
    here: Path, capsys: Captured, value: float, kind: torch.dtype
) -> None:
    path = here / "model" / WEIGHTS
    tensors = load_file(path)
    name = sorted(tensors)[3]
    tensors[name] = tensors[name].to(kind)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path)
    assert f"model.safetensors: {name} holds NaN or infinity" in refused(capsys, f"{SEARCH} model")


def test_large_numbers_are_numbers(here: Path) -> None:
    """Their sum is beyond the type; each of them is not."""
    path = here / "model" / WEIGHTS
    tensors = load_file(path)
    name = next(name for name, value in tensors.items() if value.numel() > 1)
    tensors[name] = torch.full_like(tensors[name], 3e38)
    save_file(tensors, path)
    load_model(here / "model")


def test_an_answer_that_is_no_number_is_an_error(here: Path, capsys: Captured) -> None:
    """Each weight is finite, and what they give is not."""
    path = here / "model" / WEIGHTS
    save_file({name: torch.full_like(value, 3e38) for name, value in load_file(path).items()}, path)
    error = refused(capsys, f"{SEARCH} model --json")
    assert error == "qid 0: the model's answer about video holds NaN or infinity"


def test_a_damaged_resume_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be read .*delete it"):
        load_resume_state(tmp_path / "state.pt")


# Where a file cannot be written: the path below the current folder, and the reason.
PLACES = {
    "folder": ("folder", "folder: cannot be written: is a folder"),
    "below a file": ("video.mp4/m.json", "a file is in the place of a folder"),
    "long": ("x" * 300, "cannot be written: file name too long"),
    "device": ("/proc/m.json", "/proc/m.json: cannot be written"),
}


@pytest.mark.parametrize("option", ["--output", "--per-query"])
@pytest.mark.parametrize(("place", "said"), PLACES.values(), ids=PLACES.keys())
def test_metrics_are_printed_where_they_cannot_be_written(
    here: Path, capsys: Captured, option: str, place: str, said: str
) -> None:
    (here / "folder").mkdir()
    truth, guesses = random_rows(3, seed=11)
    write_jsonl(here / "gt.jsonl", truth)
    write_jsonl(here / "pr.jsonl", guesses)
    other = {"--output": "--per-query", "--per-query": "--output"}[option]
    score = "evaluate --annotations gt.jsonl --predictions pr.jsonl --protocol qvhighlights"
    assert run(f"{score} {option} {place} {other} other.json") == MISTAKE
    captured = capsys.readouterr()
    assert "qvhighlights, mode official, 3 queries" in captured.out
    assert "MR-full-mAP" in captured.out
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert json.loads((here / "other.json").read_text()), "the other file is written all the same"


@pytest.mark.parametrize("place", ["video.mp4/p.png", "folder/", "/proc/p.png"])
def test_answers_are_printed_where_the_picture_cannot_be_written(
    here: Path, capsys: Captured, place: str
) -> None:
    (here / "folder.png").mkdir()
    place = place.replace("folder/", "folder.png")
    assert run(f"{SEARCH} model --json --plot {place}") == MISTAKE
    captured = capsys.readouterr()
    if place != "folder.png":  # Seen before any work.
        assert json.loads(captured.out)["query"] == "red"
        assert captured.err.count("\n") == 1
    assert place in captured.err


def test_a_picture_is_written_whole_and_in_its_format(here: Path, capsys: Captured) -> None:
    for suffix, begin in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        assert run(f"{SEARCH} model --plot new/p{suffix}") == 0
        assert (here / f"new/p{suffix}").read_bytes().startswith(begin)
    capsys.readouterr()


COMMANDS = {
    "preset apply sample --output folder.yaml": "folder.yaml",
    "preset apply sample --output video.mp4/p.yaml": "video.mp4/p.yaml: cannot be written",
    "config check folder.yaml": "folder.yaml",
    "data check folder.yaml": "folder.yaml",
    "data check video.mp4/rows.jsonl": "video.mp4/rows.jsonl",
    "evaluate --annotations folder.yaml --predictions folder.yaml --protocol tacos": "folder.yaml",
    "predict folder.yaml --query red --model model": "folder.yaml",
    "predict model/config.json --query red --model model": "config.json",
    "weights import folder.yaml --output out": "folder.yaml",
    "weights import model/config.json --output out": "model/config.json",
    "weights convert clip_b32 --weights folder.yaml": "clip_b32",
    "features info model": "model: no manifest.json",
    "features compare model model": "model: no manifest.json",
    "features verify model": "model",
    "data convert tacos model --output video.mp4/out": "",
    "data convert charades folder.yaml": "folder.yaml",
}


@pytest.mark.parametrize(("line", "said"), COMMANDS.items(), ids=COMMANDS.keys())
def test_a_wrong_path_is_a_message(here: Path, capsys: Captured, line: str, said: str) -> None:
    (here / "folder.yaml").mkdir()
    assert run(line) == MISTAKE
    error = "".join(capsys.readouterr())
    assert "Traceback" not in error
    assert said in error


def test_the_parameter_file_may_be_a_folder(here: Path, capsys: Captured) -> None:
    (here / "params.yaml").mkdir()
    assert refused(capsys, "predict video.mp4 --query red") == "params.yaml: is a folder"


def test_a_defect_keeps_its_traceback(
    here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(predict, "choose_model", broken)
    assert run("predict video.mp4 --query red") == DEFECT
    error = capsys.readouterr().err
    assert "KeyError: 'ours'" in error
    assert "Traceback" in error
    assert error.endswith("This is a defect of mrmodel, not a mistake of yours.\n")


def failing(error: BaseException) -> Callable[..., None]:
    """A stage that ends with an error."""

    def stage(*_: object) -> None:
        raise error

    return stage


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            DataError("is wrong", file="rows.jsonl", line=3),
            MISTAKE,
            "error: rows.jsonl:3: is wrong\n",
        ),
        (
            PermissionError(13, "Permission denied", "data"),
            MISTAKE,
            "error: data: permission denied\n",
        ),
        (OSError(28, "No space left on device"), MISTAKE, "error: no space left on device\n"),
        (MemoryError(), MISTAKE, "error: not enough memory\n"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
            MISTAKE,
            "error: not enough memory on the device: CUDA out of memory\n",
        ),
        (ConnectionResetError(104, "Connection reset by peer"), DEFECT, "Traceback"),
        (KeyError("ours"), DEFECT, "Traceback"),
    ],
)
def test_stages_end_like_commands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(presets.render("miniature"))
    monkeypatch.setattr(sys, "argv", ["stage"])
    monkeypatch.setattr("mrmodel.stages.runner.die_with_parent", lambda: None)
    with pytest.raises(SystemExit) as end:
        run_stage_with(failing(error), (), recorded=False)
    assert end.value.code == code
    written = capsys.readouterr().err
    assert said in written
    if code == MISTAKE:
        assert written == said


def test_a_stage_knows_the_models_of_the_parameter_file() -> None:
    config = parse_config(yaml.safe_load(presets.render("miniature")))
    with pytest.raises(UnknownNameError, match=r"'moment_dtr'; did you mean 'moment_detr'"):
        finetune(config, NullReporter(), {"model": "moment_dtr"})


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        with atomic_path(path):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"a\.json: cannot be written: no space left on device"):
        full(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=r"source"), atomic_path(tmp_path / "a.json"):
        (tmp_path / "source").read_bytes()  # An error of another file stays what it is.
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"folder: cannot be written: is a folder"):
        write_json(tmp_path / "folder", {})
    os.mkfifo(tmp_path / "pipe")  # A device is treated alike: root could replace one.
    (tmp_path / "stdout").symlink_to("pipe")
    for name in ("pipe", "stdout"):
        with pytest.raises(OutputError, match=f"{name}: cannot be written: is no regular file"):
            write_json(tmp_path / name, {})
    assert (tmp_path / "stdout").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe", "stdout"]


@pytest.mark.parametrize("content", ["[]", '"a"', "1", "null", "true", "{", "", "\ufeff[]"])
def test_what_is_no_mapping_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json: (expected a JSON object|not valid JSON)"):
        read_object(tmp_path / "a.json")


def test_json_is_never_written_with_nan() -> None:
    """Wherever JSON is made, NaN is an error."""
    for folder in ("mrmodel", "flows", "infra", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            for node in ast.walk(ast.parse(text)) if "json.dump" in text else ():
                if not isinstance(node, ast.Call):
                    continue
                if ast.unparse(node.func) in {"json.dumps", "json.dump"}:
                    kept = any(word.arg == "allow_nan" for word in node.keywords)
                    assert kept or path.name in MESSAGES, f"{path}:{node.lineno}"


# The JSON goes to no file: values in messages, and a tree that was read.
MESSAGES = {"annotations.py", "checkpoint.py", "hits.py", "lines.py"}
