"""``mrmodel``: the command groups, which are imported lazily."""

from __future__ import annotations

import importlib
import io
import logging
import sys

import click

from mrmodel.errors import exit_codes
from mrmodel.startup import collect_garbage_rarely
from mrmodel.version import __version__

# name -> (module, attribute, the line in `mrmodel --help`)
COMMANDS = {
    "predict": ("predict", "command", "Find the moments that sentences describe in a video file."),
    "highlight": ("export", "highlight", "Find the best moments in a video without a query."),
    "index": ("index", "group", "Encode many videos once, and search them together."),
    "serve": ("serve", "command", "Serve a library: REST, and a page to search it with."),
    "cut": ("export", "cut", "Write what was found as clips, chapters, edit lists or tasks."),
    "evaluate": ("evaluate", "command", "Score a prediction file against annotations."),
    "data": ("data", "group", "Check annotation files, convert published ones, link videos in S3."),
    "delivery": ("data", "delivery_group", "Check new training data before they are sent."),
    "feedback": ("serve", "feedback_group", "Deliver what people said about hits, for retraining."),
    "features": ("features", "group", "Inspect and compare features, import published archives."),
    "preset": ("preset", "group", "List, show and apply parameter presets."),
    "weights": ("weights", "group", "Published models and encoder weights."),
    "tune": ("tune", "group", "Search for better loss weights, noise scales and schedules."),
    "registry": ("registry", "group", "Register, promote and roll back models."),
    "lineage": ("registry", "lineage_group", "Where a registered model came from; make it again."),
    "config": ("preset", "config_group", "Check params.yaml."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and help lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All command names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of `cmd_name` and return its command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(
            importlib.import_module(f"mrmodel.cli.{module}"), attribute
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command table from the help lines above."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mrmodel")
@click.option("-v", "--verbose", is_flag=True, help="Log more details.")
def cli(verbose: bool) -> None:
    """Video moment retrieval and highlight detection.

    The pipeline itself runs with `dvc repro` (or `make repro`), on workers with
    `python -m flows.pipeline --workers`; these commands use and inspect it.

    Exit codes: 0 done, 1 ended without the result, 2 your mistake (or a check found something), 70
    a defect of this program.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )


def main() -> None:
    """Entry point: an error of the user is one line and exit code 2, a defect is 70."""
    collect_garbage_rarely()
    # A terminal or file in another encoding than UTF-8 gets escapes of what it lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with exit_codes():
        cli()


if __name__ == "__main__":
    main()
