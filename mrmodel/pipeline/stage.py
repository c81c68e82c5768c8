"""What all stage commands share: logging, the parameter file, errors as one line."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from mrmodel.config import Config, load_config
from mrmodel.errors import MrModelError
from mrmodel.files import digest_of, sha256_of
from mrmodel.processes import die_with_parent
from mrmodel.progress import EventReporter, Reporter, RichReporter

PARAMS = Path("params.yaml")


def run_stage(stage: Callable[[Config, Reporter], None]) -> None:
    """Run `stage` as a process of its own: exit code 1 and one line on a mistake of the input."""
    run_stage_with(lambda config, reporter, _: stage(config, reporter), ())


def run_stage_with(
    stage: Callable[[Config, Reporter, dict[str, str]], None], arguments: tuple[str, ...]
) -> None:
    """Like `run_stage`, with required command-line arguments ``--name VALUE`` for the stage."""
    die_with_parent()
    parser = argparse.ArgumentParser()
    for name in arguments:
        parser.add_argument(f"--{name}", required=True)
    values = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        stage(load_config(PARAMS), EventReporter(RichReporter()), values)
    except MrModelError as error:
        sys.exit(f"error: {error}")


def digest_of_inputs(settings: object, *files: Path) -> str:
    """Digest of a stage's settings and of the contents of its input files; a missing one counts."""
    contents = {str(file): sha256_of(file) if file.exists() else None for file in files}
    return digest_of({"settings": settings, "files": contents})
