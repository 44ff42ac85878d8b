"""The training loop. Every rank runs it: one process, local ranks and ranks in Spark executors alike."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fsspec.core import url_to_fs
from torch import Tensor, nn

from recall_lib.config import Training
from recall_lib.model import checkpoint
from recall_lib.model.batch import Batch
from recall_lib.model.losses import Loss
from recall_lib.model.towers import YouTubeDNN
from recall_lib.process.errors import DataRefused, RecallError
from recall_lib.samples.ids import ITEM_ID
from recall_lib.samples.ragged import Ints
from recall_lib.samples.windows import Windows
from recall_lib.store.arrays import read_item_features, read_item_numbers
from recall_lib.training import loader, shards
from recall_lib.training.journal import Journal
from recall_lib.training.ranks import Ranks
from recall_lib.training.spec import TrainSpec
from recall_lib.training.validation import Catalogue, K, mean_user, validate
from recall_lib.training.warm_start import carry_over

METRIC = f"ndcg@{K}"
_RECORDS = 200  # records of the loss in a whole run
_AHEAD, _LEAST_AHEAD = 1 << 16, 4  # targets and batches that are read ahead: enough to hide the start of an epoch


def train(spec: TrainSpec, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Train one model; rank 0 writes it, its log and its events into `folder`.

    Returns:
        {"targets" (per epoch), "epochs", "steps", "seconds", "validation"}, on rank 0 also the model's "version".

    Raises:
        DataRefused: no targets, or too few files or targets for the ranks.
    """
    started = time.monotonic()
    run = Run(spec, ranks, folder)
    with closing(run.stream):
        while not run.finished:
            with _arithmetic(run):
                run.train_epoch()
            run.validate()  # in full precision, as vectors are exported
            run.save()
    run.close()
    facts = {
        "targets": int(run.sizes.sum()),
        "epochs": run.progress.epoch,
        "steps": run.progress.step,
        "seconds": round(time.monotonic() - started, 3),
        "validation": run.progress.validation,
    }
    if ranks.rank == 0:
        facts["version"] = checkpoint.save(folder, run.model, spec.features, spec.samples, spec.sizes, spec.vocab)
    return facts


