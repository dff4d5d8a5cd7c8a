"""What every loss promises, whatever it is: parametrised over the registry."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch

from candid.candidates import Candidates
from candid.component import ComponentConfig
from candid.errors import ConfigError, UnknownNameError
from candid.losses import LOSSES, LossComponent, LossConfig, LossOutput
from candid.samplers import ExactPopular, InBatch, Mixture, Uniform, sample_groups

V, D = 12, 4
ROWS = SimpleNamespace(
    positive_ids=torch.tensor([0, 1, 1, 5, 7, 2, 0]), user_ids=torch.tensor([0, 0, 1, 2, 2, 3, 4])
)


def configs():
    for name, component in LOSSES.items():
        yield pytest.param(component.Config(), id=name)
    for correction in ("none", "logq", "refined"):
        for jackknife in (False, True):
            config = LOSSES["sampled_softmax"].Config(correction=correction, jackknife=jackknife)
            yield pytest.param(config, id=f"sampled_softmax-{correction}-{jackknife}")
    yield pytest.param(LOSSES["full_softmax"].Config(precision="bfloat16"), id="full-bfloat16")


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(7, D, generator=generator).requires_grad_()
    items = torch.randn(V, D, generator=generator).requires_grad_()
    sampler = Mixture([Uniform(V, 20), InBatch(torch.arange(V, 0, -1))])
    return query, items, ROWS.positive_ids, sampler.sample(ROWS, generator)


@pytest.mark.parametrize("config", list(configs()))
class TestEveryLoss:
    def test_record(self, config, inputs):
        out = config.build(V)(*inputs, effective_sample_size=True)
        assert isinstance(out, LossOutput)
        for values in (out.loss, out.log_z, out.sample_weight, out.effective_sample_size):
            assert values.shape == (7,)
            assert values.dtype == torch.float32
            assert bool(torch.isfinite(values).all())
        assert bool(((out.sample_weight >= 0) & (out.sample_weight <= 1)).all())
        assert bool((out.effective_sample_size >= 0.999).all())
        assert not out.sample_weight.requires_grad
        assert not out.effective_sample_size.requires_grad
        assert config.build(V)(*inputs).effective_sample_size is None
        query_grad, item_grad = torch.autograd.grad(out.loss.sum(), inputs[:2])
        assert bool(torch.isfinite(query_grad).all())
        assert bool(torch.isfinite(item_grad).all())
        assert bool((query_grad.abs().sum(dim=1) > 0).all())

    def test_arguments_are_not_written_to(self, config, inputs):
        before = copy.deepcopy([tensor.detach() for tensor in inputs[:3]])
        ids, log_expected_count = inputs[3].ids.clone(), inputs[3].log_expected_count.clone()
        config.build(V)(*inputs, effective_sample_size=True).loss.sum().backward()
        for tensor, kept in zip(inputs[:3], before, strict=True):
            assert torch.equal(tensor, kept)
        assert torch.equal(inputs[3].ids, ids)
        assert torch.equal(inputs[3].log_expected_count, log_expected_count)

    def test_rows_may_come_in_any_order(self, config, inputs):
        query, items, positive_ids, sampled = inputs
        order = torch.tensor([3, 0, 6, 5, 1, 4, 2])
        moved = Candidates(
            sampled.ids,
            sampled.log_expected_count,
            sampled.log_expected_count_positive[order],
            sampled.num_samples,
            sampled.owner,
            sampled.row_user_ids[order],
        )
        loss = config.build(V)
        out = loss(query, items, positive_ids, sampled).loss
        torch.testing.assert_close(
            loss(query[order], items, positive_ids[order], moved).loss, out[order]
        )

    def test_softmax_losses_ignore_a_constant_added_to_all_scores(self, config, inputs):
        query, items, positive_ids, sampled = inputs
        # One more coordinate, 1 in every item vector: it adds its query value to every score.
        more = torch.cat([query, torch.full((7, 1), 2.0)], dim=1)
        raised = torch.cat([items, torch.ones(V, 1)], dim=1)
        loss = config.build(V)
        same = torch.allclose(
            loss(more, raised, positive_ids, sampled).loss,
            loss(query, items, positive_ids, sampled).loss,
            atol=0.05 if getattr(config, "precision", None) == "bfloat16" else 1e-5,
        )
        assert same == (type(config).__qualname__.split(".")[0] not in ("BCE", "GBCE"))

    def test_a_row_without_negatives_is_silent(self, config, inputs):
        query, items, _, _ = inputs
        alone = Candidates(torch.zeros(3, dtype=torch.int64), torch.zeros(3), torch.zeros(7), 3)
        positive_ids = torch.zeros(7, dtype=torch.int64)
        out = config.build(1)(query, items[:1], positive_ids, alone, effective_sample_size=True)
        assert not out.loss.any()
        assert bool(out.log_z.isneginf().all())
        assert not out.sample_weight.any()
        assert not out.effective_sample_size.any()
        for grad in torch.autograd.grad(out.loss.sum(), (query, items)):
            assert not grad.any()

    def test_no_rows_have_no_loss(self, config, inputs):
        query, items, positive_ids, _ = inputs
        nobody = SimpleNamespace(positive_ids=positive_ids[:0], user_ids=positive_ids[:0])
        in_batch = InBatch(torch.ones(V), distinct=True)
        for sampler in (Uniform(V, 4), InBatch(torch.ones(V)), in_batch):
            out = config.build(V)(query[:0], items, positive_ids[:0], sampler.sample(nobody))
            assert out.loss.shape == out.log_z.shape == out.sample_weight.shape == (0,)
            query_grad, item_grad = torch.autograd.grad(out.loss.sum(), (query, items))
            assert not query_grad.any()
            assert not item_grad.any()

    def test_needs_candidates_says_so(self, config, inputs):
        loss = config.build(V)
        if loss.needs_candidates:
            with pytest.raises(ConfigError, match="needs a sampler"):
                loss(*inputs[:3])
        else:
            assert torch.equal(loss(*inputs[:3]).loss, loss(*inputs).loss)

    def test_result_follows_the_device(self, config, inputs):
        # "meta" stands in for an accelerator: mixing devices is an error there too, and so is
        # any look at a value, which would stop the host until the device has caught up.
        query, items = (tensor.detach().to("meta").requires_grad_() for tensor in inputs[:2])
        positive_ids, sampled = inputs[2].to("meta"), inputs[3]
        fields = {field.name: getattr(sampled, field.name) for field in dataclasses.fields(sampled)}
        far = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in fields.items()}
        out = config.build(V)(
            query, items, positive_ids, Candidates(**far), effective_sample_size=True
        )
        for values in (out.loss, out.log_z, out.sample_weight, out.effective_sample_size):
            assert values.device.type == "meta"
        out.loss.mean().backward()

    def test_a_query_narrower_than_the_items_is_widened(self, config, inputs):
        query, items, positive_ids, sampled = inputs
        narrow = query.detach().bfloat16()
        loss = config.build(V)
        out = loss(narrow, items, positive_ids, sampled)
        assert out.loss.dtype == torch.float32
        torch.testing.assert_close(
            out.loss, loss(narrow.float(), items, positive_ids, sampled).loss
        )


class Run(ComponentConfig):
    loss: LossComponent


def test_unknown_loss_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"known: bce, full_softmax, .*sampled_softmax"):
        Run.model_validate({"loss": "softmax2"})


def test_every_loss_goes_there_and_back():
    for name in LOSSES:
        run = Run.model_validate({"loss": name})
        assert run.model_dump()["loss"]["type"] == name
        assert Run.model_validate_json(run.model_dump_json()) == run


class Margin:
    """Hinge on the mean candidate: the one file of a new loss."""

    needs_candidates = True

    class Config(LossConfig):
        margin: float = 1.0

        def build(self, num_items):
            return Margin(self.margin)

    def __init__(self, margin):
        self.margin = margin

    def __call__(
        self, query, item_embeddings, positive_ids, candidates=None, *, effective_sample_size=False
    ):
        scores = query @ item_embeddings.T
        positive = scores.gather(1, positive_ids[:, None])[:, 0]
        loss = torch.relu(self.margin - positive + scores[:, candidates.ids].mean(dim=1))
        return LossOutput(loss, torch.zeros_like(loss), torch.zeros_like(loss.detach()))


def test_a_new_loss_is_one_class_and_one_line(monkeypatch, inputs):
    monkeypatch.setitem(LOSSES, "margin", Margin)
    run = Run.model_validate({"loss": {"type": "margin", "margin": 2.0}})
    assert run.loss.build(V)(*inputs).loss.shape == (7,)
    assert run.model_dump() == {"loss": {"type": "margin", "margin": 2.0}}


def sampled_with_samplers():
    mixture = Mixture([Uniform(V, 20), InBatch(torch.arange(V, 0, -1))])
    sets = Uniform(V, V, distinct=True)
    exact = ExactPopular(torch.arange(V, 0, -1), Uniform(V, 20), 3)
    for param in configs():
        if param.values[0].build(V).needs_candidates:
            yield pytest.param(*param.values, mixture, id=f"{param.id}-mixture")
            yield pytest.param(*param.values, exact, id=f"{param.id}-head")
            # The beta of gbce is one number a batch: that of the longest set.
            if param.id != "gbce":
                yield pytest.param(*param.values, sets, id=f"{param.id}-sets")


@pytest.mark.parametrize(("num_groups", "size"), [(2, 4), (3, 3), (5, 2), (7, 1), (20, 1)])
@pytest.mark.parametrize(("config", "sampler"), list(sampled_with_samplers()))
def test_each_of_several_draws_meets_its_own_rows(config, inputs, sampler, num_samples, size):
    query, items, positive_ids, _ = inputs
    loss = config.build(V)
    generator = torch.Generator().manual_seed(5)
    sampled = sample_groups(sampler, ROWS, num_samples, generator)
    found = loss(query, items, positive_ids, sampled, effective_sample_size=True)
    generator.manual_seed(5)
    outputs = []
    for start in range(0, len(positive_ids), size):
        rows, alone = slice(start, start + size), sampler.sample(ROWS, generator)
        alone = dataclasses.replace(
            alone,
            log_expected_count_positive=alone.log_expected_count_positive[rows],
            row_user_ids=None if alone.owner is None else alone.row_user_ids[rows],
        )
        outputs.append(
            loss(query[rows], items, positive_ids[rows], alone, effective_sample_size=True)
        )
    for field in dataclasses.fields(LossOutput):
        expected = torch.cat([getattr(output, field.name) for output in outputs])
        torch.testing.assert_close(getattr(found, field.name), expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(found.loss.sum(), (query, items)),
        torch.autograd.grad(sum(output.loss.sum() for output in outputs), (query, items)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
