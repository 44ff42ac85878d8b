"""A deterministic click log of a made-up magazine: drifting tastes, fresh and hot articles, in both log formats.

Readers walk over 48 topics. From the topic just read they stay, go on to one of the topics it leads to (the same ones for
everybody: what comes next depends on what was read last), or return to a favourite of their own, which age and city
colour. Inside a topic they pick by appeal, and a fresh article has more of it for some days. A few clicks go to the day's
hot articles whatever the topic, nobody reads an article twice, and what a reader saw and passed over has click = 0.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

FIRST_DAY = "2024-03-01"
DAYS = 10
CLICK_COLUMNS = ("user_id", "article_id", "expo_time", "click", "city", "age", "gender")
ARTICLE_COLUMNS = ("article_id", "category", "tags", "title")

TOPICS = {
    "food": ("baking", "grilling", "pasta", "vegan", "cheese", "coffee"),
    "travel": ("alps", "islands", "trains", "camping", "cities", "deserts"),
    "sport": ("football", "tennis", "cycling", "running", "swimming", "chess"),
    "science": ("space", "climate", "physics", "biology", "oceans", "fossils"),
    "tech": ("phones", "robots", "coding", "gaming", "drones", "chips"),
    "culture": ("films", "novels", "theatre", "jazz", "opera", "painting"),
    "home": ("gardens", "furniture", "pets", "tools", "cleaning", "energy"),
    "money": ("housing", "jobs", "taxes", "saving", "startups", "markets"),
}
_CATEGORY = np.array([category for category, topics in TOPICS.items() for _ in topics])
_TOPIC = np.array([topic for topics in TOPICS.values() for topic in topics])
_FORM = np.array(["news", "guide", "interview", "video", "longread", "quiz"])
_QUALITY = np.array(["quiet", "golden", "hidden", "early", "bold", "slow", "bright", "honest", "late", "small", "wild", "new"])
_SUBJECT = np.array(
    ["season", "mistake", "habit", "secret", "road", "lesson", "winner", "question", "week", "turn", "trade", "plan"]
)
_CITY = np.array(["Lisbon", "Faro", "Porto", "Braga", "Coimbra", "Aveiro"])
_PROVINCE = np.array(["South", "South", "North", "North", "Centre", "Centre"])
_AGE = np.array(["18-24", "25-34", "35-44", "45-54", "55+"])
_GENDER = np.array(["f", "m", ""])
_PHONE = np.array(["Aster 3", "Birch S", "Cedar Mini", "Dune Pro", "Elm 5"])

_DAY = 86_400  # seconds
_VISIT = 0.65  # chance that a reader comes on a day
_STAY, _LEAD = 0.35, 0.50  # chances of a reader's next topic; what is left is the way back to a favourite
_NEAR = 0.65  # of the topics led to, the one of the same category
_HOT_CLICKS, _HOT_ARTICLES = 0.08, 20  # share of the clicks, and articles, that are hot on a day
_FRESH, _FRESH_DAYS = 0.25, 2.0  # share of the articles born during the log; days until their extra appeal falls to 1/e
_PASSED_OVER = 0.5  # impressions without a click per click

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Columns = dict[str, npt.NDArray[np.str_]]


@dataclass(frozen=True)
class Log:
    """A simulated log, ordered by time.

    Attributes:
        user, item: index of the reader and of the article, int64 [events].
        time: seconds since 1970-01-01 UTC, int64 [events].
        click: 1 = click, 0 = impression, int64 [events].
        readers: user_id, city, province, age, gender, phone, each text [users].
        articles: article_id, category, tags (joined by _), title, each text [items].
    """

    user: Ints
    item: Ints
    time: Ints
    click: Ints
    readers: Columns
    articles: Columns


def simulate(users: int = 4000, items: int = 1500, days: int = DAYS, seed: int = 20161003) -> Log:
    """The log of the `days` days from FIRST_DAY 00:00 UTC. Equal arguments give equal logs."""
    rng = np.random.default_rng(seed)
    topic, born, appeal = _found(rng, items, days)
    leads_to = _leads(rng)
    readers, favourites, zeal = _subscribe(rng, users)
    place = favourites[:, 0].copy()
    read = np.zeros((users, items), bool)
    parts: list[tuple[Ints, Ints, Ints, Ints]] = []
    for day in range(days):
        weight = appeal * (0.4 + np.exp(-(day - born) / _FRESH_DAYS) * (born > 0)) * (born <= day)
        shelves, hot = _shelves(topic, weight), np.argsort(-weight, kind="stable")[:_HOT_ARTICLES]
        left = np.where(rng.random(users) < _VISIT, 1 + rng.poisson(5 * zeal), 0)
        clock: Floats = (day + rng.normal(0.55, 0.15, users).clip(0.05, 0.9)) * float(_DAY)
        while (who := np.flatnonzero(left)).size:
            place[who] = _move(rng, place[who], favourites[who], leads_to)
            chosen = np.where(rng.random(who.size) < _HOT_CLICKS, rng.choice(hot, who.size), _pick(rng, shelves, place[who]))
            passed = _pick(rng, shelves, place[who])
            clock[who] += 20 + rng.exponential(90, who.size)
            clicked = ~read[who, chosen]
            shown = (rng.random(who.size) < _PASSED_OVER) & (passed != chosen)
            read[who[clicked], chosen[clicked]] = True
            time = clock[who].astype(np.int64)
            parts.append((who[clicked], chosen[clicked], time[clicked], np.ones(int(clicked.sum()), np.int64)))
            parts.append((who[shown], passed[shown], time[shown] - 5, np.zeros(int(shown.sum()), np.int64)))
            left[who] -= 1
    user, item, time, click = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((click, item, user, time))
    start = np.datetime64(FIRST_DAY, "s").astype(np.int64)
    return Log(user[order], item[order], time[order] + start, click[order], readers, _print(rng, topic))


def _found(rng: np.random.Generator, items: int, days: int) -> tuple[Ints, Ints, Floats]:
    """Of each article the topic, the day it is born (0: there from the start) and the appeal, each [items]."""
    if items < _TOPIC.size:
        raise ValueError(f"at least {_TOPIC.size} items, one a topic")
    topic = np.arange(items) % _TOPIC.size
    born = np.where(rng.random(items) < _FRESH, rng.integers(0, days, items), 0)
    born[: _TOPIC.size] = 0  # no topic is ever empty
    return topic, born, rng.pareto(1.2, items) + 0.2


def _leads(rng: np.random.Generator) -> Ints:
    """The two topics that each topic leads to, [topics, 2]: the next one of its category, and one anywhere."""
    topics, per_category = np.arange(_TOPIC.size), _TOPIC.size // len(TOPICS)
    near = topics // per_category * per_category + (topics + 1) % per_category
    return np.stack([near, rng.permutation(topics)], axis=1)


def _subscribe(rng: np.random.Generator, users: int) -> tuple[Columns, Ints, Floats]:
    """The readers' columns, three favourite topics each, [users, 3], and their zeal (mean 1), [users]."""
    city, age = rng.integers(0, _CITY.size, users), rng.integers(0, _AGE.size, users)
    by_age, by_city = 11 * age + rng.integers(0, 12, users), 8 * city + rng.integers(0, 8, users)
    favourites = np.stack([by_age, by_city, rng.integers(0, _TOPIC.size, users)], axis=1) % _TOPIC.size
    readers = {
        "user_id": np.array([f"u{i:05d}" for i in range(users)]),
        "city": _CITY[city],
        "province": _PROVINCE[city],
        "age": _AGE[age],
        "gender": rng.choice(_GENDER, users, p=[0.47, 0.47, 0.06]),
        "phone": rng.choice(_PHONE, users),
    }
    return readers, favourites, rng.gamma(2.0, 0.5, users)


