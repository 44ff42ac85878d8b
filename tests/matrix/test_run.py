import re
from pathlib import Path

from tests.matrix import run
from tests.test_setup import PINS


def test_summary_is_pytests_closing_line():
    log = "....\n=== 2 failed, 30 passed, 1 skipped in 61.20s (0:01:01) ===\nSKIPPED [1] x: 3 passed in 2 days\n"
    assert run.summary(log) == "2 failed, 30 passed, 1 skipped"
    assert run.summary("31 passed, 2 deselected in 5.01s\n") == "31 passed, 2 deselected"
    assert run.summary("killed") == "no closing line"


def test_a_digest_that_is_missing_or_another_is_a_difference():
    outcomes = [{"digests": {"a": "1", "b": "2", "c": "3"}}, {"digests": {"a": "1", "b": "x"}}]
    assert run.differences(outcomes) == ["b", "c"]
    assert run.differences(outcomes[:1]) == []


def test_only_a_run_without_failures_is_green():
    good = {"tests": "3 passed, 1 skipped", "digests": {"a": "1"}}
    assert run.is_green(good)
    assert not run.is_green(good | {"tests": "1 failed, 3 passed"})
    assert not run.is_green(good | {"tests": "3 passed, 1 error"})
    assert not run.is_green(good | {"tests": "no closing line"})
    assert not run.is_green(good | {"digests": {}})


def test_the_matrix_holds_the_default_and_what_setup_allows():
    assert PINS["pyspark"] in run.SPARKS
    low, high = re.search(r'"pyspark>=([\d.]+),<([\d.]+)"', (run.ROOT / "setup.py").read_text(encoding="utf-8")).groups()

    def number(version):
        return tuple(map(int, version.split(".")))

    assert all(number(low) <= number(spark) < number(high) for spark in run.SPARKS)
    assert all((run.ROOT / Path(place)).exists() for place in run.HEART)
