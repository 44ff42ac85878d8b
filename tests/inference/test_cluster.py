"""The same top-N from two executors in processes of their own, which get model and index as archives."""

import subprocess
import sys
from pathlib import Path

import yaml

from tests.inference.conftest import DT


def test_top_n_on_a_local_cluster(prepared, tmp_path):
    ctx = prepared(spark={"master": "local-cluster[2,1,1024]"})
    before = ctx.tables.get("top_n", DT).manifest
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(ctx.config.model_dump(mode="json")), encoding="utf-8")
    command = [sys.executable, "-m", "recall_lib.commands.cli", "top_n", "--config", str(config), "--dt", DT]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    after = ctx.tables.get("top_n", DT).manifest
    assert after["run_id"] != before["run_id"]
    assert after["digest"] == before["digest"]
