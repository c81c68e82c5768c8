"""docs/models has a page for every model, with a place for everything that the code refers to."""

import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from mrmodel.components import MODELS
from tests.project import ROOT

PAGES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted(ROOT.glob("docs/models/*.md"))
    if path.stem in MODELS
}
NUMBER = r"(\d+(?:\.\d+)?)"
RANGE = rf"{NUMBER}(?: to {NUMBER})?"
# How many sections the code cites at least: a pattern that finds nothing would prove nothing.
CITED = {"sa_detr": 20, "sg_detr": 12, "video_lights": 5}
# Files whose "section 4.3" means the page of their model.
OWN = {"sa_detr": "models/sa_detr", "sg_detr": "models/sg_detr/"}


def test_every_model_has_a_page() -> None:
    assert PAGES.keys() == set(MODELS)


def pattern_of(name: str, own: bool) -> re.Pattern[str]:
    """Elsewhere a section is of a page only when its name stands before it."""
    before = r"\bsections? " if own else rf"{name}\.md,\s+(?:sections? )?"
    return re.compile(before + RANGE)


def citations(name: str) -> Iterator[tuple[str, str]]:
    """(file, section) of every reference in the package to the page `name`."""
    for path in sorted([*ROOT.glob("mrmodel/**/*.py"), *ROOT.glob("mrmodel/presets/*.yaml")]):
        pattern = pattern_of(name, own=name in OWN and OWN[name] in path.as_posix())
        for found in pattern.finditer(path.read_text(encoding="utf-8")):
            for section in filter(None, found.groups()):
                yield str(path.relative_to(ROOT)), section


@pytest.mark.parametrize("name", PAGES)
def test_every_section_that_the_code_cites_exists(name: str) -> None:
    headings = set(re.findall(rf"^##+ {NUMBER}\.? ", PAGES[name], flags=re.MULTILINE))
    cited = set(citations(name))
    assert len(cited) >= CITED.get(name, 0)
    assert not [place for place in sorted(cited) if place[1] not in headings]


def leaves(section: type[BaseModel], path: str = "") -> Iterator[str]:
    """Paths of all settings."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{path}{name}.")
        else:
            yield path + name


@pytest.mark.parametrize("name", PAGES)
def test_every_setting_is_explained(name: str) -> None:
    explained = set(re.findall(r"^\| (`.*?) \|", PAGES[name], flags=re.MULTILINE))
    names = {found for cell in explained for found in re.findall(r"`([\w.]+)`", cell)}
    settings = set(leaves(MODELS.get(name).Settings))
    assert settings <= names, settings - names


@pytest.mark.parametrize(
    ("name", "title", "count"),
    [
        ("sg_detr", "10. Numerical pitfalls", 7),
        ("sa_detr", "7. Numerical pitfalls", 7),
        ("sa_detr", "9. What the paper leaves open", 27),
    ],
)
def test_register_and_pitfalls_are_whole(name: str, title: str, count: int) -> None:
    part = PAGES[name].split(f"## {title}")[1].split("\n## ")[0]
    assert re.findall(r"^\| (\d+) \|", part, flags=re.MULTILINE) == [
        str(row) for row in range(1, count + 1)
    ]
