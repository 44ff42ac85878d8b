"""The top-N of every user in a Spark job, beside Spark's ALS, FAISS without Spark and the bare product; how it grows.

Clustered vectors. Ours does what the top_n job does once users' vectors are inferred: Parquet in, Parquet out; ALS writes to
nowhere; both in one session. Starting Spark and building an index count apart.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyspark.ml.recommendation import ALSModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recall_lib.config import Spark
from recall_lib.inference.shipping import Shipped, load_index, ship_folder
from recall_lib.inference.top_n import scored_items
from recall_lib.inference.vectors import blocks, list_column
from recall_lib.retrieval.index import ItemIndex
from recall_lib.samples.ids import FIRST_INDEX
from recall_lib.samples.ragged import Float32s, Ints
from recall_lib.spark import session
from recall_lib.spark.executors import map_batches
from recall_lib.spark.writing import WRITTEN, write_files
from tests.benchmarks.common import CORES, GIB, PeakMemory, Row, faster, smaller

Run = Callable[[], object]

SIZES = {"50k_20k": (50_000, 20_000), "20k_200k": (20_000, 200_000), "5k_1m": (5_000, 1_000_000)}  # users, items
LEAST_USERS, LEAST_ITEMS = 800, 2_000  # however small the scale
DIM, CENTRES = 64, 500
N, FEWER, MORE = 200, 50, 1_000  # items a user
TARGET = 0.99  # recall of the index by promise
TUNING_USERS = OTHER_USERS = 1_000  # an index is tuned on those, its recall measured on these; the table has neither
CHECKED = 32  # users whose lists are compared with the product's
ROUNDS, IN_A_ROW = 2, 2  # each has its turn ROUNDS times, of IN_A_ROW runs; the fastest of all counts
PARTITIONS = 2 * CORES  # of the users
ALS_SHARE = 5  # ALS answers one user in so many: its time is in proportion to them
ALS_BLOCKS = (4_096, 1_024, 8_192)  # the default first
FAISS_BATCHES = (1_024, 4_096, 16_384)
PRODUCT_BLOCKS = (256, 1_024)
MEMORY_LIMIT = 3 * GIB  # of every process


def measure(scale: float, work: Path) -> list[Row]:
    """All rows, the issue's first; the numbers of users and of items are multiplied by `scale`."""
    spark = session.start(Spark(master=f"local[{CORES}]", partitions=PARTITIONS), "bench")
    cases = []
    for name, (users, items) in SIZES.items():
        size = max(LEAST_USERS, int(users * scale)), max(LEAST_ITEMS, int(items * scale))
        cases.append(make(spark, work / name, name, *size))
    memory = [check_and_warm_up(case) for case in cases]
    speeds = [speeds_of(case) for case in cases]
    return [
        *against_peers(cases[0]),
        million_vs_exact(cases[-1], speeds[-1]),
        promise_gap(cases),
        *(row for case, found in zip(cases, speeds, strict=True) for row in users_a_second(case, found)),
        *growth_of_items(cases, speeds),
        *growth_of_users_and_n(work, cases[0]),
        *(peak_memory(case, found) for case, found in zip(cases, memory, strict=True)),
    ]


