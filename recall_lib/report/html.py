"""A day's report as one self-contained HTML file: no scripts, no links, pictures inline."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recall_lib.transforms.metrics import CUTOFFS, RECOMMENDERS

_COLOURS = dict(zip(RECOMMENDERS, ("#1f5fa8", "#b8b8b8", "#8f8f8f", "#d99a3a", "#5f9a6c"), strict=True))
_MEASURES = ("hr", "recall", "ndcg", "coverage", "popularity")


def render(facts: Mapping[str, Any]) -> str:
    """The report of the facts that `collect` gathers; all text is escaped. Equal facts give equal bytes."""
    environment = Environment(
        loader=PackageLoader("recall_lib.report", ""),  # which also finds it in a zip, as spark-submit ships it
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("report.html.j2").render(
        **facts,
        funnel=funnel(facts),
        recommenders=scored(facts["metrics"]),
        measures=measures(facts["metrics"]),
        loss_picture=loss_picture(facts["training"]),
        metrics_picture=metrics_picture(facts["metrics"]),
    )


def funnel(facts: Mapping[str, Any]) -> list[tuple[str, int, float]]:
    """The counts from the log to the table: (what, count, share of the largest count), in the order of the stages."""
    counts: list[tuple[str, int]] = []
    account = facts["account"]
    if account:
        first, last = facts["account_days"][0], facts["account_days"][-1]
        counts.append((f"rows (lines) of the log, read for {first if first == last else f'{first} to {last}'}", account["in"]))
        counts += [(f"- {fate.replace('_', ' ')}", n) for fate, n in account.items() if fate not in ("in", "kept")]
        counts.append(("= kept", account["kept"]))
    before = facts["events"] if facts["config"]["input"]["ordering"] == "position" else _before(facts["events"], facts["dt"])
    counts.append(("clicks the day's tables are made from", sum(before.values())))
    for stage in facts["stages"]:
        if "targets" in stage["facts"] and stage["name"].startswith("samples"):
            counts.append((f"targets, {stage['name'].removeprefix('samples ')}", stage["facts"]["targets"]))
        if stage["name"] == "top_n":
            counts.append(("users in top_n", stage["facts"]["rows"]))
    largest = max((n for _, n in counts), default=0)
    return [(what, n, n / largest if largest else 0.0) for what, n in counts]


def _before(events: Mapping[str, int], dt: str) -> dict[str, int]:
    return {day: rows for day, rows in events.items() if day < dt}


def scored(metrics: Mapping[str, Any]) -> list[str]:
    """The recommenders in metrics.json; none while the day's metrics are pending or if the day had no user to score."""
    return [name for name in RECOMMENDERS if name in metrics] if metrics.get("users") else []


def measures(metrics: Mapping[str, Any]) -> list[tuple[str, list[tuple[float | None, bool]]]]:
    """Every metric, and for each recommender its value and whether it is the best; popularity and None never are."""
    blocks = [metrics[name] for name in RECOMMENDERS if name in metrics]
    table = []
    for metric in [f"{measure}@{k}" for measure in _MEASURES for k in CUTOFFS] + ["mrr"]:
        values = [block[metric] for block in blocks]
        known = [value for value in values if value is not None]
        best = max(known) if known and not metric.startswith("popularity") else None
        table.append((metric, [(value, value is not None and value == best) for value in values]))
    return table


def number(value: Any) -> str:
    """A number as text: counts with separated thousands, shares with four decimals, others with four digits, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "\u202f")  # a space that does not break the line
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) <= 1 else f"{value:.4g}"
    return str(value)


def loss_picture(records: Sequence[Mapping[str, Any]]) -> str | None:
    """The training loss by step, with the validation NDCG@10 if it is logged, as a data URI; None if no loss is logged."""
    loss = [(record["step"], record["loss"]) for record in records if "loss" in record]
    if not loss:
        return None
    figure, axes = _figure("step", "training loss")
    axes.plot(*zip(*loss, strict=True), color=_COLOURS["model"], label="training loss")
    validation = [(record["step"], record["ndcg@10"]) for record in records if "ndcg@10" in record]
    if validation:
        right = axes.twinx()
        right.plot(*zip(*validation, strict=True), color=_COLOURS["item_knn"], marker="o", linestyle="--")
        right.set_ylabel("validation NDCG@10 (dashed)")
        right.set_ylim(bottom=0)
    return _data_uri(figure)


def metrics_picture(metrics: Mapping[str, Any]) -> str | None:
    """Hit rates of the model and the baselines as a data URI; None if no user is scored."""
    names = scored(metrics)
    if not names:
        return None
    figure, axes = _figure("", "hit rate")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        places = [k + (i - (len(names) - 1) / 2) * width for k in range(len(CUTOFFS))]
        axes.bar(places, [metrics[name][f"hr@{k}"] for k in CUTOFFS], width * 0.92, color=_COLOURS[name], label=name)
    axes.set_xticks(range(len(CUTOFFS)), [f"HR@{k}" for k in CUTOFFS])
    axes.legend(frameon=False)
    return _data_uri(figure)


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _data_uri(figure: Figure) -> str:
    """The figure as SVG without dates or random ids, so that equal pictures give equal bytes."""
    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "recall"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode()
