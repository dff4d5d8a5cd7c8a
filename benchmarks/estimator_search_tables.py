"""Tables of logits of ``estimator_search.py``: every estimator on choices that are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from candid.losses import corrected_log_softmax

NUM_ITEMS, NUM_USERS = 1000, 4
CHI2 = (100, 4)
LEARNING_RATES, SEEDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16), 3
STEPS, ROWS = 1500, 8  # rows of each table in a step
ZETA_RATE = 0.02  # of the running mean of the partition function
REFRESH = 50  # steps between searches for the nearest items
BLOCKS, REPEATS, DRIFT_ROWS = 8, 200, 64


@dataclass(frozen=True)
class World:
    """Known choices of users, and the distribution of the samples.

    Attributes:
        log_p: [U, V] float32, the users' choices.
        q: [V] float32, Zipf's law.
    """

    log_p: Tensor
    q: Tensor

    @property
    def chi2(self) -> float:
        """Mean of Σ P²/Q - 1 over the users."""
        return float((self.log_p.double().exp().square() / self.q).sum(dim=1).mean()) - 1.0


@dataclass(frozen=True)
class Draw:
    """Candidates of R rows.

    Attributes:
        ids: [R, N] int64.
        log_count: [R, N], log expected counts.
        log_count_positive: [R].
        left_out: [R, N] bool, True where the place is empty.
        is_set: no item occurs twice.
        num_samples: n of samples with replacement; 0 otherwise.
    """

    ids: Tensor
    log_count: Tensor
    log_count_positive: Tensor
    left_out: Tensor
    is_set: bool = False
    num_samples: int = 0


@dataclass
class Context:
    """What samples and losses may read.

    Attributes:
        world: the samples' distribution, and chi2.
        tables: [T, V], logits that are fitted.
        rows: [R] int64, the table of each row.
        positive_ids: [R] int64.
        generator: of the samples.
        log_zeta: [T], running log partition function; None before the first step.
        nearest: [T, K] int64, items with the highest scores, as of the last search.
    """

    world: World
    tables: Tensor
    rows: Tensor
    positive_ids: Tensor
    generator: torch.Generator
    log_zeta: Tensor | None = None
    nearest: Tensor | None = None


Sample = Callable[[Context, int], Draw]
Loss = Callable[[Tensor, Tensor, Draw, Context], Tensor]


def make_world(chi2: float, seed: int = 0) -> World:
    """Return users whose mean chi2 is the given one: popularity times log-normal tastes."""
    generator = torch.Generator().manual_seed(seed)
    q = 1.0 / torch.arange(1, NUM_ITEMS + 1, dtype=torch.float64)
    q /= q.sum()
    tastes = torch.randn(NUM_USERS, NUM_ITEMS, generator=generator, dtype=torch.float64)

    def world(strength: float) -> World:
        return World((q.log() + strength * tastes).log_softmax(dim=1).float(), q.float())

    low, high = 0.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if world(middle).chi2 < chi2 else (low, middle)
    return world(low)


def inclusion(q: Tensor, size: int) -> Tensor:
    """Return min(1, c·Q(d)) with sum ``size``: inclusion probabilities of a set of this size."""
    certain = torch.zeros_like(q, dtype=torch.bool)
    for _ in range(size):
        scale = (size - int(certain.sum())) / q[~certain].sum()
        more = ~certain & (scale * q >= 1.0)
        if not bool(more.any()):
            break
        certain |= more
    return torch.where(certain, 1.0, scale * q)


def from_cumulative(context: Context, cumulative: Tensor, n: int) -> Tensor:
    """Sample [R, n] items with replacement from a distribution [V], or [R, V] for each row."""
    points = torch.rand(len(context.rows), n, generator=context.generator)
    last = cumulative[..., -1:]
    return torch.searchsorted(cumulative, points * last).clamp(max=NUM_ITEMS - 1)


def repeated(ids: Tensor) -> Tensor:
    """Mark every occurrence of an item in its row [R, N] except one."""
    values, order = ids.sort(dim=1)
    is_repeated = torch.zeros_like(ids, dtype=torch.bool)
    is_repeated[:, 1:] = values[:, 1:] == values[:, :-1]
    return torch.zeros_like(is_repeated).scatter(1, order, is_repeated)


def samples(context: Context, n: int) -> Draw:
    """Return n samples with replacement for each row."""
    q = context.world.q
    ids = from_cumulative(context, q.cumsum(0), n)
    counts = (n * q).log()
    empty = torch.zeros_like(ids, dtype=torch.bool)
    return Draw(ids, counts[ids], counts[context.positive_ids], empty, num_samples=n)


def shared_samples(context: Context, n: int) -> Draw:
    """Return 8·n samples that 8 rows of different tables share: the union of their samples."""
    apart = samples(replace(context, rows=context.rows[: len(context.rows) // 8]), n * 8)
    ids = apart.ids.repeat_interleave(8, dim=0)
    counts = (8 * n * context.world.q).log()
    empty = torch.zeros_like(ids, dtype=torch.bool)
    return Draw(ids, counts[ids], counts[context.positive_ids], empty, num_samples=8 * n)


def distinct_samples(context: Context, n: int) -> Draw:
    """Return the distinct items of n samples."""
    q = context.world.q
    ids = from_cumulative(context, q.cumsum(0), n)
    counts = (-torch.expm1(n * torch.log1p(-q))).log()
    return Draw(ids, counts[ids], counts[context.positive_ids], repeated(ids), is_set=True)


def systematic(context: Context, size: int) -> tuple[Tensor, Tensor]:
    """Return sets [R, size] of items and log inclusion probabilities [V].

    Systematic sampling: items in a random order, at equal distances of their probabilities.
    """
    chances = inclusion(context.world.q, size)
    order = torch.randperm(NUM_ITEMS, generator=context.generator)
    edges = chances[order].double().cumsum(0)
    start = torch.rand(len(context.rows), 1, generator=context.generator, dtype=torch.float64)
    places = torch.searchsorted(edges, start + torch.arange(size)).clamp(max=NUM_ITEMS - 1)
    return order[places], chances.log()


def fixed_set(context: Context, n: int) -> Draw:
    """Return a set of n items besides the positive.

    The positive replaces one of n + 1 items, itself if it is there.
    """
    ids, counts = systematic(context, n + 1)
    dropped = torch.randint(n + 1, (len(ids), 1), generator=context.generator)
    is_hit = (ids == context.positive_ids[:, None]).any(dim=1, keepdim=True)
    empty = (torch.arange(n + 1) == dropped) & ~is_hit
    return Draw(ids, counts[ids], counts[context.positive_ids], empty, is_set=True)


def plain_set(context: Context, n: int) -> Draw:
    """Return a set of n items that does not depend on the positive."""
    ids, counts = systematic(context, n)
    empty = torch.zeros_like(ids, dtype=torch.bool)
    return Draw(ids, counts[ids], counts[context.positive_ids], empty, is_set=True)


def nearest_and(rest_is_distinct: bool) -> Sample:
    """Return a source of n/2 exact nearest items and n/2 samples of the other items."""

    def sample(context: Context, n: int) -> Draw:
        q, exact = context.world.q, context.nearest
        assert exact is not None
        m = n - exact.shape[1]
        outside = q.expand(len(exact), -1).scatter(1, exact, 0.0)
        outside = outside / outside.sum(dim=1, keepdim=True)
        ids = from_cumulative(context, outside.cumsum(1)[context.rows], m)
        counts = m * outside if not rest_is_distinct else -torch.expm1(m * torch.log1p(-outside))
        counts = counts.log().scatter(1, exact, 0.0)[context.rows]
        exact = exact[context.rows]
        is_exact = (exact == context.positive_ids[:, None]).any(dim=1)
        empty = repeated(ids) if rest_is_distinct else torch.zeros_like(ids, dtype=torch.bool)
        if not rest_is_distinct:
            empty[:, 0] = ~is_exact  # a positive that is not exact replaces one sample
        # The exact places hold each item once: only the positive itself is left out there.
        of_exact = exact == context.positive_ids[:, None]
        if rest_is_distinct:
            empty = empty | (ids == context.positive_ids[:, None])
        both = torch.cat([exact, ids], dim=1)
        log_positive = counts.gather(1, context.positive_ids[:, None])[:, 0]
        left_out = torch.cat([of_exact, empty], dim=1)
        return Draw(both, counts.gather(1, both), log_positive, left_out)

    return sample


def hits(draw: Draw, context: Context) -> Tensor:
    """[R, N] bool, the candidates that are the row's positive."""
    return draw.ids == context.positive_ids[:, None]


