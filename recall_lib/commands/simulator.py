"""A deterministic click log of a made-up magazine: drifting tastes, fresh and hot articles, in both log formats.

Readers walk over 48 topics. From the topic just read they stay, go on to one of the topics it leads to (the same ones for
everybody: what comes next depends on what was read last), or return to a favourite of their own, which age and city
colour. Inside a topic they pick by appeal, and a fresh article has more of it for some days. A few clicks go to the day's
hot articles whatever the topic, nobody reads an article twice, and what a reader saw and passed over has click = 0.

A log of any size is made of blocks of readers. The magazine is a function of (items, days, seed), a block one of the plan
and the block's number, with a stretch of random numbers of its own: `simulate` puts all blocks of a small log together,
`recall simulate` (simulate.py) runs those of a large one side by side.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recall_lib.process.errors import UsageError
from recall_lib.samples.ragged import Float64s, Ints

FIRST_DAY = "2024-03-01"
DAYS = 10
SEED = 20161003
BLOCK = 4000  # readers simulated together
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

SECONDS = 86_400  # of a day
_VISIT = 0.65  # chance that a reader comes on a day
_PACE = 5.0  # mean clicks of a visit after its first
_PILOT = 2000  # readers from whom a plan learns how many clicks fall away
_MOST = 40.0  # tried clicks a reader and day; above it visits would run into the night
_STAY, _LEAD = 0.35, 0.50  # chances of a reader's next topic; what is left is the way back to a favourite
_NEAR = 0.65  # of the topics led to, the one of the same category
_HOT_CLICKS, _HOT_ARTICLES = 0.08, 20  # share of the clicks, and articles, that are hot on a day
_FRESH, _FRESH_DAYS = 0.25, 2.0  # share of the articles born during the log; days until their extra appeal falls to 1/e
_PASSED_OVER = 0.5  # impressions without a click per click

Columns = dict[str, npt.NDArray[np.str_]]


@dataclass(frozen=True)
class Plan:
    """What is simulated; the defaults are the demo's, `plan_for` makes one for a wanted number of clicks.

    Attributes:
        users, items, days, seed: readers, articles, days from FIRST_DAY 00:00 UTC, and the source of every chance.
        visit: chance that a reader comes on a day.
        pace: mean clicks of a visit after its first.
        live: chance that a click goes to the live page, one article that is there from the start and, alone among them,
            is read again and again.
        robot: clicks of one more reader, a machine that goes round and round the catalogue at an even pace.
    """

    users: int = 4000
    items: int = 1500
    days: int = DAYS
    seed: int = SEED
    visit: float = _VISIT
    pace: float = _PACE
    live: float = 0.0
    robot: int = 0

    @property
    def readers(self) -> int:
        """The users and, last, the robot if there is one."""
        return self.users + (self.robot > 0)

    @property
    def blocks(self) -> int:
        """Block n holds the readers from n * BLOCK to before (n + 1) * BLOCK."""
        return -(-self.readers // BLOCK)


@dataclass(frozen=True)
class Block:
    """What a block of readers did, ordered by time, reader, article.

    Attributes:
        user, item: index of the reader in the block and of the article, int64 [events].
        time: seconds since 1970-01-01 UTC, int64 [events].
        click: 1 = click, 0 = impression, int64 [events].
        readers: user_id, city, province, age, gender, phone, each text [readers of the block].
        reread: clicks that fell away because the reader had read the article.
        chance: the random numbers that come after the block's.
    """

    user: Ints
    item: Ints
    time: Ints
    click: Ints
    readers: Columns
    reread: int
    chance: np.random.Generator


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


@dataclass(frozen=True)
class _Magazine:
    """What all readers have in common. An article of topic t is at a place from first[t] to before first[t + 1].

    Attributes:
        topic: of each article, [items].
        leads_to: the two topics that each topic leads to, [topics, 2].
        order, first: article at each place, [items]; each topic's first place, [topics + 1].
        running: on each day the sum of the weights of the places before, [days, items + 1].
        hot: each day's articles of the greatest weight, [days, _HOT_ARTICLES].
        by_birth, alive: articles, oldest first, [items]; how many of them are born by each day, [days].
        live: the article of the greatest appeal among those that are there from the start.
        bits: source of the random numbers that come after the magazine's own; never drawn from.
    """

    topic: Ints
    leads_to: Ints
    order: Ints
    first: Ints
    running: Float64s
    hot: Ints
    by_birth: Ints
    alive: Ints
    live: int
    bits: np.random.PCG64

    def chance(self, block: int) -> np.random.Generator:
        """The random numbers of a block: the first goes on where the magazine ended, the others lie far apart (2^127)."""
        return np.random.Generator(self.bits.jumped(block) if block else copy.deepcopy(self.bits))


def simulate(users: int = 4000, items: int = 1500, days: int = DAYS, seed: int = SEED) -> Log:
    """The log of the `days` days from FIRST_DAY 00:00 UTC. Equal arguments give equal logs."""
    plan = Plan(users, items, days, seed)
    blocks = [block(plan, number) for number in range(plan.blocks)]
    user = np.concatenate([done.user + number * BLOCK for number, done in enumerate(blocks)])
    item, time, click = (np.concatenate([getattr(done, name) for done in blocks]) for name in ("item", "time", "click"))
    order = np.lexsort((click, item, user, time))
    readers = {name: np.concatenate([done.readers[name] for done in blocks]) for name in blocks[0].readers}
    return Log(user[order], item[order], time[order], click[order], readers, articles(plan))


def plan_for(
    clicks: int,
    *,
    users: int | None = None,
    items: int | None = None,
    days: int = DAYS,
    seed: int = SEED,
    skew: float = 0.0,
    robot: int = 0,
) -> Plan:
    """The plan whose log has about `clicks` clicks (within some 3% from 100,000 on, closer the more; impressions come on top).

    How many clicks fall away as read before depends on the whole plan: a small block of readers tries it out.

    Args:
        users: readers; None: one for 40 clicks.
        items: articles; None: one for 500 clicks, at least 1500.
        skew: share of the readers' clicks that go to the live page; 0: it is an article like any other.
        robot: clicks of the robot, part of `clicks`.

    Raises:
        UsageError: so few readers and articles cannot give so many clicks, or an argument is out of its range.
    """
    users = max(1, (clicks - robot) // 40) if users is None else users
    items = max(1500, clicks // 500) if items is None else items
    if min(users, days, clicks - robot) < 1 or min(robot, seed) < 0 or not 0 <= skew < 1:
        raise UsageError(
            "users, days and the readers' clicks must be positive, robot and seed not negative, skew from 0 to below 1"
        )
    wanted, kept, odds = (clicks - robot) / (users * days), 1.0, skew / (1 - skew)
    plan = Plan(users, items, days, seed, robot=robot)
    for _ in range(5):
        tried = wanted / kept
        if tried > _MOST:
            raise UsageError(f"{wanted:.1f} clicks a reader and day are too many for this magazine: raise users, days or items")
        plan = replace(plan, visit=min(_VISIT, tried), pace=max(0.0, tried / _VISIT - 1), live=odds / (1 + odds))
        pilot = block(replace(plan, users=_PILOT, robot=0), 0)
        clicked = pilot.item[pilot.click == 1]
        kept = (clicked.size + 1) / (clicked.size + pilot.reread + 1)
        share = ((clicked == magazine_of(items, days, seed).live).sum() + 1) / (clicked.size + 2)
        odds *= skew * (1 - share) / (share * (1 - skew))
    return plan


@lru_cache(maxsize=1)
def magazine_of(items: int, days: int, seed: int) -> _Magazine:
    """The magazine: 8 bytes an article and day, made once a process.

    Raises:
        UsageError: there are fewer articles than topics.
    """
    if items < _TOPIC.size:
        raise UsageError(f"the magazine needs at least {_TOPIC.size} items, one a topic")
    bits = np.random.PCG64(seed)
    rng = np.random.Generator(bits)
    topic = np.arange(items) % _TOPIC.size
    born = np.where(rng.random(items) < _FRESH, rng.integers(0, days, items), 0)  # 0: there from the start
    born[: _TOPIC.size] = 0  # no topic is ever empty
    appeal = rng.pareto(1.2, items) + 0.2
    order = np.argsort(topic, kind="stable")
    running, hot = np.zeros((days, items + 1)), np.zeros((days, min(_HOT_ARTICLES, items)), np.int64)
    for day in range(days):
        weight = appeal * (0.4 + np.exp(-(day - born) / _FRESH_DAYS) * (born > 0)) * (born <= day)
        np.cumsum(weight[order], out=running[day, 1:])
        hot[day] = np.argsort(-weight, kind="stable")[:_HOT_ARTICLES]
    by_birth = np.argsort(born, kind="stable")
    return _Magazine(
        topic=topic,
        leads_to=_leads(rng),
        order=order,
        first=np.searchsorted(topic[order], np.arange(_TOPIC.size + 1)),
        running=running,
        hot=hot,
        by_birth=by_birth,
        alive=np.searchsorted(born[by_birth], np.arange(days), side="right"),
        live=int(np.argmax(np.where(born == 0, appeal, 0))),
        bits=bits,
    )


@lru_cache(maxsize=1)  # who cuts a block into files asks for it once a file
def block(plan: Plan, number: int) -> Block:
    """What the readers of block `number` (from 0) did on all days, whatever the other blocks do."""
    magazine = magazine_of(plan.items, plan.days, plan.seed)
    rng = magazine.chance(number)
    first, end = number * BLOCK, min((number + 1) * BLOCK, plan.readers)
    users = min(end, plan.users) - first
    readers, favourites, zeal = _readers(rng, first, end)
    user, item, time, click = _visits(rng, magazine, plan, favourites[:users], zeal[:users])
    clicked = np.flatnonzero(click)
    _, at_first = np.unique(user[clicked] * plan.items + item[clicked], return_index=True)
    kept = (click == 0) | ((item == magazine.live) & (plan.live > 0))
    kept[clicked[at_first]] = True
    reread = int(kept.size - kept.sum())
    columns = [user[kept], item[kept], time[kept], click[kept]]
    if end > plan.users:
        columns = [np.concatenate(both) for both in zip(columns, _crawl(magazine, plan, users), strict=True)]
    user, item, time, click = columns
    order = np.lexsort((click, item, user, time))
    time = time + np.datetime64(FIRST_DAY, "s").astype(np.int64)
    return Block(user[order], item[order], time[order], click[order], readers, reread, rng)


def articles(plan: Plan) -> Columns:
    """The articles' columns as in Log.

    Their texts are drawn where the first block's random numbers end, for no better reason than that the demo's log, and with
    it every figure measured on it, began that way.
    """
    chance = copy.deepcopy(block(plan, 0).chance)  # the block may be asked for again
    return _article_texts(chance, magazine_of(plan.items, plan.days, plan.seed).topic)


def _visits(
    rng: np.random.Generator, magazine: _Magazine, plan: Plan, favourites: Ints, zeal: Float64s
) -> tuple[Ints, Ints, Ints, Ints]:
    """user, item, time (seconds from the log's start) and click of all that is tried and shown, each [events].

    A reader's events are in the order of time; articles that the reader had read are tried again.
    """
    users, hurry = zeal.size, min(1.0, _PACE / plan.pace) if plan.pace else 1.0  # long visits still end before midnight
    place = favourites[:, 0].copy()
    nothing = np.zeros(0, np.int64)
    parts: list[tuple[Ints, Ints, Ints, Ints]] = [(nothing, nothing, nothing, nothing)]
    for day in range(plan.days):
        shelves, hot = (magazine.order, magazine.running[day], magazine.first), magazine.hot[day]
        left = np.where(rng.random(users) < plan.visit, 1 + rng.poisson(plan.pace * zeal), 0)
        clock: Float64s = (day + rng.normal(0.55, 0.15, users).clip(0.05, 0.9)) * float(SECONDS)
        while (who := np.flatnonzero(left)).size:
            place[who] = _move(rng, place[who], favourites[who], magazine.leads_to)
            chosen = np.where(rng.random(who.size) < _HOT_CLICKS, rng.choice(hot, who.size), _pick(rng, shelves, place[who]))
            if plan.live:
                chosen = np.where(rng.random(who.size) < plan.live, magazine.live, chosen)
            passed = _pick(rng, shelves, place[who])
            clock[who] += (20 + rng.exponential(90, who.size)) * hurry
            shown = (rng.random(who.size) < _PASSED_OVER) & (passed != chosen)
            time = clock[who].astype(np.int64)
            parts.append((who, chosen, time, np.ones(who.size, np.int64)))
            parts.append((who[shown], passed[shown], time[shown] - 5, np.zeros(int(shown.sum()), np.int64)))
            left[who] -= 1
    user, item, time, click = (np.concatenate(column) for column in zip(*parts, strict=True))
    return user, item, time, click


def _crawl(magazine: _Magazine, plan: Plan, user: int) -> tuple[Ints, Ints, Ints, Ints]:
    """The robot's clicks, columns as of _visits: round and round what is born, so that nothing comes twice at a time."""
    nth = np.arange(plan.robot)
    time = nth * (plan.days * SECONDS) // plan.robot
    item = magazine.by_birth[nth % magazine.alive[time // SECONDS]]
    return np.full(plan.robot, user), item, time, np.ones(plan.robot, np.int64)


def _leads(rng: np.random.Generator) -> Ints:
    """The two topics that each topic leads to, [topics, 2]: the next one of its category, and one anywhere."""
    topics, per_category = np.arange(_TOPIC.size), _TOPIC.size // len(TOPICS)
    near = topics // per_category * per_category + (topics + 1) % per_category
    return np.stack([near, rng.permutation(topics)], axis=1)


def _readers(rng: np.random.Generator, first: int, end: int) -> tuple[Columns, Ints, Float64s]:
    """Readers first to end - 1: their columns, three favourite topics each, [users, 3], and their zeal (mean 1), [users]."""
    users = end - first
    city, age = rng.integers(0, _CITY.size, users), rng.integers(0, _AGE.size, users)
    by_age, by_city = 11 * age + rng.integers(0, 12, users), 8 * city + rng.integers(0, 8, users)
    favourites = np.stack([by_age, by_city, rng.integers(0, _TOPIC.size, users)], axis=1) % _TOPIC.size
    readers = {
        "user_id": np.array([f"u{i:05d}" for i in range(first, end)]),
        "city": _CITY[city],
        "province": _PROVINCE[city],
        "age": _AGE[age],
        "gender": rng.choice(_GENDER, users, p=[0.47, 0.47, 0.06]),
        "phone": rng.choice(_PHONE, users),
    }
    return readers, favourites, rng.gamma(2.0, 0.5, users)


def _pick(rng: np.random.Generator, shelves: tuple[Ints, Float64s, Ints], place: Ints) -> Ints:
    """An article of each topic of `place`, by weight; shelves are a magazine's order, one day's running and first."""
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


def article_ids(items: int) -> npt.NDArray[np.str_]:
    """The articles' ids, [items]."""
    return np.array([f"a{i:05d}" for i in range(items)])


def _article_texts(rng: np.random.Generator, topic: Ints) -> Columns:
    """The articles' columns."""
    size = topic.size
    form, quality, subject = rng.choice(_FORM, size), rng.choice(_QUALITY, size), rng.choice(_SUBJECT, size)
    also = np.where(rng.random(size) < 0.4, rng.integers(0, _TOPIC.size, size), topic)
    words = list(zip(_TOPIC[topic], _TOPIC[also], form, quality, subject, strict=True))
    return {
        "article_id": article_ids(size),
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
    days = log.time // SECONDS
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