def _shelves(topic: Ints, weight: Floats) -> tuple[Ints, Floats, Ints]:
    """Articles in the order of their topics, the running sum of their weights, and each topic's first place there."""
    order = np.argsort(topic, kind="stable")
    return order, np.concatenate([[0.0], np.cumsum(weight[order])]), np.searchsorted(topic[order], np.arange(_TOPIC.size + 1))


def _pick(rng: np.random.Generator, shelves: tuple[Ints, Floats, Ints], place: Ints) -> Ints:
    """An article of each topic of `place`, by weight."""
    order, running, first = shelves
    low, high = running[first[place]], running[first[place + 1]]
    chosen = np.searchsorted(running, low + rng.random(place.size) * (high - low), side="right") - 1
    return order[chosen.clip(first[place], first[place + 1] - 1)]


def _move(rng: np.random.Generator, place: Ints, favourites: Ints, leads_to: Ints) -> Ints:
    """Each reader's next topic, from the one just read."""
    chance = rng.random(place.size)
    lead = leads_to[place, (rng.random(place.size) >= _NEAR).astype(np.int64)]
    home = favourites[np.arange(place.size), rng.integers(0, favourites.shape[1], place.size)]
    return np.where(chance < _STAY, place, np.where(chance < _STAY + _LEAD, lead, home))


