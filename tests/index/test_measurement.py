"""Measurement and tuning of indexes."""

from typing import ClassVar

import pytest
import torch

from candid.errors import ArtifactError
from candid.index import (
    Bfloat16Index,
    ExactIndex,
    FaissIndex,
    Index,
    IndexConfig,
    SearchResult,
    benchmark_index,
    compute_ground_truth,
    measure_index,
    tune_index,
)
from candid.index.measurement import one_thread, recall_per_query


def vectors_of(num, seed, dim=8):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


class Clock:
    """A replacement of ``time`` with a manual clock."""

    now = 0.0

    def process_time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("candid.index.measurement.time", clock)
    return clock


class Ladder(Index):
    """An index that returns the first ``width`` exact results, a millisecond for each."""

    def __init__(self, items, clock, width=1):
        self.num_items, self.width, self.clock = len(items), width, clock
        self._exact = ExactIndex(items)
        self.widths = []

    def tuning_axes(self, k):
        return {"width": list(range(1, k + 1))}

    def with_settings(self, *, width):
        return Ladder.like(self, width)

    @classmethod
    def like(cls, other, width):
        new = cls.__new__(cls)
        new.__dict__ = other.__dict__ | {"width": width}
        return new

    def search(self, query, k, exclude=None):
        self.widths.append(self.width)
        self.clock.now += 0.001 * self.width
        ids = self._exact.search(query, k).item_ids.clone()
        ids[:, self.width :] = -1
        return SearchResult(ids, torch.zeros(ids.shape))


class TestRecall:
    def test_recall_is_the_share_of_the_exact_results(self):
        items = torch.arange(5.0).unsqueeze(1)
        truth = compute_ground_truth(items, torch.ones(2, 1), 3)
        assert truth.result.item_ids.tolist() == [[4, 3, 2]] * 2
        result = SearchResult(torch.tensor([[4, 0, -1], [2, 3, 4]]), torch.zeros(2, 3))
        assert recall_per_query(result, truth, items).tolist() == pytest.approx([1 / 3, 1])

    def test_item_with_an_equal_score_counts_as_found(self):
        items = torch.tensor([[1.0], [2], [2], [2]])
        truth = compute_ground_truth(items, torch.ones(1, 1), 2)
        assert truth.result.item_ids.tolist() == [[1, 2]]
        result = SearchResult(torch.tensor([[3, 2]]), torch.zeros(1, 2))
        assert recall_per_query(result, truth, items).tolist() == [1]

    def test_wrong_scores_of_an_index_do_not_count(self):
        items = torch.arange(5.0).unsqueeze(1)
        truth = compute_ground_truth(items, torch.ones(1, 1), 2)
        result = SearchResult(torch.tensor([[0, 1]]), torch.full((1, 2), 99.0))
        assert recall_per_query(result, truth, items).tolist() == [0]


def test_measurement_uses_one_thread(clock):
    items, query = vectors_of(50, 0), vectors_of(40, 1)
    truth = compute_ground_truth(items, query, 4)
    measurement = measure_index(Ladder(items, clock, width=3), truth, items)
    assert measurement.recall == pytest.approx(0.75)
    assert measurement.recall_error == pytest.approx(0, abs=1e-6)
    # 40 queries in two batches of 3 ms each; a single query takes as long as a batch.
    assert measurement.queries_per_second == pytest.approx(40 / 0.006)
    assert measurement.milliseconds == pytest.approx(3)
    assert measure_index(ExactIndex(items), truth, items, with_latency=False).milliseconds is None
    threads = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads


def test_split_gives_two_disjoint_halves():
    items, query = vectors_of(20, 0), vectors_of(7, 1)
    tuning, measuring = compute_ground_truth(items, query, 3).split()
    assert torch.equal(tuning.query, query[::2])
    assert torch.equal(measuring.query, query[1::2])
    assert torch.equal(
        measuring.result.item_ids, compute_ground_truth(items, query[1::2], 3).result.item_ids
    )
    single = compute_ground_truth(items, query[:1], 3)
    assert single.split() == (single, single)


class TestTuning:
    @pytest.mark.parametrize(("target", "width"), [(0.0, 1), (0.05, 1), (0.41, 5), (1.0, 10)])
    def test_fastest_settings_that_reach_the_target_are_chosen(self, clock, target, width):
        items = vectors_of(60, 0)
        truth = compute_ground_truth(items, vectors_of(10, 1), 10)
        tuned = tune_index(Ladder(items, clock), truth, items, target_recall=target)
        assert tuned.settings == {"width": width}
        assert tuned.reaches_target
        assert tuned.index.width == width
        assert len(tuned.trials) <= 4

    def test_most_exact_settings_are_chosen_below_the_target(self, clock):
        class Weak(Ladder):
            def tuning_axes(self, k):
                return {"width": [1, 2, 3]}

            def with_settings(self, *, width):
                return Weak.like(self, width)

        items = vectors_of(60, 0)
        truth = compute_ground_truth(items, vectors_of(10, 1), 10)
        tuned = tune_index(Weak(items, clock), truth, items, target_recall=0.9)
        assert (tuned.settings, tuned.reaches_target) == ({"width": 3}, False)

    def test_index_without_settings_is_only_measured(self):
        items = vectors_of(60, 0)
        index = ExactIndex(items)
        truth = compute_ground_truth(items, vectors_of(10, 1), 10)
        tuned = tune_index(index, truth, items, target_recall=1.0)
        assert (tuned.index, tuned.settings, tuned.reaches_target) == (index, {}, True)
        assert len(tuned.trials) == 1


