"""A repository whose pipeline has run, as workers and orchestrators see it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.dvc_graph import StageGraph
from mrmodel.orchestrate.environment import RuntimeEnvironment
from tests.project import Project

OpenGraph = Callable[..., AbstractContextManager[StageGraph]]


@pytest.fixture(scope="module")
def recorded(reproduced: Project) -> Project:
    """The miniature project with its dvc.lock in git, and of the studies that of seeds alone."""
    reproduced.keep_studies("seed_run", "seeds")
    reproduced.git("add", "dvc.lock", "studies")
    reproduced.git("commit", "-q", "-m", "results")
    return reproduced


def places_of(recorded: Project, folder: Path) -> RuntimeEnvironment:
    """Local places with the project's cache, and `folder` for everything else."""
    there = RuntimeEnvironment.from_environment({"MRMODEL_GIT_URL": str(recorded.folder)})
    return RuntimeEnvironment(
        git=there.git,
        remote=None,
        result_store=str(folder / "handover"),
        endpoint=None,
        cache=there.cache,
        state=folder / "state",
        clones=folder / "clones",
    )


@pytest.fixture
def environment(recorded: Project, tmp_path: Path) -> RuntimeEnvironment:
    """Places of this test's own."""
    return places_of(recorded, tmp_path)


@pytest.fixture(scope="module")
def graph(recorded: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StageGraph]:
    """The graph of a fresh clone, which no test changes."""
    environment = places_of(recorded, tmp_path_factory.mktemp("graph"))
    with fresh_clone(environment, "HEAD", {}) as folder:
        yield StageGraph(folder, None)


@pytest.fixture
def open_graph(environment: RuntimeEnvironment) -> OpenGraph:
    """Opens the graph of a fresh clone in which some files were edited: path -> (old, new)."""

    @contextmanager
    def opening(edits: dict[str, tuple[str, str]] | None = None) -> Iterator[StageGraph]:
        with fresh_clone(environment, "HEAD", {}) as folder:
            for name, (old, new) in (edits or {}).items():
                text = (folder / name).read_text()
                assert old in text
                (folder / name).write_text(text.replace(old, new))
            yield StageGraph(folder, None)

    return opening
