"""Every `--help` is as it is kept in golden/. `python -m tests.commands.test_help` writes these files anew."""

import io
import os
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import pytest

from recall_lib.commands import cli

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = ("recall", *cli.JOBS, *cli.TOOLS)


def help_of(command: str) -> str:
    said = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS="100"), redirect_stdout(said):
        try:
            code = cli.main(["--help"] if command == "recall" else [command, "--help"])
        except SystemExit as end:
            code = end.code
    assert code == 0
    return said.getvalue()


def unwrapped(text: str) -> tuple[list[str], str]:
    """The words of the usage, whose lines each Python version wraps in its own way, and the rest as it is."""
    usage, rest = text.split("\n\n", 1)
    return usage.split(), rest


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_as_it_is_kept(command):
    assert unwrapped(help_of(command)) == unwrapped((GOLDEN / f"{command}.txt").read_text(encoding="utf-8"))


def test_no_help_is_kept_of_a_command_that_is_gone():
    assert {file.stem for file in GOLDEN.iterdir()} == set(COMMANDS)


if __name__ == "__main__":
    for name in COMMANDS:
        (GOLDEN / f"{name}.txt").write_text(help_of(name), encoding="utf-8")
