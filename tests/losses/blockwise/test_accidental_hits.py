import pytest
import torch

from candid.losses.blockwise import accidental_hits
from candid.losses.blockwise.accidental_hits import AccidentalHits, IdMatch


def matching_pairs(rows, candidates):
    """All pairs, one at a time."""
    return [
        [any(r[row] == c[n] for r, c in zip(rows, candidates, strict=True)) for n in range(N)]
        for row in range(B)
    ]


B, N = 9, 14
ROWS = [torch.tensor([3, 1, 1, 0, 7, 7, 2, 9, 3]), torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8])]
CANDIDATES = [
    torch.tensor([1, 3, 3, 3, 0, 5, 7, 2, 2, 1, 8, 3, 7, 0]),
    torch.tensor([4, -1, -1, 2, 3, 0, 0, 8, 8, 8, 1, 0, 4, 5]),
]


@pytest.mark.parametrize("share", [0, 10**9], ids=["sparse", "dense"])
@pytest.mark.parametrize("used", [1, 2])
@pytest.mark.parametrize("width", [1, 5, 14])
def test_masked_pairs_have_equal_ids(monkeypatch, share, used, width):
    monkeypatch.setattr(accidental_hits, "DENSE_SHARE", share)
    hits = AccidentalHits(*map(IdMatch, ROWS[:used], CANDIDATES[:used]))
    blocks = [slice(start, min(start + width, N)) for start in range(0, N, width)]
    expected = torch.tensor(matching_pairs(ROWS[:used], CANDIDATES[:used]))
    for rows in (slice(0, 4), slice(4, 9)):
        row_hits = hits.of_rows(rows, blocks)
        tiles = [torch.zeros(rows.stop - rows.start, b.stop - b.start) for b in blocks]
        for block, tile in enumerate(tiles):
            row_hits.mask(tile, block)
        assert torch.equal(torch.cat(tiles, dim=1).isneginf(), expected[rows])
    assert torch.equal(hits.num_hits(), expected.sum(dim=1))


@pytest.mark.parametrize("others", [[], ROWS[1:], [ROWS[1], ROWS[0] * 2]])
def test_number_of_hits_of_a_batch_within_itself(others):
    matches = [IdMatch(ids, ids) for ids in (ROWS[0], *others)]
    ids = [match.of_rows for match in matches]
    expected = [
        sum(any(one[row] == one[n] for one in ids) for n in range(len(ids[0])))
        for row in range(len(ids[0]))
    ]
    assert AccidentalHits(*matches).num_hits().tolist() == expected


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_candidates_without_ids_are_their_own_ids(device):
    ids = torch.tensor([3, 0, 13])
    hits = AccidentalHits(IdMatch(ids.to(device)))
    blocks = [slice(0, 5), slice(5, 14)]
    row_hits = hits.of_rows(slice(1, 3), blocks)
    tiles = [torch.zeros(2, 5, device=device), torch.zeros(2, 9, device=device)]
    for block, tile in enumerate(tiles):
        row_hits.mask(tile, block)
    if device == "cpu":
        masked = torch.cat(tiles, dim=1).isneginf().nonzero().tolist()
        assert masked == [[0, 0], [1, 13]]


def test_pairs_of_one_item_everywhere_are_not_listed(monkeypatch):
    ids = torch.zeros(600, dtype=torch.int64)
    monkeypatch.setattr(IdMatch, "pairs", None)  # 360,000 pairs
    hits = AccidentalHits(IdMatch(ids, ids))
    tile = torch.zeros(10, 600)
    hits.of_rows(slice(0, 10), [slice(0, 600)]).mask(tile, 0)
    assert bool(tile.isneginf().all())
    assert hits.num_hits().tolist() == [600] * 600


def test_mask_without_branches_on_the_data():
    tile = torch.arange(12.0).view(3, 4)
    accidental_hits._mask_one(tile, torch.tensor([-2, 3, 4]))
    assert tile.isneginf().nonzero().tolist() == [[1, 3]]
    assert tile[0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert tile[2].tolist() == [8.0, 9.0, 10.0, 11.0]