# -- users, items, indexes ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """One size.

    Attributes:
        name: of the full size.
        users: float32 [m, DIM]; `table` holds them as user_id, vector.
        folder: of all files.
        items: float32 [n + 2, DIM], row = item index; rows 0 and 1 are no items.
        exact, promised: folders of indexes.
        facts: what the promise was kept with: factory, nprobe, recall on the half of its users that did not choose nprobe.
        recall: of `promised`, on users on whom it was not tuned.
        seconds: of building `promised`.
    """

    spark: SparkSession
    name: str
    users: Float32s
    table: DataFrame
    folder: Path
    items: Float32s
    exact: Shipped
    promised: Shipped
    facts: dict[str, Any]
    recall: float
    seconds: float

    def answers(self, index: Shipped, n: int) -> Path:
        """Ours: the folder that it wrote user_id, items into."""
        return top_n_of(self.table, index, n, self.folder / "top_n")

    def __str__(self) -> str:
        return f"{len(self.users):,} users x {len(self.items) - FIRST_INDEX:,} items"

    @property
    def promise(self) -> str:
        """How the promise was kept."""
        nprobe = f", nprobe {self.facts['nprobe']}" if self.facts["nprobe"] else ""
        kept = f"{self.facts['factory']}{nprobe}, recall {self.facts['recall']:.4f}"
        return f"{kept}, on other users {self.recall:.4f}, built in {self.seconds:.1f} s"


def make(spark: SparkSession, folder: Path, name: str, users: int, items: int) -> Case:
    """The vectors of a size, its table of users and its two indexes."""
    from recall_lib.retrieval.tuning import build_by_promise

    vectors = np.concatenate([np.zeros((FIRST_INDEX, DIM), np.float32), clustered(items, 1, mixed=1)])
    ids = pa.array([None] * FIRST_INDEX + [f"i{row:07d}" for row in range(FIRST_INDEX, len(vectors))])
    tuning, others, asking = (
        clustered(rows, seed, mixed=3) for seed, rows in ((2, TUNING_USERS), (3, OTHER_USERS), (4, users))
    )
    started = time.perf_counter()
    promised, facts = build_by_promise(vectors, ids, tuning, N, TARGET)
    seconds = time.perf_counter() - started
    exact = ItemIndex.build(vectors, ids)
    recall = recall_of(promised.search(others, N)[0], exact.search(others, N)[0])
    shipped = []
    for kind, index in (("exact", exact), ("promised", promised)):
        (folder / kind).mkdir(parents=True)
        index.save(folder / kind)
        shipped.append(ship_folder(spark, folder / kind, f"{name} {kind}"))
    table = write_users(spark, folder / "users", asking)
    return Case(spark, name, asking, table, folder, vectors, shipped[0], shipped[1], facts, recall, seconds)


def clustered(rows: int, seed: int, *, mixed: int) -> Float32s:
    """Vectors near centres that all seeds share, float32 [rows, DIM].

    Args:
        rows: how many.
        seed: of everything else: which centres, in what shares, noise, length.
        mixed: centres in each: 1 for an item, more for a user, who likes items of several kinds.
    """
    centres = np.random.default_rng(0).standard_normal((CENTRES, DIM), np.float32)
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.ones(mixed), rows).astype(np.float32)
    found = random.standard_normal((rows, DIM), np.float32) * np.float32(0.6)
    for share in shares.T:
        found += share[:, None] * centres[random.integers(CENTRES, size=rows)]
    return found * random.lognormal(sigma=0.1, size=(rows, 1)).astype(np.float32)


def write_users(spark: SparkSession, folder: Path, users: Float32s) -> DataFrame:
    """PARTITIONS Parquet files of user_id (u<row>), vector."""
    folder.mkdir(parents=True)
    for part, rows in enumerate(np.array_split(np.arange(len(users)), PARTITIONS)):
        columns = {"user_id": pa.array([f"u{row}" for row in rows]), "vector": list_column(users[rows])}
        pq.write_table(pa.table(columns), folder / f"{part}.parquet")
    return spark.read.parquet(str(folder))


# -- ours --------------------------------------------------------------------------------------------------------------
def top_n_of(users: DataFrame, index: Shipped, n: int, folder: Path) -> Path:
    """Write user_id, items of every user into a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    map_batches(users, partial(write, index=index, n=n, folder=folder.as_uri()), WRITTEN).collect()
    return folder


def write(batches: Iterable[pa.RecordBatch], *, index: Shipped, n: int, folder: str) -> Iterator[pa.RecordBatch]:
    """user_id, vector -> files of user_id, items, as inference.top_n does it."""
    return write_files((folder, rows) for rows in search(batches, index=index, n=n))


