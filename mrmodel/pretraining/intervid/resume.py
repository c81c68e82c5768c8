"""What an interrupted run leaves for the next one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mrmodel.files import digest_of, sha256_of
from mrmodel.version import PACKAGE


def kept_work(work: Path, inputs: Any) -> Path:
    """The folder below `work` for these inputs and this code; others in it are removed.

    Args:
        work: holds nothing but such folders.
        inputs: what decides the content, as JSON values.
    """
    files = (*Path(__file__).parent.iterdir(), PACKAGE / "features/keys.py")
    code = [sha256_of(file) for file in sorted(files) if file.is_file()]
    folder = work / digest_of([inputs, code])[:16]
    for other in work.iterdir() if work.exists() else ():
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
