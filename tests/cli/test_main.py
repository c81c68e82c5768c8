import subprocess
import sys

import pytest
from click.testing import CliRunner

from mrmodel.cli.main import COMMANDS, cli
from mrmodel.cli.predict import curve_line


def test_help_names_every_command_and_says_what_it_does() -> None:
    output = CliRunner().invoke(cli, ["--help"]).output
    for name, (_, _, line) in COMMANDS.items():
        assert name in output
        assert line.split(".")[0][:30] in output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_asked_for_help(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(cli, ["predcit"])
    assert result.exit_code == 2
    assert "No such command" in result.output


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; from mrmodel.cli.main import cli; cli(['--help'], standalone_mode=False); "
        "print([m for m in ('torch', 'mlflow', 'pandas', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_a_mistake_is_one_line_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "mrmodel.cli.main", "preset", "show", "sampel"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "did you mean 'sample'" in done.stderr


@pytest.mark.parametrize("width", [1, 10, 33, 80, 200])
def test_the_curve_of_any_video_is_one_line(width: int) -> None:
    scores = [number % 7 / 7 for number in range(20_000)]
    scores[13_131] = 5.0
    for count in (1, 3, 71, 72, 20_000):
        line = curve_line(tuple(scores[:count]), width)
        assert line.startswith("  clips  ")
        assert "\n" not in line
        assert len(line) == max(10, min(width, len("  clips  ") + count))
    if width > 10:
        assert line.count("█") == 1, "the highest clip of all is not lost"


def test_few_clips_have_a_character_each() -> None:
    assert curve_line((0.0, 0.5, 1.0), 80) == "  clips  ▁▅█"
    assert curve_line((0.3, 0.3), 80) == "  clips  ▁▁"


def test_a_picture_of_another_format_is_refused_before_any_work() -> None:
    arguments = ["predict", "no.mp4", "--query", "a cat", "--plot", "timeline.gif"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert "timeline.gif: expected a name that ends in one of .png, .svg, .pdf" in result.output


def test_a_renamed_option_says_its_new_name() -> None:
    result = CliRunner().invoke(cli, ["registry", "promote", "--new-line", "other rows"])
    assert result.exit_code == 2
    assert "--new-line is called --reset-baseline now" in result.output