def search(batches: Iterable[pa.RecordBatch], *, index: Shipped, n: int) -> Iterator[pa.RecordBatch]:
    """user_id, vector -> user_id, items."""
    items = load_index(index)
    for rows in blocks(batches, results=n):
        vectors = rows.column("vector").flatten().to_numpy().reshape(rows.num_rows, DIM)
        found = scored_items(*items.search(vectors, n), items.item_ids)
        yield pa.RecordBatch.from_pydict({"user_id": rows.column("user_id"), "items": found})


def run(rows: DataFrame) -> None:
    """Compute all rows and write them to nowhere."""
    rows.write.format("noop").mode("overwrite").save()


def check_and_warm_up(case: Case) -> PeakMemory:
    """Both jobs once, and what memory they took.

    Raises:
        SystemExit: users or items are missing, or the exact lists are not those of the product.
    """
    right = best_of_product(case.users[:CHECKED], case.items)
    first = [f"u{row}" for row in range(CHECKED)]
    with PeakMemory() as memory:
        for index, least in ((case.exact, 0.9999), (case.promised, TARGET - 0.05)):
            answers = case.spark.read.parquet(str(case.answers(index, N))).where(F.size("items") == N)
            items = F.when(F.col("user_id").isin(first), F.col("items.item_id"))
            rows = answers.select("user_id", items.alias("items")).collect()
            lists = {row["user_id"]: row["items"] for row in rows}
            if not len(rows) == len(lists) == len(case.users):
                raise SystemExit(f"bench: {len(lists)} of {len(case.users)} users have a list of {N}: nothing is reported")
            require_recall(case, np.array([[int(item[1:]) for item in lists[user]] for user in first]), right, least)
    return memory


def best_of_product(users: Float32s, items: Float32s) -> Ints:
    """Item indexes [b, N] of the largest products, in no order."""
    return np.argpartition(-(users @ items[FIRST_INDEX:].T), N, axis=1)[:, :N] + FIRST_INDEX


def recall_of(found: Ints, right: Ints) -> float:
    """The share of the right lists that was found."""
    return float(np.mean([np.isin(ours, theirs).mean() for ours, theirs in zip(right, found, strict=True)]))


def require_recall(case: Case, found: Ints, right: Ints, least: float) -> None:
    """Refuse lists that are not what was asked for (SystemExit)."""
    recall = recall_of(found, right)
    if recall < least:
        raise SystemExit(f"bench: {case}: lists hold {recall:.4f} of the product's best, not {least}: nothing is reported")


