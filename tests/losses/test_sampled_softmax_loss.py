"""The module: the same numbers as the function, and what a training loop expects of a module."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from candid import SampledSoftmaxLoss, full_softmax, sampled_softmax, with_negatives
from candid.candidates import Candidates
from candid.errors import ConfigError, DataError, UnknownNameError
from candid.samplers import SAMPLERS, InBatch, Popularity, Uniform, sample_groups

V, B, D = 12, 6, 4
COUNTS = torch.arange(V, 0, -1)
IDS = torch.tensor([0, 1, 0, 4, 2, 7])
USERS = torch.tensor([3, 3, 1, 2, 2, 9])


def tensors():
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(B, D, generator=generator, requires_grad=True)
    table = torch.randn(V, D, generator=generator, requires_grad=True)
    return query, table


def seeded():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("sampler", [Popularity(COUNTS, 9), InBatch(COUNTS)])
def test_it_draws_and_compares_as_by_hand(sampler, num_groups):
    query, table = tensors()
    negative_ids = torch.randint(-1, V, (B, 2), generator=seeded())
    loss = SampledSoftmaxLoss(
        COUNTS, sampler, correction="logq", temperature=0.5, num_groups=num_groups
    )
    mine = loss(query, table, IDS, USERS, negative_ids, generator=seeded())
    batch = SimpleNamespace(positive_ids=IDS, user_ids=USERS)
    sampled = sample_groups(sampler, batch, num_groups, seeded())
    sampled = with_negatives(sampled, negative_ids, sampler, batch)
    theirs = sampled_softmax(query, table, IDS, sampled, correction="logq", temperature=0.5)
    torch.testing.assert_close(mine, theirs.loss.mean())
    for one, other in zip(
        torch.autograd.grad(mine, (query, table)),
        torch.autograd.grad(theirs.loss.mean(), (query, table)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_reductions_and_the_record():
    query, table = tensors()
    values = {
        reduction: SampledSoftmaxLoss(COUNTS, reduction=reduction)(
            query, table, IDS, generator=seeded()
        )
        for reduction in ("mean", "sum", "none")
    }
    assert values["none"].shape == (B,)
    torch.testing.assert_close(values["mean"], values["none"].mean())
    torch.testing.assert_close(values["sum"], values["none"].sum())
    out = SampledSoftmaxLoss(COUNTS).compare(
        query, table, IDS, generator=seeded(), effective_sample_size=True
    )
    torch.testing.assert_close(out.loss, values["none"])
    assert out.effective_sample_size.shape == (B,)


@pytest.mark.parametrize(
    ("catalog", "sampler", "kind"),
    [
        (COUNTS, None, "Mixture"),
        (V, None, "Uniform"),
        (V, "uniform", "Uniform"),
        (V, Uniform.Config(num_candidates=3), "Uniform"),
        (COUNTS.numpy(), "popularity", "Popularity"),
        (COUNTS, {"type": "exact_popular", "num_exact": 2}, "ExactPopular"),
    ],
)
def test_samplers_by_every_name(catalog, sampler, kind):
    loss = SampledSoftmaxLoss(catalog, sampler)
    assert type(loss.sampler).__name__ == kind
    assert loss.num_items == V
    assert kind in repr(loss)
    assert bool(torch.isfinite(loss(*tensors(), IDS)))


NEEDED = {
    "mixture": {"components": ["uniform", "in_batch", "popularity"]},
    "exact_popular": {"num_exact": 3},
    "exact_nearest": {"num_exact": 3, "k": 2},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_trains_and_goes_on_from_its_state_dict(name, tmp_path):
    query, table = tensors()
    shown = torch.tensor([[3, -1], [5, 6], [-1, -1], [0, 4], [2, 1], [6, 6]])

    def module():
        return SampledSoftmaxLoss(COUNTS, {"type": name} | NEEDED.get(name, {}))

    loss, generator = module(), seeded()
    for _ in range(3):
        value = loss(query, table, IDS, USERS, shown, generator=generator)
        grads = torch.autograd.grad(value, (query, table))
        assert all(bool(torch.isfinite(grad).all()) for grad in (value, *grads))
    save_file(loss.state_dict(), tmp_path / "loss.safetensors")
    other = module()
    other.load_state_dict(load_file(tmp_path / "loss.safetensors"))
    expected = loss(query, table, IDS, USERS, shown, generator=seeded())
    assert other(query, table, IDS, USERS, shown, generator=seeded()) == expected


def test_the_estimate_nears_the_full_softmax():
    query, table = tensors()
    loss = SampledSoftmaxLoss(COUNTS, Popularity(COUNTS, 50_000), reduction="none")
    exact = full_softmax(query, table, IDS).loss
    torch.testing.assert_close(
        loss(query, table, IDS, generator=seeded()), exact, atol=0.03, rtol=0
    )


def test_a_callable_gives_what_its_table_gives():
    query, table = tensors()
    loss = SampledSoftmaxLoss(COUNTS)
    mine = loss(query, lambda ids: table[ids], IDS, generator=seeded())
    torch.testing.assert_close(mine, loss(query, table, IDS, generator=seeded()))


def test_without_a_generator_torch_s_own_seed_counts():
    query, table = tensors()
    loss = SampledSoftmaxLoss(COUNTS)
    torch.manual_seed(1)
    first = loss(query, table, IDS)
    assert loss(query, table, IDS) != first
    torch.manual_seed(1)
    assert loss(query, table, IDS) == first


def test_a_learnt_temperature_is_a_parameter():
    query, table = tensors()
    scale = nn.Parameter(torch.tensor(0.7))
    loss = SampledSoftmaxLoss(COUNTS, temperature=scale)
    assert list(loss.parameters()) == [scale]
    loss(query, table, IDS).backward()
    assert scale.grad != 0
    assert not list(SampledSoftmaxLoss(COUNTS).parameters())
    assert not SampledSoftmaxLoss(COUNTS).state_dict()


def test_bfloat16_autocast_is_float32_in_its_sums():
    query, table = tensors()
    loss = SampledSoftmaxLoss(COUNTS)
    exact = loss(query, table, IDS, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        narrow = loss(query, table, IDS, generator=seeded())
    assert narrow.dtype == torch.float32
    assert narrow != exact
    torch.testing.assert_close(narrow, exact, rtol=0.01, atol=0.01)
    bfloat16 = loss(query.bfloat16(), table.bfloat16(), IDS, generator=seeded())
    assert bfloat16.dtype == torch.float32
    torch.testing.assert_close(bfloat16, exact, rtol=0.02, atol=0.02)


@pytest.mark.filterwarnings("ignore")  # torch's own, of tracing
def test_it_compiles_but_for_the_draw():
    query, table = tensors()
    sampled = Popularity(COUNTS, 9).sample(
        SimpleNamespace(positive_ids=IDS, user_ids=USERS), seeded()
    )
    whole = torch.compile(sampled_softmax, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        whole(query, table, IDS, sampled).loss, sampled_softmax(query, table, IDS, sampled).loss
    )
    loss = SampledSoftmaxLoss(COUNTS)
    torch.manual_seed(2)
    plain = loss(query, table, IDS)
    torch.manual_seed(2)
    torch.testing.assert_close(torch.compile(loss, backend="aot_eager")(query, table, IDS), plain)


def test_candidates_follow_the_positives_to_their_device():
    # "meta" stands in for an accelerator: mixing devices is an error there too.
    query, table = (tensor.detach().to("meta") for tensor in tensors())
    loss = SampledSoftmaxLoss(COUNTS)
    value = loss(query, table, IDS.to("meta"), negative_ids=IDS[:, None].to("meta"))
    assert value.device.type == "meta"


ONE_MISSING = COUNTS * (torch.arange(V) != 5)


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        (None, {}),
        ({"type": "popularity", "min_count": 1.0}, {}),
        ({"type": "mixture", "components": ["popularity", "uniform"]}, {}),
        ("popularity", {"softmax_over": "trained"}),
        (InBatch(ONE_MISSING), {"softmax_over": "trained"}),
    ],
)
def test_every_item_of_the_softmax_is_within_reach(sampler, settings):
    assert bool(
        torch.isfinite(SampledSoftmaxLoss(ONE_MISSING, sampler, **settings)(*tensors(), IDS))
    )


@pytest.mark.parametrize(
    "sampler", ["popularity", Popularity(ONE_MISSING, 9), InBatch(ONE_MISSING)]
)
def test_an_item_out_of_reach_is_named(sampler):
    ways = "a floor above 0, mix the sampler with uniform draws, .*: softmax_over = 'trained'"
    with pytest.raises(ConfigError, match=f"item 5 can never be drawn.*1 of 12 items.*{ways}"):
        SampledSoftmaxLoss(ONE_MISSING, sampler)
    if not isinstance(sampler, str):
        # All that is known of a catalog by its size is that its items are to be support.
        row_candidates = Popularity(ONE_MISSING, 9)
        with pytest.raises(ConfigError, match="item 5 can never be drawn"):
            SampledSoftmaxLoss(V, row_candidates, softmax_over="trained")


def test_copies_and_pickles():
    query, table = tensors()
    loss = SampledSoftmaxLoss(COUNTS)
    expected = loss(query, table, IDS, generator=seeded())
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other(query, table, IDS, generator=seeded()) == expected


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "sentence"),
    [
        ((V, "popularity"), {}, ConfigError, "only the sampler 'uniform' can be built from the"),
        ((COUNTS, "populrity"), {}, UnknownNameError, "did you mean 'popularity'"),
        ((COUNTS, {"type": "uniform", "n": 3}), {}, ConfigError, "sampler.n: .* got 3"),
        ((COUNTS, Uniform(5, 3)), {}, ConfigError, "draws from 5 items, but the catalog has 12"),
        ((COUNTS,), {"temperature": 0.0}, ConfigError, "temperature must be above 0, got 0.0"),
        ((COUNTS,), {"num_groups": 0}, ConfigError, "num_groups must be at least 1, got 0"),
        ((COUNTS,), {"reduction": "avg"}, UnknownNameError, "unknown reduction 'avg'"),
        ((COUNTS,), {"softmax_over": "al"}, UnknownNameError, "did you mean 'all'"),
        ((COUNTS,), {"correction": "logQ"}, UnknownNameError, "did you mean 'logq'"),
        ((torch.tensor([1.0, float("nan")]),), {}, DataError, "the count of item 1 is nan"),
        ((torch.zeros(3),), {}, DataError, "no item has a positive count"),
    ],
)
def test_settings_that_cannot_work(arguments, settings, error, sentence):
    with pytest.raises(error, match=sentence):
        SampledSoftmaxLoss(*arguments, **settings)


@pytest.mark.parametrize(
    ("changed", "error", "sentence"),
    [
        ({"positive_ids": IDS + 5}, DataError, "item id 12 is outside the catalog: .* 0 to 11"),
        ({"negative_ids": IDS[:, None] + 6}, DataError, "item id 13 is outside the catalog"),
        ({"negative_ids": IDS}, ConfigError, r"negative_ids must be \[B, S\]"),
        ({"item_embeddings": torch.ones(7, D)}, ConfigError, "7 rows, but the catalog .* 12 items"),
    ],
)
def test_batches_that_do_not_fit(changed, error, sentence):
    query, table = tensors()
    arguments = {"query": query, "item_embeddings": table, "positive_ids": IDS} | changed
    with pytest.raises(error, match=sentence):
        SampledSoftmaxLoss(COUNTS)(**arguments)


class Follower:
    """Draws uniformly, and writes down what it was given."""

    num_items = V
    refresh_every = 2

    def __init__(self):
        self.refreshed, self.observed = [], []

    def sample(self, batch, generator=None):
        self.query = batch.query
        ids = torch.randint(V, (4,), generator=generator)
        return Candidates(ids, self.log_expected_count_of(ids, batch), torch.zeros(B), num_groups=4)

    def log_expected_count_of(self, ids, batch):
        return torch.full(ids.shape, -1.0986)

    def refresh(self, item_vectors):
        self.refreshed.append(item_vectors)

    def observe(self, batch):
        self.observed.append(batch.positive_ids)

    def state(self):
        return {"seen/rows": torch.tensor(len(self.observed))}

    def restore(self, state):
        self.observed = [None] * int(state["seen/rows"])


def test_a_sampler_that_follows_is_refreshed_and_shown_each_training_batch_once():
    query, table = tensors()
    follower = Follower()
    loss = SampledSoftmaxLoss(V, follower, temperature=0.5)
    loss.eval()(query, table, IDS)  # a look at validation data before training begins
    assert (len(follower.refreshed), len(follower.observed)) == (1, 0)
    loss.train()
    for _ in range(3):
        loss(query, lambda ids: table[ids], IDS)
    loss.eval()(query, table, IDS)
    assert (len(follower.refreshed), len(follower.observed)) == (3, 3)  # steps 0 and 2
    torch.testing.assert_close(follower.refreshed[-1], table.detach())
    torch.testing.assert_close(follower.query, query.detach() / 0.5)
    assert not follower.query.requires_grad


def test_what_a_sampler_learnt_goes_through_a_state_dict_of_tensors():
    query, table = tensors()
    model = nn.Module()
    model.loss = SampledSoftmaxLoss(V, Follower())
    for _ in range(3):
        model.loss(query, table, IDS)
    state = model.state_dict()
    assert {k: int(v) for k, v in state.items()} == {
        "loss.sampler.seen/rows": 3,
        "loss.sampler.steps": 3,
    }
    other = nn.Module()
    other.loss = SampledSoftmaxLoss(V, Follower())
    assert other.load_state_dict(state).missing_keys == []
    assert len(other.loss.sampler.observed) == 3
    other.loss(query, table, IDS)  # step 3: no refresh is due
    other.loss(query, table, IDS)
    assert len(other.loss.sampler.refreshed) == 1
    with pytest.raises(RuntimeError, match=r"Missing key.*sampler.seen/rows"):
        other.load_state_dict({})
    plain = nn.Module()
    plain.loss = SampledSoftmaxLoss(V)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*sampler.steps"):
        plain.load_state_dict(state)
