"""Run every job on a simulated log, or on your own log with --input, and show the results.

Without --input the command writes a click log of ten days to build/demo/log, and --dt is its last
day but one. With --input, --dt is required. Without --config the settings are those of
conf/demo.yaml.

The tables are in build/demo. Tables of another log or of other features are moved aside. At the end
the command prints the recent clicks and the top 10 of three users, the metrics of the model
compared with the baselines, and the paths of all results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from recall_lib.commands import simulator
from recall_lib.config import Input, load_config, parse_day
from recall_lib.day.context import Context
from recall_lib.day.job import run_alone
from recall_lib.day.raw import read_titles
from recall_lib.log.files import find_files
from recall_lib.process import messages
from recall_lib.process.command import parser, run_command
from recall_lib.process.errors import Busy, UsageError
from recall_lib.store import locks, schemas
from recall_lib.store.tables import Tables
from recall_lib.transforms.metrics import RECOMMENDERS

ROOT = "build/demo"
CONFIG = "conf/demo.yaml"
# The last day but one, so that the log holds a later click and the day's scores are final.
DAY = (date.fromisoformat(simulator.FIRST_DAY) + timedelta(days=simulator.DAYS - 2)).isoformat()
SHOWN_USERS, SHOWN_ITEMS, LEAST_CLICKS = 3, 10, 5
_COLUMN = 46  # characters
_METRICS = ("hr@10", "hr@50", "hr@200", "ndcg@10", "mrr", "coverage@10")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    options = parser("demo", __doc__, optional=["--config", "--dt"])
    options.set_defaults(config=CONFIG)
    options.add_argument("--input", metavar="FOLDER", help="the folder of your own log (default: simulate one)")
    return run_command(options, lambda args: run(args.config, args.input, args.dt, args.overrides), argv)


def run(config_file: str, folder: str | None, dt: str | None, overrides: Sequence[str]) -> None:
    """Simulate a log if there is no `folder`, run every stage for `dt`, and print what came out."""
    if folder and not dt:
        raise UsageError("the day the result is for is missing: give --dt YYYY-MM-DD (make demo: DT=YYYY-MM-DD)")
    log = folder or f"{ROOT}/log"
    places = [f"paths.root={json.dumps(ROOT)}", f"input.path={json.dumps(log)}"]
    ctx = Context(load_config(config_file, [*places, *overrides]), parse_day(dt or DAY), "demo")
    messages.bind(dt=ctx.dt, run_id=ctx.run_id)
    if not folder:
        simulated = simulator.simulate()
        simulator.write_rows(simulated, Path(log))
        simulator.write_sessions(simulated, Path(log) / "sessions.txt")
        ctx.say(f"simulated a log of {len(simulated.user)} clicks and impressions in {log}")
    require_input(ctx.config.input)
    run_alone(_run_every_stage, ctx)


def _run_every_stage(ctx: Context) -> None:
    from jobs import pipeline  # brings in Spark and PyTorch: only once the arguments are known to be good

    move_aside(ctx.tables)
    pipeline.run(ctx)
    messages.bind(stage="demo")
    messages.show("demo", f"\n{shown(ctx)}")


def shown(ctx: Context) -> str:
    """Three users' clicks beside their lists, the metrics, and where the tables lie."""
    return "\n".join([*_users(ctx), *_metrics(ctx), *_places(ctx)])


def require_input(settings: Input) -> None:
    """Raise NoInput if a file of the log is missing: before other tables make way for it."""
    if settings.file_format == "table" and settings.format == "rows":
        return  # a catalog's: only Spark can tell
    items = settings.items if settings.format == "rows" else None
    for path in filter(None, (settings.clicks, items, settings.users)):
        find_files(settings.path, path)


def move_aside(tables: Tables) -> None:
    """Rename what is under paths.root, but for log and locks, if another log or other features made the tables.

    Raises:
        Busy: another run is at work there.
    """
    days = tables.days("events")
    if not days:
        return
    made_with = tables.get("events", days[-1]).manifest["config"]
    if all(made_with[section] == tables.config.model_dump(mode="json")[section] for section in ("input", "features")):
        return
    for name, owner in locks.holders(tables.config.paths.root).items():
        if owner.run_id != tables.run_id:
            raise Busy(f"{tables.root} holds another log's tables, and {name} is held by {owner}: run it again after that")
    aside = f"{tables.root}-{days[-1]}-{tables.run_id}"
    tables.fs.makedirs(aside)
    for path in tables.fs.ls(tables.root, detail=False):
        name = path.rstrip("/").rsplit("/", 1)[-1]
        if name not in ("log", locks.FOLDER):
            tables.fs.mv(path, f"{aside}/{name}", recursive=True)
    messages.say("demo", f"{tables.root} held another log's tables; they are in {aside} now")


