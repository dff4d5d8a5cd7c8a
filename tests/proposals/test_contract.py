"""What every proposal promises, whatever it is: parametrised over the registry."""

import copy
import pickle

import pytest
import torch

from candid.component import ComponentConfig
from candid.errors import UnknownNameError
from candid.proposals import (
    PROPOSALS,
    AdaptiveProposal,
    Candidates,
    ProposalComponent,
    ProposalConfig,
    Uniform,
)

# Settings without which a proposal cannot be built.
NEEDED = {
    "mixture": {"components": ["uniform", {"type": "in_batch"}, "popularity"]},
    "head_and_tail": {"num_head": 3},
    "nearest_head": {"num_head": 3, "k": 2},
    "random_fourier": {"num_candidates": 5, "block_size": 3},
    "quadratic": {"num_candidates": 5, "block_size": 2},
}


def built(config, counts):
    """The proposal, with item vectors where it needs some."""
    proposal = config.build(counts)
    if follows_the_model(proposal):
        generator = torch.Generator().manual_seed(7)
        proposal.refresh(torch.randn(len(counts), 4, generator=generator))
    return proposal


def follows_the_model(proposal):
    return isinstance(proposal, AdaptiveProposal) and proposal.refresh_every is not None


def configs():
    for name, component in PROPOSALS.items():
        needed = NEEDED.get(name, {})
        yield pytest.param(component.Config(**needed), id=name)
        if "distinct" in component.Config.model_fields:
            distinct = component.Config(**needed, distinct=True, num_candidates=8)
            yield pytest.param(distinct, id=f"{name}-distinct")
        if "frequency" in component.Config.model_fields:
            learnt = component.Config.model_validate({**needed, "frequency": "streaming"})
            yield pytest.param(learnt, id=f"{name}-streaming")
    sets = [{"type": "uniform", "distinct": True, "num_candidates": 8}]
    sets.append({"type": "in_batch", "distinct": True})
    yield pytest.param(PROPOSALS["mixture"].Config(components=sets), id="mixture-distinct")


