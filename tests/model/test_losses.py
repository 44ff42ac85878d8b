import math

import numpy as np
import pytest
import torch

from recall_lib.config import Features, ItemId, Model, Training
from recall_lib.model import losses
from recall_lib.model.batch import Batch
from recall_lib.model.losses import Loss, Proposal, full_softmax, in_batch_softmax, nce, sampled_softmax
from recall_lib.model.towers import YouTubeDNN

B, K, N = 7, 4, 12


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(B, generator=generator),
        torch.randn(B, K, generator=generator),
        torch.rand(B, K, generator=generator) > 0.3,
    )


def test_sampled_softmax_is_the_loop() -> None:
    positive, negative, usable = drawn()
    expected = 0.0
    for i in range(B):
        total = math.exp(positive[i])
        for j in range(K):
            if usable[i, j]:
                total += math.exp(negative[i, j])
        expected -= math.log(math.exp(positive[i]) / total)
    assert sampled_softmax(positive, negative, usable).mean().item() == pytest.approx(expected / B, rel=1e-5)


def test_nce_is_the_loop() -> None:
    positive, negative, usable = drawn()

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = 0.0
    for i in range(B):
        expected -= math.log(sigmoid(positive[i]))
        for j in range(K):
            if usable[i, j]:
                expected -= math.log(1 - sigmoid(negative[i, j]))
    assert nce(positive, negative, usable).mean().item() == pytest.approx(expected / B, rel=1e-5)