def _print(rng: np.random.Generator, topic: Ints) -> Columns:
    """The articles' columns."""
    size = topic.size
    form, quality, subject = rng.choice(_FORM, size), rng.choice(_QUALITY, size), rng.choice(_SUBJECT, size)
    also = np.where(rng.random(size) < 0.4, rng.integers(0, _TOPIC.size, size), topic)
    words = list(zip(_TOPIC[topic], _TOPIC[also], form, quality, subject, strict=True))
    return {
        "article_id": np.array([f"a{i:05d}" for i in range(size)]),
        "category": _CATEGORY[topic],
        "tags": np.array(["_".join(dict.fromkeys([own, other, kind])) for own, other, kind, _, _ in words]),
        "title": np.array([f"{own.capitalize()} {kind}: the {mood} {noun}" for own, _, kind, mood, noun in words]),
    }


def write_rows(log: Log, folder: Path) -> None:
    """Write clicks/<day>.csv and items.csv, with the slips that real logs have: repeated and unreadable rows.

    Columns as in CLICK_COLUMNS and ARTICLE_COLUMNS.
    """
    (folder / "clicks").mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "items.csv", ARTICLE_COLUMNS, zip(*(log.articles[name] for name in ARTICLE_COLUMNS), strict=True))
    days = log.time // _DAY
    for day in np.unique(days):
        here = days == day
        user, item = log.user[here], log.item[here]
        who = (log.readers[name][user] for name in ("city", "age", "gender"))
        rows = list(
            zip(
                log.readers["user_id"][user],
                log.articles["article_id"][item],
                log.time[here],
                log.click[here],
                *who,
                strict=True,
            )
        )
        first, last = rows[0], rows[-1]
        slips = [
            last,  # sent twice
            (*first[:2], "soon", *first[3:]),
            (first[0], "", *first[2:]),
            (*first[:3], "maybe", *first[4:]),
            first[:2],
        ]
        _write_csv(folder / "clicks" / f"{np.datetime64(int(day), 'D')}.csv", CLICK_COLUMNS, [*rows, *slips])


def write_sessions(log: Log, path: Path) -> None:
    """Write one line a reader: user, province, city, clicks `item:category:tags` oldest first joined by `;`, phone."""
    clicked = log.click == 1
    user, item = log.user[clicked], log.item[clicked]
    order = np.argsort(user, kind="stable")
    text = np.array([":".join(log.articles[name][i] for name in ARTICLE_COLUMNS[:3]) for i in range(len(log.articles["tags"]))])
    lines = []
    for clicks in np.split(order, np.flatnonzero(np.diff(user[order])) + 1):
        who = user[clicks[0]]
        name, province, city, phone = (log.readers[column][who] for column in ("user_id", "province", "city", "phone"))
        lines.append("\t".join([name, province, city, ";".join(text[item[clicks]]), phone]))
    slips = [lines[0], lines[0].rsplit("\t", 1)[0], "\t".join(["u-cut", "North", "Porto", "a00000", "Elm 5"])]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, *slips]) + "\n", encoding="utf-8")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