# -- peers -------------------------------------------------------------------------------------------------------------
def als_of(case: Case) -> tuple[ALSModel, int]:
    """Spark's ALS model with our vectors as its factors, as if it had learned them, and how many users it has."""
    users = case.users[: max(1, len(case.users) // ALS_SHARE)]
    tables = []
    for name, first, vectors, parts in (("user", 0, users, CORES), ("item", FIRST_INDEX, case.items[FIRST_INDEX:], 1)):
        path = case.folder / f"{name}_factors.parquet"
        pq.write_table(
            pa.table({"id": np.arange(len(vectors), dtype=np.int32) + first, "features": list_column(vectors)}), path
        )
        factors = case.spark.read.parquet(str(path)).repartition(parts).persist()
        factors.count()
        tables.append(factors._jdf)
    jvm: Any = case.spark._jvm
    model = jvm.org.apache.spark.ml.recommendation.ALSModel("bench", DIM, *tables)
    model.setUserCol("user_id").setItemCol("item_id")
    return ALSModel(model), len(users)


def lists_of_als(model: ALSModel, block: int) -> DataFrame:
    """user_id, recommendations (item_id, rating), with a number of factors in a block."""
    java: Any = model._java_obj  # the Python setter of a model does not reach it
    java.setBlockSize(block)
    return model.recommendForAllUsers(N)


def best_block(case: Case, model: ALSModel) -> int:
    """The block size with which ALS is fastest; its lists are checked on the way.

    Raises:
        SystemExit: they are not those of the product.
    """
    right = best_of_product(case.users[:CHECKED], case.items)
    some = lists_of_als(model, ALS_BLOCKS[0]).where(F.col("user_id") < CHECKED).orderBy("user_id").collect()
    require_recall(case, np.array([[item["item_id"] for item in row["recommendations"]] for row in some]), right, 0.9999)
    runs: dict[Any, Run] = {block: partial(run, lists_of_als(model, block)) for block in ALS_BLOCKS}
    found = in_turn(runs, 1, 1)
    return min(ALS_BLOCKS, key=found.__getitem__)


def faiss_direct(case: Case) -> dict[Any, Run]:
    """IndexFlatIP in this process, with a thread a core: a run for each size of batch."""
    index = faiss.IndexFlatIP(DIM)
    index.add(case.items[FIRST_INDEX:])

    def search_all(batch: int) -> None:
        faiss.omp_set_num_threads(CORES)
        for start in range(0, len(case.users), batch):
            index.search(case.users[start : start + batch], N)

    return {("faiss", batch): partial(search_all, batch) for batch in FAISS_BATCHES}


def products(case: Case) -> dict[Any, Run]:
    """users x items and nothing else, with a thread a core: a run for NumPy's and torch's, and each size of block."""
    items = np.ascontiguousarray(case.items[FIRST_INDEX:].T)
    scores = np.empty((max(PRODUCT_BLOCKS), items.shape[1]), np.float32)

    def numpys(block: int) -> None:
        for start in range(0, len(case.users), block):
            users = case.users[start : start + block]
            np.matmul(users, items, out=scores[: len(users)])

    def torchs(block: int) -> None:
        torch.set_num_threads(CORES)
        for start in range(0, len(case.users), block):
            users = case.users[start : start + block]
            torch.mm(torch.from_numpy(users), torch.from_numpy(items), out=torch.from_numpy(scores[: len(users)]))

    kinds = {"NumPy": numpys, "torch": torchs}
    return {("product", name, block): partial(kind, block) for name, kind in kinds.items() for block in PRODUCT_BLOCKS}


# -- rows --------------------------------------------------------------------------------------------------------------
def in_turn(runs: dict[Any, Run], rounds: int, in_a_row: int) -> dict[Any, float]:
    """Seconds of the fastest run of each, measured in turn, so that what else the machine does meets all of them.

    A worker keeps one index: the second of two in a row finds it loaded.
    """
    fastest = dict.fromkeys(runs, np.inf)
    for _ in range(rounds):
        for name, work in runs.items():
            for _ in range(in_a_row):
                started = time.perf_counter()
                work()
                fastest[name] = min(fastest[name], time.perf_counter() - started)
    return fastest


def jobs_of(case: Case) -> dict[Any, Run]:
    """Ours with either index."""
    return {kind: partial(case.answers, index, N) for kind, index in (("exact", case.exact), ("promised", case.promised))}


def against_peers(case: Case) -> Iterator[Row]:
    """Rows vs_als_exact, vs_als_recall99, vs_faiss_direct, vs_gemm."""
    model, of_als = als_of(case)
    block = best_block(case, model)
    runs = {"als": partial(run, lists_of_als(model, block))} | jobs_of(case) | faiss_direct(case) | products(case)
    found = in_turn(runs, ROUNDS, IN_A_ROW)
    users = dict.fromkeys(runs, len(case.users)) | {"als": of_als}
    speed = {name: users[name] / seconds for name, seconds in found.items()}
    exact, promised = f"{case}, top {N}, exact", f"{case}, top {N}, {case.promise}"
    peer = (
        f"; peer: Spark ALS recommendForAllUsers, same factors, {of_als:,} users in {found['als']:.1f} s, blockSize {block:,}"
    )
    yield faster("vs_als_exact", speed["exact"], speed["als"], "users/s", exact + peer)
    yield faster("vs_als_recall99", speed["promised"], speed["als"], "users/s", promised + peer)
    best = max((name for name in speed if name[0] == "faiss"), key=speed.__getitem__)
    peer = f"; peer: IndexFlatIP without Spark, {CORES} threads, batches of {best[1]:,}"
    yield faster("vs_faiss_direct", speed["exact"], speed[best], "users/s", exact + peer)
    best = max((name for name in speed if name[0] == "product"), key=speed.__getitem__)
    peer = f"; peer: the product alone, {best[1]}, {CORES} threads, blocks of {best[2]:,}"
    yield faster("vs_gemm", speed["exact"], speed[best], "users/s", exact + peer)
    for factors in (model.userFactors, model.itemFactors):
        factors.unpersist()


def speeds_of(case: Case) -> dict[str, float]:
    """Users a second of ours, `exact` and `promised`."""
    return {kind: len(case.users) / seconds for kind, seconds in in_turn(jobs_of(case), ROUNDS, IN_A_ROW).items()}


def million_vs_exact(case: Case, speeds: dict[str, float]) -> Row:
    """Row million_vs_exact."""
    note = f"{case}, top {N}, {case.promise}; peer: ours, exact"
    return faster("million_vs_exact", speeds["promised"], speeds["exact"], "users/s", note)


def promise_gap(cases: list[Case]) -> Row:
    """Row promise_gap: the largest of all sizes; below 0: more than was promised."""
    note = f"recall@{N} as the index's facts tell it less that on {OTHER_USERS:,} other users: "
    note += "; ".join(f"{case} {case.facts['recall']:.4f} - {case.recall:.4f}" for case in cases)
    gap = max(case.facts["recall"] - case.recall for case in cases)
    return Row("promise_gap", gap, None, None, "recall", f"{note}; target {TARGET}")


def users_a_second(case: Case, speeds: dict[str, float]) -> Iterator[Row]:
    """Rows exact_<size> and recall99_<size>."""
    yield Row(f"exact_{case.name}", speeds["exact"], None, None, "users/s", f"{case}, top {N}")
    yield Row(f"recall99_{case.name}", speeds["promised"], None, None, "users/s", f"{case}, top {N}, {case.promise}")


def growth_of_items(cases: list[Case], speeds: list[dict[str, float]]) -> Iterator[Row]:
    """Rows growth_items_<size> and growth_items_recall99_<size>: products a second, each size beside the one before."""
    products = [
        {kind: speed * (len(case.items) - FIRST_INDEX) for kind, speed in found.items()}
        for case, found in zip(cases, speeds, strict=True)
    ]
    for kind, suffix in (("exact", ""), ("promised", "_recall99")):
        for small, large in ((0, 1), (1, 2)):
            note = f"{kind}, {cases[large]}; peer: {cases[small]}; above 1: time grows less than the items"
            name = f"growth_items{suffix}_{cases[large].name}"
            yield faster(name, products[large][kind], products[small][kind], "users x items/s", note)


def growth_of_users_and_n(work: Path, case: Case) -> Iterator[Row]:
    """Rows growth_users, growth_n_50_200, growth_n_200_1000: exact lists."""
    few = case.users[: len(case.users) // 4]
    table = write_users(case.spark, work / "few", few)
    runs: dict[Any, Run] = {n: partial(case.answers, case.exact, n) for n in (FEWER, N, MORE)}
    runs["few"] = partial(top_n_of, table, case.exact, N, work / "top_n")
    found = in_turn(runs, ROUNDS, IN_A_ROW)
    speed = {name: len(few if name == "few" else case.users) / seconds for name, seconds in found.items()}
    note = f"{case}, top {N}, exact; peer: {len(few):,} users"
    yield faster("growth_users", speed[N], speed["few"], "users/s", note)
    for small, large in ((FEWER, N), (N, MORE)):
        note = f"{case}, top {large:,}, exact; peer: top {small}"
        yield faster(f"growth_n_{small}_{large}", speed[large], speed[small], "users/s", note)


def peak_memory(case: Case, memory: PeakMemory) -> Row:
    """Row peak_memory_<size>: the largest process against what no process may exceed."""
    note = f"{case}, both indexes; resident: {memory}; the benchmark's own holds all vectors; peer: the limit"
    return smaller(f"peak_memory_{case.name}", memory.largest / GIB, MEMORY_LIMIT / GIB, "GiB", note)
