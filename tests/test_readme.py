import re
from pathlib import Path

import pytest
import yaml

from recall_lib.commands.cli import JOBS, TOOLS
from recall_lib.config import Config, Features
from recall_lib.process.errors import EXIT_CODES
from recall_lib.store import schemas
from recall_lib.store.datasets import DATASETS, EVERYTHING, name_of
from tests.commands.test_help import help_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 20
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_example_config_is_valid_and_short():
    first, *others = map(yaml.safe_load, examples := re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
    assert len(examples[0].splitlines()) <= 10
    assert Config.model_validate(first).features.item[0].multi
    for example in others:  # of some settings more
        first = {section: first.get(section, {}) | settings for section, settings in (first | example).items()}
    assert Config.model_validate(first).features.sequences


def test_every_job_and_every_column_is_named():
    for job in JOBS:
        assert f"| `{job}` |" in README
    section = README.split("## Tables")[1].split("\n## ")[0]
    for row in DATASETS.values():
        described = "".join(line for line in section.splitlines() if re.match(rf"\| (`\w+`, )?`{row.name}[`/]", line))
        assert described, row.name
        columns = schemas.named(row.columns, Features()).names if row.columns else ()
        missing = [name for name in columns if name not in described]
        assert not missing, (row.name, missing)


def test_every_job_names_what_it_reads_and_writes():
    section = README.split("## Jobs")[1].split("\n## ")[0]
    for row, part in ((dataset, keys) for dataset in DATASETS.values() for keys in dataset.parts()):
        (line,) = [line for line in section.splitlines() if line.startswith(f"| `{row.job_of(part)}` |")]
        _, _, reads, writes, *_ = line.split("|")
        name = name_of(row.name, part) if row.by_other_jobs else row.name
        assert f"`{name}`" in writes
        if row.inputs != EVERYTHING and row.job_of(part) == row.job:
            assert set(row.inputs) <= set(re.findall(r"\w+", reads)), row.name


@pytest.mark.parametrize("text", ["README.md", "deploy/RUNBOOK.md"])
def test_commands_and_their_options_exist(text):
    """In code, `recall COMMAND --option`; what the help of a command lacks, the command refuses."""
    code = re.findall(r"`(recall [^`<]+)`|^    (?:\S+ )*(recall .+)$", (ROOT / text).read_text(encoding="utf-8"), re.MULTILINE)
    commands = [re.split(r" [|#] ", quoted or indented)[0].split() for quoted, indented in code]
    assert len(commands) > 5
    for _, command, *words in commands:
        assert command in (*JOBS, *TOOLS), command
        options = {option for word in words for option in re.findall(r"^\[?(--[\w-]+)", word)}
        assert options <= set(re.findall(r"--[\w-]+", help_of(command))), command


def test_every_tool_is_named():
    assert [tool for tool in TOOLS if f"recall {tool}" not in README] == []


@pytest.mark.parametrize("text", ["README.md", "deploy/RUNBOOK.md"])
def test_exit_codes_are_those_of_the_commands(text):
    table = re.split(r"^\| (?:exit )?code \| meaning \|", (ROOT / text).read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", table.split("\n\n")[0], re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES
