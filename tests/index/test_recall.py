"""Recall of every index and precision on vectors of varying length, against exact products."""

from __future__ import annotations

import pytest
import torch

from candid.index import INDEXES

NUM_ITEMS, DIM, K = 2000, 32, 10
MIN_RECALL = 0.95
# Every list is read, so that only the codes and the graph can lose items.
ALL_LISTS = {"num_probes": 1000}
SETTINGS = {
    "exact": ("exact", {}),
    "bfloat16": ("bfloat16", {}),
    "int8": ("int8", ALL_LISTS),
    "faiss-flat": ("faiss", {"kind": "flat"}),
    "faiss-ivf": ("faiss", {"kind": "ivf", **ALL_LISTS}),
    "faiss-pq": ("faiss", {"kind": "pq", **ALL_LISTS}),
    "faiss-sq": ("faiss", {"kind": "sq", **ALL_LISTS}),
    "faiss-hnsw": ("faiss", {"kind": "hnsw"}),
    "kernel_lsh": ("kernel_lsh", {"oversample": 100}),
    "usearch-float32": ("usearch", {"precision": "float32"}),
    "usearch-bfloat16": ("usearch", {"precision": "bfloat16"}),
    "usearch-int8": ("usearch", {"precision": "int8"}),
}


def vectors_of_length(num, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(num, DIM, generator=generator))
    return directions * (lengths * torch.randn(num, 1, generator=generator)).exp()


def recall(index, items, query):
    best = (query.double() @ items.double().T).topk(K).indices
    result = index.search(query, K).item_ids
    return (result[:, :, None] == best[:, None]).any(1).double().mean().item()


@pytest.mark.parametrize("sd", [0.0, 0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_recall_on_items_of_varying_length(name, sd):
    component, settings = SETTINGS[name]
    items = vectors_of_length(NUM_ITEMS, sd, seed=0)
    index = INDEXES[component].Config(**settings).build(items)
    query = vectors_of_length(60, 1.0, seed=1)
    assert min(recall(index, items, query * scale) for scale in (1e-3, 1.0, 1e3)) >= MIN_RECALL


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(
    "name", ["faiss-hnsw", "usearch-float32", "usearch-bfloat16", "usearch-int8"]
)
def test_recall_of_distances_with_queries_of_any_length(name, scale, tmp_path):
    component, settings = SETTINGS[name]
    index_class = INDEXES[component]
    items = vectors_of_length(NUM_ITEMS, 0.03, seed=0)
    index = index_class.Config(**settings, augment=True).build(items)
    query = vectors_of_length(60, 1.0, seed=1) * scale
    assert recall(index, items, query) >= MIN_RECALL
    path = tmp_path / "index.bin"
    index.save(path)
    opened = index_class.Config(**settings, augment=True).open(items, path)
    assert torch.equal(opened.search(query, K).item_ids, index.search(query, K).item_ids)
