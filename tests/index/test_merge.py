"""Merged results of parts of a catalog against one exact search."""

import torch

from candid.index import ExactIndex, merge_results


def test_merged_results_of_parts_equal_one_search():
    generator = torch.Generator().manual_seed(0)
    # Few distinct scores, so that ties meet across the parts.
    items = torch.randint(-1, 2, (11, 3), generator=generator).float()
    query = torch.randint(-1, 2, (5, 3), generator=generator).float()
    for k in (1, 4, 9):
        ids, scores = [], []
        for begin, stop in ((0, 5), (5, 6), (6, 11)):
            found = ExactIndex(items[begin:stop]).search(query, min(k, stop - begin))
            pad = (0, k - found.scores.shape[1])
            ids.append(torch.nn.functional.pad(found.item_ids + begin, pad, value=-1))
            scores.append(torch.nn.functional.pad(found.scores, pad, value=-torch.inf))
        merged = merge_results(torch.stack(ids), torch.stack(scores), k)
        expected = ExactIndex(items).search(query, k)
        assert torch.equal(merged.item_ids, expected.item_ids)
        assert torch.equal(merged.scores, expected.scores)
