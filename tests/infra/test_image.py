"""infra/docker: the image, without building it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from docker.utils.build import PatternMatcher, exclude_paths

from tests.project import ROOT

DOCKERFILE = ROOT / "infra/docker/Dockerfile"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
pytestmark = pytest.mark.infra
CREDENTIAL = "protocol=https\nhost=git.example.com\n\n"


def instructions(name: str) -> list[str]:
    from dockerfile_parse import DockerfileParser

    parsed = DockerfileParser(path=str(DOCKERFILE)).structure
    return [step["value"] for step in parsed if step["instruction"] == name]


def lint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    hadolint = Path(sys.executable).with_name("hadolint")
    command = [hadolint, "--config", ROOT / "infra/docker/hadolint.yaml", dockerfile]
    return subprocess.run(command, capture_output=True, text=True)


def test_hadolint_finds_nothing() -> None:
    done = lint(DOCKERFILE)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("FROM python:3.11.14-slim-bookworm\n", "FROM python\n", "DL3006"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ("ENTRYPOINT [", "ENTRYPINT [", "unexpected"),
        ('CMD ["prefect", "version"]', "CMD prefect version", "DL3025"),
    ],
)
def test_hadolint_would_find(tmp_path: Path, old: str, new: str, rule: str) -> None:
    text = DOCKERFILE.read_text()
    assert old in text
    spoiled = tmp_path / "Dockerfile"
    spoiled.write_text(text.replace(old, new))
    done = lint(spoiled)
    assert done.returncode != 0
    assert rule in done.stdout + done.stderr


def test_the_last_user_is_a_number_that_is_not_root() -> None:
    user, _, group = instructions("USER")[-1].partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_both_stages_have_one_pinned_base() -> None:
    bases = {value.split(" ")[0] for value in instructions("FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases.pop())


def test_tini_is_the_first_process() -> None:
    assert instructions("ENTRYPOINT") == ['["tini", "-g", "--"]']


def ignored() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_what_is_copied_is_in_the_context() -> None:
    context = exclude_paths(str(ROOT), ignored())
    for value in instructions("COPY"):
        *sources, _ = [word for word in value.split() if not word.startswith("--")]
        if "--from=" not in value:
            assert all(source in context for source in sources), (value, sources)


SECRET_OR_DATA = (
    ".env",
    ".git/config",
    ".mrmodel/services/env",
    ".venv/bin/python",
    "data/sample/a.mp4",
    "infra/.env",
    "mrmodel/__pycache__/types.pyc",
    "own_videos/videos/lake.mp4",
)


@pytest.mark.parametrize("path", SECRET_OR_DATA)
def test_the_context_has_no_secret_and_no_data(path: str) -> None:
    matcher = PatternMatcher(ignored())
    assert matcher.matches(path)  # What a pattern matches is left out.
    assert not matcher.matches("mrmodel/types.py")


def test_the_image_has_what_the_project_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = [line for line in project["dependencies"] if line.startswith("torch==")]
    pinned = re.findall(r"\btorch==[\d.]+", "\n".join(instructions("RUN")))
    assert pinned
    assert set(pinned) == {torch}


@pytest.mark.parametrize(("extras", "asked"), [("", "."), ("dask,ray", ".[dask,ray]")])
def test_extras_are_optional(extras: str, asked: str) -> None:
    (word,) = re.findall(r'"(\.\$\{.*?\})"', "\n".join(instructions("RUN")))
    command = ["sh", "-c", f'printf %s "{word}"']
    done = subprocess.run(command, capture_output=True, text=True, env={"EXTRAS": extras})
    assert done.stdout == asked


@pytest.mark.parametrize(
    ("variant", "cuda", "stops"),
    [("cuda", None, True), ("cuda", "13.0", False), ("cpu", None, False)],
)
def test_an_image_for_gpus_needs_a_torch_that_has_cuda(
    variant: str, cuda: str | None, stops: bool, tmp_path: Path
) -> None:
    """The check of the image beside a torch of either build, whichever this machine has."""
    (check,) = [value for value in instructions("RUN") if "torch.version.cuda" in value]
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("from torch import version\n")
    (tmp_path / "torch/version.py").write_text(f"cuda = {cuda!r}\n")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "VARIANT": variant,
    }
    done = subprocess.run(["sh", "-c", check], capture_output=True, text=True, env=environment)
    assert done.returncode == stops, done.stderr
    assert done.stderr.startswith("This torch has no CUDA") == stops


@pytest.mark.parametrize(
    "pattern",
    ["infra/work_pools/*.json", "infra/kubernetes/**/*.yaml", "infra/kubernetes/**/*.env"],
)
def test_everybody_names_the_image_of_this_version(pattern: str) -> None:
    texts = [path.read_text() for path in ROOT.glob(pattern)]
    tags = [tag for text in texts for tag in re.findall(r"mrmodel:([\w.]+)-(?:cpu|cuda)", text)]
    assert tags
    assert set(tags) == {VERSION}


def git_credential(**variables: str) -> subprocess.CompletedProcess[str]:
    """Ask git for user and password, as a clone in the image would."""
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_SYSTEM": str(ROOT / "infra/docker/gitconfig"),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        **variables,
    }
    command = ["git", "credential", "fill"]
    return subprocess.run(
        command, input=CREDENTIAL, capture_output=True, text=True, env=environment, cwd="/"
    )


def test_git_takes_the_password_of_the_environment() -> None:
    # Characters that a shell would read, were they not quoted.
    done = git_credential(GIT_USERNAME="robot", GIT_PASSWORD="a$b c'%s")
    assert done.returncode == 0
    assert "username=robot\npassword=a$b c'%s\n" in done.stdout


def test_git_without_password_does_not_wait_for_one() -> None:
    assert git_credential().returncode != 0
