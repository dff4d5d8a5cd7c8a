"""Random numbers of a training step that belong to a row, and not to its place in a batch.

Dropout and hidden values are functions of the seed of the step, of the module and of the key of a
row: the number of a query in its batch, of a token in its history, or the id of an item. A batch
that is encoded in parts, or by several processes, then has the random numbers of the whole batch.

The generator is SplitMix64 (Steele, Lea & Flood, 2014) in counter mode: one 64-bit number decides
four values, 16 bits each. It takes about 0.9 ns a value on one CPU thread, as long as the
generator of torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import torch
from torch import Tensor, nn

LEVELS: Final = 1 << 16
"""Number of values of a random level."""

_keys: ContextVar[Tensor | None] = ContextVar("keys", default=None)


@contextmanager
def rows_of(keys: Tensor | None) -> Iterator[None]:
    """Name the rows of all values inside the block.

    Args:
        keys: [n] int64, distinct for distinct rows; None: 0 to n - 1.
    """
    token = _keys.set(keys)
    try:
        yield
    finally:
        _keys.reset(token)


def row_keys(num_rows: int, device: torch.device) -> Tensor:
    """Return the keys of the rows of the values at hand: [n] int64."""
    keys = _keys.get()
    if keys is None:
        return torch.arange(num_rows, device=device)
    if len(keys) != num_rows:
        raise ValueError(f"{num_rows} rows have {len(keys)} keys")
    return keys


class RowNoise(nn.Module):
    """Base of modules that are random in training.

    ``seed_noise`` gives all modules of a model the seed of a step. Without it, each call samples a
    seed from the global generator of torch.
    """

    noise_seed: int | None = None

    def levels(self, num_rows: int, width: int, device: torch.device) -> Tensor:
        """Return independent uniform numbers from -2^15 to 2^15 - 1: [n, width] int16."""
        if num_rows == 0:
            return torch.empty((0, width), dtype=torch.int16, device=device)
        seed = self.noise_seed
        if seed is None:
            seed = int(torch.randint(1 << 62, ()))
        states = _mixed(row_keys(num_rows, device) * _INCREMENT + seed)
        blocks = -(-width // 4)
        counters = torch.arange(1, blocks + 1, device=device) * _INCREMENT
        numbers = _mixed(states[:, None] + counters)
        return numbers.view(torch.int16)[:, :width]


def seed_noise(model: nn.Module, seed: int) -> None:
    """Seed the random modules of a model for one step.

    Args:
        model: each of its random modules has a seed of its own, by its place in the model.
        seed: any integer.
    """
    modules = (module for module in model.modules() if isinstance(module, RowNoise))
    for number, module in enumerate(modules):
        module.noise_seed = _mixed_int(_mixed_int(seed) + number + 1)


class HiddenValues(RowNoise):
    """A random choice of values that training treats as unknown ones.

    Args:
        rate: probability for each value, in [0, 1].
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"rate={self.rate}"

    @property
    def is_active(self) -> bool:
        """Whether values may be hidden: in training only."""
        return self.training and self.rate > 0

    def mask(self, num_rows: int, device: torch.device) -> Tensor:
        """Choose rows: [n] bool."""
        threshold = round(self.rate * LEVELS) - LEVELS // 2
        return self.levels(num_rows, 1, device)[:, 0].int() < threshold

    def replace(self, ids: Tensor) -> Tensor:
        """Replace rows of codes by the unknown code 0.

        Args:
            ids: [n] or [n, K] integers; the K codes of a row stand for one value and change
                together.
        """
        if not self.is_active:
            return ids
        mask = self.mask(len(ids), ids.device)
        return ids.masked_fill(mask.view(-1, *[1] * (ids.ndim - 1)), 0)


def _signed(number: int) -> int:
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


_INCREMENT: Final = _signed(0x9E3779B97F4A7C15)
_FACTORS: Final = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))
_LAST_SHIFT: Final = 31


def _mixed(numbers: Tensor) -> Tensor:
    """Apply the output function of SplitMix64 to int64 numbers, in place."""
    shifted = torch.empty_like(numbers)
    for shift, factor in (*_FACTORS, (_LAST_SHIFT, 1)):
        torch.bitwise_right_shift(numbers, shift, out=shifted)
        shifted.bitwise_and_((1 << (64 - shift)) - 1)  # the shift of torch extends the sign
        numbers.bitwise_xor_(shifted)
        if factor != 1:
            numbers.mul_(factor)
    return numbers


def _mixed_int(number: int) -> int:
    """Return the output function of SplitMix64, as a signed 64-bit number."""
    number &= (1 << 64) - 1
    for shift, factor in (*_FACTORS, (_LAST_SHIFT, 1)):
        number = (number ^ (number >> shift)) * factor & ((1 << 64) - 1)
    return _signed(number)
