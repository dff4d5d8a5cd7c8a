"""The module: the numbers of the function, and the behaviour of any torch module."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from candid import SampledSoftmaxLoss, full_softmax, sampled_softmax, with_negatives
from candid.errors import ConfigError, DataError, UnknownNameError
from candid.losses import sampled
from candid.samplers import (
    SAMPLERS,
    ExactPopular,
    InBatch,
    Mixture,
    Popularity,
    Uniform,
    sample_groups,
)

V, B, D = 12, 6, 4
COUNTS = torch.arange(V, 0, -1)
IDS = torch.tensor([0, 1, 0, 4, 2, 7])
USERS = torch.tensor([3, 3, 1, 2, 2, 9])


def default_sampler(counts=COUNTS):
    return Mixture([Popularity(counts, num_candidates=128), Uniform(V, num_candidates=128)])


def tensors():
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(B, D, generator=generator, requires_grad=True)
    table = torch.randn(V, D, generator=generator, requires_grad=True)
    return query, table


def seeded():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("in_tiles", [False, True])
@pytest.mark.parametrize("users", [None, torch.tensor([7, 7, 7])], ids=["one row", "one user"])
def test_batch_without_another_user_is_not_compared_with_an_in_batch_set(
    users, in_tiles, monkeypatch
):
    """As the last batch of an epoch may be: the items in it are not impossible, but all masked."""
    monkeypatch.setattr(sampled, "DENSE_SCORES", -1 if in_tiles else 2**40)
    num_rows = 1 if users is None else len(users)
    query, table = (tensor.detach().requires_grad_() for tensor in tensors())
    for rest, is_compared in ((None, False), (Uniform(V, num_candidates=4, distinct=True), True)):
        in_batch = InBatch(COUNTS, distinct=True)
        loss = SampledSoftmaxLoss(in_batch if rest is None else Mixture([in_batch, rest]))
        value = loss(query[:num_rows], table, IDS[:num_rows], users, generator=seeded())
        if is_compared:
            alone = SampledSoftmaxLoss(rest)
            expected = alone(query[:num_rows], table, IDS[:num_rows], generator=seeded())
        else:
            expected = torch.zeros(())
        torch.testing.assert_close(value, expected)
        gradient = torch.autograd.grad(value, query)[0]
        assert bool(torch.isfinite(gradient).all())
        assert gradient.any() == is_compared


@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("sampler", [Popularity(COUNTS, num_candidates=9), InBatch(COUNTS)])
def test_loss_equals_sampling_and_comparing_by_hand(sampler, num_groups):
    query, table = tensors()
    negative_ids = torch.randint(-1, V, (B, 2), generator=seeded())
    loss = SampledSoftmaxLoss(sampler, correction="logq", temperature=0.5, num_groups=num_groups)
    mine = loss(query, table, IDS, USERS, negative_ids, generator=seeded())
    sampled = sample_groups(sampler, num_groups, IDS, USERS, generator=seeded())
    sampled = with_negatives(sampled, negative_ids, sampler, IDS, USERS)
    theirs = sampled_softmax(query, table, IDS, sampled, correction="logq", temperature=0.5)
    torch.testing.assert_close(mine, theirs.loss.mean())
    for one, other in zip(
        torch.autograd.grad(mine, (query, table)),
        torch.autograd.grad(theirs.loss.mean(), (query, table)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_reductions_and_unreduced_output():
    query, table = tensors()
    values = {
        reduction: SampledSoftmaxLoss(default_sampler(), reduction=reduction)(
            query, table, IDS, generator=seeded()
        )
        for reduction in ("mean", "sum", "none")
    }
    assert values["none"].shape == (B,)
    torch.testing.assert_close(values["mean"], values["none"].mean())
    torch.testing.assert_close(values["sum"], values["none"].sum())
    out = SampledSoftmaxLoss(default_sampler()).compare(
        query, table, IDS, generator=seeded(), effective_sample_size=True
    )
    torch.testing.assert_close(out.loss, values["none"])
    assert out.effective_sample_size.shape == (B,)


NEEDED = {
    "mixture": {"components": ["uniform", "in_batch", "popularity"]},
    "exact_popular": {"num_exact": 3},
    "exact_nearest": {"num_exact": 3, "k": 2},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_trains_and_continues_from_its_state_dict(name, tmp_path):
    query, table = tensors()
    negative_ids = torch.tensor([[3, -1], [5, 6], [-1, -1], [0, 4], [2, 1], [6, 6]])

    def module():
        config = SAMPLERS[name].Config(**NEEDED.get(name, {}))
        return SampledSoftmaxLoss(config.build(COUNTS))

    loss, generator = module(), seeded()
    for _ in range(3):
        value = loss(query, table, IDS, USERS, negative_ids, generator=generator)
        grads = torch.autograd.grad(value, (query, table))
        assert all(bool(torch.isfinite(grad).all()) for grad in (value, *grads))
    save_file(loss.state_dict(), tmp_path / "loss.safetensors")
    other = module()
    other.load_state_dict(load_file(tmp_path / "loss.safetensors"))
    expected = loss(query, table, IDS, USERS, negative_ids, generator=seeded())
    assert other(query, table, IDS, USERS, negative_ids, generator=seeded()) == expected


def test_estimate_of_refined_converges_to_the_full_softmax():
    query, table = tensors()
    sampler = Popularity(COUNTS, num_candidates=50_000)
    loss = SampledSoftmaxLoss(sampler, correction="refined", reduction="none")
    exact = full_softmax(query, table, IDS).loss
    torch.testing.assert_close(
        loss(query, table, IDS, generator=seeded()), exact, atol=0.03, rtol=0
    )


def test_callable_and_table_give_the_same_loss():
    query, table = tensors()
    loss = SampledSoftmaxLoss(default_sampler())
    mine = loss(query, lambda ids: table[ids], IDS, generator=seeded())
    torch.testing.assert_close(mine, loss(query, table, IDS, generator=seeded()))


def test_global_random_state_is_used_without_a_generator():
    query, table = tensors()
    loss = SampledSoftmaxLoss(default_sampler())
    torch.manual_seed(1)
    first = loss(query, table, IDS)
    assert loss(query, table, IDS) != first
    torch.manual_seed(1)
    assert loss(query, table, IDS) == first


def test_temperature_may_be_a_parameter():
    query, table = tensors()
    scale = nn.Parameter(torch.tensor(0.7))
    loss = SampledSoftmaxLoss(default_sampler(), temperature=scale)
    assert list(loss.parameters()) == [scale]
    loss(query, table, IDS).backward()
    assert scale.grad != 0
    assert not list(SampledSoftmaxLoss(default_sampler()).parameters())
    assert SampledSoftmaxLoss(default_sampler()).state_dict().keys() == {"num_steps"}


def test_bfloat16_autocast_sums_in_float32():
    query, table = tensors()
    loss = SampledSoftmaxLoss(default_sampler())
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
def test_everything_but_the_sample_compiles():
    query, table = tensors()
    sampled = Popularity(COUNTS, num_candidates=9).sample(IDS, generator=seeded())
    whole = torch.compile(sampled_softmax, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        whole(query, table, IDS, sampled).loss, sampled_softmax(query, table, IDS, sampled).loss
    )
    loss = SampledSoftmaxLoss(default_sampler())
    torch.manual_seed(2)
    plain = loss(query, table, IDS)
    torch.manual_seed(2)
    torch.testing.assert_close(torch.compile(loss, backend="aot_eager")(query, table, IDS), plain)


def test_loss_moves_to_a_device():
    # "meta" stands in for an accelerator: mixing devices is an error there too.
    query, table = (tensor.detach().to("meta") for tensor in tensors())
    loss = SampledSoftmaxLoss(default_sampler()).to("meta")
    value = loss(query, table, IDS.to("meta"), negative_ids=IDS[:, None].to("meta"))
    assert value.device.type == "meta"


ONE_MISSING = COUNTS * (torch.arange(V) != 5)


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        (default_sampler(ONE_MISSING), {}),
        (Popularity(ONE_MISSING, num_candidates=9, min_count=1.0), {}),
        (Popularity(ONE_MISSING, num_candidates=9), {"softmax_over": "trained"}),
        (InBatch(ONE_MISSING), {"softmax_over": "trained"}),
    ],
)
def test_sampler_that_draws_every_item_of_the_softmax_is_accepted(sampler, settings):
    assert bool(torch.isfinite(SampledSoftmaxLoss(sampler, **settings)(*tensors(), IDS)))


@pytest.mark.parametrize(
    "sampler", [Popularity(ONE_MISSING, num_candidates=9), InBatch(ONE_MISSING)]
)
def test_item_that_can_never_be_sampled_is_named(sampler):
    ways = "min_count .* above 0, .*mix .* with uniform samples, or .*softmax_over = 'trained'"
    with pytest.raises(ConfigError, match=f"item 5 can never be sampled.*1 of 12 items.*{ways}"):
        SampledSoftmaxLoss(sampler)


def test_copies_and_pickles():
    query, table = tensors()
    loss = SampledSoftmaxLoss(default_sampler())
    expected = loss(query, table, IDS, generator=seeded())
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other(query, table, IDS, generator=seeded()) == expected


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"temperature": 0.0}, ConfigError, "temperature must be above 0, got 0.0"),
        ({"num_groups": 0}, ConfigError, "num_groups must be at least 1, got 0"),
        ({"reduction": "avg"}, UnknownNameError, "unknown reduction 'avg'"),
        ({"softmax_over": "al"}, UnknownNameError, "did you mean 'all'"),
        ({"correction": "logQ"}, UnknownNameError, "did you mean 'logq'"),
        ({"precision": "float16"}, UnknownNameError, "unknown precision 'float16'"),
        (
            {"correction": "refined", "accidental_hits": "keep"},
            ConfigError,
            "not defined for correction 'refined'",
        ),
        ({"accidental_hits": "drop"}, UnknownNameError, "unknown accidental_hits 'drop'"),
    ],
)
def test_bad_settings_are_refused(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        SampledSoftmaxLoss(default_sampler(), **settings)


@pytest.mark.parametrize(
    "sampler",
    [
        Uniform(V, num_candidates=4, distinct=True),
        Popularity(COUNTS, num_candidates=4, distinct=True),
        InBatch(COUNTS, distinct=True),
        Mixture([Uniform(V, num_candidates=4), Uniform(V, num_candidates=4, distinct=True)]),
        ExactPopular(COUNTS, num_exact=2, rest=Uniform(V, num_candidates=4, distinct=True)),
    ],
)
def test_jackknife_over_a_set_is_refused(sampler):
    with pytest.raises(ConfigError, match=r"jackknife does not work with .* distinct=True"):
        SampledSoftmaxLoss(sampler, jackknife=True)
    SampledSoftmaxLoss(sampler)


@pytest.mark.parametrize("sampler", [COUNTS, V, "popularity", {"type": "uniform"}])
def test_anything_but_a_sampler_is_refused(sampler):
    with pytest.raises(ConfigError, match=r"must be a candid sampler, got .*: write for example"):
        SampledSoftmaxLoss(sampler)


def test_repr_shows_settings_and_sampler():
    text = repr(SampledSoftmaxLoss(default_sampler(), correction="logq"))
    for part in ("correction='logq'", "reduction='mean'", "Popularity(num_candidates=128"):
        assert part in text


@pytest.mark.parametrize(
    ("changed", "error", "sentence"),
    [
        ({"positive_ids": IDS + 5}, DataError, "item id 12 is outside the catalog: .* 0 to 11"),
        ({"negative_ids": IDS[:, None] + 6}, DataError, "item id 13 is outside the catalog"),
        ({"negative_ids": IDS}, ConfigError, r"negative_ids must be \[B, S\]"),
        (
            {"item_embeddings": torch.ones(7, D)},
            ConfigError,
            "7 rows, but the catalog of the sampler has 12 items",
        ),
    ],
)
def test_batch_that_does_not_fit_is_refused(changed, error, sentence):
    query, table = tensors()
    arguments = {"query": query, "item_embeddings": table, "positive_ids": IDS} | changed
    with pytest.raises(error, match=sentence):
        SampledSoftmaxLoss(default_sampler())(**arguments)