def logq(positive: Tensor, scores: Tensor, draw: Draw, context: Context) -> Tensor:
    """The loss of ``logq``; hits of samples with replacement are kept."""
    left_out = draw.left_out | hits(draw, context) if draw.is_set else draw.left_out
    return corrected_log_softmax(
        positive=positive,
        candidates=scores,
        log_expected_count=draw.log_count,
        log_expected_count_positive=draw.log_count_positive,
        accidental_hits=left_out,
        correction="logq",
    ).loss


def refined(
    positive: Tensor, scores: Tensor, draw: Draw, context: Context, jackknife: bool = False
) -> Tensor:
    """The loss of ``refined``."""
    left_out = draw.left_out | hits(draw, context)
    renormalization = None
    if draw.num_samples:
        valid = (~left_out).sum(dim=1)
        renormalization = (valid / draw.num_samples).log()
        renormalization -= torch.log1p(-context.world.q[context.positive_ids])
        renormalization = renormalization.masked_fill(valid == 0, 0.0)
    return corrected_log_softmax(
        positive=positive,
        candidates=scores,
        log_expected_count=draw.log_count,
        accidental_hits=left_out,
        log_renormalization=renormalization,
        correction="refined",
        jackknife=jackknife,
    ).loss


def with_jackknife(positive: Tensor, scores: Tensor, draw: Draw, context: Context) -> Tensor:
    """The delete-one jackknife of ``refined``."""
    return refined(positive, scores, draw, context, jackknife=True)