def _users(ctx: Context) -> list[str]:
    events = ctx.history()[0]
    rows = _some_users(ctx.tables.get("top_n", ctx.dt).read(schemas.TOP_N), events, ctx.config.seed).collect()
    newest = Window.partitionBy("user_id").orderBy(F.desc("event_ts"), F.desc("position"), F.desc("item_id"))
    theirs = events.where(F.col("user_id").isin([row.user_id for row in rows])).withColumn("_nth", F.row_number().over(newest))
    clicks: dict[str, list[str]] = {}
    for click in theirs.where(F.col("_nth") <= SHOWN_ITEMS).orderBy("user_id", "_nth").select("user_id", "item_id").collect():
        clicks.setdefault(click.user_id, []).append(click.item_id)
    tops = {row.user_id: [item.item_id for item in row.items[:SHOWN_ITEMS]] for row in rows}
    titles = _titles(ctx, {item for items in [*tops.values(), *clicks.values()] for item in items})
    lines = []
    for user, top in tops.items():
        lines += users_lines(user, clicks.get(user, []), top, titles)
    return lines


def _some_users(top_n: DataFrame, events: DataFrame, seed: int) -> DataFrame:
    """A few users with a list from the model and enough clicks to show; always the same ones."""
    active = events.groupBy("user_id").count().where(F.col("count") >= LEAST_CLICKS).select("user_id")
    found = top_n.where(F.col("source") == "model").join(active, "user_id", "left_semi")
    return found.orderBy(F.xxhash64(F.lit(seed), "user_id"), "user_id").limit(SHOWN_USERS)


def _titles(ctx: Context, items: set[str]) -> dict[str, str]:
    settings = ctx.config.input
    if not (settings.items and settings.item_columns.title):
        return {}
    titles = read_titles(ctx, settings.items, settings.item_columns.title)
    return dict(titles.where(F.col("item_id").isin(sorted(items)) & F.col("title").isNotNull()).collect())


def users_lines(user: str, clicks: Sequence[str], top: Sequence[str], titles: Mapping[str, str]) -> list[str]:
    """One user's recent clicks, newest first, beside the top of the list."""
    named = [[" ".join(filter(None, (item, titles.get(item)))) for item in items] for items in (clicks, top)]
    lines = [f"user {user}", f"  {'recent clicks, newest first':<{_COLUMN}}  top {len(top)}"]
    for i in range(max(map(len, named))):
        left, right = (names[i][:_COLUMN] if i < len(names) else "" for names in named)
        lines.append(f"  {left:<{_COLUMN}}  {f'{i + 1:>2} {right}' if right else ''}".rstrip())
    return [*lines, ""]


def _metrics(ctx: Context) -> list[str]:
    return metrics_lines(ctx.tables.read_json(f"{ctx.tables.get('metrics', ctx.dt).folder}/metrics.json"), ctx.dt)


def metrics_lines(metrics: Mapping[str, Any], dt: str) -> list[str]:
    """The table of metrics.json, a recommender a line."""
    if metrics["status"] == "pending":
        return [
            f"{dt} is not scored yet (pending): the log holds no later click; run `recall metrics` when it does",
            "",
        ]
    if not metrics["users"]:
        new, repeat = metrics["users_new"], metrics["users_repeat"]
        return [f"{dt} has no user to score: {new} without history, {repeat} who came back to a seen item", ""]
    lines = [f"{metrics['users']} users scored over the whole catalogue, protocol {metrics['protocol']}, {metrics['status']}"]
    lines.append(f"{'':<16}" + "".join(f"{name:>13}" for name in _METRICS))
    for name in RECOMMENDERS:
        if name in metrics:
            figures = (metrics[name][metric] for metric in _METRICS)
            lines.append(f"{name:<16}" + "".join(f"{'–' if figure is None else f'{figure:.4f}':>13}" for figure in figures))
    return [*lines, ""]


def _places(ctx: Context) -> list[str]:
    tables = ctx.tables
    lines = [f"{name:<8} {tables.get(name, ctx.dt).folder}" for name in ("top_n", "metrics")]
    report = f"{tables.get('reports', ctx.dt).folder}/report.html"
    return [f"tables   {tables.root}/<table>/dt=<day>", *lines, f"report   {report}"]
