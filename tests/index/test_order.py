"""Keys of results: sorted by (score descending, id ascending), decoded to the same values."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from candid.index.order import LARGEST_ID, decode, encode

pairs = st.lists(
    st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, LARGEST_ID)),
    min_size=1,
    max_size=30,
)


@given(pairs)
def test_larger_keys_are_better_results(results):
    scores = torch.tensor([score for score, _ in results])
    ids = torch.tensor([item_id for _, item_id in results])
    keys = encode(scores, ids).numpy()
    by_key = np.argsort(-keys, kind="stable")
    by_hand = sorted(range(len(results)), key=lambda i: (-results[i][0], results[i][1]))
    assert [results[i] for i in by_key] == [results[i] for i in by_hand]


@given(pairs)
def test_decode_returns_ids_and_scores(results):
    scores = torch.tensor([score for score, _ in results])
    ids = torch.tensor([item_id for _, item_id in results])
    decoded_ids, decoded_scores = decode(encode(scores, ids))
    assert torch.equal(decoded_scores, scores)
    assert torch.equal(decoded_ids, torch.where(scores.isneginf(), -1, ids))


def test_missing_item_sorts_last():
    keys = encode(torch.tensor([-torch.inf, -torch.inf, -3e38]), torch.tensor([-1, 4, 9]))
    assert keys[2] > keys[0]
    assert decode(keys)[0].tolist() == [-1, -1, 9]
