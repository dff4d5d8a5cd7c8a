"""Weights of an earlier run as weights of a model for another dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.config import RunConfig
from candid.data import PreparedDataset
from candid.errors import ConfigError
from candid.runs.earlier_run import EarlierRun, difference_error
from candid.towers import RetrievalModel, RowTable, code_tables, row_tables
from candid.training import model_tensors

Ints = npt.NDArray[np.int64]


class WeightMapping:
    """Tensors of an earlier run as tensors of a model for another dataset.

    Args:
        earlier: the run.
        config: of the model.
        dataset: of the model.
        model: untrained; new rows begin with its random rows.
        rows: for "item" and "user" the earlier row of each id now, [n] int64, or -1.

    Attributes:
        num_new_codes: values of features that have a new row, after ``weights``.
    """

    def __init__(
        self,
        earlier: EarlierRun,
        config: RunConfig,
        dataset: PreparedDataset,
        model: RetrievalModel,
        rows: Mapping[str, Ints],
    ) -> None:
        self._earlier, self._config, self._dataset = earlier, config, dataset
        self._rows = rows
        self._expected = {
            name.removeprefix("model/"): tensor for name, tensor in model_tensors(model).items()
        }
        by_id = {
            id(table.weight): table for _, table in row_tables(model) if table.rows_of is not None
        }
        self._tables = {
            name: by_id[id(parameter)]
            for name, parameter in model.named_parameters()
            if id(parameter) in by_id
        }
        self._code_tables = {f"{name}.weight" for name, _ in code_tables(model)}
        self._new_rows: dict[str, Tensor] = {}
        self.num_new_codes = 0

    def weights(
        self, stored: Mapping[str, Tensor], partial: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters and buffers, by name.

        Args:
            stored: of the earlier run.
            partial: whether some of the names may be missing.
        """
        names = sorted(self._expected.keys() ^ stored.keys())
        if names and not (partial and stored.keys() <= self._expected.keys()):
            name = names[0]
            reason = f"the model has no {name!r}" if name in stored else f"it lacks {name!r}"
            raise difference_error(self._earlier, self._config, reason)
        for name, value in stored.items():
            expected = self._expected[name]
            source = self._source(name, value)
            if source is None:
                if value.shape != expected.shape:
                    raise self._shape_error(name, value, expected)
                yield name, value
                continue
            if value.shape[1:] != expected.shape[1:]:
                raise self._shape_error(name, value, expected)
            if name not in self._new_rows:
                self._new_rows[name] = self._initial_rows(name, value, source)
            yield name, _copied(value, source, self._new_rows[name])

    def state(self, parameter: str, name: str, value: Tensor) -> Tensor:
        """Return a state of the optimizer: rows of new ids are 0, or the mean of second moments."""
        source = None if value.ndim == 0 else self._source(parameter, value)
        if source is None:
            return value
        fill = value.new_zeros((len(source), *value.shape[1:]))
        if name.endswith("/exp_avg_sq"):
            # With 0 the first steps of a new row would be several times too long, because Adam's
            # bias correction is that of the run.
            known = torch.from_numpy(source[source >= 0])
            if len(known):
                fill += value[known].mean(0)
        return _copied(value, source, fill)

    def _source(self, name: str, value: Tensor) -> Ints | None:
        """Return the earlier row of each row of a table: [n] int64, -1 for new rows.

        Args:
            name: of the parameter.
            value: of the earlier run.

        Returns:
            None for a parameter without such rows, and for one whose rows cannot be mapped.
        """
        if name in self._code_tables:
            num_before, num_rows = len(value), len(self._expected[name])
            rows = np.arange(num_rows)
            return None if num_before > num_rows else np.where(rows < num_before, rows, -1)
        table = self._tables.get(name)
        if table is None:
            return None
        source, first = self._rows[_side(table)], table.first_row
        return np.concatenate([np.arange(first), np.where(source >= 0, source + first, -1)])

    def _initial_rows(self, name: str, value: Tensor, source: Ints) -> Tensor:
        """Return all rows of a table, of which those of new ids and new codes are used."""
        rows = self._expected[name].detach().cpu().float().clone()
        is_random = self._config.training.init_rows == "random"
        if name in self._code_tables:
            self.num_new_codes += int((source < 0).sum())
            # Until now the earlier run read the row of unknown values for a new one.
            return rows if is_random else rows + value[0].float()
        table = self._tables[name]
        is_known = self._rows[_side(table)] >= 0
        if is_random or is_known.all() or not is_known.any():
            return rows
        # Imported here because scipy, which it needs, takes a fifth of a second to import.
        from candid.runs.new_rows import neighbour_means

        vectors = _copied(value, source, rows)[table.first_row :]
        means, has_any = neighbour_means(self._dataset, _side(table), vectors, is_known)
        with_neighbours = torch.from_numpy(np.flatnonzero(has_any))
        # On top of the random rows, so that no two new rows are equal.
        rows[with_neighbours + table.first_row] += means[with_neighbours]
        return rows

    def _shape_error(self, name: str, value: Tensor, expected: Tensor) -> ConfigError:
        reason = f"{name!r} is {list(value.shape)} there and {list(expected.shape)} here"
        return difference_error(self._earlier, self._config, reason)


def _copied(value: Tensor, source: Ints, new_rows: Tensor) -> Tensor:
    """Return ``new_rows`` with the rows of ``value`` where ``source`` names one."""
    result = new_rows.to(value.dtype).clone()
    is_known = source >= 0
    rows = torch.from_numpy(np.flatnonzero(is_known))
    result[rows] = value[torch.from_numpy(source[is_known])]
    return result


def _side(table: RowTable) -> str:
    assert table.rows_of is not None
    return table.rows_of
