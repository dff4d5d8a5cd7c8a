"""Counter-based random numbers: each number is a hash of its purpose and position.

A stateful generator would make the sequence of a user depend on the users generated before it.
Here the numbers of user u at step t are a pure function of (seed, purpose, u, t). Any user can
therefore be generated alone, in any order and in chunks of any size, with the same result.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014, figure 17), chained over the words of the key.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(words: Keys) -> Keys:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def root_key(seed: int, purpose: str) -> Keys:
    """Start a stream of keys: [1] uint64, different for each seed and purpose."""
    words = np.frombuffer(purpose.encode().ljust(-(-len(purpose) // 8) * 8), dtype="<u8")
    return derive(np.array([seed], dtype=np.uint64), *words.astype(np.uint64))


def derive(keys: Keys, *counters: npt.NDArray[np.integer] | np.integer | int) -> Keys:
    """Derive the keys of the next level; ``counters`` broadcast against ``keys``."""
    for counter in counters:
        # Arrays, not scalars: numpy wraps integer arrays without an overflow warning.
        words = np.asarray(counter).astype(np.uint64) + np.ones(1, dtype=np.uint64)
        keys = _mix(keys + words * _GOLDEN)
    return keys


def uniform(keys: Keys) -> Floats:
    """Return one number in the open interval (0, 1) for each key [...]: [...] float64."""
    return ((keys >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def normal(keys: Keys, count: int) -> Floats:
    """Return standard normal numbers (Box and Muller): keys [B] to [B, count] float64."""
    pairs = derive(keys[:, None], np.arange(-(-count // 2)))
    radius = np.sqrt(-2.0 * np.log(uniform(derive(pairs, 0))))
    angle = 2.0 * np.pi * uniform(derive(pairs, 1))
    both = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return both.reshape(len(keys), -1)[:, :count]
