"""The learnt partition function against enumerations, binary cross-entropy and its own limit."""

import itertools
import math

import pytest
import torch

from candid.candidates import Candidates, ExactCandidates
from candid.errors import ArtifactError, ConfigError
from candid.losses import LOSSES, binary_cross_entropy
from candid.losses.candidate_loss import ObjectiveWithSampler
from candid.losses.learnt_partition import PartitionHead
from candid.samplers import Popularity, Uniform

V = 4
SCORES = torch.tensor([2.0, 0.5, -1.0, 0.0], dtype=torch.float64)
P = SCORES.softmax(dim=0)
Q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
ALL = torch.arange(V)


def build(cap=10.0, log_zeta=None):
    """Return the loss for queries [B, 1] of one, with this prediction."""
    loss = LOSSES["learnt_partition"].Config(cap=cap).build(V)
    if log_zeta is not None:
        weights = torch.tensor([0.0, float(log_zeta)], dtype=torch.float64)
        state = {"weights": weights, "mean": weights, "square": weights}
        loss.head.set_extra_tensors(state | {"num_steps": torch.tensor(5)})
    return loss


def gradient(loss, positive_ids, candidates, weights=None):
    """Return the weighted sum of the rows' gradients with respect to the scores of all items."""
    scores = SCORES.clone()[:, None].requires_grad_()
    query = torch.ones(len(positive_ids), 1, dtype=torch.float64)
    losses = loss(query, scores, positive_ids, candidates).loss
    (losses if weights is None else losses * weights).sum().backward()
    return scores.grad[:, 0]


def all_samples(n, q=Q):
    """Every positive with every n samples with replacement, and their chances."""
    samples = torch.tensor(list(itertools.product(range(V), repeat=n)))
    positive_ids = ALL.repeat_interleave(len(samples))
    ids = samples.repeat(V, 1)
    log_counts = (n * q).log()
    chances = P[positive_ids] * q[ids].prod(dim=1)
    return positive_ids, Candidates(ids, log_counts[ids], log_counts[positive_ids], n), chances


@pytest.mark.parametrize("cap", [1.0, 10.0])
@pytest.mark.parametrize("n", [1, 3])
def test_mean_gradient_of_the_right_model_is_zero_for_samples(n, cap):
    positive_ids, candidates, chances = all_samples(n)
    right = gradient(build(cap, SCORES.logsumexp(0)), positive_ids, candidates, chances)
    assert right.abs().max() < 1e-13
    wrong = gradient(build(cap, SCORES.logsumexp(0) + 1), positive_ids, candidates, chances)
    assert wrong.abs().max() > 0.01


def test_mean_gradient_of_the_right_model_is_zero_for_sets():
    """Items included independently; an item outside the set has an infinite count."""
    chances = torch.tensor([0.3, 0.9, 0.5, 0.2], dtype=torch.float64)
    included = torch.tensor(list(itertools.product([False, True], repeat=V)))
    included = included[included.any(dim=1)]
    positive_ids, included = ALL.repeat_interleave(len(included)), included.repeat(V, 1)
    weights = P[positive_ids] * torch.where(included, chances, 1 - chances).prod(dim=1)
    ids = ALL.expand(len(included), -1)
    counts = torch.where(included, chances.log(), math.inf)
    candidates = Candidates(ids, counts, chances.log()[positive_ids])
    grad = gradient(build(10.0, SCORES.logsumexp(0)), positive_ids, candidates, weights)
    # The positives' gradients of the empty set, which has no row here.
    x = P / chances
    missing = P * (1 - chances).prod() / (1 + x / 10)
    torch.testing.assert_close(grad - missing, torch.zeros_like(grad), atol=1e-13, rtol=0)


def test_mean_gradient_of_the_right_model_is_zero_beside_exact_candidates():
    outside = Q.clone()
    outside[1] = 0.0
    positive_ids, candidates, chances = all_samples(2, outside / outside.sum())
    exact = ExactCandidates(torch.tensor([1]), torch.tensor([-math.inf]))
    candidates = Candidates(
        candidates.ids,
        candidates.log_expected_count,
        candidates.log_expected_count_positive,
        2,
        exact=exact,
    )
    possible = chances > 0
    rows = positive_ids[possible]
    candidates = Candidates(
        candidates.ids[possible],
        candidates.log_expected_count[possible],
        candidates.log_expected_count_positive[possible],
        2,
        exact=exact,
    )
    grad = gradient(build(10.0, SCORES.logsumexp(0)), rows, candidates, chances[possible])
    assert grad.abs().max() < 1e-13


def test_cap_of_one_is_binary_cross_entropy_of_shifted_scores():
    positive_ids, candidates, _ = all_samples(3)
    log_zeta = 0.7
    query = torch.ones(len(positive_ids), 1, dtype=torch.float64)
    out = build(1.0, log_zeta)(query, SCORES[:, None], positive_ids, candidates)
    expected = binary_cross_entropy(
        positive=SCORES[positive_ids] - candidates.log_expected_count_positive - log_zeta,
        candidates=SCORES[candidates.ids] - candidates.log_expected_count - log_zeta,
    )
    torch.testing.assert_close(out.loss, expected)


