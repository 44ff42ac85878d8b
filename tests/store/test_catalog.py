"""Tables of the catalog: the old version or the new one, at every moment, from every process."""

import json
import subprocess
import sys

import pytest

from recall_lib.config import Features
from recall_lib.process.errors import UsageError
from recall_lib.store.catalog import create_table, declared
from recall_lib.store.tables import Tables
from tests.conftest import ROOT
from tests.store import metastore
from tests.store.catalog_process import RERUNS, rows_of

DDL = ROOT / "deploy" / "ddl"


@pytest.mark.parametrize("dataset", declared(Features()))
def test_the_shipped_statements_declare_what_is_published(dataset):
    """To write them anew: see the message."""
    text = (DDL / f"{dataset}.sql").read_text(encoding="utf-8")
    statement = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("--"))
    assert statement == create_table(dataset, Features(), "${database}", "${root}") + ";\n"


def test_every_shipped_statement_is_of_a_table():
    assert {path.stem for path in DDL.glob("*.sql")} == set(declared(Features()))


def test_a_catalog_that_dies_with_the_session_is_refused(spark, make_config):
    with pytest.raises(UsageError, match="outlives the session"):
        _ = Tables(make_config(tables={"database": "recall"}), start_spark=lambda: spark).catalog


@pytest.mark.proof
def test_polls_from_another_process_are_whole(tmp_path):
    port = str(metastore.free_port())
    command = [sys.executable, "-m", "tests.store.catalog_process"]
    logs = {role: (tmp_path / f"{role}.log").open("w+") for role in ("publish", "poll")}
    processes = {
        role: subprocess.Popen([*command, role, str(tmp_path), port], cwd=ROOT, stdout=log, stderr=log)
        for role, log in logs.items()
    }
    try:
        for role, process in processes.items():
            assert process.wait(timeout=180) == 0, (tmp_path / f"{role}.log").read_text()[-3000:]
    finally:
        for process in processes.values():
            process.kill()
    polls = [json.loads(line) for line in (tmp_path / "polls.jsonl").read_text().splitlines()]
    versions = [RERUNS if rows == 0 else least for rows, least, _, _ in polls]
    assert all(rows == rows_of(version) == items for version, (rows, _, _, items) in zip(versions, polls, strict=True))
    assert all(least == most for _, least, most, _ in polls)
    assert versions == sorted(versions), "no reader goes back"
    assert versions[-1] == RERUNS, "an empty rerun replaces the rows"
    assert len(set(versions)) > 2
