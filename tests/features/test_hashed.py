import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from candid.errors import DataError
from candid.features import Hashed

WORD = 2**64


def mix(x):
    """SplitMix64 as published, in Python integers."""
    z = (x + 0x9E3779B97F4A7C15) % WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
    return z ^ z >> 31


def expected(value, num_buckets, num_hashes):
    """Codes of one value, byte by byte."""
    if value is None:
        return [0] * num_hashes
    if isinstance(value, str):
        data = value.encode()
        total = sum(mix(position * 256 + byte) for position, byte in enumerate(data)) % WORD
        word = mix(total ^ len(data))
    else:
        word = value % WORD
    return [1 + mix(word + k * 0x9E3779B97F4A7C15) % num_buckets for k in range(num_hashes)]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(st.lists(st.none() | TEXT, max_size=8))
def test_text_hashes_equal_the_reference(texts):
    codes = (
        Hashed(None, num_buckets=1000, num_hashes=3).encode(pl.Series(texts, dtype=pl.String)).ids
    )
    assert codes.tolist() == [expected(text, 1000, 3) for text in texts]


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=8))
def test_integer_hashes_equal_the_reference(numbers):
    codes = (
        Hashed(None, num_buckets=77, num_hashes=2).encode(pl.Series(numbers, dtype=pl.Int64)).ids
    )
    assert codes.tolist() == [expected(number, 77, 2) for number in numbers]


def test_hash_is_fixed():
    # The first outputs of SplitMix64 with seed 1234567, from its authors' reference.
    assert mix(1234567) == 6457827717110365317
    # Stored models depend on these codes: a change here breaks all of them.
    codes = Hashed(None, num_buckets=10_000, num_hashes=2).encode(pl.Series(["é", "ab", None])).ids
    assert codes.tolist() == [[3796, 4945], [7429, 8731], [0, 0]]


def test_unsigned_integers_beyond_int64():
    column = pl.Series([2**63 + 5, 4], dtype=pl.UInt64)
    assert Hashed(None, num_buckets=50, num_hashes=2).encode(column).ids.tolist() == [
        expected(2**63 + 5, 50, 2),
        expected(4, 50, 2),
    ]
    with pytest.raises(DataError, match="36893488147419103232"):
        Hashed(None, num_buckets=50, num_hashes=2).encode(pl.Series([2**65], dtype=pl.Int128))


def test_long_columns_are_hashed_in_chunks(monkeypatch):
    column = pl.Series(["a", "bc", "def", "a", "x"])
    whole = Hashed(None, num_buckets=99, num_hashes=2).encode(column).ids
    monkeypatch.setattr("candid.features.hashed.CHUNK", 2)
    assert torch.equal(Hashed(None, num_buckets=99, num_hashes=2).encode(column).ids, whole)


@pytest.mark.parametrize("values", [[f"user-{i}" for i in range(20_000)], list(range(20_000))])
def test_buckets_are_uniform_and_hashes_independent(values):
    num_buckets = 100
    codes = Hashed(None, num_buckets=num_buckets, num_hashes=2).encode(pl.Series(values)).ids - 1
    pairs = codes[:, 0] * num_buckets + codes[:, 1]
    for cells, size in ((codes[:, 0], 100), (codes[:, 1], 100), (pairs, 10_000)):
        mean = len(values) / size
        chi2 = ((torch.bincount(cells, minlength=size) - mean) ** 2 / mean).sum().item()
        # chi-squared with size - 1 degrees of freedom: mean size - 1, variance 2 (size - 1)
        assert abs(chi2 - (size - 1)) < 5 * (2 * (size - 1)) ** 0.5


def test_id_of_another_kind_is_refused():
    feature = Hashed.Config().fit(pl.Series([1, 2]))
    with pytest.raises(DataError, match="text"):
        feature.encode(pl.Series(["1"]))
