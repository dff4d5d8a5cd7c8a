"""Kernels against loops over pairs in float64, and against scikit-learn where it is installed."""

from typing import get_args

import numpy as np
import pytest
import torch

from candid.errors import ConfigError, DataError, UnknownNameError
from candid.index import KernelLsh
from candid.index.kernels import KERNELS, KernelName, build_kernel, scale_of

GAMMA = 0.7
ORACLES = {
    "linear": lambda a, b: sum(a * b),
    "intersection": lambda a, b: sum(min(p, q) for p, q in zip(a, b, strict=True)),
    "rbf": lambda a, b: np.exp(-GAMMA * sum((a - b) ** 2)),
    "laplacian": lambda a, b: np.exp(-GAMMA * sum(abs(a - b))),
    "chi2": lambda a, b: np.exp(
        -GAMMA * sum((p - q) ** 2 / (p + q) for p, q in zip(a, b, strict=True) if p + q > 0)
    ),
}


def histograms(num, dim=7, seed=0):
    """Rows of counts with many zeros, also in the same column of two rows."""
    rng = np.random.default_rng(seed)
    return (rng.exponential(size=(num, dim)) * (rng.random((num, dim)) < 0.5)).astype(np.float32)


def by_loop(name, x, y):
    pairs = [[ORACLES[name](a, b) for b in y.astype(np.float64)] for a in x.astype(np.float64)]
    return np.array(pairs)


def index_of(kernel, items, **settings):
    return KernelLsh(items, kernel=kernel, num_landmarks=100, num_components=20, **settings)


def test_names_of_recipes_are_those_of_the_kernels():
    assert set(get_args(KernelName)) == set(KERNELS) == set(ORACLES)


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_equals_a_loop_over_pairs(name):
    x, y = histograms(9), histograms(5, seed=1)
    values = build_kernel(name, GAMMA)(x, y)
    np.testing.assert_allclose(values, by_loop(name, x, y), rtol=2e-6, atol=2e-6)
    batches = build_kernel(name, GAMMA)(x[:8].reshape(2, 4, 7), x[1:9].reshape(2, 4, 7))
    for one in range(2):
        expected = by_loop(name, x[4 * one : 4 * one + 4], x[4 * one + 1 : 4 * one + 5])
        np.testing.assert_allclose(batches[one], expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["rbf", "laplacian", "chi2"])
def test_kernel_equals_that_of_scikit_learn(name):
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x, y = histograms(20), histograms(8, seed=1)
    expected = getattr(pairwise, f"{name}_kernel")(x.astype(float), y.astype(float), gamma=GAMMA)
    np.testing.assert_allclose(build_kernel(name, GAMMA)(x, y), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["rbf", "laplacian", "chi2"])
def test_scale_is_one_over_the_median_distance(name):
    x = histograms(30)
    # The kernel at γ = GAMMA gives the distance.
    values = by_loop(name, x, x)[np.triu_indices(30, 1)]
    assert scale_of(name, x) == pytest.approx(1 / np.median(-np.log(values) / GAMMA), rel=1e-4)
    assert scale_of(name, x[:1]) == scale_of(name, np.ones((4, 3), dtype=np.float32)) == 1
    assert scale_of("intersection", x) == scale_of("linear", x) == 1


