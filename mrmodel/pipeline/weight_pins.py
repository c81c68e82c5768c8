"""Which weight sets a project's features are made with: a file that git keeps and DVC watches.

Weight sets lie outside of the repository, where DVC sees no change. ``encoder_weights.lock`` holds
the SHA-256 of their files, and the stages that extract depend on it: other weights are extracted
anew, and a machine with other ones than the project's refuses to begin.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from mrmodel.components import ENCODERS
from mrmodel.encoders.published_sets import FILES, PUBLISHED
from mrmodel.errors import UnknownNameError, WeightsError
from mrmodel.files import write_json

log = logging.getLogger(__name__)

# Set -> file -> SHA-256.
Pins = dict[str, dict[str, str]]


def read_pins(path: Path) -> Pins:
    """The pinned sets.

    Raises:
        WeightsError: there is no such file, or it is damaged.
    """
    try:
        sets = json.loads(path.read_text(encoding="utf-8"))["sets"]
        pins = {name: dict(files) for name, files in sets.items()}
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file; run from the root of the repository") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(f'{path}: expected {{"sets": {{set: {{file: SHA-256}}}}}}') from None
    for name, files in pins.items():
        # They become paths: nothing else than these names may.
        if name not in PUBLISHED or not files.keys() <= set(FILES):
            listed = ", ".join(files)
            raise WeightsError(
                f"{path}: {name} ({listed}) is no weight set with {', '.join(FILES)}"
            )
    return pins


def pin_sets(path: Path, names: Sequence[str], root: Path | None = None) -> Pins:
    """Pin weight sets as they are locked now; other pins stay.

    Args:
        path: the file; it must exist.
        names: sets; empty: all that the weights folder holds.
        root: another weights folder than the user's.

    Raises:
        UnknownNameError: no such set.
        WeightsError: a set is missing or changed.
    """
    from mrmodel.encoders.weight_sets import WeightSet

    for name in names:
        if name not in PUBLISHED:
            raise UnknownNameError("weight set", name, PUBLISHED)
    pins = read_pins(path)
    present = [name for name in PUBLISHED if WeightSet(name, root).folder.is_dir()]
    for name in names or present:
        weights = WeightSet(name, root)
        weights.verify()
        pins[name] = weights.lock().files
    write_json(path, {"sets": dict(sorted(pins.items()))})
    return pins


def require_pinned(path: Path, stream: str) -> None:
    """Check that the weights of a stream, if it has some of its own, are the project's.

    Weights that nobody has pinned are taken, with a warning.

    Raises:
        WeightsError: the set is missing, or another one is pinned.
    """
    name = getattr(ENCODERS.get(stream), "set_name", None)
    if name is None:
        return
    # It loads torch, which most encoders' stages start without.
    from mrmodel.encoders.weight_sets import WeightSet

    found, pinned = WeightSet(name).lock().files, read_pins(path).get(name)
    if pinned is None:
        text = "%s: weights are not pinned, so DVC will see no change of them: mrmodel weights pin"
        log.warning(text, name)
    elif found != pinned:
        other = sorted(
            file for file in found.keys() | pinned if found.get(file) != pinned.get(file)
        )
        raise WeightsError(
            f"{name}: {', '.join(other)} in {WeightSet(name).folder} differ from what {path} pins; "
            f"bring the pinned ones, or run `mrmodel weights pin {name}` and extract anew"
        )