@pytest.mark.parametrize("config", list(configs()))
class TestEveryProposal:
    def test_record_has_the_promised_shapes_and_dtypes(self, config, counts, rows, generator):
        drawn = built(config, counts).draw(rows, generator)
        assert isinstance(drawn, Candidates)
        assert drawn.ids.dtype == torch.int64
        if drawn.ids.ndim > 1:
            assert len(drawn.ids) == len(rows.positive_ids)
        assert bool(((drawn.ids >= 0) & (drawn.ids < len(counts))).all())
        assert drawn.log_count.shape == drawn.ids.shape
        assert drawn.log_count.dtype == torch.float32
        assert drawn.log_count_positive.shape == rows.positive_ids.shape
        assert drawn.log_count_positive.dtype == torch.float32
        assert (drawn.owner is None) == (drawn.row_user_ids is None)
        if drawn.owner is not None:
            assert drawn.owner.shape == drawn.ids.shape
            assert torch.equal(drawn.row_user_ids, rows.user_ids)
        if drawn.num_draws is not None:
            assert drawn.num_draws == drawn.ids.shape[-1]
        assert bool(torch.isfinite(drawn.log_count).all())

    def test_draw_states_the_counts_of_log_count_of(self, config, counts, rows, generator):
        proposal = built(config, counts)
        drawn = proposal.draw(rows, generator)
        stated = proposal.log_count_of(drawn.ids, rows)
        if drawn.ids.ndim == 1:
            assert torch.equal(drawn.log_count, stated)
        else:
            # A descent and its way back up are worked in two orders.
            torch.testing.assert_close(drawn.log_count, stated, rtol=0, atol=1e-5)
        assert torch.equal(drawn.log_count_positive, proposal.log_count_of(rows.positive_ids, rows))

    def test_log_count_of_takes_any_shape(self, config, counts, rows):
        proposal = built(config, counts)
        if proposal.draw(rows).ids.ndim > 1:
            pytest.skip("draws for each row apart: its ids are those of the rows")
        ids = torch.arange(8).view(2, 4)
        flat = proposal.log_count_of(ids.flatten(), rows)
        assert torch.equal(proposal.log_count_of(ids, rows), flat.view(2, 4))

    def test_log_count_of_takes_ids_by_row(self, config, counts, rows):
        proposal = built(config, counts)
        generator = torch.Generator().manual_seed(3)
        ids = torch.randint(len(counts), (6, 4), generator=generator)
        stated = proposal.log_count_of(ids, rows)
        assert stated.shape == (6, 4)
        assert stated.dtype == torch.float32
        columns = [proposal.log_count_of(column, rows) for column in ids.T]
        torch.testing.assert_close(stated, torch.stack(columns, dim=1), rtol=0, atol=1e-5)

    def test_expected_counts_sum_to_the_number_of_draws(self, config, counts, rows, generator):
        proposal = built(config, counts)
        drawn = proposal.draw(rows, generator)
        catalog = torch.arange(len(counts)).expand(6, -1)
        stated = proposal.log_count_of(catalog, rows).double().exp()
        if drawn.num_draws is not None:
            assert stated.sum(dim=1).tolist() == pytest.approx([drawn.num_draws] * 6, rel=1e-5)
        else:
            # In a set an item occurs once at most: a probability for each component.
            components = len(getattr(proposal, "components", [0]))
            assert bool(((stated >= 0) & (stated <= components)).all())
            assert bool((torch.bincount(drawn.ids) <= components).all())

    def test_same_generator_state_same_draw(self, config, counts, rows):
        proposal = built(config, counts)
        first, second = (proposal.draw(rows, torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(first.ids, second.ids)

    def test_arguments_are_not_written_to(self, config, counts, rows, generator):
        before = copy.deepcopy((counts, rows))
        built(config, counts).draw(rows, generator)
        assert torch.equal(before[0], counts)
        assert torch.equal(before[1].positive_ids, rows.positive_ids)
        assert torch.equal(before[1].user_ids, rows.user_ids)

    def test_candidates_follow_the_device_of_the_positives(self, config, counts, rows):
        if "distinct=True" in repr(config):
            pytest.skip("removing duplicates has no meaning on a device without data")
        if follows_the_model(config.build(counts)):
            pytest.skip("nothing can be found near queries on a device without data")
        # "meta" stands in for an accelerator: mixing devices is an error there too.
        rows.positive_ids, rows.user_ids = rows.positive_ids.to("meta"), rows.user_ids.to("meta")
        drawn = built(config, counts).draw(rows)
        for tensor in (drawn.ids, drawn.log_count, drawn.log_count_positive):
            assert tensor.device.type == "meta"

    def test_survives_pickling(self, config, counts, rows):
        proposal = pickle.loads(pickle.dumps(built(config, counts)))
        assert len(proposal.draw(rows).ids) > 0


class Run(ComponentConfig):
    proposal: ProposalComponent


def test_unknown_proposal_lists_the_known_ones():
    with pytest.raises(
        UnknownNameError, match=r"did you mean 'uniform'.*in_batch, memory, mixture"
    ):
        Run.model_validate({"proposal": {"type": "unifrom"}})


def test_mixture_table_goes_there_and_back():
    table = {"type": "mixture", "components": [{"type": "popularity", "alpha": 0.5}, "uniform"]}
    run = Run.model_validate({"proposal": table})
    assert run.model_dump(mode="json", exclude_defaults=True) == {
        "proposal": {
            "type": "mixture",
            "components": [{"type": "popularity", "alpha": 0.5}, {"type": "uniform"}],
        }
    }
    assert Run.model_validate(run.model_dump()) == run


class FirstItems:
    """Always the first items: the one file of a new proposal."""

    class Config(ProposalConfig):
        num_candidates: int = 3

        def build(self, counts):
            return FirstItems(self.num_candidates)

    def __init__(self, num_candidates):
        self.num_candidates = num_candidates

    def draw(self, batch, generator=None):
        ids = torch.arange(self.num_candidates)
        return Candidates(
            ids, self.log_count_of(ids, batch), self.log_count_of(batch.positive_ids, batch)
        )

    def log_count_of(self, ids, batch):
        return torch.where(ids < self.num_candidates, 0.0, -torch.inf)


def test_a_new_proposal_is_one_class_and_one_line(monkeypatch, counts, rows):
    monkeypatch.setitem(PROPOSALS, "first_items", FirstItems)
    table = {"type": "mixture", "components": [{"type": "first_items", "num_candidates": 2}]}
    proposal = Run.model_validate({"proposal": table}).proposal.build(counts)
    assert proposal.draw(rows).ids.tolist() == [0, 1]
    assert isinstance(PROPOSALS["uniform"].Config().build(counts), Uniform)
