"""The benchmark of samples at a tiny size: every row, and a check of the peers' samples that can fail."""

import json
from dataclasses import asdict
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.benchmarks import common, log, run, samples

pytestmark = pytest.mark.proof  # what protects a benchmark

CLICKS = samples.LEAST_CLICKS
NEEDS_PEERS = pytest.mark.skipif(not common.PEERS_PYTHON.exists(), reason="no build/bench/venv: `make bench` sets it up")


@pytest.fixture(scope="module")
def work(spark, tmp_path_factory):
    """Folder of one log and one build, which all measures at this size share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "REPEATS", 1)
        patch.setattr(samples, "PARTITIONS", 3)
        patch.setattr(log, "DAYS", 2)
        yield tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def built(work):
    return samples.build(work, CLICKS)


def fake_peer(built, folder, change=None):
    """Our own samples as a peer's files, one value of the training rows changed."""
    for split, columns in (("train", ["user_id", "item_index", "example_age"]), ("validation", ["user_id", "item_index"])):
        files = samples.files(built.ctx, samples.samples_of(split))
        rows = list(chain.from_iterable(pq.read_table(file, columns=columns).to_pylist() for file in files))
        assert rows
        if change and split == "train":
            change(rows[0])
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")


def test_the_check_accepts_the_same_samples_and_refuses_others(built, tmp_path):
    fake_peer(built, tmp_path)
    samples.require_same(built.ctx, str(tmp_path))

    def another_age(row):
        row["example_age"][-1] += 0.001

    def two_clicks_swapped(row):
        row["item_index"][0], row["item_index"][1] = row["item_index"][1] + 1, row["item_index"][0]

    for change in (another_age, two_clicks_swapped, lambda row: row.update(user_id="nobody")):
        fake_peer(built, tmp_path, change)
        with pytest.raises(SystemExit, match="train samples are not ours"):
            samples.require_same(built.ctx, str(tmp_path))


def test_rows_without_peers(work, built):
    rows = {
        row.name: row
        for row in (
            samples.against_floor(work, CLICKS),
            samples.growth("growth", built, built),
            samples.bytes_of_windows(work, CLICKS),
            *samples.where_time_goes(built),
            *samples.peak_memory(built),
            samples.compressed(built),
            *samples.globo(work, work / "absent", whole=False),
        )
    }
    for row in rows.values():
        json.dumps(asdict(row), allow_nan=False)
        assert row.ratio is None or row.ratio > 0, row
    assert rows["growth"].ratio == 1.0
    assert rows["bytes_vs_windows"].peer > 4 * samples.WINDOW
    assert rows["bytes_vs_windows"].ratio > 5
    assert 0.1 < rows["peak_memory_0.004m"].ours < 8  # GiB: the JVM is among the processes
    assert "MB" in rows["bytes_compressed"].note
    assert "stage" in rows["profile_samples"].note
    assert "skipped" in rows["globo"].note


def test_faster_and_smaller_are_better():
    assert common.faster("a", 3.0, 2.0, "events/s", "").ratio == 1.5
    assert common.smaller("a", 2.0, 3.0, "bytes", "").ratio == 1.5


def test_report_is_a_table_and_json(tmp_path, capsys):
    rows = [common.faster("vs_floor", 1234.5, 0.25, "events/s", "note"), common.Row("globo", None, None, None, "s", "skipped")]
    run.report("samples", rows, tmp_path, 0.5)
    found = json.loads((tmp_path / "samples.json").read_text())
    assert found["rows"] == [asdict(row) for row in rows]
    assert found["machine"]["java"] == 17
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.index("note") for line in lines[:2]] == [lines[2].index("skipped")] * 2
    assert "1,234" in lines[1]


@NEEDS_PEERS
def test_peers_make_our_samples_and_are_measured(work, built):
    samples.check_and_warm_up(work, CLICKS)
    rows = [samples.against_polars(work, CLICKS), *samples.against_pandas(work, ours=CLICKS, pandas=CLICKS)]
    assert [row.name for row in rows] == ["vs_polars", "vs_pandas", "vs_pandas_without_shares"]
    assert all(row.ours > 0 and row.peer > 0 for row in rows)


@NEEDS_PEERS
def test_a_failing_peer_ends_the_benchmark():
    with pytest.raises(SystemExit, match=r"(?s)polars_samples\.py failed: .*KeyError"):
        common.run_peer("polars_samples.py", {}, 1)
