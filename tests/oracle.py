"""The samples of a log by the definition, slowly: plain Python over one user after the other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any

NULL = None


@dataclass(frozen=True)
class Click:
    user: str
    item: str
    time: float  # seconds, or the position
    user_features: dict[str, str | None] = field(default_factory=dict)
    item_features: dict[str, Any] = field(default_factory=dict)  # value, or list of values


def by_user(clicks: Iterable[Click]) -> dict[str, list[Click]]:
    users: dict[str, list[Click]] = {}
    for click in clicks:
        users.setdefault(click.user, []).append(click)
    return {user: sorted(own, key=lambda c: (c.time, c.item.encode())) for user, own in users.items()}


def split_last_click(own: list[Click]) -> tuple[list[Click], Click | None, Click | None]:
    """(training clicks, validation click, test click)."""
    if len(own) == 1:
        return own, None, None
    if len(own) == 2:
        return own[:1], None, own[1]
    return own[:-2], own[-2], own[-1]


def split_day(own: list[Click], validates: bool) -> tuple[list[Click], Click | None, None]:
    """The same for the clicks before dt: who validates does so with the last one."""
    return (own[:-1], own[-1], None) if validates else (own, None, None)


def vocabulary(train: list[Click], held_out: list[Click], config: Any) -> dict[str, Counter]:
    """Kept values and their counts, per feature."""
    counts: dict[str, Counter] = {"item_id": Counter(click.item for click in train)}
    for feature in config.features.user:
        if feature.name == "user_id":
            counts["user_id"] = Counter(click.user for click in train)
        else:
            counts[feature.name] = Counter(v for _, v in {(c.user, c.user_features[feature.name]) for c in train} if v)
    for feature in config.features.item:
        values = [c.item_features[feature.name] for c in train]
        flat = [v for value in values for v in (value if feature.multi else [value])]
        counts[feature.name] = Counter(v for v in flat if v)
    limits = {f.name: f.min_count for f in (*config.features.user, *config.features.item)}
    limits["item_id"] = config.features.item_id.min_count
    kept = {name: Counter({v: n for v, n in c.items() if n >= limits[name]}) for name, c in counts.items()}
    if limits["item_id"] == 1:
        for click in held_out:
            kept["item_id"].setdefault(click.item, 0)
    return kept


def tokens_of(clicks: list[Click], kept: Counter, settings: Any, *, start_token: bool = True) -> list[Click | None]:
    """3.1: filtered items dropped, truncated, then the start token (None) before a user's true first click."""
    known: list[Click | None] = [click for click in clicks if click.item in kept]
    truncated = settings.max_history is not None and len(known) > settings.max_history
    if truncated:
        known = known[-settings.max_history :]
    return [None, *known] if settings.start_token and start_token and not truncated and known else known


def sample(
    user: str, history: list[Click | None], target: Click, age: float, vocab: dict[str, Counter], config: Any
) -> dict[str, Any]:
    if config.samples.order == "newest_first":
        history = history[::-1]

    def known(feature: str, value: str | None) -> str | None:
        return value if value in vocab[feature] else NULL

    features: dict[str, Any] = {}
    for feature in config.features.user:
        value = user if feature.name == "user_id" else target.user_features[feature.name]
        features[feature.name] = known(feature.name, value)
    for feature in config.features.item:
        values: list[str | None] = []
        for token in history:
            own = None if token is None else token.item_features[feature.name]
            values += [known(feature.name, v) for v in ((own or [None]) if feature.multi else [own])]
        features[feature.name] = values
    return {
        "user_id": user,
        "history": [None if token is None else token.item for token in history],
        "target": known("item_id", target.item),
        "example_age": age,
        "features": features,
    }


def samples(
    clicks: list[Click], config: Any, validates: Set[str] = frozenset(), since: float = -math.inf
) -> dict[str, list[dict[str, Any]]]:
    """Every sample per split of the clicks before the hold-out, subsampling and negatives left out.

    Args:
        validates: with protocol `day`, the users whose last click is validation.
        since: no click before it is counted for the vocabulary or is a training target.
    """
    by_day = config.evaluation.protocol == "day"
    users = {
        user: split_day(own, user in validates) if by_day else split_last_click(own) for user, own in by_user(clicks).items()
    }
    train = [click for own, _, _ in users.values() for click in own]
    held_out = [click for _, *held in users.values() for click in held if click]
    vocab = vocabulary([c for c in train if c.time >= since], [c for c in held_out if c.time >= since], config)
    settings, newest = config.samples, max((click.time for click in train), default=0.0)
    by_time = config.input.ordering == "time"
    found: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for user, (own, validation, test) in users.items():
        tokens = tokens_of(own, vocab["item_id"], settings)
        targets = [i for i in range(1, len(tokens)) if tokens[i].time >= since]
        for i in targets[: settings.max_targets_per_user]:
            target = tokens[i]
            assert target is not None
            age = (newest - target.time) / 86400 if by_time else 0.0
            found["train"].append(sample(user, tokens[max(0, i - settings.window_size) : i], target, age, vocab, config))
        for name, target, before in (
            ("validation", validation, own),
            ("test", test, own + ([validation] if validation else [])),
        ):
            if target and before:
                history = tokens_of(before, vocab["item_id"], settings)[-settings.window_size :]
                found[name].append(sample(user, history, target, 0.0, vocab, config))
    return found