def mixed(weight_of: Callable[[Tensor, Draw, Context], Tensor | float]) -> Loss:
    """Return w · ``refined`` + (1 - w) · ``logq``."""

    def loss(positive: Tensor, scores: Tensor, draw: Draw, context: Context) -> Tensor:
        of_refined = refined(positive, scores, draw, context)
        weight = weight_of(of_refined.detach(), draw, context)
        return weight * of_refined + (1.0 - weight) * logq(positive, scores, draw, context)

    return loss


def by_chi2(_: Tensor, draw: Draw, context: Context) -> float:
    """Weight 1 / (1 + chi2/n) of ``refined``."""
    return 1.0 / (1.0 + context.world.chi2 / draw.num_samples)


def by_probability(loss: Tensor, draw: Draw, context: Context) -> Tensor:
    """Weight 1 - P(p) of ``refined``, P estimated by it."""
    return -torch.expm1(-loss)


def learnt_partition(cap: float) -> Loss:
    """Return a loss with a running partition function zeta, for ratios x = exp(s)/(zeta·n·Q).

    The gradient is g(x) at a sample and -g(x)/x at the positive, g(x) = x / (1 + x/cap): for the
    right zeta its drift is 0 for every cap, if samples of the positive are kept. cap = 1 is binary
    noise contrastive estimation (Gutmann and Hyvärinen, 2010). For cap = inf it is the bound of
    Fagan and Iyengar (2018), -s(p) + Z'/zeta + log zeta - 1.
    """

    def loss(positive: Tensor, scores: Tensor, draw: Draw, context: Context) -> Tensor:
        assert context.log_zeta is not None
        log_zeta = context.log_zeta[context.rows]
        log_ratio = scores - draw.log_count - log_zeta[:, None]
        if math.isinf(cap):
            return log_ratio.exp().sum(dim=1) - positive
        gap = positive - draw.log_count_positive - log_zeta - math.log(cap)
        return softplus(-gap) + cap * softplus(log_ratio - math.log(cap)).sum(dim=1)

    return loss


def calibrated(positive: Tensor, scores: Tensor, draw: Draw, context: Context) -> Tensor:
    """``refined`` with control variates: weights calibrated to known means under Q.

    With t = s - log Q, the means of t and t² under Q are known (for dot products from the mean
    and the second moments of the item vectors). The regression estimator multiplies the weight
    of each sample by 1 + (known - sampled mean) · A⁻¹ · h, h = (1, t, t²), A = mean of h·hᵀ.
    """
    q = context.world.q
    t = context.tables - q.log()
    moments = torch.stack([torch.ones_like(t), t, t.square()], dim=-1)
    known = torch.einsum("v,tvk->tk", q, moments)[context.rows]
    h = moments[context.rows[:, None], draw.ids]
    a = torch.einsum("rnk,rnl->rkl", h, h) / h.shape[1]
    ridge = 1e-3 * a.diagonal(dim1=1, dim2=2).mean(dim=1)
    a = a + ridge[:, None, None] * torch.eye(3)
    step = torch.linalg.solve(a, known - h.mean(dim=1))
    factor = 1.0 + torch.einsum("rk,rnk->rn", step, h)
    log_factor = factor.clamp(min=0.05, max=20.0).log()
    return refined(positive, scores, replace(draw, log_count=draw.log_count - log_factor), context)