@pytest.mark.parametrize("name", KERNELS)
def test_index_ranks_by_its_kernel(name, tmp_path):
    """With all items as candidates, ids and scores are those of a loop over pairs."""
    items, query = histograms(80), histograms(4, seed=2)
    index = index_of(name, torch.from_numpy(items), rank_by="kernel", oversample=80 / 5)
    gamma = scale_of(name, items)
    if name in ("rbf", "laplacian", "chi2"):
        expected = by_loop(name, query, items) ** (gamma / GAMMA)
    else:
        expected = by_loop(name, query, items)
    index.save(tmp_path / "index")
    settings = {"rank_by": "kernel", "oversample": 80 / 5, "file": tmp_path / "index"}
    for one in (index, index_of(name, torch.from_numpy(items), **settings)):
        result = one.search(torch.from_numpy(query), 5)
        # Intersections have ties: the items found must have the five largest values.
        values = np.take_along_axis(expected, result.item_ids.numpy(), axis=1)
        best = -np.sort(-expected, axis=1)[:, :5]
        np.testing.assert_allclose(values, best, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(result.scores, best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("rank_by", ["kernel", "inner_product"])
def test_search_without_queries_returns_no_row(name, rank_by):
    index = index_of(name, torch.from_numpy(histograms(80)), rank_by=rank_by)
    assert index.search(torch.empty(0, 7), 5).item_ids.shape == (0, 5)


def cubic(x, y):
    assert x.dtype == y.dtype == np.float32
    return (1 + x @ y.T) ** 3


def test_function_of_a_user_is_hashed_and_ranked(tmp_path):
    items, query = histograms(80), histograms(4, seed=2)
    index = index_of(cubic, torch.from_numpy(items), rank_by="kernel", oversample=80 / 5)
    result = index.search(torch.from_numpy(query), 5)
    expected = (1 + query.astype(float) @ items.T.astype(float)) ** 3
    assert result.item_ids.tolist() == np.argsort(-expected, axis=1)[:, :5].tolist()
    np.testing.assert_allclose(result.scores, -np.sort(-expected, axis=1)[:, :5], rtol=1e-5)
    # The same kernel by its name gives the same bits, so the function reaches the hash too.
    named = index_of("linear", torch.from_numpy(items), rank_by="kernel")
    function = index_of(lambda x, y: x @ y.T, torch.from_numpy(items), rank_by="kernel")
    assert np.array_equal(named._codes, function._codes)
    assert "kernel='a function'" in repr(index)
    with pytest.raises(ConfigError, match="function as kernel cannot be saved"):
        index.save(tmp_path / "index")
    with pytest.raises(ConfigError, match="a file cannot hold the function"):
        index_of(cubic, torch.from_numpy(items), file=tmp_path / "index")
    with pytest.raises(ConfigError, match=r"function cannot be stored in a recipe or a folder; n"):
        KernelLsh.Config(kernel=cubic)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda x, y: (x @ y.T).T, r"returned shape \[20, 80\] for X \[80, 7\] and Y \[20, 7\]"),
        (lambda x, y: np.full((len(x), len(y)), np.nan), "returned a value that is not finite"),
    ],
)
def test_wrong_function_is_refused(function, sentence):
    with pytest.raises(ConfigError, match=sentence):
        KernelLsh(torch.from_numpy(histograms(80)), kernel=function, num_landmarks=20)


@pytest.mark.parametrize("name", ["chi2", "intersection"])
def test_negative_values_are_refused_by_kernels_of_histograms(name):
    items = torch.from_numpy(histograms(30))
    index = index_of(name, items)
    wrong = items.clone()
    wrong[3, 5] = -0.25
    sentence = rf"'{name}' compares histograms .* at least 0, got -0.25 in column 5 of %s 3; choose"
    with pytest.raises(DataError, match=sentence % "item"):
        index_of(name, wrong)
    with pytest.raises(DataError, match=sentence % "query"):
        index.search(wrong, 2)
    index_of("laplacian", wrong)


@pytest.mark.parametrize("name", ["chi", "cosine", ""])
def test_unknown_kernel_is_refused(name):
    with pytest.raises(UnknownNameError, match=f"unknown kernel '{name}'"):
        index_of(name, torch.from_numpy(histograms(30)))
    with pytest.raises(ConfigError, match="kernel"):
        KernelLsh.Config(kernel=name)


def test_kernel_of_another_type_is_refused():
    with pytest.raises(ConfigError, match="kernel must be a name or a function of X and Y, not 3"):
        KernelLsh(torch.rand(20, 4), kernel=3)
