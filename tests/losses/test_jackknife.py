"""The jackknife over users, against the losses of smaller samples, in float64."""

import itertools
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from candid import full_softmax, sampled_softmax
from candid.batches import BatchesConfig, Loader, target_counts
from candid.candidates import Candidates, ExactCandidates
from candid.data import DataConfig, prepare_folder
from candid.errors import ConfigError
from candid.losses import corrected_log_softmax
from candid.losses.jackknife import Groups
from candid.samplers import CrossBatchMemory, InBatch, Popularity
from candid.samplers.sampler import sample_groups

V, B, D = 15, 11, 4
COUNTS = torch.arange(V, 0, -1).double()
LOG_Q = (COUNTS / COUNTS.sum()).log()
# Users of 4, 3, 2, 1 and 1 rows; several rows of other users have the same positive.
USERS = torch.tensor([7, 3, 7, 7, 5, 3, 2, 7, 5, 3, 9])
POSITIVES = torch.tensor([0, 1, 4, 0, 2, 0, 6, 3, 1, 5, 0])


def vectors():
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(B, D, generator=generator, dtype=torch.float64)
    table = torch.randn(V, D, generator=generator, dtype=torch.float64)
    return query.requires_grad_(), table.requires_grad_()


def without_owner(candidates, user):
    """The record of the rows of other users: n is smaller, and with it each expected count."""
    kept = candidates.owner != user
    num_samples = int(kept.sum())
    change = math.log(num_samples / candidates.num_samples)
    return replace(
        candidates,
        ids=candidates.ids[kept],
        owner=candidates.owner[kept],
        log_expected_count=candidates.log_expected_count[kept] + change,
        log_expected_count_positive=candidates.log_expected_count_positive + change,
        num_samples=num_samples,
    )


def jackknife_of(query, table, candidates):
    """G·L - (G - 1)/G · Σ L(-j) over the users that have a candidate of the row, row by row."""

    def losses(record):
        return sampled_softmax(query, table, POSITIVES, record, correction="refined").loss

    plain = losses(candidates)
    is_valid = ~candidates.accidental_hits(POSITIVES)
    owners = candidates.owner.unique().tolist()
    without = {user: losses(without_owner(candidates, user)) for user in owners}
    rows = []
    for row in range(B):
        groups = [user for user in owners if bool(is_valid[row, candidates.owner == user].any())]
        size = len(groups)
        if size < 2:
            rows.append(plain[row])
            continue
        mean = sum(without[user][row] for user in groups) / size
        rows.append(size * plain[row] - (size - 1) * mean)
    return torch.stack(rows)


def assert_same(loss, expected, inputs):
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    grads = torch.autograd.grad(loss.sum(), inputs)
    expected_grads = torch.autograd.grad(expected.sum(), inputs)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-6)


def in_batch():
    return InBatch(COUNTS).sample(POSITIVES, USERS)


def memory():
    sampler = CrossBatchMemory(COUNTS, size=8)
    sampler.observe(torch.tensor([3, 3, 0, 8, 2, 1]), torch.tensor([1, 1, 1, 5, 7, 4]))
    return sampler.sample(POSITIVES, USERS)


EXACT = ExactCandidates(torch.tensor([3, 8]), LOG_Q[[3, 8]].float() + math.log(B))


@pytest.mark.parametrize("source", [in_batch, memory])
def test_loss_and_gradient_equal_those_of_leaving_out_each_user_by_hand(source):
    query, table = vectors()
    candidates = source()
    out = sampled_softmax(query, table, POSITIVES, candidates, jackknife=True, correction="refined")
    assert_same(out.loss, jackknife_of(query, table, candidates), (query, table))


def test_exact_candidates_stay_in_when_a_user_is_left_out():
    query, table = vectors()
    candidates = replace(in_batch(), exact=EXACT)
    out = sampled_softmax(query, table, POSITIVES, candidates, jackknife=True, correction="refined")

    def without(user):
        smaller = without_owner(candidates, user)
        # Q of an exact candidate does not depend on how many samples there are.
        log_count = EXACT.log_expected_count + math.log(smaller.num_samples / B)
        return replace(smaller, exact=replace(EXACT, log_expected_count=log_count))

    plain = sampled_softmax(query, table, POSITIVES, candidates, correction="refined").loss
    is_valid = ~candidates.accidental_hits(POSITIVES)
    for row in range(B):
        groups = candidates.owner[is_valid[row]].unique().tolist()
        losses = [
            sampled_softmax(query, table, POSITIVES, without(user), correction="refined").loss[row]
            for user in groups
        ]
        size = len(groups)
        expected = size * plain[row] - (size - 1) / size * sum(losses)
        torch.testing.assert_close(out.loss[row], expected, rtol=1e-6, atol=1e-7)


