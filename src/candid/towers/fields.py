"""Fields: one vector per feature, all of the same width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from candid.errors import DataError
from candid.features import Bags, Codes, Numbers, Values
from candid.towers.embedding import embedding_table
from candid.towers.row_noise import HiddenValues, row_keys, rows_of
from candid.towers.row_table import RowTable

MANY_CODES = 10_000
"""Minimum size of a table that trains by row: a step reads most rows of a smaller table."""

MAX_CODES = 1 << 20
"""More than the codes of any bag."""


def code_table(num_codes: int, dim: int) -> nn.Embedding:
    """Return a table whose row 0, the unknown bucket, is initialised to zero.

    Zero is the mean of the initial values of other rows: an untrained bucket stays neutral, while
    a random vector would add noise.

    Args:
        num_codes: rows.
        dim: width.
    """
    make = RowTable if num_codes >= MANY_CODES else embedding_table
    table = make(num_codes, dim)
    with torch.no_grad():
        table.weight[0] = 0
    return table


def code_tables(model: nn.Module) -> Iterator[tuple[str, nn.Embedding]]:
    """Yield the tables with a row for each code of a feature, by name."""
    for name, module in model.named_modules():
        if isinstance(module, CodeField | BagField):
            yield f"{name}.table", module.table


class CodeField(nn.Module):
    """The mean of the vectors of the codes of a row; several codes are hashes of one value."""

    def __init__(self, num_codes: int, *, dim: int, unknown_rate: float) -> None:
        super().__init__()
        self.table = code_table(num_codes, dim)
        self.hidden = HiddenValues(unknown_rate)

    def forward(self, codes: Codes) -> Tensor:
        """Encode n rows: [n, d]."""
        vectors: Tensor = self.table(self.hidden.replace(codes.ids))
        return vectors.mean(dim=1)


class BagField(nn.Module):
    """The mean of the vectors of the codes of a bag.

    The vector of an empty bag is a parameter, because "no genre" is information. It is initialised
    to zero, and stays neutral if training has no empty bag.
    """

    def __init__(self, num_codes: int, *, dim: int, unknown_rate: float) -> None:
        super().__init__()
        self.table = code_table(num_codes, dim)
        self.empty = nn.Parameter(torch.zeros(dim))
        self.hidden = HiddenValues(unknown_rate)

    def forward(self, bags: Bags) -> Tensor:
        """Encode n rows: [n, d]."""
        ids = bags.ids
        if self.hidden.is_active:
            with rows_of(_code_keys(bags)):
                ids = self.hidden.replace(ids)
        means = F.embedding_bag(
            ids,
            self.table.weight,
            bags.offsets,
            mode="mean",
            include_last_offset=True,
            sparse=self.table.sparse,
        )
        is_empty = (bags.offsets.diff() == 0)[:, None]
        return torch.where(is_empty, self.empty, means.to(self.empty.dtype))


class NumberField(nn.Module):
    """An affine map of the M numbers of a row, initialised on the scale of the tables.

    The bias preserves magnitude through the layer norm that follows: without it, the norm would
    reduce a multiple of one vector to its sign.
    """

    unknown: Tensor

    def __init__(self, form: Numbers, *, dim: int, unknown_rate: float) -> None:
        super().__init__()
        self.linear = nn.Linear(form.values.shape[1], dim)
        self.hidden = HiddenValues(unknown_rate)
        self.register_buffer("unknown", form.unknown_row(), persistent=False)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.normal_(self.linear.bias, std=0.02)

    def forward(self, numbers: Numbers) -> Tensor:
        """Encode n rows: [n, d]."""
        dtype, values = self.linear.weight.dtype, numbers.values
        if self.hidden.is_active:
            is_hidden = self.hidden.mask(len(values), values.device)
            values = torch.where(is_hidden[:, None], self.unknown, values)
        vectors: Tensor = self.linear(values.to(dtype))
        return vectors.to(dtype)  # autocast narrows products but not look-ups


class FieldEncoder(nn.Module):
    """The values of several features as one vector each.

    The order of ``values`` is the order of the fields and of the names of parameters.

    Args:
        values: by feature name; only their form is read (type, vocabulary size, numbers per row).
        dim: d, width of the vector of a field.
        unknown_rate: probability, in training only, that a value (a code of a bag) is replaced by
            the unknown code 0, and a row of numbers by those of an unknown row. It trains for
            values that occur only in serving: an item without genre, a user without
            interactions.
    """

    def __init__(self, values: Mapping[str, Values], *, dim: int, unknown_rate: float) -> None:
        super().__init__()
        self.names = tuple(values)
        self.dim = dim
        self.unknown_rate = unknown_rate
        # A list, not a ModuleDict: "type" and "a.b" are valid names of features but not of modules.
        self.fields = nn.ModuleList(
            _field(form, dim=dim, unknown_rate=unknown_rate) for form in values.values()
        )

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"names={list(self.names)}, dim={self.dim}, unknown_rate={self.unknown_rate}"

    def forward(self, values: Mapping[str, Values]) -> Tensor:
        """Encode n rows: [n, F, d] in the dtype of the parameters.

        Raises:
            DataError: a feature is missing.
        """
        for name in self.names:
            if name not in values:
                raise DataError(
                    f"the tower reads feature {name!r}, but the rows have only "
                    f"{', '.join(values) or 'none'}; encode them with the FeatureTable of the run"
                )
        vectors = [field(values[name]) for name, field in zip(self.names, self.fields, strict=True)]
        return torch.stack(vectors, dim=1)


def _field(form: Values, *, dim: int, unknown_rate: float) -> nn.Module:
    match form:
        case Codes():
            return CodeField(form.num_codes, dim=dim, unknown_rate=unknown_rate)
        case Bags():
            return BagField(form.num_codes, dim=dim, unknown_rate=unknown_rate)
        case Numbers():
            return NumberField(form, dim=dim, unknown_rate=unknown_rate)


def _code_keys(bags: Bags) -> Tensor:
    """[T] int64, a key for each code of a bag, from the key of its row and its place there."""
    lengths, num_codes = bags.offsets.diff(), len(bags.ids)
    rows = torch.arange(len(bags), device=bags.ids.device)
    rows = rows.repeat_interleave(lengths, output_size=num_codes)
    keys = row_keys(len(bags), bags.ids.device)[rows]
    places = torch.arange(num_codes, device=rows.device) - bags.offsets[:-1][rows]
    return keys * MAX_CODES + places
