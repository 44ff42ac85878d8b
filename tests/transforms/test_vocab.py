"""Counts, the frequency filter, ids and encoding against plain Python."""

import random
from collections import Counter, defaultdict

import pytest

from recall_lib.config import Features
from recall_lib.store import schemas
from recall_lib.transforms import vocab

FEATURES = Features.model_validate(
    {
        "item_id": {"min_count": 1},
        "user": [{"name": "user_id", "min_count": 2}, {"name": "city", "min_count": 2}],
        "item": [{"name": "category", "min_count": 2}, {"name": "tags", "min_count": 2, "multi": True}],
    }
)
COUNTS = "feature string, value string, count long"
VOCAB = schemas.VOCAB

CLICKS = [  # user, item, city, category, tags, split
    ("u1", "a", "x", "k", ["s", "t"], "train"),
    ("u1", "a", "x", "k", ["s", "t"], "train"),  # clicked again: the item twice, the city once
    ("u1", "b", "y", None, [], "train"),  # the user moved: both cities, once each
    ("u2", "b", "x", "k", ["t"], "train"),
    ("u2", "c", None, "l", ["t", "t"], "train"),
    ("u3", "a", "z", "l", ["s"], "train"),
    ("u3", "late", "w", "m", ["r"], "validation"),
    ("u2", "later", "w", "m", ["r"], "test"),
    ("u1", "later", "x", "m", ["r"], "test"),
    ("u4", "a", "x", "k", ["s"], "test"),
]


def clicks_frame(spark, clicks=CLICKS):
    names = ["user_id", "item_id", "city", "category", "tags", "split"]
    types = "user_id string, item_id string, city string, category string, tags array<string>, split string"
    frame = spark.createDataFrame(clicks, types).select(*names)
    return frame.repartition(4)


def counted(frame):
    rows = frame.collect()
    found = {(row["feature"], row["value"]): row["count"] for row in rows}
    assert len(found) == len(rows), "a key stands twice"
    return found


def expected_counts(min_count):
    counts = Counter()
    cities = set()
    for user, item, city, category, tags, split in CLICKS:
        if split == "train":
            counts.update([("item_id", item), ("user_id", user), ("category", category)])
            counts.update(("tags", tag) for tag in tags or [None])
            cities.add((user, city))
    counts.update(("city", city) for _, city in cities)
    if min_count == 1:
        for _, item, *_, split in CLICKS:
            if split != "train":
                counts.setdefault(("item_id", item), 0)
    return counts


def count(spark, features):
    clicks = clicks_frame(spark)
    return vocab.count_values(vocab.training_counts(clicks.drop("split"), clicks.where("split <> 'train'")), features)


@pytest.mark.parametrize("min_count", [1, 2])
def test_items_and_users_count_a_click_other_user_features_a_user(spark, min_count):
    item_id = FEATURES.item_id.model_copy(update={"min_count": min_count})
    features = FEATURES.model_copy(update={"item_id": item_id})
    found = counted(count(spark, features))
    assert found == expected_counts(min_count)
    assert found["city", "x"] == 2 < found["item_id", "a"] == 3
    assert found["tags", None] == 1
    assert found["tags", "t"] == 5
    assert ("category", "m") not in found
    assert found.get(("item_id", "later")) == (0 if min_count == 1 else None)


def test_temporary_columns_take_no_names_from_features(spark):
    names = {"city": "clicks", "category": "n", "tags": "nth"}
    sections = FEATURES.model_dump()
    for feature in (*sections["user"], *sections["item"]):
        feature["name"] = names.get(feature["name"], feature["name"])
    clicks = clicks_frame(spark).withColumnsRenamed(names)
    held_out = clicks.where("split <> 'train'")
    found = counted(
        vocab.count_values(vocab.training_counts(clicks.drop("split"), held_out), Features.model_validate(sections))
    )
    assert found == {(names.get(name, name), value): n for (name, value), n in expected_counts(1).items()}


def test_hashed_features_are_not_counted(spark):
    user = tuple(f.model_copy(update={"buckets": 5}) for f in FEATURES.user)
    item = tuple(f.model_copy(update={"buckets": 5}) for f in FEATURES.item)
    found = counted(count(spark, FEATURES.model_copy(update={"user": user, "item": item})))
    assert {feature for feature, _ in found} == {"item_id"}


