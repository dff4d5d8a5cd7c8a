"""What every proposal promises, whatever it is: parametrised over the registry."""

import copy
import pickle

import pytest
import torch

from candid.component import ComponentConfig
from candid.errors import UnknownNameError
from candid.proposals import PROPOSALS, Candidates, ProposalComponent, ProposalConfig, Uniform

# Settings without which a proposal cannot be built.
NEEDED = {
    "mixture": {"components": ["uniform", {"type": "in_batch"}, "popularity"]},
    "head_and_tail": {"num_head": 3},
}


def configs():
    for name, component in PROPOSALS.items():
        needed = NEEDED.get(name, {})
        yield pytest.param(component.Config(**needed), id=name)
        if "distinct" in component.Config.model_fields:
            yield pytest.param(component.Config(**needed, distinct=True), id=f"{name}-distinct")
    sets = [{"type": "uniform", "distinct": True}, {"type": "in_batch", "distinct": True}]
    yield pytest.param(PROPOSALS["mixture"].Config(components=sets), id="mixture-distinct")


@pytest.mark.parametrize("config", list(configs()))
class TestEveryProposal:
    def test_record_has_the_promised_shapes_and_dtypes(self, config, counts, rows, generator):
        drawn = config.build(counts).draw(rows, generator)
        assert isinstance(drawn, Candidates)
        assert drawn.ids.dtype == torch.int64
        assert drawn.ids.ndim == 1
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
            assert drawn.num_draws == len(drawn.ids)
        assert bool(torch.isfinite(drawn.log_count).all())

    def test_draw_states_the_counts_of_log_count_of(self, config, counts, rows, generator):
        proposal = config.build(counts)
        drawn = proposal.draw(rows, generator)
        assert torch.equal(drawn.log_count, proposal.log_count_of(drawn.ids, rows))
        assert torch.equal(drawn.log_count_positive, proposal.log_count_of(rows.positive_ids, rows))

    def test_log_count_of_takes_any_shape(self, config, counts, rows):
        proposal = config.build(counts)
        ids = torch.arange(8).view(2, 4)
        flat = proposal.log_count_of(ids.flatten(), rows)
        assert torch.equal(proposal.log_count_of(ids, rows), flat.view(2, 4))

    def test_expected_counts_sum_to_the_number_of_draws(self, config, counts, rows, generator):
        proposal = config.build(counts)
        drawn = proposal.draw(rows, generator)
        stated = proposal.log_count_of(torch.arange(len(counts)), rows).double().exp()
        if drawn.num_draws is not None:
            assert stated.sum().item() == pytest.approx(drawn.num_draws, rel=1e-6)
        else:
            # In a set an item occurs once at most: a probability for each component.
            components = len(getattr(proposal, "components", [0]))
            assert bool(((stated >= 0) & (stated <= components)).all())
            assert bool((torch.bincount(drawn.ids) <= components).all())

    def test_same_generator_state_same_draw(self, config, counts, rows):
        proposal = config.build(counts)
        first, second = (proposal.draw(rows, torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(first.ids, second.ids)

    def test_arguments_are_not_written_to(self, config, counts, rows, generator):
        before = copy.deepcopy((counts, rows))
        config.build(counts).draw(rows, generator)
        assert torch.equal(before[0], counts)
        assert torch.equal(before[1].positive_ids, rows.positive_ids)
        assert torch.equal(before[1].user_ids, rows.user_ids)

    def test_candidates_follow_the_device_of_the_positives(self, config, counts, rows):
        if "distinct=True" in repr(config):
            pytest.skip("removing duplicates has no meaning on a device without data")
        # "meta" stands in for an accelerator: mixing devices is an error there too.
        rows.positive_ids, rows.user_ids = rows.positive_ids.to("meta"), rows.user_ids.to("meta")
        drawn = config.build(counts).draw(rows)
        for tensor in (drawn.ids, drawn.log_count, drawn.log_count_positive):
            assert tensor.device.type == "meta"

    def test_survives_pickling(self, config, counts, rows):
        proposal = pickle.loads(pickle.dumps(config.build(counts)))
        assert len(proposal.draw(rows).ids) > 0


class Run(ComponentConfig):
    proposal: ProposalComponent


def test_unknown_proposal_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"did you mean 'uniform'.*in_batch, mixture"):
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
