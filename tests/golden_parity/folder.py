"""Where the golden cases are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

GOLDEN = Path(os.environ.get("MRMODEL_GOLDEN_DIR") or Path(__file__).parents[1] / "golden")


def case_folders(kind: str) -> list[Path]:
    """Every case folder of `kind`: those that hold metrics."""
    return sorted(path.parent for path in (GOLDEN / kind).glob("*/metrics.json"))


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def load_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
