"""The commands of the guides that need machines which no test has: known to their programs."""

import contextlib
import importlib
import importlib.resources
import io
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from prefect.cli import app as prefect_app

from tests.docs.test_commands import commands_of
from tests.project import ROOT

EXAMPLE = (ROOT / "infra/.env.example").read_text()
GUIDES = (
    "run_on_gpu_workers",
    "deploy_with_compose",
    "deploy_on_kubernetes",
    "retrain_on_schedule",
)
KUBECTL = str(Path(sys.executable).with_name("kubectl"))
# How many words name a command; else it is one.
WORDS = {"create namespace": 2, "create secret": 3, "rollout restart": 2}


def lines(guide: str) -> list[list[str]]:
    """The commands of a guide, word by word, without variables before them."""
    found = []
    for line in commands_of(f"howto/{guide}.md"):
        # What a command would print in place of $(...) is one word.
        plain = re.sub(r"\$\([^)]*\)", "printed", line)
        for command in plain.split(" && "):
            words = list(shlex.split(command.split(" > ")[0]))
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            found.append(words)
    return found


def commands(program: str) -> list[list[str]]:
    """All commands of the guides that begin with these words."""
    start = program.split()
    every = [words for guide in GUIDES for words in lines(guide)]
    return [words[len(start) :] for words in every if words[: len(start)] == start]


def said_by(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def help_of(program: str, *subcommand: str) -> str:
    """What a program says of one of its commands, and of the options that all have."""
    if program == "compose":
        compose = str(importlib.resources.files("compose") / "docker-compose")
        return said_by(compose, *subcommand, "--help") + said_by(compose, "--help")
    if program == "kubectl":
        return said_by(KUBECTL, *subcommand, "--help") + said_by(KUBECTL, "options")
    # Each start of it takes seconds, and this is the very function that its script calls.
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.suppress(SystemExit),
    ):
        patch.setattr(sys, "argv", ["prefect", *subcommand, "--help"])
        prefect_app()
    return printed.getvalue()


def unknown(program: str, words: list[str]) -> list[str]:
    """Options of a command that its program does not know."""
    while words[0].startswith("-"):  # Of the program itself.
        words = words[2:] if words[0] in ("-f", "--namespace") else words[1:]
    if program == "compose" and words[0] == "exec":
        # What follows the service is a command in its container.
        service = next(index for index, word in enumerate(words[1:], 1) if word[0] != "-")
        words = words[: service + 1]
    depth = 2 if program == "prefect" else WORDS.get(" ".join(words[:2]), 1)
    names = [] if words[0].startswith("-") else words[:depth]
    flags = [word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
    said = help_of(program, *(name for name in names if not name.startswith("-")))
    return [flag for flag in flags if not re.search(rf"(?<![\w-]){flag}\b", said)]


@pytest.mark.parametrize(
    "start",
    [
        pytest.param("docker compose", marks=pytest.mark.infra),
        pytest.param("kubectl", marks=pytest.mark.infra),
        "prefect",
    ],
)
def test_the_programs_know_their_options(start: str) -> None:
    found = commands(start)
    assert len(found) >= 5
    wrong = {shlex.join(words): unknown(start.split()[-1], words) for words in found}
    assert {command: flags for command, flags in wrong.items() if flags} == {}


@pytest.mark.parametrize(
    ("program", "words"),
    [
        pytest.param("compose", ["-f", "infra/compose.yaml", "up"], marks=pytest.mark.infra),
        pytest.param("kubectl", ["--namespace", "a", "get", "pods"], marks=pytest.mark.infra),
        ("prefect", ["worker", "start"]),
    ],
)
def test_an_option_that_does_not_exist_is_seen(program: str, words: list[str]) -> None:
    assert unknown(program, [*words, "--forever"]) == ["--forever"]


def test_flows_take_their_arguments() -> None:
    """Parsed by the commands themselves, without running them."""
    found = [words for words in commands("python -m") if words[0].startswith("flows.")]
    assert len(found) >= 2
    for module, *arguments in found:
        importlib.import_module(module).main.make_context(module, list(arguments))


def test_what_the_commands_name_exists() -> None:
    services = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())["services"]
    for words in commands("docker compose"):
        assert (ROOT / words[words.index("-f") + 1]).is_file()
        for verb in {"exec", "logs"} & set(words):
            named = [w for w in words[words.index(verb) + 1 :] if not w.startswith("-")]
            assert named[0] in services
    for words in commands("kubectl"):
        paths = [word for word in words if word.startswith("infra/")]
        assert all((ROOT / path / "kustomization.yaml").is_file() for path in paths)
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    runs = [words[2] for words in commands("prefect") if words[:2] == ["deployment", "run"]]
    assert runs
    assert {run.split("/")[1] for run in runs} <= {one["name"] for one in deployments}
    arguments = re.findall(r"^ARG (\w+)", (ROOT / "infra/docker/Dockerfile").read_text(), re.M)
    for words in commands("docker build"):
        given = [words[i + 1] for i, word in enumerate(words) if word == "--build-arg"]
        assert {one.split("=")[0] for one in given} <= set(arguments)


@pytest.mark.infra
def test_the_secrets_of_a_cluster_can_be_made() -> None:
    made = [words for words in commands("kubectl") if words[:2] == ["create", "secret"]]
    assert len(made) == 2
    for words in made:
        command = [KUBECTL, *words, "--dry-run=client", "--output=json"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_compose_guide_draws_each_password(tmp_path: Path) -> None:
    (tmp_path / "infra").mkdir()
    shutil.copyfile(ROOT / "infra/.env.example", tmp_path / "infra/.env.example")
    for line in commands_of("howto/deploy_with_compose.md")[:2]:
        subprocess.run(["sh", "-ec", line], cwd=tmp_path, check=True)
    written = tmp_path / "infra/.env"
    drawn = re.findall(r"^\w+_SECRET=([0-9a-f]{48})$", written.read_text(), re.MULTILINE)
    assert len(drawn) == len(set(drawn)) == EXAMPLE.count("_SECRET=")
    assert written.stat().st_mode & 0o077 == 0