def test_faiss_reaches_the_target_on_other_queries():
    items, query = vectors_of(4000, 0), vectors_of(300, 1)
    truth = compute_ground_truth(items, query, 10)
    stages = []
    benchmark = benchmark_index(
        FaissIndex.Config(), items, truth, target_recall=0.8, progress=stages.append
    )
    assert benchmark.reaches_target
    assert benchmark.num_queries == 150
    assert 0.8 <= benchmark.measurement.recall < 0.99
    assert 1 < benchmark.config.num_probes == benchmark.settings["num_probes"] < 63
    assert benchmark.index.num_probes == benchmark.config.num_probes
    assert benchmark.vector_bytes == 4000 * 8 * 4 < benchmark.index_bytes
    assert (stages[0], stages[-1]) == ("building", "measuring")
    document = benchmark.to_json()
    assert (document["index"]["type"], document["index"]["kind"]) == ("faiss", "ivf")
    assert len(document["tried"]) == len(benchmark.trials)


class SlowClock:
    """Advances a clock by a multiple."""

    def __init__(self, clock, factor):
        self._clock, self._factor = clock, factor

    @property
    def now(self):
        return self._clock.now

    @now.setter
    def now(self, value):
        self._clock.now += self._factor * (value - self._clock.now)


class LadderConfig(IndexConfig):
    """A ladder whose search costs ``rungs`` milliseconds per result, and finds nothing for 0."""

    rungs: int = 3
    clock: ClassVar[Clock]

    def build_choices(self, num_items):
        return [{"rungs": rungs} for rungs in (2, 1, 0, 4)]

    def build(self, item_vectors):
        found = item_vectors if self.rungs else -item_vectors
        return Ladder(found, SlowClock(self.clock, self.rungs))


def test_benchmark_chooses_the_fastest_construction_that_reaches_the_target(clock, monkeypatch):
    LadderConfig.clock = clock
    items = vectors_of(60, 0)
    truth = compute_ground_truth(items, vectors_of(40, 1), 10)
    benchmark = benchmark_index(LadderConfig(), items, truth, target_recall=0.8)
    assert benchmark.config.rungs == benchmark.settings["rungs"] == 1
    assert {settings["rungs"] for settings, _ in benchmark.trials} == {0, 1, 2, 4}
    assert benchmark.measurement.recall == pytest.approx(0.8)


def test_benchmark_of_faiss_chooses_the_number_of_lists():
    items = vectors_of(4000, 0)
    truth = compute_ground_truth(items, vectors_of(40, 1), 20)
    config = FaissIndex.Config(kind="pq")
    benchmark = benchmark_index(config, items, truth, target_recall=0.9)
    tried = {settings["num_lists"] for settings, _ in benchmark.trials}
    assert tried == {15, 63, 126}
    assert benchmark.config.num_lists in tried
    assert benchmark.config.num_lists == benchmark.index._num_lists
    given = FaissIndex.Config(kind="pq", num_lists=30)
    assert given.build_choices(4000) == FaissIndex.Config(kind="hnsw").build_choices(4000) == [{}]


def test_index_bytes_exclude_the_item_vectors():
    items = vectors_of(100, 0)
    truth = compute_ground_truth(items, vectors_of(4, 1), 3)
    sizes = {
        config: benchmark_index(config, items, truth, target_recall=0.5).index_bytes
        for config in (ExactIndex.Config(), Bfloat16Index.Config())
    }
    assert list(sizes.values()) == [0, 100 * 8 * 2]


def test_full_disk_while_the_size_is_measured_is_one_sentence(monkeypatch):
    def full(self, file):
        raise RuntimeError(
            "Error in void faiss::write_HNSW(const HNSW*, IOWriter*) at index_write.cpp:362: "
            "Error: 'ret == (size)' failed: write error: 857 != 1344 (File too large)"
        )

    monkeypatch.setattr(FaissIndex, "save", full)
    items = torch.randn(50, 4)
    truth = compute_ground_truth(items, torch.randn(10, 4), k=3)
    with pytest.raises(ArtifactError, match=r"cannot write .*: no space left") as error:
        benchmark_index(FaissIndex.Config(kind="hnsw"), items, truth, target_recall=0.5)
    assert "faiss::" not in str(error.value)
