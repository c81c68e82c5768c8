"""What more than one folder of tests needs, and how tests are shared out to two processes."""

import pytest

from tests.project import Project


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``-n``: the tests on the reproduced project stay together, the others are free."""
    for item in items:
        if "reproduced" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("reproduced"))


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The miniature preset after an undisturbed `dvc repro`."""
    project = Project(tmp_path_factory.mktemp("project") / "clone")
    project.apply("miniature")
    project.commit()
    project.run("dvc", "repro")
    return project