def test_users_and_single_samples_are_two_strata():
    """Leaving out a group rescales its own kind; the other kind and its share stay."""
    query, table = vectors()
    uniform = torch.tensor([3, 14, 9, 0, 3, 7])
    log_count = torch.logaddexp(LOG_Q + math.log(B), torch.tensor(6 / V).log()).float()
    ids = torch.cat([POSITIVES, uniform])
    candidates = Candidates(
        ids,
        log_count[ids],
        log_count[POSITIVES],
        num_samples=len(ids),
        owner=torch.cat([USERS, torch.full_like(uniform, -1)]),
        row_user_ids=USERS,
    )
    out = sampled_softmax(query, table, POSITIVES, candidates, jackknife=True, correction="refined")
    plain = sampled_softmax(query, table, POSITIVES, candidates, correction="refined")
    is_valid = ~candidates.accidental_hits(POSITIVES)
    raw = torch.exp(query @ table[candidates.ids].T - candidates.log_expected_count)
    rows = []
    for row in range(B):
        valid = is_valid[row]
        # The renormalization of the row, from the loss under test's own log Z'.
        scale = plain.log_z[row].exp() / raw[row, valid].sum()
        terms = raw[row] * scale
        kinds = [
            [
                (candidates.owner == user) & valid
                for user in candidates.owner[valid].unique().tolist()
                if user != -1
            ],
            [
                torch.arange(len(valid)) == position
                for position in torch.nonzero((candidates.owner == -1) & valid)[:, 0].tolist()
            ],
        ]
        positive = (query[row] @ table[POSITIVES[row]]).exp()

        def loss(z, positive=positive):
            return torch.log1p(z / positive)

        total = terms[valid].sum()
        expected = loss(total)
        for groups in kinds:
            size = len(groups)
            if size < 2:
                continue
            of_kind = torch.stack(groups).any(dim=0)
            for group in groups:
                others = of_kind & ~group
                scaled = terms[others].sum() * of_kind.sum() / others.sum()
                left = loss(total - terms[of_kind].sum() + scaled)
                expected = expected + (size - 1) / size * (loss(total) - left)
        rows.append(expected)
    assert_same(out.loss, torch.stack(rows), (query, table))


def test_layouts_of_shared_grouped_and_row_candidates_agree():
    query, table = vectors()
    shared = in_batch()
    expected = sampled_softmax(
        query, table, POSITIVES, shared, jackknife=True, correction="refined"
    ).loss
    for repeats in (4, B):
        grouped = replace(
            shared,
            ids=shared.ids.repeat(repeats, 1),
            log_expected_count=shared.log_expected_count.repeat(repeats, 1),
            owner=shared.owner.repeat(repeats, 1),
        )
        out = sampled_softmax(
            query, table, POSITIVES, grouped, jackknife=True, correction="refined"
        )
        torch.testing.assert_close(out.loss, expected)


def test_loss_of_padded_groups_equals_that_of_each_group_alone():
    """[G, N]: each part of the rows is compared with its own candidates, as if it were alone."""
    query, table = vectors()
    first, second = (
        replace(in_batch(), ids=POSITIVES[rows], owner=USERS[rows], num_samples=num)
        for rows, num in ((slice(0, 11), 11), (slice(0, 6), 6))
    )
    counts = [LOG_Q[part.ids].float() + math.log(11) for part in (first, second)]
    pad = 11 - 6
    grouped = replace(
        in_batch(),
        ids=torch.stack([first.ids, torch.cat([second.ids, torch.zeros(pad, dtype=torch.int64)])]),
        log_expected_count=torch.stack(
            [counts[0], torch.cat([counts[1], torch.full((pad,), math.inf)])]
        ),
        owner=torch.stack([first.owner, torch.cat([second.owner, torch.full((pad,), -1)])]),
    )
    out = sampled_softmax(query, table, POSITIVES, grouped, jackknife=True, correction="refined")
    alone = [
        sampled_softmax(
            query,
            table,
            POSITIVES,
            replace(part, log_expected_count=count, num_samples=11),
            jackknife=True,
            correction="refined",
        ).loss
        for part, count in zip((first, second), counts, strict=True)
    ]
    torch.testing.assert_close(out.loss[:6], alone[0][:6])
    torch.testing.assert_close(out.loss[6:], alone[1][6:])