def test_rare_values_fold_into_unknown_with_their_counts(spark):
    features = Features.model_validate({"item_id": {"min_count": 3}, "user": [{"name": "city", "min_count": 2}]})
    rows = [("item_id", "a", 3), ("item_id", "b", 2), ("item_id", "c", 1), ("city", "x", 2), ("city", "y", 1)]
    rows += [("city", None, 7)]
    found = counted(vocab.filter_rare(spark.createDataFrame(rows, COUNTS), features))
    assert found == {("item_id", "a"): 3, ("item_id", None): 3, ("city", "x"): 2, ("city", None): 8}


def test_items_of_the_hold_out_alone_come_last(spark):
    counts = vocab.filter_rare(count(spark, FEATURES), FEATURES)
    items = {r["value"]: r["index"] for r in vocab.assign_ids(counts, 3)[0].collect() if r["feature"] == "item_id"}
    assert items == {"a": 2, "b": 3, "c": 4, "late": 5, "later": 6}


# Ordered by their UTF-8 bytes; UTF-16 (Java, JavaScript) has the last two the other way round.
BY_BYTES = ["", "10", "9", "Z", "a", "ab", "é", "北京", "\ufb00", "\U00010000"]


def skewed_counts(seed):
    rng = random.Random(seed)
    rows = [("a_feature", value, 5) for value in BY_BYTES]
    rows += [("b_feature", f"v{n}", int(rng.paretovariate(1))) for n in range(150)]
    rows += [("c_feature", "only", 1), ("a_feature", None, 9), ("d_feature", None, 4)]
    rows += [("item_id", f"i{n}", rng.choice([0, 1, 1, 2, 3])) for n in range(60)]
    rng.shuffle(rows)
    return rows


@pytest.mark.parametrize("partitions", [1, 2, 7, 30])
def test_ids_fall_by_count_ties_by_bytes_for_any_partitions(spark, partitions):
    rows = skewed_counts(partitions)
    by_feature = defaultdict(list)
    for feature, value, count in rows:
        by_feature[feature].append((value, count))
    expected = set()
    for feature, pairs in by_feature.items():
        expected |= {(feature, 1, None, count) for value, count in pairs if value is None}
        known = sorted(((v, n) for v, n in pairs if v is not None), key=lambda pair: (-pair[1], pair[0].encode()))
        expected |= {(feature, index, value, count) for index, (value, count) in enumerate(known, start=2)}
    frame, _ = vocab.assign_ids(spark.createDataFrame(rows, COUNTS), partitions)
    found = [tuple(row) for row in schemas.enforce(frame, VOCAB, "vocab").collect()]
    spark.catalog.clearCache()
    assert len(found) == len(rows)
    assert set(found) == expected
    assert [v for _, _, v, _ in sorted(r for r in found if r[0] == "a_feature" and r[2] is not None)] == BY_BYTES


def test_nothing_known_gives_only_unknowns(spark):
    found = vocab.assign_ids(spark.createDataFrame([("city", None, 3)], COUNTS), 3)[0].collect()
    assert [tuple(row) for row in found] == [("city", 1, None, 3)]


def test_sizes_count_padding_and_unknown(spark):
    features = Features.model_validate(
        {"user": [{"name": "city"}, {"name": "age", "buckets": 10}], "item": [{"name": "tags", "multi": True}]}
    )
    rows = [("item_id", None, 4), ("item_id", "a", 3), ("item_id", "b", 2), ("city", None, 6)]
    found = vocab.describe(vocab.assign_ids(spark.createDataFrame(rows, COUNTS), 2)[1], features)
    assert found["sizes"] == {"item_id": 4, "city": 2, "age": 12, "tags": 2}
    assert found["known_count"] == {"item_id": 5, "city": 0}
    assert found["unknown_count"] == {"item_id": 4, "city": 6}
    assert found["train_clicks"] == 9


def test_encoding_looks_values_up_and_keeps_every_row(spark):
    rows = [("item_id", 1, None, 9), ("item_id", 2, "a", 3), ("user_id", 2, "u1", 3), ("city", 2, "x", 2)]
    rows += [("category", 2, "k", 3), ("tags", 2, "t", 5), ("tags", 3, "s", 4)]
    # The same word is a value of several features.
    rows += [("city", 3, "k", 1), ("category", 3, "x", 1)]
    encoded = vocab.encode(clicks_frame(spark), spark.createDataFrame(rows, VOCAB), FEATURES)
    names = ["user_id", "item_id", "city", "category", "tags", "split"]
    columns = ["item_index", "user_id_index", "city_index", "category_index", "tags_index"]
    found = Counter(repr(([row[n] for n in names], [row[n] for n in columns])) for row in encoded.collect())
    users, items, cities = {"u1": 2}, {"a": 2}, {"x": 2, "k": 3}
    categories, tags_ids = {"k": 2, "x": 3}, {"t": 2, "s": 3}
    expected = Counter()
    for user, item, city, category, tags, split in CLICKS:
        tags_index = [tags_ids.get(tag, 1) for tag in tags] or [1]
        ids = [items.get(item, 1), users.get(user, 1), cities.get(city, 1), categories.get(category, 1), tags_index]
        expected[repr(([user, item, city, category, tags, split], ids))] += 1
    assert found == expected


