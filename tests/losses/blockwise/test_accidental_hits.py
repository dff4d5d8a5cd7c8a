import pytest
import torch

from candid.losses.blockwise import AccidentalHits, IdMatch, accidental_hits


def looked_at(rows, candidates):
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


@pytest.mark.parametrize("share", [0, 10**9], ids=["looked up", "compared"])
@pytest.mark.parametrize("used", [1, 2])
@pytest.mark.parametrize("width", [1, 5, 14])
def test_the_pairs_are_those_of_equal_ids(monkeypatch, share, used, width):
    monkeypatch.setattr(accidental_hits, "DENSE_SHARE", share)
    found = AccidentalHits(*map(IdMatch, ROWS[:used], CANDIDATES[:used]))
    blocks = [slice(start, min(start + width, N)) for start in range(0, N, width)]
    expected = torch.tensor(looked_at(ROWS[:used], CANDIDATES[:used]))
    for rows in (slice(0, 4), slice(4, 9)):
        row_hits = found.of_rows(rows, blocks)
        tiles = [torch.zeros(rows.stop - rows.start, b.stop - b.start) for b in blocks]
        for block, tile in enumerate(tiles):
            row_hits.mask(tile, block)
        assert torch.equal(torch.cat(tiles, dim=1).isneginf(), expected[rows])
    assert torch.equal(found.num_hits(), expected.sum(dim=1))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_candidate_may_be_its_own_id(device):
    ids = torch.tensor([3, 0, 13])
    found = AccidentalHits(IdMatch(ids.to(device)))
    blocks = [slice(0, 5), slice(5, 14)]
    row_hits = found.of_rows(slice(1, 3), blocks)
    tiles = [torch.zeros(2, 5, device=device), torch.zeros(2, 9, device=device)]
    for block, tile in enumerate(tiles):
        row_hits.mask(tile, block)
    if device == "cpu":
        where = torch.cat(tiles, dim=1).isneginf().nonzero().tolist()
        assert where == [[0, 0], [1, 13]]


def test_one_item_everywhere_does_not_list_its_pairs(monkeypatch):
    ids = torch.zeros(600, dtype=torch.int64)
    monkeypatch.setattr(IdMatch, "pairs", None)  # would be a list of 360,000
    found = AccidentalHits(IdMatch(ids, ids))
    tile = torch.zeros(10, 600)
    found.of_rows(slice(0, 10), [slice(0, 600)]).mask(tile, 0)
    assert bool(tile.isneginf().all())
    assert found.num_hits().tolist() == [600] * 600


def test_the_accelerators_way_for_a_candidate_that_is_its_own_id():
    tile = torch.arange(12.0).view(3, 4)
    accidental_hits._mask_one(tile, torch.tensor([-2, 3, 4]))
    assert tile.isneginf().nonzero().tolist() == [[1, 3]]
    assert tile[0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert tile[2].tolist() == [8.0, 9.0, 10.0, 11.0]