@pytest.mark.parametrize("num_groups", [2, 3])
def test_independent_groups_of_samples_keep_their_layout(num_groups):
    """Candidates without an owner are groups of their own in each layout."""
    query, table = vectors()
    sampler = Popularity(COUNTS, num_candidates=5)
    generator = torch.Generator().manual_seed(1)
    candidates = sample_groups(sampler, num_groups, POSITIVES, generator=generator)
    single = replace(candidates, owner=torch.full_like(candidates.ids, -1), row_user_ids=USERS)
    expected = sampled_softmax(
        query, table, POSITIVES, candidates, jackknife=True, correction="refined"
    ).loss
    out = sampled_softmax(
        query, table, POSITIVES, single, jackknife=True, correction="refined"
    ).loss
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_rows_with_fewer_than_two_other_users_keep_the_plain_loss():
    query, table = (v.detach()[:5].requires_grad_() for v in vectors())
    positive_ids, users = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([1, 1, 1, 2, 2])
    candidates = InBatch(torch.ones(5)).sample(positive_ids, users)
    plain = sampled_softmax(query, table, positive_ids, candidates, correction="refined")
    out = sampled_softmax(
        query, table, positive_ids, candidates, jackknife=True, correction="refined"
    )
    assert torch.equal(out.loss, plain.loss)
    grads = [torch.autograd.grad(o.loss.sum(), (query, table)) for o in (out, plain)]
    for grad, expected in zip(*grads, strict=True):
        torch.testing.assert_close(grad, expected)


def test_bias_is_of_second_order_where_sizes_and_tastes_of_users_are_related():
    """All samples of G users from four, by enumeration; both sums of the ratio Z' vary."""
    users = [[0], [1, 2], [0, 3, 3, 4], [1, 4, 2, 4, 4]]
    counts = torch.bincount(torch.tensor(list(itertools.chain(*users))), minlength=5).double()
    log_q = (counts / counts.sum()).log()
    scores = torch.tensor([1.5, -1.0, 0.3, 1.0, 2.0], dtype=torch.float64)
    exact = torch.logsumexp(torch.cat([scores, torch.zeros(1)]), 0).item()

    def biases(num_users):
        total = {"plain": 0.0, "rows": 0.0, "users": 0.0}
        for draw in itertools.combinations_with_replacement(range(4), num_users):
            orders = math.factorial(num_users)
            for user in range(4):
                orders //= math.factorial(draw.count(user))
            ids = torch.tensor(list(itertools.chain(*(users[user] for user in draw))))
            sizes = torch.tensor([len(users[user]) for user in draw])
            for name in total:
                out = corrected_log_softmax(
                    positive=torch.zeros(1, dtype=torch.float64),
                    candidates=scores[ids][None],
                    log_expected_count=log_q[ids] + math.log(len(ids)),
                    jackknife=name != "plain",
                    owner=torch.arange(num_users).repeat_interleave(sizes)
                    if name == "users"
                    else None,
                    correction="refined",
                )
                total[name] += orders / 4**num_users * (out.loss.item() - exact)
        return total

    few, many = biases(6), biases(12)
    assert abs(many["users"]) < 0.15 * abs(many["plain"])
    assert abs(many["rows"]) > 0.2 * abs(many["plain"])
    # Of order 1/G², not 1/G: with twice the users a fifth of the bias, not a half.
    assert abs(many["users"]) < 0.25 * abs(few["users"])
    assert abs(many["rows"]) > 0.4 * abs(few["rows"])


def test_loss_is_finite_and_accurate_where_one_user_holds_nearly_all_of_z():
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randn(2, 60, generator=generator, dtype=torch.float64)
    candidates[0, 6:12] += 40.0
    candidates[1, 6:12] += 200.0
    owner = torch.arange(60) // 6
    losses = []
    for dtype in (torch.float64, torch.float32):
        inputs = candidates.to(dtype).requires_grad_()
        positive = torch.zeros(2, dtype=dtype, requires_grad=True)
        out = corrected_log_softmax(
            positive=positive,
            candidates=inputs,
            log_expected_count=torch.zeros(60),
            jackknife=True,
            owner=owner,
            correction="refined",
        )
        for grad in torch.autograd.grad(out.loss.sum(), (positive, inputs)):
            assert bool(torch.isfinite(grad).all())
        losses.append(out.loss.detach().double())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)


def test_float32_keeps_a_small_correction_among_many_candidates():
    """n·L - (n - 1)/n · Σ L(-i) would lose it: n times the rounding of a loss."""
    generator = torch.Generator().manual_seed(0)
    candidates = 0.1 * torch.randn(1, 100_000, generator=generator, dtype=torch.float64)
    changes = []
    for dtype in (torch.float64, torch.float32):
        plain, corrected = (
            corrected_log_softmax(
                positive=torch.zeros(1, dtype=dtype),
                candidates=candidates.to(dtype),
                log_expected_count=torch.zeros(100_000),
                jackknife=jackknife,
                correction="refined",
            ).loss
            for jackknife in (False, True)
        )
        changes.append((corrected.double() - plain.double()).item())
    assert changes[1] == pytest.approx(changes[0], abs=2e-6)


