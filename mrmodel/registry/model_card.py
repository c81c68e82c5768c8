"""The model card: a record in human-readable form."""

from __future__ import annotations

from importlib import resources

import jinja2

from mrmodel.registry.model_record import ModelRecord

CARD_FILE = "card.md"
# A metric over fewer queries is unreliable, however narrow its interval looks.
_FEW_QUERIES = 30


def render_card(record: ModelRecord, name: str) -> str:
    """The card of a record as Markdown.

    Args:
        record: of the version.
        name: of the registered model.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    text = resources.files(__package__).joinpath("card.md.j2").read_text(encoding="utf-8")
    template = environment.from_string(text)
    return template.render(name=name, record=record, limits=limits(record)) + "\n"


def limits(record: ModelRecord) -> list[str]:
    """Limitations of the model that can be read from the record."""
    found = list(record.limits)
    if record.corpus["source"] == "sample":
        found.append(
            "Trained on a toy domain, pictograms that move over drawn scenes: it says nothing of "
            "real videos."
        )
    clips, clip_len_s = record.model["max_clips"], record.model["clip_len_s"]
    if clips is not None:
        found.append(
            f"Sees {clips * clip_len_s:g} s at once; longer videos are searched in overlapping "
            f"chunks, and a moment of more than {clips * clip_len_s / 2:g} s may be cut."
        )
    found.append(
        f"Windows are whole clips of {clip_len_s:g} s; a query is cut after "
        f"{record.model['max_tokens']} tokens."
    )
    few = [name for name, figure in record.figures.items() if figure.queries < _FEW_QUERIES]
    if few:
        which = ", ".join(few) if len(few) < len(record.figures) else "every metric"
        found.append(f"Fewer than {_FEW_QUERIES} queries stand behind {which}.")
    if record.test_set.split == "val":
        found.append("Figures are of the split that also chose the weights: they are optimistic.")
    changed = record.unsaved_files()
    if changed:
        found.append(f"Made with changes that no commit holds, in {', '.join(changed)}.")
    found += [
        f"Figures are too good: the set {name} holds test videos ({', '.join(vids[:5])})."
        for name, vids in record.leaks.items()
    ]
    return found
