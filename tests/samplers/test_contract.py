"""The contract of every registered sampler, and the steps of adding one."""

import pytest
import torch

from candid.candidates import Candidates
from candid.component import ComponentConfig
from candid.errors import UnknownNameError
from candid.samplers import SAMPLERS, Sampler, SamplerComponent, SamplerConfig, Uniform
from candid.testing.samplers import check_sampler

# Settings without which a sampler cannot be built for a small catalog.
NEEDED = {
    "mixture": {"components": ["uniform", {"type": "in_batch"}, "popularity"]},
    "exact_popular": {"num_exact": 3},
    "exact_nearest": {"num_exact": 3, "k": 2},
    "random_fourier": {"num_candidates": 5, "block_size": 3},
    "quadratic": {"num_candidates": 5, "block_size": 2},
}


def configs():
    for name, component in SAMPLERS.items():
        needed = NEEDED.get(name, {})
        yield pytest.param(component.Config(**needed), id=name)
        if "distinct" in component.Config.model_fields:
            distinct = component.Config(**needed, distinct=True, num_candidates=8)
            yield pytest.param(distinct, id=f"{name}-distinct")
        if "frequency" in component.Config.model_fields:
            estimated = component.Config.model_validate({**needed, "frequency": "streaming"})
            yield pytest.param(estimated, id=f"{name}-streaming")
    sets = [{"type": "uniform", "distinct": True, "num_candidates": 8}]
    sets.append({"type": "in_batch", "distinct": True})
    yield pytest.param(SAMPLERS["mixture"].Config(components=sets), id="mixture-distinct")
    rows = [{"type": "quadratic", "num_candidates": 4}, {"type": "uniform", "num_candidates": 3}]
    yield pytest.param(SAMPLERS["mixture"].Config(components=rows), id="mixture-per-row")
    own = {"k": 2, "shared": False, "rest": {"type": "popularity", "num_candidates": 5}}
    yield pytest.param(SAMPLERS["exact_nearest"].Config(**own), id="exact_nearest-per-row")


@pytest.mark.parametrize("config", list(configs()))
def test_sampler_keeps_its_promises(config):
    check_sampler(config)


@pytest.mark.parametrize("config", list(configs()))
def test_tables_follow_the_module_to_a_device(config, counts, rows):
    if config.is_set:
        pytest.skip("removing duplicates has no meaning on a device without data")
    if config.build(counts).refresh_every is not None:
        pytest.skip("nothing can be found near queries on a device without data")
    # "meta" stands in for a GPU: mixing devices is an error there too.
    sampler = config.build(counts).to("meta")
    sampled = sampler.sample(*(tensor.to("meta") for tensor in rows))
    for tensor in (sampled.ids, sampled.log_expected_count, sampled.log_expected_count_positive):
        assert tensor.device.type == "meta"


@pytest.mark.parametrize("config", list(configs()))
def test_repr_shows_the_settings(config, counts):
    text = repr(config.build(counts))
    for name, value in config:
        if name in ("num_candidates", "num_exact", "size", "k", "exponent", "distinct"):
            assert f"{name}={value!r}" in text


def test_state_dict_does_not_grow_with_the_catalog():
    for num_items in (10, 1000):
        counts = torch.arange(num_items, 0, -1)
        mixture = SAMPLERS["mixture"].Config(**NEEDED["mixture"]).build(counts)
        for sampler in (mixture, SAMPLERS["exact_popular"].Config(num_exact=3).build(counts)):
            assert sampler.state_dict() == {}


class Run(ComponentConfig):
    sampler: SamplerComponent


def test_unknown_sampler_lists_the_known_ones():
    known = r"did you mean 'uniform'.*cross_batch_memory.*in_batch, mixture"
    with pytest.raises(UnknownNameError, match=known):
        Run.model_validate({"sampler": {"type": "unifrom"}})


def test_mixture_table_is_written_back_unchanged():
    table = {"type": "mixture", "components": [{"type": "popularity", "exponent": 0.5}, "uniform"]}
    run = Run.model_validate({"sampler": table})
    assert run.model_dump(mode="json", exclude_defaults=True) == {
        "sampler": {
            "type": "mixture",
            "components": [{"type": "popularity", "exponent": 0.5}, {"type": "uniform"}],
        }
    }
    assert Run.model_validate(run.model_dump()) == run


class FirstItems(Sampler):
    """The first items at every step, as the file of a new sampler would define it."""

    class Config(SamplerConfig):
        size: int = 3

        def build(self, counts):
            return FirstItems(len(counts), size=self.size)

        def candidates_per_row(self, batch_rows):
            return self.size

        @property
        def is_set(self):
            return True

    def __init__(self, num_items, *, size):
        super().__init__(num_items)
        self.size = size

    @property
    def is_set(self):
        return True

    def sample(self, positive_ids, user_ids=None, query=None, generator=None):
        ids = torch.arange(self.size, device=positive_ids.device)
        return Candidates(
            ids,
            self.log_expected_count_of(ids, positive_ids),
            self.log_expected_count_of(positive_ids, positive_ids),
        )

    def log_expected_count_of(self, ids, positive_ids, user_ids=None, query=None):
        return torch.where(ids < self.size, 0.0, -torch.inf)

    def support(self, is_positive):
        return torch.arange(self.num_items) < self.size


def test_new_sampler_is_one_class_and_one_line(monkeypatch, counts, rows):
    monkeypatch.setitem(SAMPLERS, "first_items", FirstItems)
    check_sampler(FirstItems)
    table = {"type": "mixture", "components": [{"type": "first_items", "size": 2}]}
    config = Run.model_validate({"sampler": table}).sampler
    assert config.is_set
    assert config.candidates_per_row(100) == 2
    assert config.build(counts).sample(*rows).ids.tolist() == [0, 1]
    assert isinstance(SAMPLERS["uniform"].Config().build(counts), Uniform)


class Broken(FirstItems):
    """A sampler that breaks one promise."""

    class Config(FirstItems.Config):
        promise: str

        def build(self, counts):
            return Broken(len(counts), promise=self.promise)

        def candidates_per_row(self, batch_rows):
            return 2 if self.promise == "candidates_per_row" else 3

        @property
        def has_exact(self):
            return self.promise == "has_exact"

    def __init__(self, num_items, *, promise):
        super().__init__(num_items, size=3)
        self.promise = promise

    def sample(self, positive_ids, user_ids=None, query=None, generator=None):
        sampled = super().sample(positive_ids)
        ids, log_counts = sampled.ids, sampled.log_expected_count
        if self.promise == "generator":
            ids = torch.randperm(3)
        if self.promise == "expected count":
            ids = ids[torch.randperm(3, generator=generator) < 2]
            log_counts = log_counts[:2]
        if self.promise == "float32":
            log_counts = log_counts.double()
        return Candidates(ids, log_counts, sampled.log_expected_count_positive)

    def support(self, is_positive):
        every = super().support(is_positive)
        return every & (torch.arange(self.num_items) > 0) if self.promise == "support" else every


@pytest.mark.parametrize(
    ("promise", "message"),
    [
        ("candidates_per_row", "candidates_per_row is 2, but a row has 3"),
        ("has_exact", "has_exact is True, but the sample gives False"),
        ("generator", "the same generator must give the same sample"),
        ("expected count", "but its stated expected count is 1.0000"),
        ("float32", "log_expected_count must be float32"),
        ("support", r"support\(\) must contain every candidate"),
    ],
)
def test_contract_names_a_broken_promise(promise, message):
    torch.manual_seed(1)
    with pytest.raises(AssertionError, match=message):
        check_sampler(Broken.Config(promise=promise), is_registered=False)