@pytest.mark.parametrize("has_owner", [False, True])
def test_jackknife_makes_no_tensor_on_another_device(has_owner):
    """ "meta" stands in for a GPU: mixing devices is an error there too."""
    owner = torch.zeros(6, dtype=torch.int64, device="meta") if has_owner else None
    positive = torch.zeros(3, device="meta", requires_grad=True)
    out = corrected_log_softmax(
        positive=positive,
        candidates=torch.zeros(3, 6, device="meta", requires_grad=True),
        log_expected_count=torch.zeros(6, device="meta"),
        accidental_hits=torch.zeros(3, 6, dtype=torch.bool, device="meta"),
        jackknife=True,
        owner=owner,
        correction="refined",
    )
    assert torch.autograd.grad(out.loss.sum(), positive)[0].device.type == "meta"


def test_owner_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match=r"owner must be .* like candidates .*3, 6"):
        corrected_log_softmax(
            positive=torch.zeros(3),
            candidates=torch.zeros(3, 6),
            log_expected_count=torch.zeros(6),
            jackknife=True,
            owner=torch.zeros(2, 6, dtype=torch.int64),
            correction="refined",
        )


def test_column_of_a_group_is_that_of_its_first_candidate():
    groups = Groups.of_owners(torch.tensor([[4, -1, 2, 4, -1, 2], [0, 0, 0, 1, 1, -1]]))
    assert groups.column.tolist() == [[0, 1, 2, 0, 4, 2], [0, 0, 0, 3, 3, 5]]
    assert groups.is_single.int().tolist() == [[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
    values = torch.arange(12.0).view(2, 6)
    assert groups.sums(values).tolist() == [[3, 1, 7, 0, 4, 0], [21, 0, 0, 19, 0, 11]]
    assert Groups.of_owners(torch.zeros(0, dtype=torch.int64)).column.shape == (0,)


DATA = Path(os.environ.get("CANDID_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="set CANDID_DATA to the evaluation data")
def test_jackknife_removes_most_of_the_loss_bias_of_real_batches(tmp_path):
    """MovieLens-1M, 16 windows; the logits follow popularity and each user's tastes."""
    interactions = str(DATA / "ml-1m" / "interactions.parquet")
    config = DataConfig(interactions=interactions, order="position", item_core=5)
    dataset = prepare_folder(config, tmp_path / "data").dataset
    batches = BatchesConfig(batch_size=16, max_length=50)
    counts = torch.from_numpy(target_counts(dataset, batches))
    users = torch.repeat_interleave(torch.from_numpy(np.diff(dataset.user_offsets)))
    items = torch.from_numpy(dataset.item_ids.astype(np.int64))
    chosen = torch.zeros(dataset.num_users, dataset.num_items)
    chosen[users, items] = 1.0
    torch.manual_seed(0)
    user_vectors, sizes, item_vectors = torch.svd_lowrank(chosen - chosen.mean(dim=0), q=16)
    log_q = (counts / counts.sum()).clamp(min=1e-9).log().float()
    table = torch.cat([item_vectors, log_q[:, None]], dim=1)
    queries = torch.cat([6.0 * user_vectors * sizes, torch.ones(len(user_vectors), 1)], dim=1)

    loader = Loader(dataset, batches, seed=0)
    errors = {"plain": [], "rows": [], "users": []}
    for step in range(150):
        batch = loader.batch(0, step)
        sample = InBatch(counts).sample(batch.positive_ids, batch.user_ids)
        rows = torch.randperm(len(batch))[:64]
        query, positive_ids = queries[batch.user_ids[rows]], batch.positive_ids[rows]
        exact = full_softmax(query, table, positive_ids)
        of_rows = replace(
            sample,
            log_expected_count_positive=sample.log_expected_count_positive[rows],
            row_user_ids=batch.user_ids[rows],
        )
        # Without owners the rows of the row's own user stay in: a fifteenth of the batch.
        without_owners = replace(of_rows, owner=None, row_user_ids=None)
        for name in errors:
            record = without_owners if name == "rows" else of_rows
            out = sampled_softmax(
                query, table, positive_ids, record, jackknife=name != "plain", correction="refined"
            )
            # Z' is unbiased, so that its noise can be subtracted.
            noise = exact.sample_weight * torch.expm1(out.log_z - exact.log_z)
            errors[name].append((out.loss - exact.loss - noise).mean().item())
    plain, of_rows, of_users = (float(np.mean(values)) for values in errors.values())
    assert plain < -0.015
    assert abs(of_users) < 0.2 * abs(plain)
    assert abs(of_rows) > 0.5 * abs(plain)