def wide(multi: int) -> Features:
    return Features.model_validate({"item": [{"name": f"t{n}", "multi": True, "min_count": 1} for n in range(multi)]})


def wide_events(spark, multi: int, clicks: int):
    def lists(click: int):
        return [[f"v{(click + n) % 5 + k}" for k in range((click * n) % 4)] for n in range(multi)]

    rows = [("u", f"i{click % 9}", *lists(click)) for click in range(clicks)]
    columns = ["user_id string", "item_id string", *(f"t{n} array<string>" for n in range(multi))]
    return spark.createDataFrame(rows, ", ".join(columns))


def test_forty_multi_valued_features(spark):
    """Each by its own vocabulary, and a plan that grows by as much with each of them."""
    ids = {(f"t{n}", f"v{v}"): 2 + (v + n) % 8 for n in range(40) for v in range(8) if (v + n) % 5}
    table = [("item_id", n + 2, f"i{n}", 1) for n in range(9)] + [(name, id, value, 1) for (name, value), id in ids.items()]
    vocabulary = spark.createDataFrame(table, VOCAB)
    encoded = vocab.encode(wide_events(spark, 40, 60), vocabulary, wide(40)).collect()
    assert len(encoded) == 60
    for row in encoded:
        for n in range(40):
            assert row[f"t{n}_index"] == ([ids.get((f"t{n}", value), 1) for value in row[f"t{n}"]] or [1])
    sizes = {}
    for multi in (5, 10, 20):
        plan = vocab.encode(wide_events(spark, multi, 1), vocabulary, wide(multi))._jdf.queryExecution().analyzed()
        sizes[multi] = len(plan.toString().splitlines())
    assert sizes[20] - sizes[10] == 2 * (sizes[10] - sizes[5])


def test_buckets_hash_what_is_known(spark):
    features = Features.model_validate(
        {
            "user": [{"name": "city", "buckets": 16}],
            "item": [{"name": "category", "buckets": 16}, {"name": "tags", "buckets": 3, "multi": True}],
        }
    )
    words = [f"w{n}" for n in range(40)]
    clicks = [("u", "a", word, word, [word, None, words[0]], "train") for word in words] + [("u", "b", None, None, [], "train")]
    empty = spark.createDataFrame([], VOCAB)

    def encode(frame):
        return {r["city"]: r for r in vocab.encode(frame, empty, features).collect()}

    found = encode(clicks_frame(spark, clicks))
    assert found[None]["city_index"] == found[None]["category_index"] == 1
    assert found[None]["tags_index"] == [1]
    cities, categories = ([found[word][f"{name}_index"] for word in words] for name in ("city", "category"))
    assert set(cities) | set(categories) <= set(range(2, 18))
    assert len(set(cities)) > 8, "spread over the buckets"
    assert cities != categories, "each feature hashes its own way"
    tags = [found[word]["tags_index"] for word in words]
    assert all(len(ids) == 3 and ids[1] == 1 and ids[2] == tags[0][0] for ids in tags)
    assert {ids[0] for ids in tags} == {2, 3, 4}
    again = encode(clicks_frame(spark, clicks[::-1]).coalesce(1))
    assert {word: tuple(row) for word, row in again.items()} == {word: tuple(row) for word, row in found.items()}


def test_clicks_may_count_by_their_weight(spark):
    rows = [("u", "a", 1.0), ("u", "a", 3.0), ("v", "b", 0.25), ("v", "b", 0.5), ("w", "b", 3.0)]
    events = spark.createDataFrame(rows, "user_id string, item_id string, weight double")
    held_out = events.where("user_id = 'w'")
    features = Features.model_validate({"item_id": {"min_count": 2}})
    plain = vocab.count_values(vocab.training_counts(events, held_out), features)
    weighed = vocab.count_values(vocab.training_counts(events, held_out, weigh=True), features)
    assert counted(plain) == {("item_id", "a"): 2, ("item_id", "b"): 2}
    assert counted(weighed) == {("item_id", "a"): 4, ("item_id", "b"): 1}  # .75, rounded
