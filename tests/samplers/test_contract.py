"""What every sampler promises, whatever it is: parametrised over the registry."""

import copy
import pickle

import pytest
import torch

from candid.candidates import Candidates
from candid.component import ComponentConfig
from candid.errors import UnknownNameError
from candid.samplers import SAMPLERS, AdaptiveSampler, SamplerComponent, SamplerConfig, Uniform

# Settings without which a sampler cannot be built.
NEEDED = {
    "mixture": {"components": ["uniform", {"type": "in_batch"}, "popularity"]},
    "exact_popular": {"num_exact": 3},
    "exact_nearest": {"num_exact": 3, "k": 2},
    "random_fourier": {"num_candidates": 5, "block_size": 3},
    "quadratic": {"num_candidates": 5, "block_size": 2},
}


def built(config, counts):
    """The sampler, with item vectors where it needs some."""
    sampler = config.build(counts)
    if follows_the_model(sampler):
        generator = torch.Generator().manual_seed(7)
        sampler.refresh(torch.randn(len(counts), 4, generator=generator))
    return sampler


def follows_the_model(sampler):
    return isinstance(sampler, AdaptiveSampler) and sampler.refresh_every is not None


def configs():
    for name, component in SAMPLERS.items():
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
    yield pytest.param(SAMPLERS["mixture"].Config(components=sets), id="mixture-distinct")


@pytest.mark.parametrize("config", list(configs()))
class TestEverySampler:
    def test_record_has_the_promised_shapes_and_dtypes(self, config, counts, rows, generator):
        sampled = built(config, counts).sample(rows, generator)
        assert isinstance(sampled, Candidates)
        assert sampled.ids.dtype == torch.int64
        if sampled.ids.ndim > 1:
            assert len(sampled.ids) == len(rows.positive_ids)
        assert bool(((sampled.ids >= 0) & (sampled.ids < len(counts))).all())
        assert sampled.log_expected_count.shape == sampled.ids.shape
        assert sampled.log_expected_count.dtype == torch.float32
        assert sampled.log_expected_count_positive.shape == rows.positive_ids.shape
        assert sampled.log_expected_count_positive.dtype == torch.float32
        assert (sampled.owner is None) == (sampled.row_user_ids is None)
        if sampled.owner is not None:
            assert sampled.owner.shape == sampled.ids.shape
            assert torch.equal(sampled.row_user_ids, rows.user_ids)
        if sampled.num_samples is not None:
            assert sampled.num_samples == sampled.ids.shape[-1]
        assert bool(torch.isfinite(sampled.log_expected_count).all())

    def test_draw_states_the_counts_of_log_count_of(self, config, counts, rows, generator):
        sampler = built(config, counts)
        sampled = sampler.sample(rows, generator)
        stated = sampler.log_expected_count_of(sampled.ids, rows)
        if sampled.ids.ndim == 1:
            assert torch.equal(sampled.log_expected_count, stated)
        else:
            # A descent and its way back up are worked in two orders.
            torch.testing.assert_close(sampled.log_expected_count, stated, rtol=0, atol=1e-5)
        assert torch.equal(
            sampled.log_expected_count_positive,
            sampler.log_expected_count_of(rows.positive_ids, rows),
        )

    def test_log_count_of_takes_any_shape(self, config, counts, rows):
        sampler = built(config, counts)
        if sampler.sample(rows).ids.ndim > 1:
            pytest.skip("draws for each row apart: its ids are those of the rows")
        ids = torch.arange(8).view(2, 4)
        flat = sampler.log_expected_count_of(ids.flatten(), rows)
        assert torch.equal(sampler.log_expected_count_of(ids, rows), flat.view(2, 4))

    def test_log_count_of_takes_ids_by_row(self, config, counts, rows):
        sampler = built(config, counts)
        generator = torch.Generator().manual_seed(3)
        ids = torch.randint(len(counts), (6, 4), generator=generator)
        stated = sampler.log_expected_count_of(ids, rows)
        assert stated.shape == (6, 4)
        assert stated.dtype == torch.float32
        columns = [sampler.log_expected_count_of(column, rows) for column in ids.T]
        torch.testing.assert_close(stated, torch.stack(columns, dim=1), rtol=0, atol=1e-5)

    def test_expected_counts_sum_to_the_number_of_draws(self, config, counts, rows, generator):
        sampler = built(config, counts)
        sampled = sampler.sample(rows, generator)
        catalog = torch.arange(len(counts)).expand(6, -1)
        stated = sampler.log_expected_count_of(catalog, rows).double().exp()
        if sampled.num_samples is not None:
            assert stated.sum(dim=1).tolist() == pytest.approx([sampled.num_samples] * 6, rel=1e-5)
        else:
            # In a set an item occurs once at most: a probability for each component.
            components = len(getattr(sampler, "components", [0]))
            assert bool(((stated >= 0) & (stated <= components)).all())
            assert bool((torch.bincount(sampled.ids) <= components).all())

    def test_same_generator_state_same_draw(self, config, counts, rows):
        sampler = built(config, counts)
        first, second = (sampler.sample(rows, torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(first.ids, second.ids)

    def test_arguments_are_not_written_to(self, config, counts, rows, generator):
        before = copy.deepcopy((counts, rows))
        built(config, counts).sample(rows, generator)
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
        sampled = built(config, counts).sample(rows)
        for tensor in (
            sampled.ids,
            sampled.log_expected_count,
            sampled.log_expected_count_positive,
        ):
            assert tensor.device.type == "meta"

    def test_survives_pickling(self, config, counts, rows):
        sampler = pickle.loads(pickle.dumps(built(config, counts)))
        assert len(sampler.sample(rows).ids) > 0


class Run(ComponentConfig):
    sampler: SamplerComponent


def test_unknown_sampler_lists_the_known_ones():
    with pytest.raises(
        UnknownNameError, match=r"did you mean 'uniform'.*in_batch, memory, mixture"
    ):
        Run.model_validate({"sampler": {"type": "unifrom"}})


def test_mixture_table_goes_there_and_back():
    table = {"type": "mixture", "components": [{"type": "popularity", "exponent": 0.5}, "uniform"]}
    run = Run.model_validate({"sampler": table})
    assert run.model_dump(mode="json", exclude_defaults=True) == {
        "sampler": {
            "type": "mixture",
            "components": [{"type": "popularity", "exponent": 0.5}, {"type": "uniform"}],
        }
    }
    assert Run.model_validate(run.model_dump()) == run


class FirstItems:
    """Always the first items: the one file of a new sampler."""

    class Config(SamplerConfig):
        num_candidates: int = 3

        def build(self, counts):
            return FirstItems(self.num_candidates)

    def __init__(self, num_candidates):
        self.num_candidates = num_candidates

    def sample(self, batch, generator=None):
        ids = torch.arange(self.num_candidates)
        return Candidates(
            ids,
            self.log_expected_count_of(ids, batch),
            self.log_expected_count_of(batch.positive_ids, batch),
        )

    def log_expected_count_of(self, ids, batch):
        return torch.where(ids < self.num_candidates, 0.0, -torch.inf)


def test_a_new_sampler_is_one_class_and_one_line(monkeypatch, counts, rows):
    monkeypatch.setitem(SAMPLERS, "first_items", FirstItems)
    table = {"type": "mixture", "components": [{"type": "first_items", "num_candidates": 2}]}
    sampler = Run.model_validate({"sampler": table}).sampler.build(counts)
    assert sampler.sample(rows).ids.tolist() == [0, 1]
    assert isinstance(SAMPLERS["uniform"].Config().build(counts), Uniform)
