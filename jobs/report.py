"""Write the day's HTML report: row counts, loss curve, metrics compared with baselines."""

import hashlib
import json
import sys

from recall_lib.day.context import Context
from recall_lib.day.job import main
from recall_lib.report.facts import collect
from recall_lib.report.html import render


def run(ctx: Context) -> None:
    """Publish reports/dt."""
    facts = collect(ctx.tables, ctx.dt)
    digests = facts["digests"]
    inputs = {"metrics": digests["metrics"]} if "metrics" in digests else {}
    # The file's own digest would tell of clocks and speeds.
    digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    with ctx.tables.publishing("reports", ctx.dt, inputs=inputs, facts={"digest": digest}) as staged:
        (staged.folder / "report.html").write_text(render(facts), encoding="utf-8")
    ctx.say(f"report in {staged.publication.folder}/report.html")


if __name__ == "__main__":
    sys.exit(main(run))
