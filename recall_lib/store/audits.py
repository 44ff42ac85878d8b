"""Audits: checks that a staged publication must pass before anything is swapped in.

The thresholds are in the config's section `audits`. Two checks of top-N tables always run: no user has two rows, and no row
lacks its user id or its items, or holds an item without an id or with a score that is null or NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recall_lib.config import Audits
from recall_lib.process.errors import DataRefused
from recall_lib.store import schemas
from recall_lib.store.publication import Publication

_METRIC = "hr@10"  # of the validation split

# Returns the publication of the same dataset for the last published day before the given one; None if there is none.
Before = Callable[[Publication], Publication | None]


@dataclass(frozen=True)
class Audit:
    """One value and its bound; `side` says whether the bound is the `least` or the `most` that is allowed."""

    name: str
    value: float
    side: str
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the value is within its bound."""
        return self.value >= self.bound if self.side == "least" else self.value <= self.bound


def audit(staged: Publication, before: Before, settings: Audits) -> dict[str, dict[str, float]]:
    """Audit one staged publication.

    Args:
        staged: the publication. Its manifest has `rows` (events), `users_in` (top_n) or `validation` (models).
        before: returns the publication of the last published day before.
        settings: the thresholds.

    Returns:
        {name of the audit: {"value", "least" or "most"}}, for the manifest; {} for a dataset without audits.

    Raises:
        DataRefused: an audit fails; the message lists every failed audit with its value and threshold.
    """
    dataset, facts = staged.dataset, staged.manifest
    if dataset == "events":
        found = [Audit("min_clicks", facts["rows"], "least", settings.min_clicks)]
    elif dataset in ("top_n", "top_n_user_id"):
        rows = staged.read(schemas.TOP_N)
        found = list(top_n_audits(rows, facts.get("users_in"), settings, of_model=dataset == "top_n"))
    elif dataset == "models":
        found = list(_model_audits(staged, before, settings))
    else:
        found = []
    failed = [f"{a.name} is {a.value:.6g}, must be at {a.side} {a.bound:.6g}" for a in found if not a.passed]
    if failed:
        raise DataRefused(
            f"{staged.name} was not published: audit failed ({'; '.join(failed)}). Check its input tables. "
            "If the new value is expected, change the limit in the `audits` section of the config"
        )
    return {a.name: {"value": a.value, a.side: a.bound} for a in found}


def top_n_audits(written: DataFrame, users_in: int | None, settings: Audits, *, of_model: bool = True) -> Iterable[Audit]:
    """The audits of rows of schemas.TOP_N.

    Args:
        written: the rows.
        users_in: number of users that must get a list; None: not checked.
        settings: the thresholds.
        of_model: also check the share of popular lists. Not for top_n_user_id, where many lists are popular.
    """
    # array_contains is true, or null where the list has a null, unless all is well; F.exists takes ten times as long.
    no_id, no_score = F.array_contains("items.item_id", ""), F.array_contains("items.score", F.lit(float("nan")).cast("float"))
    is_bad = F.col("user_id").isNull() | ~no_id.eqNullSafe(False) | ~no_score.eqNullSafe(False)
    row = written.agg(
        F.count(F.lit(1)).alias("rows"),
        F.countDistinct("user_id").alias("users"),
        F.sum((F.col("source") == "popular").cast("int")).alias("popular"),
        F.sum(is_bad.cast("int")).alias("bad"),
    ).first()
    assert row is not None
    yield Audit("duplicate_users", row["rows"] - row["users"], "most", 0)
    yield Audit("rows_without_a_score", row["bad"] or 0, "most", 0)
    if users_in is not None:
        yield Audit("min_user_share", row["users"] / users_in if users_in else 1.0, "least", settings.min_user_share)
    if of_model:
        share = (row["popular"] or 0) / max(row["rows"], 1)
        yield Audit("max_popular_share", share, "most", settings.max_popular_share)


def _model_audits(staged: Publication, before: Before, settings: Audits) -> Iterable[Audit]:
    if settings.min_validation_share is None or (earlier := before(staged)) is None:
        return
    last = earlier.manifest.get("validation", {}).get(_METRIC)
    if last:  # missing if that model had no held-out user to measure
        share = staged.manifest["validation"].get(_METRIC, 0.0) / last
        yield Audit("min_validation_share", share, "least", settings.min_validation_share)
