"""The data card of a build: where its captions are from, what was done to them, what came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mrmodel.config.intervid import IntervidSettings
from mrmodel.pretraining.intervid.report import PLOT_COLUMNS
from mrmodel.text import table

CARD_FILE, MARKDOWN_FILE = "card.json", "card.md"
_NOT_STATED = "not stated (intervid.source.licence)"


def data_card(
    settings: IntervidSettings,
    manifest: Mapping[str, Any],
    distributions: Mapping[str, Any],
) -> dict[str, Any]:
    """The card as JSON values.

    Args:
        settings: of the build.
        manifest: content of manifest.json.
        distributions: of the report.
    """
    read, excluded = manifest["inputs"]["table"] or {}, manifest["inputs"]["excluded"]
    return {
        "format": 1,
        "source": settings.source.name or read.get("name"),
        "licence": settings.source.licence or _NOT_STATED,
        "state": manifest["state"],
        "preset": settings.preset,
        "settings_digest": manifest["settings_digest"],
        "rules": manifest["settings"]["captions"],
        "caption_words_version": manifest["caption_words_version"],
        "excluded": None if excluded is None else excluded["lists"],
        "counts": manifest["counts"],
        "distributions": dict(distributions),
        "inputs": manifest["inputs"],
        "outputs": manifest["outputs"],
    }


def card_rows(card: Mapping[str, Any]) -> list[list[str]]:
    """What identifies a build, as rows of a table."""
    read, excluded = card["inputs"]["table"] or {}, card["excluded"]
    lists = [f"{name} ({count} ids)" for name, count in (excluded or {}).items()]
    rules = [name for name, is_on in card["rules"]["rules"].items() if is_on]
    return [
        ["source", f"{card['source']}, SHA-256 {read.get('sha256', 'of none')}"],
        ["licence", card["licence"]],
        ["preset", f"{card['preset']}, settings {card['settings_digest'][:12]}"],
        ["rules", f"{', '.join(rules)}; word lists version {card['caption_words_version']}"],
        ["excluded videos", ", ".join(lists) or "none: rule `leak` was off"],
        *([name, f"SHA-256 {digest}"] for name, digest in card["outputs"].items()),
    ]


def card_markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    parts = ["# Pre-training data (InterVid-MR)", table(["", ""], card_rows(card))]
    counts = [
        [f"{step}: {name}", value]
        for step, found in card["counts"].items()
        for name, value in found.items()
        if not isinstance(value, Mapping)
    ]
    counts += [
        [f"malformed: {name}", value] for name, value in card["counts"]["rows"]["bad"].items()
    ]
    parts += ["## Counts", table(["step", "rows"], counts)]
    for name, rows in card["distributions"].items():
        columns = PLOT_COLUMNS[name]
        parts.append(f"## {name.replace('_', ' ').capitalize()}")
        parts.append(table(columns, [[row[column] for column in columns] for row in rows]))
    return "\n\n".join(parts) + "\n"
