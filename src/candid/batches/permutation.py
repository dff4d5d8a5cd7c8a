"""Permutations of the units of an epoch, without an array of them where they are many."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from candid.batches.packing import Ints

ARRAY_UNITS: Final = 1 << 22
"""Number of units up to which an epoch is permuted by a shuffled array.

The array has 4 bytes for each unit, 16 MiB in all, and a look-up is cheaper than the computation.
Beyond it, ``KeyedPermutation`` needs no memory and no time at the start of an epoch. The bound also
keeps the batches of published results, which have fewer units.
"""
ROUNDS: Final = 6
"""Rounds of the Feistel network. Luby and Rackoff (SIAM Journal on Computing 1988) prove 4 for
random round functions; two more leave a margin for a hash in their place."""


class KeyedPermutation:
    """A pseudorandom permutation of 0..n-1 that is computed where it is needed.

    A Feistel network over pairs (a, b) of the smallest rectangle with at least n cells, whose two
    rounds in turn change a and b (Black, Rogaway, "Ciphers with arbitrary finite domains", CT-RSA
    2002, methods 2 and 3). A result beyond n is put in again until one below n comes out (cycle
    walking), which keeps the map a bijection; the rectangle has at most sqrt(n) cells too many, so
    that this is rare. For n of a few dozen, neighbours stay related: two cells of one row remain
    in one row with probability n**-1.5. The round function is the finaliser of SplitMix64 (Steele,
    Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17).

    Args:
        size: n, from 1 to 2**62.
        seed: words that determine the permutation, at least 0.

    Example:
        >>> sorted(KeyedPermutation(5, [3])(np.arange(5)).tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(self, size: int, seed: list[int]) -> None:
        self._size = size
        width = math.isqrt(size - 1) + 1
        self._sides = np.uint64(width), np.uint64(-(-size // width))
        self._keys = np.random.default_rng(seed).integers(0, 2**64, ROUNDS, dtype=np.uint64)

    def __call__(self, positions: Ints) -> Ints:
        """Return the units at positions [B] int64 of the permutation: [B] int64."""
        units = self._once(positions.astype(np.uint64))
        outside = np.flatnonzero(units >= self._size)
        while len(outside):
            units[outside] = self._once(units[outside])
            outside = outside[units[outside] >= self._size]
        return units.astype(np.int64)

    def _once(self, cells: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        width, height = self._sides
        row, column = np.divmod(cells, width)
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                column = _sum(column, _hash(row, key), width)
            else:
                row = _sum(row, _hash(column, key), height)
        return row * width + column


def _sum(
    digits: npt.NDArray[np.uint64], hashes: npt.NDArray[np.uint64], base: np.uint64
) -> npt.NDArray[np.uint64]:
    """Add hashes, scaled to 0..base - 1, to digits of that base, without a carry."""
    # base is at most 2**31, so that the product fits; a remainder takes several times as long.
    hashes >>= np.uint64(32)
    hashes *= base
    hashes >>= np.uint64(32)
    hashes += digits
    hashes -= base * (hashes >= base)
    return hashes


def _hash(words: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    # The operations are in place: a new array for each doubles the time.
    words = words ^ key
    words *= np.uint64(0x9E3779B97F4A7C15)
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


class EpochOrder:
    """The order of the units of one epoch: a permutation of all units, or of all and a sample.

    Units are numbered: first those that every epoch has, then those of which it has a sample.

    Args:
        seed: of the loader.
        epoch: number of the epoch.
        num_always: units of every epoch.
        num_further: units of which an epoch has a sample.
        num_sampled: size of the sample.
    """

    def __init__(
        self, seed: int, epoch: int, *, num_always: int, num_further: int, num_sampled: int
    ) -> None:
        self.epoch = epoch
        self._num_always, self._num_units = num_always, num_always + num_sampled
        self._units: npt.NDArray[np.int32] | None = None
        self._further: KeyedPermutation | None = None
        if num_always + num_further <= ARRAY_UNITS:
            rng = np.random.default_rng([seed, epoch])
            units = np.arange(self._num_units, dtype=np.int32)
            if num_sampled:
                sample = rng.choice(num_further, num_sampled, replace=False)
                units[num_always:] = num_always + sample
            self._units = rng.permutation(units)
            return
        self._order = KeyedPermutation(self._num_units, [seed, epoch, 0])
        if num_sampled:
            # The first results of a random permutation are a sample without replacement.
            self._further = KeyedPermutation(num_further, [seed, epoch, 1])

    def __getitem__(self, positions: slice) -> Ints:
        """Return the units at a slice of the positions of the epoch."""
        if self._units is not None:
            return self._units[positions].astype(np.int64)
        stop = min(positions.stop, self._num_units)
        units = self._order(np.arange(positions.start, stop, dtype=np.int64))
        if self._further is not None:
            is_sampled = units >= self._num_always
            units[is_sampled] = self._num_always + self._further(
                units[is_sampled] - self._num_always
            )
        return units
