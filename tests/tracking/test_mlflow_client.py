from pathlib import Path

from mrmodel.config.base import flatten
from mrmodel.tracking.mlflow_client import code_tags
from tests.project import Project


def test_sections_become_dotted_names() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


def test_tags_say_whether_the_code_differs_from_its_revision(tmp_path: Path) -> None:
    project = Project(tmp_path / "clone")
    project.commit()
    clean = code_tags(project.folder)
    assert clean == {"git.revision": project.git("rev-parse", "HEAD").strip(), "git.dirty": "false"}
    (project.folder / "params.yaml").write_text("seed: 1\n")
    (project.folder / "mrmodel/spans.py").write_text("")
    (project.folder / "dvc.lock").write_text("")
    changed = code_tags(project.folder)
    assert changed["git.dirty"] == "true"
    assert changed["git.changed"] == "mrmodel/spans.py params.yaml"
    assert len(changed["dvc.lock.sha256"]) == 64
