"""Finished cells of a study by grid point and arm, and paired differences between two arms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np

from candid.study.arms import ARMS, NO_SAMPLER
from candid.study.grid import Setting
from candid.study.records import CellKey, Record, read_records
from candid.study.statistics import PairedDifference, paired_difference
from candid.study.user_values import Floats, Ints, UserValues, read_users

Metric = Literal["ndcg", "nll"]
METRICS: Final[Mapping[Metric, str]] = {"ndcg": "NDCG@10", "nll": "NLL, nats"}
"""Metrics with values of each user; higher is better for the first, lower for the second."""
CACHED_CELLS: Final = 128
"""Cells whose values of users stay in memory."""


@dataclass(frozen=True, slots=True, order=True)
class GridPoint:
    """The place where arms are compared: one dataset, tower, sampler and n.

    Attributes:
        dataset: name in the study file.
        split: name in the study file.
        tower: name in the study file.
        sampler: name of the sampler; "none" for arms that read the whole catalog.
        num_candidates: n; 0 where it is that of the batch.
    """

    dataset: str
    split: str
    tower: str
    sampler: str
    num_candidates: int

    @classmethod
    def of(cls, key: CellKey | Setting) -> Self:
        """Return the grid point of a cell, or of a setting."""
        return cls(key.dataset, key.split, key.tower, key.sampler, key.num_candidates)

    @property
    def whole_catalog(self) -> GridPoint:
        """The grid point of the arms that read the whole catalog, with the same data and tower."""
        return GridPoint(self.dataset, self.split, self.tower, NO_SAMPLER, 0)

    @property
    def data(self) -> str:
        """Dataset, split and tower in words."""
        return f"{self.dataset}, {self.split}, {self.tower}"

    @property
    def candidates(self) -> str:
        """Sampler and n in words."""
        return f"{self.sampler}, n = {self.num_candidates}" if self.num_candidates else self.sampler

    @property
    def label(self) -> str:
        """All of it in words."""
        return f"{self.data}, {self.candidates}"


class StudyCells:
    """The main cells of a study, read from its folder.

    An arm has one learning rate at a grid point, that of its last record. Cells of another one are
    left out.

    Args:
        folder: of the study, with the values of each user.
        records: of the study; None: read from the folder.
        planned: the seeds of every setting of the study, so that missing cells are known; cells of
            other settings are left out. None: the settings that have a record.
        sources: name of the data behind each dataset; None: that of the dataset.
        at_edge: settings whose learning rate is the smallest or the largest one of their pilot;
            None: not known.

    Attributes:
        blocks: for each dataset, split and tower the grid point of the whole catalog, in the order
            of the records.
        points: grid points with a sampler, block by block, by sampler and n.
    """

    def __init__(
        self,
        folder: Path | str,
        records: Sequence[Record] | None = None,
        planned: Mapping[Setting, Sequence[int]] | None = None,
        sources: Mapping[str, str] | None = None,
        at_edge: Iterable[Setting] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._at_edge = (
            None if at_edge is None else {(GridPoint.of(one), one.arm) for one in at_edge}
        )
        self._sources = dict(sources or {})
        cells: dict[tuple[GridPoint, str], list[Record]] = {}
        for record in read_records(folder) if records is None else records:
            if record.key.phase == "main" and (
                planned is None or record.key.seed in planned.get(Setting.of(record.key), ())
            ):
                cells.setdefault((GridPoint.of(record.key), record.key.arm), []).append(record)
        self._planned = {
            (GridPoint.of(setting), setting.arm): len(seeds)
            for setting, seeds in (planned or {}).items()
        }
        self._cells = {
            place: sorted(
                (one for one in found if one.key.lr == found[-1].key.lr),
                key=lambda one: one.key.seed,
            )
            for place, found in cells.items()
        }
        self._places = list(dict.fromkeys([*self._planned, *cells]))
        points = dict.fromkeys(point for point, _ in self._places)
        self.blocks = list(dict.fromkeys(point.whole_catalog for point in points))
        self.points = sorted(
            (point for point in points if point.sampler != NO_SAMPLER),
            key=lambda point: (self.blocks.index(point.whole_catalog), point),
        )
        self._users: dict[CellKey, UserValues] = {}

    @property
    def records(self) -> list[Record]:
        """The records of the cells, without those of other learning rates."""
        return [one for cells in self._cells.values() for one in cells]

    def arms(self, point: GridPoint) -> list[str]:
        """Return the arms of a grid point, planned or recorded, without those of all items."""
        found = {arm for place, arm in self._places if place == point}
        known = [arm for arm in ARMS if arm in found]
        return known + sorted(found - set(known))

    def num_planned(self, point: GridPoint, arm: str) -> int:
        """Return the number of seeds that an arm shall have at a grid point.

        Without the settings of the study it is the largest number that an arm has there.
        """
        if self._planned:
            own = self._planned.get((point, arm))
            return own if own is not None else self._planned.get((point.whole_catalog, arm), 0)
        arms = [*self.arms(point), *self.arms(point.whole_catalog)]
        return max((len(self.cells(point, one)) for one in arms), default=0)

    def num_items(self, point: GridPoint) -> int | None:
        """Return the items that both softmax and ranking of a dataset and split have.

        None without a finished cell.
        """
        sizes = (
            one.compared_items
            for (place, _), cells in self._cells.items()
            if (place.dataset, place.split) == (point.dataset, point.split)
            for one in cells
            if one.is_finished
        )
        return next(sizes, None)

    def source(self, dataset: str) -> str:
        """Return the name of the data behind a dataset; those of one source are not independent."""
        return self._sources.get(dataset, dataset)

    def rate_is_at_edge(self, point: GridPoint, arm: str) -> bool | None:
        """Return whether the learning rate of an arm is the last one of its pilot; None: unknown.

        An arm that reads the whole catalog has one rate at all grid points of its data and tower.
        """
        if self._at_edge is None:
            return None
        return not self._at_edge.isdisjoint({(point, arm), (point.whole_catalog, arm)})

    def cells(self, point: GridPoint, arm: str) -> list[Record]:
        """Return the records of an arm, finished or failed, by seed; empty without one.

        An arm that reads the whole catalog takes part at every grid point of its data and tower.
        """
        return self._cells.get((point, arm)) or self._cells.get((point.whole_catalog, arm), [])

    def finished(self, point: GridPoint, arm: str) -> dict[int, Record]:
        """Return the finished cells of an arm by seed."""
        cells = self.cells(point, arm)
        return {one.key.seed: one for one in cells if one.is_finished and one.users is not None}

    def values(
        self, point: GridPoint, arms: Iterable[str], metric: Metric
    ) -> tuple[dict[str, Floats], list[int]]:
        """Return a metric of each user with each seed, for the users and seeds of all arms.

        Args:
            point: the grid point.
            arms: names of arms.
            metric: the metric.

        Returns:
            [U, S] for each arm, and the S seeds. U or S may be 0.
        """
        cells = {arm: self.finished(point, arm) for arm in arms}
        seeds = sorted(set.intersection(*(set(one) for one in cells.values())))
        if not seeds:
            return {arm: np.empty((0, 0)) for arm in cells}, []
        columns: dict[str, list[Floats]] = {arm: [] for arm in cells}
        users: list[Ints] = []
        for arm, of_arm in cells.items():
            for seed in seeds:
                read = self._read(of_arm[seed])
                columns[arm].append(getattr(read, metric))
                users.append(read.user_ids)
        common = users[0]
        if any(not np.array_equal(common, one) for one in users):
            common = reduce(np.intersect1d, users)
            ids = iter(users)
            columns = {
                arm: [one[np.searchsorted(next(ids), common)] for one in found]
                for arm, found in columns.items()
            }
        table = {arm: np.stack(found, axis=1) for arm, found in columns.items()}
        defined = np.all([np.isfinite(one).all(axis=1) for one in table.values()], axis=0)
        return {arm: one[defined] for arm, one in table.items()}, seeds

    def difference(
        self, point: GridPoint, arm: str, other: str, metric: Metric, *, factor: float = 1.0
    ) -> PairedDifference | None:
        """Compare two arms over the users and seeds of both.

        Args:
            point: the grid point.
            arm: the first arm.
            other: the second arm.
            metric: the metric.
            factor: multiplies the values of the second arm.

        Returns:
            first minus second; None where both have no finished seed or no user in common.
        """
        values, _ = self.values(point, (arm, other), metric)
        if not values[arm].size:
            return None
        return paired_difference(values[arm], factor * values[other])

    def _read(self, record: Record) -> UserValues:
        if record.key not in self._users:
            while len(self._users) >= CACHED_CELLS:
                del self._users[next(iter(self._users))]
            self._users[record.key] = read_users(self.folder, record)
        return self._users[record.key]