ESTIMATORS: dict[str, tuple[Sample, Loss]] = {
    "refined": (samples, refined),
    "logq": (samples, logq),
    "refined + jackknife": (samples, with_jackknife),
    "refined, control variates": (samples, calibrated),
    "mix by chi2/n": (samples, mixed(by_chi2)),
    "mix by P(p)": (samples, mixed(by_probability)),
    "learnt partition function": (samples, learnt_partition(math.inf)),
    "learnt partition function, cap 10": (samples, learnt_partition(10.0)),
    "learnt partition function, cap 3": (samples, learnt_partition(3.0)),
    "binary NCE": (samples, learnt_partition(1.0)),
    "learnt partition function, cap 10, set of fixed size": (plain_set, learnt_partition(10.0)),
    "logq, distinct samples": (distinct_samples, logq),
    "refined, set of fixed size": (fixed_set, refined),
    "logq, set of fixed size": (fixed_set, logq),
    "logq, half nearest": (nearest_and(False), logq),
    "logq, half nearest, distinct rest": (nearest_and(True), logq),
    "logq, samples shared by 8 rows": (shared_samples, logq),
}
FULL = "full softmax"
AT_64 = (
    "refined",
    "logq",
    "refined + jackknife",
    "refined, control variates",
    "mix by chi2/n",
    "learnt partition function, cap 3",
    "logq, set of fixed size",
    "logq, half nearest, distinct rest",
)
"""Estimators that are measured with 64 candidates too; these cells take the longest."""


def cells() -> list[tuple[int, str, int]]:
    """Return chi2, estimator and number of candidates of everything that is measured."""
    return [
        *((chi2, FULL, 0) for chi2 in CHI2),
        *((100, name, 4) for name in ESTIMATORS),
        *((chi2, name, 16) for chi2 in CHI2 for name in ESTIMATORS),
        *((100, name, 64) for name in AT_64),
    ]


def gradients(name: str, context: Context, n: int) -> tuple[Tensor, Tensor]:
    """Return ids [R, 1 + N], the positive first, and the gradients with respect to their scores."""
    sample, loss = ESTIMATORS[name]
    draw = sample(context, n)
    flat = context.tables.flatten()
    positive = flat[context.rows * NUM_ITEMS + context.positive_ids].requires_grad_()
    scores = flat[context.rows[:, None] * NUM_ITEMS + draw.ids].requires_grad_()
    estimate = log_partition(scores.detach(), draw, context)
    if context.log_zeta is None:
        context.log_zeta = estimate
    loss(positive, scores, draw, context).sum().backward()
    old = context.log_zeta + math.log1p(-ZETA_RATE)
    context.log_zeta = torch.logaddexp(old, estimate + math.log(ZETA_RATE))
    assert positive.grad is not None
    assert scores.grad is not None
    ids = torch.cat([context.positive_ids[:, None], draw.ids], dim=1)
    return ids, torch.cat([positive.grad[:, None], scores.grad], dim=1)


def log_partition(scores: Tensor, draw: Draw, context: Context) -> Tensor:
    """[T], the log of the mean estimate of the partition function over the rows of each table."""
    kept = (scores - draw.log_count).masked_fill(draw.left_out, -math.inf).logsumexp(dim=1)
    by_table = kept.unflatten(0, (-1, len(context.tables)))  # in the order of ``make_context``
    return by_table.logsumexp(dim=0) - math.log(len(by_table))


def make_context(
    world: World, log_p: Tensor, tables: Tensor, rows: int, generator: torch.Generator
) -> Context:
    """Return a context: ``rows`` rows of each table [T, V], positives from log_p [T, V]."""
    positive_ids = torch.multinomial(log_p.exp(), rows, replacement=True, generator=generator)
    indices = torch.arange(len(tables)).repeat(rows)
    return Context(world, tables, indices, positive_ids.T.flatten(), generator)


