"""Changes beside a built index, compared with a dict of live items."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.errors import ArtifactError, ConfigError
from candid.index import ExactIndex, Exclusions, FaissIndex, LiveIndex

DIM = 4


def vectors_of(num, seed):
    # Whole numbers: products are exact in any order, and ties are common.
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (num, DIM), generator=generator).float()


def packed(excluded):
    lengths = torch.tensor([0, *map(len, excluded)])
    flat = [d for row in excluded for d in row]
    return Exclusions(torch.tensor(flat, dtype=torch.int64), lengths.cumsum(0))


def expected_of(live_items, query, k, excluded):
    rows = []
    for row, excluded_ids in zip(query, excluded, strict=True):
        scored = [(-float(v @ row), d) for d, v in live_items.items() if d not in excluded_ids]
        ids = [d for _, d in sorted(scored)[:k]]
        rows.append(ids + [-1] * (k - len(ids)))
    return rows


CHANGE = st.tuples(st.sampled_from(["add", "update", "delete"]), st.integers(0, 10**6))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(num_built=st.integers(1, 40), changes=st.lists(CHANGE, max_size=12), k=st.integers(1, 60))
def test_search_equals_a_dict_of_live_items(num_built, changes, k):
    items = vectors_of(num_built, 0)
    live, live_items = LiveIndex(ExactIndex(items), items), dict(enumerate(items))
    for operation, seed in changes:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randperm(live.num_items, generator=generator)[: 1 + seed % 3]
        if operation == "add":
            new = vectors_of(1 + seed % 3, seed)
            live_items |= dict(zip(live.add(new).tolist(), new, strict=True))
        elif operation == "update":
            new = vectors_of(len(ids), seed)
            live.update(ids, new)
            live_items |= dict(zip(ids.tolist(), new, strict=True))
        else:
            live.delete(ids)
            live_items = {d: v for d, v in live_items.items() if d not in ids.tolist()}
    assert live.num_live == len(live_items)
    assert live.is_live(torch.arange(live.num_items)).nonzero().squeeze(1).tolist() == sorted(
        live_items
    )
    ids = torch.tensor(sorted(live_items), dtype=torch.int64)
    assert torch.equal(
        live.vectors_of(ids),
        torch.stack([live_items[d] for d in ids.tolist()] or [items[0]])[: len(ids)],
    )
    query, k = vectors_of(3, 99), min(k, live.num_items)
    no_exclusions = [[], [], []]
    assert live.search(query, k).item_ids.tolist() == expected_of(
        live_items, query, k, no_exclusions
    )
    some = [[0], list(range(0, live.num_items, 2)), list(range(live.num_items))]
    result = live.search(query, k, packed(some))
    assert result.item_ids.tolist() == expected_of(live_items, query, k, some)
    assert torch.equal(result.scores.isneginf(), result.item_ids < 0)


def test_search_widens_past_deleted_neighbours():
    """The search must widen until it has k items, for any number of deleted ones."""
    items = torch.arange(500, 0, -1).float().unsqueeze(1)
    live = LiveIndex(FaissIndex.Config(kind="flat").build(items), items)
    live.delete(torch.arange(400))
    assert live.search(torch.ones(2, 1), 3).item_ids.tolist() == [[400, 401, 402]] * 2


def test_dead_rows_are_compacted():
    items = vectors_of(10, 0)
    live = LiveIndex(ExactIndex(items), items)
    for step in range(100):
        live.update(torch.tensor([3]), torch.full((1, DIM), float(step)))
    assert live.changes.num_rows <= 4
    assert live.vectors_of(torch.tensor([3])).tolist() == [[99.0] * DIM]


def test_search_sees_a_change_completely_or_not_at_all():
    """Both items of a pair always have the same vector: a torn update would show two."""
    items = torch.ones(50, DIM)
    live = LiveIndex(ExactIndex(items), items)
    pair, stop, torn = torch.tensor([7, 8]), threading.Event(), []

    def search():
        while not stop.is_set():
            result = live.search(torch.ones(1, DIM), 50)
            scores = dict(zip(result.item_ids[0].tolist(), result.scores[0].tolist(), strict=True))
            if scores.get(7) != scores.get(8):
                torn.append((scores.get(7), scores.get(8)))

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(400):
        if step % 5 == 4:
            live.delete(pair)
        else:
            live.update(pair, torch.full((2, DIM), 2.0 + step))
            live.add(torch.zeros(3, DIM))
    stop.set()
    for thread in threads:
        thread.join()
    assert not torn


def test_changes_from_several_threads_are_all_applied():
    items = vectors_of(10, 0)
    live = LiveIndex(ExactIndex(items), items)
    given_ids = []

    def add():
        for _ in range(50):
            given_ids.extend(live.add(torch.ones(2, DIM)).tolist())

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given_ids) == list(range(10, 410))
    assert live.num_live == 410


class TestRefusal:
    def live(self):
        items = vectors_of(5, 0)
        return LiveIndex(ExactIndex(items), items)

    def test_unknown_ids(self):
        with pytest.raises(ConfigError, match="unknown item id 5: ids are 0 to 4"):
            self.live().delete(torch.tensor([1, 5]))
        with pytest.raises(ConfigError, match="unknown item id -1"):
            self.live().update(torch.tensor([-1]), torch.ones(1, DIM))

    def test_same_item_twice_in_one_update(self):
        with pytest.raises(ConfigError, match="distinct items"):
            self.live().update(torch.tensor([1, 1]), torch.ones(2, DIM))

    def test_vectors_of_another_width_or_not_finite(self):
        with pytest.raises(ConfigError, match=r"\[n, 4\]"):
            self.live().add(torch.ones(1, 3))
        live = self.live()
        with pytest.raises(ArtifactError, match="NaN"):
            live.add(torch.full((1, DIM), torch.nan))
        assert live.num_items == 5

    def test_vector_of_a_deleted_item(self):
        live = self.live()
        live.delete(torch.tensor([2]))
        with pytest.raises(ConfigError, match="item id 2 is not in the index"):
            live.vectors_of(torch.tensor([1, 2]))

    def test_index_of_another_size(self):
        with pytest.raises(ConfigError, match="contains 5 items, got 4 vectors"):
            LiveIndex(ExactIndex(vectors_of(5, 0)), vectors_of(4, 0))

    def test_k_beyond_the_ids_in_use(self):
        live = self.live()
        live.add(torch.ones(1, DIM))
        assert live.search(torch.ones(1, DIM), 6).item_ids.shape == (1, 6)
        with pytest.raises(ConfigError, match="k 7"):
            live.search(torch.ones(1, DIM), 7)