def test_large_cap_has_the_gradient_of_the_linear_bound():
    """That of Z'/zeta - s(p), with samples of the positive in Z'."""
    positive_ids, candidates, chances = all_samples(2)
    scores = SCORES.clone().requires_grad_()
    ratios = (scores[candidates.ids] - candidates.log_expected_count - 0.7).exp()
    ((ratios.sum(dim=1) - scores[positive_ids]) * chances).sum().backward()
    grad = gradient(build(1e9, 0.7), positive_ids, candidates, chances)
    torch.testing.assert_close(grad, scores.grad, atol=1e-6, rtol=1e-6)


def test_positive_that_is_never_sampled_has_finite_gradients():
    candidates = Candidates(torch.tensor([1, 2]), torch.zeros(2), torch.tensor([-math.inf]), 2)
    grad = gradient(build(10.0, 0.7), torch.tensor([0]), candidates)
    assert torch.isfinite(grad).all()
    assert grad[0] == 0
    assert grad[1] > 0


def training(cap=10.0, n=4):
    torch.manual_seed(0)
    loss = LOSSES["learnt_partition"].Config(cap=cap).build(V)
    sampler = Popularity(torch.tensor([1, 2, 3, 4]), num_candidates=n)
    return ObjectiveWithSampler(loss, sampler, num_groups=64)


@pytest.mark.parametrize("cap", [1.0, 10.0])
def test_prediction_approaches_the_partition_function(cap):
    """Two queries with different partition functions, and positives from their softmax."""
    module = training(cap)
    items = torch.tensor([[2.0, 0.0], [0.5, 1.0], [-1.0, 2.0], [0.0, -1.0]])
    query = torch.eye(2).repeat_interleave(64, dim=0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        chances = (query @ items.T).softmax(dim=1)
        positive_ids = torch.multinomial(chances, 1, generator=generator)[:, 0]
        module(query, items, positive_ids, generator=generator)
    predicted = module.objective.head.predict(torch.eye(2))
    assert predicted.tolist() == pytest.approx(items.T.logsumexp(dim=1).tolist(), abs=0.12)


def test_evaluation_leaves_the_prediction_unchanged():
    module, inputs = training().eval(), (torch.randn(8, 2), torch.randn(V, 2), ALL.repeat(2))
    module(*inputs)
    assert module.objective.head.num_steps == 0
    module.train()(*inputs)
    assert module.objective.head.num_steps == 1


def test_state_continues_a_training_exactly():
    inputs = (torch.randn(8, 2), torch.randn(V, 2), ALL.repeat(2))
    module = training()
    assert list(module.state_dict()) == ["num_steps", "objective_state.num_steps"]
    for _ in range(3):
        module(*inputs)
    other = training()
    other.load_state_dict(module.state_dict())
    results = []
    for each in (module, other):
        generator = torch.Generator().manual_seed(2)
        results.append([each(*inputs, generator=generator) for _ in range(3)])
    assert results[0] == results[1]


def test_incomplete_state_is_refused():
    state = {"num_steps": torch.tensor(3), "mean": torch.zeros(2)}
    with pytest.raises(ArtifactError, match="state of the learnt partition function is incomplete"):
        PartitionHead(0.01).set_extra_tensors(state)


def test_prediction_is_not_shared_by_losses_that_compare_alone():
    """Without a training module each row takes log Z from its own candidates."""
    loss = LOSSES["learnt_partition"].Config().build(V)
    candidates = Uniform(V, num_candidates=6).sample(ALL)
    inputs = (torch.randn(V, 2), torch.randn(V, 2), ALL, candidates)
    first = loss(*inputs).loss
    assert torch.equal(loss(*inputs).loss, first)
    assert loss.head.num_steps == 0


def test_expected_counts_are_those_of_other_users():
    """Two of five rows belong to the user of the row: three samples are compared."""
    log_q, users = Q.log(), torch.tensor([0, 0, 1, 2, 3])
    ids = torch.tensor([2, 0, 3, 2, 1])
    counts = math.log(5) + log_q[ids]
    candidates = Candidates(ids, counts, counts, 5, owner=users, row_user_ids=users)
    query = torch.ones(5, 1, dtype=torch.float64)
    row = build(10.0, 0.7)(query, SCORES[:, None], ids, candidates).loss[0]
    others = Candidates(ids[2:], math.log(3) + log_q[ids[2:]], math.log(3) + log_q[ids[:1]], 3)
    expected = build(10.0, 0.7)(query[:1], SCORES[:, None], ids[:1], others).loss[0]
    assert float(row) == pytest.approx(float(expected))


@pytest.mark.parametrize("settings", [{"cap": 1e300}, {"cap": 0.0}, {"head_lr": 1e300}])
def test_settings_beyond_float32_are_refused(settings):
    with pytest.raises(ConfigError, match=r"less than or equal|greater than"):
        LOSSES["learnt_partition"].Config(**settings)
