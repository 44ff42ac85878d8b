"""The same top-N from two executors in processes of their own, which get model and index as archives."""

import yaml

from tests.inference.conftest import DT

TOP_N = """
    import sys
    from recall_lib.commands import cli

    code = cli.main(["top_n", *sys.argv[1:]])
    assert code == 0, code
"""


def test_top_n_on_a_local_cluster(prepared, cluster, tmp_path):
    ctx = prepared(spark={"master": "local-cluster[2,1,1024]"})
    before = ctx.tables.get("top_n", DT).manifest
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(ctx.config.model_dump(mode="json")), encoding="utf-8")
    cluster.run(TOP_N, "--config", str(config), "--dt", DT)
    after = ctx.tables.get("top_n", DT).manifest
    assert after["run_id"] != before["run_id"]
    assert after["digest"] == before["digest"]