def learning_rate(settings: Training, step: int, total_steps: int) -> float:
    """The learning rate of a step (from 0): a linear warm-up, then constant or falling to 0 after the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]
    return settings.learning_rate * factor


@dataclass
class Progress:
    """How far a run has come. A checkpoint holds this and the tensors."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps
    best: float = -1.0  # validation NDCG@10
    best_epoch: int = 0
    validation: dict[str, float] = field(default_factory=dict)  # of the weights that would be kept now
    records: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One rank's model, optimiser and place in the data."""

    def __init__(self, spec: TrainSpec, ranks: Ranks, folder: Path) -> None:
        """Build the model, and resume from the checkpoint if there is one of the same spec."""
        self.spec, self.ranks, self.settings = spec, ranks, spec.training
        files, self.sizes = shards.plan([file.targets for file in spec.train], ranks.size, self.settings.batch_size)
        self.urls = [spec.train[i].url for i in files[ranks.rank]]
        held_out = shards.assign([file.targets for file in spec.validation], ranks.size)[ranks.rank]
        self.validation_urls = [spec.validation[i].url for i in held_out]
        steps = self.sizes.shape[1] * self.settings.epochs
        self.total_steps = min(steps, self.settings.max_steps or steps)
        self.device = _device(self.settings.device, ranks.rank)
        # On a CPU autocast's conversions cost more than they gain; there `_arithmetic` alone chooses bfloat16 products.
        self.autocast = self.settings.mixed_precision and self.device.type == "cuda"
        torch.manual_seed(spec.seed)  # the same first weights on every rank
        self.model = _model(spec).to(self.device)
        counts = np.asarray(spec.counts, np.int64)
        self.loss = Loss(self.settings, spec.samples.negatives_alpha, counts, self.device)
        self.optimizers = _optimizers(self.model, self.settings)
        self.generator = torch.Generator(self.device)
        self.catalogue = Catalogue.read(spec) if spec.validation else None
        self.best: dict[str, Tensor] = {}
        self.progress = Progress()
        if self.settings.resume and spec.checkpoint:
            self._load()
        self.journal = Journal(folder, self.total_steps, self.progress.records) if ranks.rank == 0 else None
        epochs = range(self.progress.epoch, self.settings.epochs)
        windows = _windows(spec, self.urls, self.sizes[ranks.rank], ranks.rank, epochs)
        self.stream = loader.prefetched(windows, max(_AHEAD // self.settings.batch_size, _LEAST_AHEAD))

    @property
    def finished(self) -> bool:
        """Whether all epochs or steps are done, or the last `early_stopping` epochs were not better than the best."""
        patience = self.settings.early_stopping
        stopped = bool(patience and self.best and self.progress.epoch - self.progress.best_epoch >= patience)
        return stopped or self.progress.step >= self.total_steps

    def train_epoch(self) -> None:
        """One pass over this rank's files; it ends early at max_steps."""
        every = max(1, self.total_steps // _RECORDS)
        losses, targets, started = torch.zeros((), device=self.device), 0, time.monotonic()
        self.model.train()
        for sizes, windows in zip(self.sizes.T, self.stream, strict=False):
            losses += self._step(Batch.of(windows, self.device), sizes) * int(sizes.sum())
            targets += int(sizes.sum())
            if self.progress.step % every == 0 or self.progress.step == self.total_steps:
                self._report(losses / targets, targets / (time.monotonic() - started))
                losses, targets, started = torch.zeros_like(losses), 0, time.monotonic()
            if self.progress.step == self.total_steps:
                break
        self.progress.epoch += 1

    def _step(self, batch: Batch, sizes: Ints) -> Tensor:
        """One update. Returns this rank's share of the loss; the mean of all ranks' shares is the mean over all targets."""
        rate = learning_rate(self.settings, self.progress.step, self.total_steps)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        # Each (seed, rank, step) has its own random draws, so a resumed run draws what an uninterrupted one draws.
        words = np.random.SeedSequence((self.spec.seed, self.ranks.rank, self.progress.step)).generate_state(1, np.uint64)
        self.generator.manual_seed(int(words[0] >> np.uint64(1)))
        self._seed_dropout(self.generator.initial_seed())
        share = len(batch) * self.ranks.size / int(sizes.sum())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.loss(self.model, batch, self.generator) * share
        self.model.zero_grad()
        loss.backward()
        gradients = _gradients(self.model)
        self.ranks.average(gradients)
        if self.settings.clip_norm:
            _clip(gradients, self.settings.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.progress.step += 1
        return loss.detach()

    def _seed_dropout(self, seed: int) -> None:
        # Not torch.manual_seed: without a GPU it keeps a record of every call, to repeat it when CUDA starts.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _report(self, loss: Tensor, targets_per_second: float) -> None:
        mean = self.ranks.sum([float(loss)])[0] / self.ranks.size
        if not math.isfinite(mean):
            raise DataRefused(
                f"the loss is {mean} at step {self.progress.step}: lower training.learning_rate or set training.clip_norm"
            )
        rate = self.optimizers[0].param_groups[0]["lr"]
        self._note(loss=mean, learning_rate=rate, targets_per_second=round(targets_per_second, 1))

    def _note(self, **numbers: float) -> None:
        if self.journal:
            self.journal.add(step=self.progress.step, epoch=self.progress.epoch, **numbers)

    def validate(self) -> None:
        """Rank the validation split as it would be served; with early stopping, remember the best weights."""
        if self.catalogue is None:
            return
        spec = self.spec
        held_out = (self.validation_urls, spec.streamed, spec.samples, self.device, self.ranks)
        if spec.model.recency:
            self.model.get_buffer("mean_user").copy_(mean_user(self.model, *held_out))
        found = validate(self.model, self.catalogue, *held_out, filter_seen=spec.filter_seen)
        if found:
            self._note(**found)
        if not self.settings.early_stopping:
            self.progress.validation = found
        elif found and found[METRIC] > self.progress.best:
            self.progress.best, self.progress.best_epoch, self.progress.validation = found[METRIC], self.progress.epoch, found
            self.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def close(self) -> None:
        """Keep the best weights if early stopping remembered any, else the last."""
        if self.best:
            self.model.load_state_dict(self.best)
        if self.journal:
            self.journal.close()

    def save(self) -> None:
        """Rank 0 writes the checkpoint under a temporary name and then renames it, so that it is whole or not there."""
        if self.ranks.rank or not self.spec.checkpoint:
            return
        assert self.journal
        facts = asdict(self.progress) | {"records": self.journal.records, "fingerprint": self.spec.fingerprint()}
        fs, path = url_to_fs(self.spec.checkpoint)
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(f"{path}.tmp", checkpoint.pack(self._tensors(), facts))
        fs.mv(f"{path}.tmp", path)

    def _tensors(self) -> dict[str, Tensor]:
        adam = {
            f"{k}.{i}.{name}": torch.as_tensor(value)
            for k, optimizer in enumerate(self.optimizers)
            for i, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        return (
            {f"model.{name}": value for name, value in self.model.state_dict().items()}
            | {f"best.{name}": value for name, value in self.best.items()}
            | {f"adam.{name}": value for name, value in adam.items()}
        )

    def _load(self) -> None:
        """Resume from the checkpoint that rank 0 finds; one that cannot be read, or is of another spec, is ignored."""
        data = b""
        if self.ranks.rank == 0:
            fs, path = url_to_fs(self.spec.checkpoint)
            data = fs.cat_file(path) if fs.exists(path) else b""
        data = self.ranks.broadcast(data)
        try:
            tensors, facts = checkpoint.unpack(data)
        except ValueError:
            return
        if facts.pop("fingerprint") != self.spec.fingerprint():
            return
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        self.model.load_state_dict(parts["model"])
        self.best = parts["best"]
        states: list[dict[int, dict[str, Any]]] = [{} for _ in self.optimizers]
        for name, value in parts["adam"].items():
            k, i, rest = name.split(".")
            # SparseAdam counts its steps in an int: as a tensor the powers of betas would be rounded to float32.
            states[int(k)].setdefault(int(i), {})[rest] = value if value.is_floating_point() else int(value)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.progress = Progress(**facts)


@contextmanager
def _arithmetic(run: Run) -> Iterator[None]:
    """How float32 matrices are multiplied: with mixed precision in bfloat16 on CPUs that support it, and in TF32 on GPUs.

    On a CPU sums have a fixed order, so that the same spec gives the same weights. On a GPU this would take up to a third
    longer, so it is off there.
    """
    precision, deterministic = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic  # mypy does not know its attribute, which torch makes at run time
    filled = memory.fill_uninitialized_memory
    torch.set_float32_matmul_precision("medium" if run.settings.mixed_precision else "highest")
    torch.use_deterministic_algorithms(run.device.type == "cpu")
    memory.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic)
        memory.fill_uninitialized_memory = filled


def _windows(spec: TrainSpec, urls: Sequence[str], sizes: Ints, rank: int, epochs: Iterable[int]) -> Iterator[Windows]:
    """A rank's batches of several epochs as one stream: the next epoch is read while the current one is trained on."""
    settings = spec.training
    for epoch in epochs:
        seed, mixed = (spec.seed, rank, epoch), settings.shuffle_row_groups
        yield from loader.read_epoch(urls, sizes, spec.streamed, spec.samples, unit=settings.unit, row_groups=mixed, seed=seed)


def _model(spec: TrainSpec) -> YouTubeDNN:
    """A model with its first weights."""
    content: dict[str, list[Tensor]] | None = None
    if spec.model.item_rows != "own":
        items, features = spec.sizes[ITEM_ID], spec.features
        lists = read_item_features(spec.items, [f.name for f in features.token_ids], items)
        numbers = read_item_numbers(spec.items, [n.name for n in features.token_numbers], items)
        content = {n: [torch.from_numpy(own.values.copy()).long(), torch.from_numpy(own.offsets)] for n, own in lists.items()}
        content |= {name: [torch.from_numpy(values)] for name, values in numbers.items()}
    sparse = spec.training.gradients == "rows"
    model = YouTubeDNN(spec.features, spec.model, spec.sizes, spec.samples.window_size, content, sparse=sparse)
    if spec.first:
        carry_over(model, spec.first, spec)
    return model


def _optimizers(model: YouTubeDNN, settings: Training) -> list[torch.optim.Optimizer]:
    """Adam for all weights; with gradients as rows, lazy Adam for the tables and Adam for the others."""
    rate, betas = settings.learning_rate, (0.9, settings.adam_beta2)
    tables = [module.weight for module in model.modules() if model.sparse and isinstance(module, nn.Embedding)]
    others = [parameter for parameter in model.parameters() if all(parameter is not table for table in tables)]
    lazy = [torch.optim.SparseAdam(tables, lr=rate, betas=betas)] if tables else []
    return [*lazy, torch.optim.Adam(others, lr=rate, betas=betas, fused=True)]


def _gradients(model: YouTubeDNN) -> list[Tensor]:
    """All gradients. Sparse ones are coalesced, so that each row is sent, measured and squared once."""
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def _clip(gradients: Sequence[Tensor], largest: float) -> None:
    """Scale gradients down in place if their joint norm is above `largest`; PyTorch's own function refuses sparse ones."""
    values = [gradient.values() if gradient.is_sparse else gradient for gradient in gradients]
    factor = largest / (torch.nn.utils.get_total_norm(values) + 1e-6)
    torch._foreach_mul_(values, factor.clamp(max=1))


def _device(choice: str, rank: int) -> torch.device:
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RecallError("training.device is cuda, but PyTorch sees no GPU: set it to auto or cpu")
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)  # torch.cuda.manual_seed seeds this one
    return device