def measure(name: str, world: World, n: int) -> dict[str, float]:
    """Measure drift and noise at the users' own distributions, as ``candid.audit.drift`` does.

    The noise is the variance of a row's gradient, Σ over d of Var g(d) / P(d), over that of the
    full softmax, V - 1.
    """
    generator = torch.Generator().manual_seed(n)
    p = world.log_p.double().exp()
    first = torch.zeros(BLOCKS, *p.shape, dtype=torch.float64)
    second = torch.zeros_like(p)
    for repeat in range(REPEATS):
        context = make_context(world, world.log_p, world.log_p, DRIFT_ROWS, generator)
        context.log_zeta = torch.zeros(NUM_USERS)
        context.nearest = world.log_p.topk(n // 2, dim=1).indices
        ids, values = gradients(name, context, n)
        rows = torch.zeros(len(ids), NUM_ITEMS).scatter_add_(1, ids, values)
        second += rows.double().square().unflatten(0, (DRIFT_ROWS, -1)).sum(dim=0)
        values[:, 0] += 1.0  # the mean over positives is known: the gradient plus P
        rows = torch.zeros(len(ids), NUM_ITEMS).scatter_add_(1, ids, values)
        first[repeat % BLOCKS] += rows.double().unflatten(0, (DRIFT_ROWS, -1)).sum(dim=0)
    first = first / (REPEATS // BLOCKS * DRIFT_ROWS) - p
    variance = second / (REPEATS * DRIFT_ROWS) - first.mean(dim=0).square()
    scaled = first / p.sqrt()
    products = torch.einsum("kuv,luv->klu", scaled, scaled).mean(dim=2) / 2
    off = ~torch.eye(BLOCKS, dtype=torch.bool)
    by_block = (products * off).sum(dim=1) / (BLOCKS - 1)
    return {
        "drift": float(products[off].mean()),
        "drift_error": float(2 * by_block.std() / BLOCKS**0.5),
        "noise": float((variance / p).sum(dim=1).mean() / (NUM_ITEMS - 1)),
    }


def fit(name: str, world: World, n: int) -> dict[str, Any]:
    """Fit tables of logits; return the excess NLL in nats by learning rate and seed.

    Every learning rate and seed has a table of its own for each user, all fitted at once, from
    log Q on. Steps are those of SGD with a learning rate that falls linearly to 0, divided by
    P(d) + 1/V: without that, rare items would need far more steps than popular ones, and Adam
    lowers items that are rarely positive.
    """
    generator = torch.Generator().manual_seed(n)
    copies = len(LEARNING_RATES) * SEEDS
    log_p = world.log_p.repeat(copies, 1)
    rates = torch.tensor(LEARNING_RATES).repeat_interleave(SEEDS * NUM_USERS)[:, None]
    tables = world.q.log().expand(len(log_p), -1).clone()
    scale = 1.0 / (log_p.exp() + 1.0 / NUM_ITEMS)
    log_zeta, nearest = None, None
    for step in range(STEPS):
        if step % REFRESH == 0:
            nearest = tables.topk(max(1, n // 2), dim=1).indices
        context = make_context(world, log_p, tables, ROWS, generator)
        context.log_zeta, context.nearest = log_zeta, nearest
        if name == FULL:
            counts = torch.zeros_like(tables).scatter_add_(
                1, context.positive_ids.unflatten(0, (ROWS, -1)).T, torch.ones(len(log_p), ROWS)
            )
            grad = tables.softmax(dim=1) - counts / ROWS
        else:
            ids, values = gradients(name, context, n)
            places = (context.rows[:, None] * NUM_ITEMS + ids).flatten()
            grad = torch.zeros(tables.numel()).index_add_(0, places, values.flatten() / ROWS)
            grad = grad.view_as(tables)
            log_zeta = context.log_zeta
        tables -= rates * (1.0 - step / STEPS) * grad * scale
    excess = (log_p.exp() * (log_p - tables.log_softmax(dim=1))).sum(dim=1)
    by_seed = excess.view(len(LEARNING_RATES), SEEDS, NUM_USERS).mean(dim=2)
    return {str(rate): row.tolist() for rate, row in zip(LEARNING_RATES, by_seed, strict=True)}
