"""docs/models/sg_detr.md has a place for everything that the code refers to."""

import re
from collections.abc import Iterator

from pydantic import BaseModel

from mrmodel.models.sg_detr.settings import SgDetrSettings
from tests.project import ROOT

PAGE = (ROOT / "docs/models/sg_detr.md").read_text(encoding="utf-8")
NUMBER = r"(\d+(?:\.\d+)?)"
# Elsewhere a section is of this page only when its name stands before it.
NAMED = re.compile(rf"sg_detr\.md,\s+(?:sections? )?{NUMBER}(?: to {NUMBER})?")
OWN = re.compile(rf"\bsections? {NUMBER}(?: to {NUMBER})?")


def citations() -> Iterator[tuple[str, str]]:
    """(file, section) of every reference in the package."""
    for path in sorted([*ROOT.glob("mrmodel/**/*.py"), *ROOT.glob("mrmodel/presets/*.yaml")]):
        pattern = OWN if path.parent.name == "sg_detr" else NAMED
        for found in pattern.finditer(path.read_text(encoding="utf-8")):
            for section in filter(None, found.groups()):
                yield str(path.relative_to(ROOT)), section


def test_every_section_that_the_code_cites_exists() -> None:
    headings = set(re.findall(rf"^##+ {NUMBER}\.? ", PAGE, flags=re.MULTILINE))
    cited = set(citations())
    assert len(cited) > 30
    assert not [place for place in sorted(cited) if place[1] not in headings]


def leaves(section: type[BaseModel], path: str = "") -> Iterator[str]:
    """Paths of all settings."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{path}{name}.")
        else:
            yield path + name


def test_every_setting_is_explained() -> None:
    explained = set(re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE))
    names = {name for cell in explained for name in re.findall(r"`([\w.]+)`", cell)}
    assert set(leaves(SgDetrSettings)) <= names, set(leaves(SgDetrSettings)) - names


def test_register_and_pitfalls_are_whole() -> None:
    for title, count in (("10. Numerical pitfalls", 13), ("12. What the paper leaves open", 27)):
        part = PAGE.split(f"## {title}")[1].split("\n## ")[0]
        assert re.findall(r"^\| (\d+) \|", part, flags=re.MULTILINE) == [
            str(row) for row in range(1, count + 1)
        ]
