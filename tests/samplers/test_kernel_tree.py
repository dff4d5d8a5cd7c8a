"""The tree of kernel sums: samples follow the stated probabilities, for any features."""

import math
import time

import pytest
import torch
from scipy.stats import chisquare

from candid.samplers import kernel_tree
from candid.samplers.kernel_tree import KernelTree
from candid.samplers.quadratic import QuadraticKernel
from candid.samplers.random_fourier import FourierKernel

CPU = torch.device("cpu")


class SignedFeatures:
    """Features that are as often negative as positive: the tree must bound their products."""

    def query_features(self, query):
        return torch.cat([query, query.sin() * 3.0], dim=1)

    def block_sums(self, vectors, is_item):
        features = torch.cat([vectors, vectors.cos() - 0.5], dim=2)
        return (features * is_item[..., None]).sum(dim=1)

    def mass(self, products, num_items):
        return torch.maximum(products, 0.2 * num_items)

    def log_weight(self, logits):
        return 0.5 * logits


def kernels(width=3):
    frequencies = torch.randn(width, 8, generator=torch.Generator().manual_seed(4))
    return {
        "fourier": FourierKernel(1.5 * frequencies, 2.25, 0.3),
        "quadratic": QuadraticKernel(width, 2.0, CPU),
        "signed": SignedFeatures(),
    }


def inputs(num_items, num_rows=4, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    items = torch.randn(num_items, width, generator=generator)
    return items, 1.5 * torch.randn(num_rows, width, generator=generator)


def branch_by_branch(kernel, items, query, block_size):
    """log Q of every item for one query, down the tree by plain recursion, in float64."""
    num_blocks = -(-len(items) // block_size)
    num_leaves = 1
    while num_leaves < num_blocks:
        num_leaves *= 2
    features = kernel.query_features(query[None])[0].double()

    def mass(first, last):
        members = items[first * block_size : last * block_size]
        if not len(members):
            return 0.0
        sums = kernel.block_sums(members[:, None], torch.ones(len(members), 1).bool()).double()
        product = (sums.sum(dim=0) @ features)[None]
        return float(kernel.mass(product, torch.tensor([float(len(members))]).double())[0])

    log_q = []

    def descend(first, last, log_p):
        if last - first == 1:
            members = items[first * block_size : last * block_size]
            weights = kernel.log_weight(members.double() @ query.double())
            log_q.extend((log_p + weights.log_softmax(0)).tolist())
            return
        middle = (first + last) // 2
        left, right = mass(first, middle), mass(middle, last)
        for share, bounds in ((left, (first, middle)), (right, (middle, last))):
            if share:
                descend(*bounds, log_p + math.log(share / (left + right)))

    descend(0, num_leaves, 0.0)
    return torch.tensor(log_q)


@pytest.mark.parametrize("name", kernels())
@pytest.mark.parametrize(("num_items", "block_size"), [(1, 4), (5, 8), (13, 2), (33, 4), (64, 1)])
def test_stated_probabilities_match_a_plain_recursion(name, num_items, block_size):
    kernel = kernels()[name]
    items, query = inputs(num_items)
    tree = KernelTree(items, kernel, block_size)
    log_q = tree.log_q(query, torch.arange(num_items).expand(4, -1))
    assert log_q.exp().sum(dim=1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    for row in range(4):
        expected = branch_by_branch(kernel, items, query[row], block_size)
        torch.testing.assert_close(log_q[row].double(), expected.double(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("dense", [0, 10**6], ids=["gathered", "dense"])
@pytest.mark.parametrize("name", kernels())
def test_samples_follow_the_stated_probabilities(name, dense, monkeypatch):
    monkeypatch.setattr(kernel_tree, "_DENSE", dense)
    monkeypatch.setattr(kernel_tree, "_DENSE_SLOTS", dense)
    monkeypatch.setattr(kernel_tree, "_FLOATS_AT_ONCE", 1 << 12)
    num_items, num_samples = 23, 20_000
    items, query = inputs(num_items, seed=1)
    tree = KernelTree(items, kernels()[name], 3)
    ids, log_q = tree.sample(query, num_samples, torch.Generator().manual_seed(2))
    torch.testing.assert_close(log_q, tree.log_q(query, ids), rtol=0, atol=1e-5)
    q = tree.log_q(query, torch.arange(num_items).expand(4, -1)).double().exp()
    for row in range(4):
        counts = torch.bincount(ids[row], minlength=num_items).double()
        rare = q[row] * num_samples < 8
        expected = torch.cat([q[row][~rare], q[row][rare].sum()[None]])
        observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
        possible = expected > 0
        expected = expected[possible] / expected.sum() * num_samples
        assert chisquare(observed[possible], expected).pvalue > 1e-4


def test_test_of_fit_detects_a_wrong_probability():
    """The test of fit above can fail: it detects a tenth of one branch."""
    expected = torch.tensor([0.5, 0.25, 0.25]) * 20_000
    assert chisquare(torch.tensor([11_000.0, 4500.0, 4500.0]), expected).pvalue < 1e-6


def test_rows_have_independent_samples():
    items, query = inputs(50, num_rows=3)
    tree = KernelTree(items, kernels()["fourier"], 4)
    ids, _ = tree.sample(query[:1].expand(3, -1), 30, torch.Generator().manual_seed(0))
    assert not torch.equal(ids[0], ids[1])
    again, _ = tree.sample(query[:1].expand(3, -1), 30, torch.Generator().manual_seed(0))
    assert torch.equal(ids, again)


@pytest.mark.parametrize("name", kernels())
def test_update_equals_a_rebuilt_tree(name):
    kernel = kernels()[name]
    items, query = inputs(37)
    tree = KernelTree(items, kernel, 4)
    changed = torch.tensor([0, 5, 6, 36])
    items = items.clone()
    items[changed] = torch.randn(4, 3, generator=torch.Generator().manual_seed(9))
    tree.update(changed, items[changed])
    anew = KernelTree(items, kernel, 4)
    ids = torch.arange(37).expand(4, -1)
    torch.testing.assert_close(tree.log_q(query, ids), anew.log_q(query, ids), rtol=0, atol=1e-5)
    assert torch.equal(tree.item_vectors, items)


def test_given_vectors_are_not_written_to():
    items, query = inputs(10)
    before = items.clone()
    tree = KernelTree(items, kernels()["quadratic"], 4)
    tree.update(torch.tensor([3]), torch.ones(1, 3))
    tree.sample(query, 5)
    assert torch.equal(items, before)


def test_no_rows_and_no_samples():
    items, query = inputs(10)
    tree = KernelTree(items, kernels()["fourier"], 2)
    assert tree.sample(query[:0], 5)[0].shape == (0, 5)
    assert tree.log_q(query, torch.empty(4, 0, dtype=torch.int64)).shape == (4, 0)


def test_sampling_from_a_large_catalog_is_fast():
    """256 rows of 64 samples from 100,000 items: a loop over rows would take many seconds."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(100_000, 16, generator=generator)
    query = torch.randn(256, 16, generator=generator)
    frequencies = torch.randn(16, 32, generator=generator)
    tree = KernelTree(items, FourierKernel(frequencies, 1.0, 0.5), 32)
    start = time.process_time()
    tree.sample(query, 64, generator)
    assert time.process_time() - start < 1.0