def test_in_batch_softmax_is_the_loop() -> None:
    scores = torch.randn(B, B, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([2, 3, 3, 5, 2, 7, 8])  # with duplicates
    log_q = torch.linspace(-3, -1, N)
    expected = 0.0
    for i in range(B):
        own = float(scores[i, i] - log_q[target[i]])
        total = math.exp(own)
        for j in range(B):
            if target[j] != target[i]:
                total += math.exp(float(scores[i, j] - log_q[target[j]]))
        expected -= own - math.log(total)
    assert in_batch_softmax(scores, target, log_q).mean().item() == pytest.approx(expected / B, rel=1e-5)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("at_once", [1, 3 * (N - 2), 1 << 20])
def test_full_softmax_and_its_gradients_are_the_loop(biased: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_SCORES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(2)
    user, items = (30 * torch.randn(rows, 3, generator=generator) for rows in (B, N - 2))  # scores that need the maximum
    bias = torch.randn(N - 2, generator=generator) if biased else None
    target = torch.tensor([2, 3, 11, 5, 2, 7, 8])
    given = [tensor.requires_grad_() for tensor in (user, items, bias) if tensor is not None]
    scores = user @ items.T + (0 if bias is None else bias)
    expected = sum(scores[i].logsumexp(0) - scores[i, target[i] - 2] for i in range(B)) / B
    found = full_softmax(user, items, bias, target)
    torch.testing.assert_close(found, expected)
    for gradient, wanted in zip(torch.autograd.grad(3 * found, given), torch.autograd.grad(3 * expected, given), strict=True):
        torch.testing.assert_close(gradient, wanted)


COUNTS = np.array([99, 99, 40, 0, 30, 20, 0, 10])  # padding and unknown have counts that must not matter


@pytest.mark.parametrize("alpha", [0.0, 0.75, 1.0])
def test_draws_follow_the_counts_and_never_hit_padding_unknown_or_the_uncounted(alpha: float) -> None:
    proposal = Proposal(COUNTS, alpha)
    found = proposal.draw((400, 250), torch.Generator().manual_seed(3))
    share = np.bincount(found.flatten().numpy(), minlength=len(COUNTS)) / found.numel()
    weights = np.array([0 if i < 2 or not c else c**alpha for i, c in enumerate(COUNTS)])
    expected = weights / weights.sum()
    assert share[expected == 0].sum() == 0
    np.testing.assert_allclose(share, expected, atol=4 * math.sqrt(0.25 / found.numel()))
    np.testing.assert_allclose(proposal.log_q[expected > 0].exp(), expected[expected > 0], rtol=1e-5)
    assert torch.isfinite(proposal.log_q).all()


def test_draws_repeat_with_the_seed_and_differ_by_target() -> None:
    proposal = Proposal(COUNTS, 1.0)
    first, again = (proposal.draw((50, 5), torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, proposal.draw((50, 5), torch.Generator().manual_seed(8)))
    assert len({tuple(row) for row in first.tolist()}) > 25  # not one draw shared by the batch


def tiny_batch(target: list[int], negatives: list[list[int]] | None = None) -> Batch:
    rows = len(target)
    return Batch(
        history=torch.full((rows * 3,), 2),
        length=torch.full((rows,), 3),
        item={},
        user={},
        example_age=torch.zeros(rows),
        target=torch.tensor(target),
        negatives=torch.tensor(negatives) if negatives else torch.zeros((rows, 0), dtype=torch.long),
    )


def tiny_model(std: float = 1e-9) -> YouTubeDNN:
    model = YouTubeDNN(
        Features(item_id=ItemId(dim=4)),
        Model(tower=(4,), item_output="separate", embedding_std=std),
        {"item_id": len(COUNTS)},
        3,
    )
    return model


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loss": "sampled_softmax", "num_negatives": 1}, None),
        ({"loss": "full_softmax"}, math.log(len(COUNTS) - 2)),
        ({"loss": "nce", "num_negatives": 50}, None),
    ],
)
def test_losses_at_initialisation(settings: dict, expected: float | None) -> None:
    loss = Loss(Training(**settings), 1.0, COUNTS)
    found = loss(tiny_model(), tiny_batch([2] * 4000), torch.Generator().manual_seed(1)).item()
    k, m = settings.get("num_negatives"), 4  # four items have counts; a quarter of the draws hit the target and are left out
    if settings["loss"] == "sampled_softmax":
        expected = 0.75 * math.log(2)
    elif settings["loss"] == "nce":
        expected = math.log(1 + k / m) + 0.75 * k * math.log(1 + m / k)
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("loss", ["sampled_softmax", "nce"])
def test_own_negatives_are_used_but_for_padding_and_hits(loss: str) -> None:
    settings = Training(loss=loss, negatives="samples")
    generator, model = torch.Generator(), tiny_model(std=1.0)
    with_them = Loss(settings, 0.5, COUNTS)(model, tiny_batch([4, 5], [[2, 7, 4], [2, 7, 0]]), generator)
    weights = COUNTS.astype(float) ** 0.5
    weights[:2] = 0
    q = weights / weights.sum()
    user = model.user_representation(tiny_batch([4, 5]))
    expected = 0.0
    for row, target in enumerate([4, 5]):
        scores = {i: float(user[row].detach() @ model.item_weights[i].detach()) - math.log(q[i]) for i in (target, 2, 7)}
        if loss == "sampled_softmax":
            expected += math.log(sum(map(math.exp, scores.values()))) - scores[target]
        else:
            signs = {i: 1 if i == target else -1 for i in scores}
            expected += sum(math.log(1 + math.exp(-signs[i] * (s - math.log(3)))) for i, s in scores.items())
    assert with_them.item() == pytest.approx(expected / 2, rel=1e-5)


def test_no_gradient_reaches_padding_or_unknown_items() -> None:
    for settings in ({"loss": "sampled_softmax"}, {"loss": "nce"}, {"loss": "full_softmax"}, {"loss": "in_batch_softmax"}):
        model = tiny_model(std=1.0)
        Loss(Training(**settings, negatives="counts"), 1.0, COUNTS)(model, tiny_batch([2, 4, 5]), torch.Generator()).backward()
        assert model.output_table is not None
        gradient = model.output_table.weight.grad
        assert gradient is not None
        assert gradient[:2].abs().sum() == 0
        assert gradient[2:].abs().sum() > 0


def test_log_q_brings_the_sampled_ranking_to_the_full_softmax() -> None:
    """One user, logits alone: with logQ popularity is learnt as log share; without it, it is lost."""
    share = np.array([0, 0, 0.5, 0.3, 0.15, 0.05])
    counts = (share * 1000).astype(int)
    targets = torch.as_tensor(np.repeat(np.arange(6), counts))
    proposal = Proposal(counts, 1.0)

    def learnt(corrected: bool) -> torch.Tensor:
        logits = torch.zeros(6, requires_grad=True)
        optimizer, generator = torch.optim.Adam([logits], lr=0.05), torch.Generator().manual_seed(1)
        for _ in range(300):
            drawn = proposal.draw((len(targets), 3), generator)
            scores = logits - proposal.log_q if corrected else logits
            loss = sampled_softmax(scores[targets], scores[drawn], drawn != targets[:, None]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (logits[2:] - logits[2:].logsumexp(0)).detach()

    expected = torch.log(torch.tensor(share[2:], dtype=torch.float))
    torch.testing.assert_close(learnt(corrected=True), expected, atol=0.35, rtol=0)
    assert (learnt(corrected=False) - expected).abs().max() > 1


@pytest.mark.parametrize("biased", [False, True])
def test_a_weight_counts_in_full_softmax_and_its_gradients(biased: bool) -> None:
    torch.manual_seed(0)
    user, items = torch.randn(7, 3, requires_grad=True), torch.randn(11, 3, requires_grad=True)
    bias = torch.randn(11, requires_grad=True) if biased else None
    target, weight = torch.arange(7) + 2, torch.tensor([1.0, 3.0, 0.5, 1.0, 2.0, 1.0, 4.0])
    inputs = [user, items] + ([bias] if bias is not None else [])
    found = full_softmax(user, items, bias, target, weight)
    scores = user @ items.T + (0 if bias is None else bias)
    expected = (torch.nn.functional.cross_entropy(scores, target - 2, reduction="none") * weight).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
