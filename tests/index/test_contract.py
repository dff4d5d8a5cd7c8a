"""What every registered index promises, on vectors with a known answer."""

from __future__ import annotations

import pytest
import torch

from candid.component import lookup
from candid.errors import ConfigError, UnknownNameError
from candid.index import INDEXES, Exclusions, Hits, IndexConfig

# An index under other settings than its own makes the same promises.
SETTINGS = {name: (name, {}) for name in INDEXES} | {"faiss-flat": ("faiss", {"kind": "flat"})}
indexes = pytest.mark.parametrize("name", sorted(SETTINGS))


def built(name, vectors):
    component, settings = SETTINGS[name]
    return INDEXES[component].Config(**settings).build(vectors)


def checkerboard(num_items=12):
    """Even items point along the first axis, odd ones along the second; longer with the id."""
    vectors = torch.zeros(num_items, 2)
    ids = torch.arange(num_items)
    vectors[ids, ids % 2] = 1.0 + ids
    return vectors


@indexes
def test_finds_the_known_answer(name):
    found = built(name, checkerboard()).search(torch.eye(2), 3)
    assert found.item_ids.tolist() == [[10, 8, 6], [11, 9, 7]]
    assert found.scores.tolist() == [[11, 9, 7], [12, 10, 8]]
    assert found.item_ids.dtype == torch.int64
    assert found.scores.dtype == torch.float32


@indexes
def test_knows_its_size(name):
    assert built(name, checkerboard(7)).num_items == 7


@indexes
def test_leaves_out_what_is_excluded(name):
    exclude = Exclusions(torch.tensor([8, 10, 11]), torch.tensor([0, 2, 3]))
    found = built(name, checkerboard()).search(torch.eye(2), 2, exclude)
    assert found.item_ids.tolist() == [[6, 4], [9, 7]]


@indexes
def test_fills_up_with_minus_one(name):
    exclude = Exclusions(torch.arange(11), torch.tensor([0, 11]))
    found = built(name, checkerboard()).search(torch.tensor([[1.0, 1.0]]), 3, exclude)
    assert found.item_ids.tolist() == [[11, -1, -1]]
    assert found.scores.tolist() == [[12, -torch.inf, -torch.inf]]


@indexes
@pytest.mark.parametrize("k", [0, 13])
def test_refuses_a_k_outside_the_catalog(name, k):
    with pytest.raises(ConfigError, match=rf"k {k} .*12"):
        built(name, checkerboard()).search(torch.eye(2), k)


@indexes
def test_answers_no_queries(name):
    found = built(name, checkerboard()).search(torch.empty(0, 2), 3)
    assert found.item_ids.shape == found.scores.shape == (0, 3)


@indexes
def test_leaves_its_arguments_alone(name):
    vectors, query = checkerboard(), torch.eye(2)
    exclude = Exclusions(torch.tensor([8, 3, 8, 11]), torch.tensor([0, 3, 4]))
    before = [t.clone() for t in (vectors, query, exclude.item_ids, exclude.offsets)]
    built(name, vectors).search(query, 3, exclude)
    for now, then in zip((vectors, query, exclude.item_ids, exclude.offsets), before, strict=True):
        assert torch.equal(now, then)


@indexes
def test_config_is_frozen_and_described(name):
    config = INDEXES[SETTINGS[name][0]].Config
    assert issubclass(config, IndexConfig)
    assert all(field.description for field in config.model_fields.values())


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="exact"):
        lookup(INDEXES, "index", "exakt")


def test_a_new_index_is_one_class_and_one_line(monkeypatch):
    class Constant:
        """Returns the first items whatever is asked."""

        class Config(IndexConfig):
            def build(self, item_vectors):
                return Constant(item_vectors)

        def __init__(self, item_vectors):
            self.num_items = len(item_vectors)

        def search(self, query, k, exclude=None):
            return Hits(torch.arange(k).expand(len(query), k), torch.zeros(len(query), k))

    monkeypatch.setitem(INDEXES, "constant", Constant)
    index = lookup(INDEXES, "index", "constant").Config().build(checkerboard())
    assert index.search(torch.eye(2), 2).item_ids.tolist() == [[0, 1], [0, 1]]
