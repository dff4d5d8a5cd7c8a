"""Recall, speed, and settings chosen by them."""

import pytest
import torch

from candid.index import (
    Bfloat16Index,
    ExactIndex,
    FaissIndex,
    SearchResult,
    assess,
    exact_truth,
    measure,
    tune,
)
from candid.index.measurement import one_thread, recalls


def vectors_of(num, seed, dim=8):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


class Clock:
    """Stands for ``time``; moved on by hand."""

    now = 0.0

    def process_time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("candid.index.measurement.time", clock)
    return clock


class Ladder:
    """Finds the first ``width`` of the right items, and takes a millisecond for each."""

    def __init__(self, items, clock, width=1):
        self.num_items, self.width, self.clock = len(items), width, clock
        self._exact = ExactIndex(items)
        self.asked = []

    def axes(self, k):
        return {"width": list(range(1, k + 1))}

    def with_settings(self, *, width):
        return Ladder.like(self, width)

    @classmethod
    def like(cls, other, width):
        new = cls.__new__(cls)
        new.__dict__ = other.__dict__ | {"width": width}
        return new

    def search(self, query, k, exclude=None):
        self.asked.append(self.width)
        self.clock.now += 0.001 * self.width
        ids = self._exact.search(query, k).item_ids.clone()
        ids[:, self.width :] = -1
        return SearchResult(ids, torch.zeros(ids.shape))


class TestRecall:
    def test_is_the_share_that_was_found(self):
        items = torch.arange(5.0).unsqueeze(1)
        truth = exact_truth(items, torch.ones(2, 1), 3)
        assert truth.hits.item_ids.tolist() == [[4, 3, 2]] * 2
        found = SearchResult(torch.tensor([[4, 0, -1], [2, 3, 4]]), torch.zeros(2, 3))
        assert recalls(found, truth, items).tolist() == pytest.approx([1 / 3, 1])

    def test_an_item_that_scores_as_much_is_as_right(self):
        items = torch.tensor([[1.0], [2], [2], [2]])
        truth = exact_truth(items, torch.ones(1, 1), 2)
        assert truth.hits.item_ids.tolist() == [[1, 2]]
        found = SearchResult(torch.tensor([[3, 2]]), torch.zeros(1, 2))
        assert recalls(found, truth, items).tolist() == [1]

    def test_scores_that_an_index_makes_up_count_for_nothing(self):
        items = torch.arange(5.0).unsqueeze(1)
        truth = exact_truth(items, torch.ones(1, 1), 2)
        found = SearchResult(torch.tensor([[0, 1]]), torch.full((1, 2), 99.0))
        assert recalls(found, truth, items).tolist() == [0]


def test_an_index_is_measured_as_it_is_on_one_thread(clock):
    items, query = vectors_of(50, 0), vectors_of(40, 1)
    truth = exact_truth(items, query, 4)
    seen = measure(Ladder(items, clock, width=3), truth, items)
    assert seen.recall == pytest.approx(0.75)
    assert seen.recall_error == pytest.approx(0, abs=1e-6)
    # 40 queries in two batches of 3 ms each; one query alone takes as long as a batch.
    assert seen.queries_per_second == pytest.approx(40 / 0.006)
    assert seen.milliseconds == pytest.approx(3)
    assert measure(ExactIndex(items), truth, items, alone=False).milliseconds is None
    threads = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads


def test_queries_are_split_in_two_halves_without_a_common_one():
    items, query = vectors_of(20, 0), vectors_of(7, 1)
    choosing, reporting = exact_truth(items, query, 3).split()
    assert torch.equal(choosing.query, query[::2])
    assert torch.equal(reporting.query, query[1::2])
    assert torch.equal(reporting.hits.item_ids, exact_truth(items, query[1::2], 3).hits.item_ids)
    lone = exact_truth(items, query[:1], 3)
    assert lone.split() == (lone, lone)


class TestTuning:
    @pytest.mark.parametrize(("target", "width"), [(0.0, 1), (0.05, 1), (0.41, 5), (1.0, 10)])
    def test_the_least_that_reaches_is_chosen(self, clock, target, width):
        items = vectors_of(60, 0)
        truth = exact_truth(items, vectors_of(10, 1), 10)
        tuned = tune(Ladder(items, clock), truth, items, target)
        assert tuned.settings == {"width": width}
        assert tuned.reaches
        assert tuned.index.width == width
        assert len(tuned.tried) <= 4

    def test_where_none_reaches_the_most_exact_is_chosen(self, clock):
        class Weak(Ladder):
            def axes(self, k):
                return {"width": [1, 2, 3]}

            def with_settings(self, *, width):
                return Weak.like(self, width)

        items = vectors_of(60, 0)
        truth = exact_truth(items, vectors_of(10, 1), 10)
        tuned = tune(Weak(items, clock), truth, items, 0.9)
        assert (tuned.settings, tuned.reaches) == ({"width": 3}, False)

    def test_an_index_without_settings_is_only_measured(self):
        items = vectors_of(60, 0)
        index = ExactIndex(items)
        tuned = tune(index, exact_truth(items, vectors_of(10, 1), 10), items, 1.0)
        assert (tuned.index, tuned.settings, tuned.reaches) == (index, {}, True)
        assert len(tuned.tried) == 1


def test_a_real_index_reaches_its_target_on_queries_that_chose_nothing():
    items, query = vectors_of(4000, 0), vectors_of(300, 1)
    truth = exact_truth(items, query, 10)
    told = []
    found = assess("lists", FaissIndex.Config(), items, truth, 0.8, told.append)
    assert found.reaches
    assert found.num_queries == 150
    assert 0.8 <= found.measured.recall < 0.99
    assert 1 < found.config.num_probes == found.settings["num_probes"] < 63
    assert found.index.num_probes == found.config.num_probes
    assert found.vector_bytes == 4000 * 8 * 4 < found.index_bytes
    assert (told[0], told[-1]) == ("building", "measuring")
    said = found.to_json()
    assert (said["index"]["type"], said["index"]["kind"]) == ("faiss", "ivf")
    assert len(said["tried"]) == len(found.tried)


def test_memory_is_what_the_index_holds_beside_the_vectors():
    items = vectors_of(100, 0)
    truth = exact_truth(items, vectors_of(4, 1), 3)
    sizes = {
        config: assess("", config, items, truth, 0.5).index_bytes
        for config in (ExactIndex.Config(), Bfloat16Index.Config())
    }
    assert list(sizes.values()) == [0, 100 * 8 * 2]
