"""The cells of a study: keys, recipes, and the learning rates that the pilot chooses."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from candid.config import RunConfig, parse_config
from candid.errors import ConfigError
from candid.study.arms import NO_SAMPLER, arm_settings, find_arm
from candid.study.config import Study
from candid.study.learning_rates import (
    EXPECTED_EXTENSIONS,
    MAX_EXTENSIONS,
    best_rate,
    extension,
)
from candid.study.records import CellKey, Phase, Record

Table = dict[str, Any]

BASE: Final[Table] = {
    "name": "cell",
    "training": {"keep": "none"},
    "evaluation": {
        "ks": [10],
        "metric": "ndcg@10",
        "metrics": ["recall", "ndcg"],
        "intervals": False,
        "history_slices": [],
    },
}
"""Recipe keys of every cell; those of the study come on top. The model of the last step is
measured: that of the best validation has other numbers of steps in other arms."""


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What the learning rate is chosen for: a cell without phase, learning rate and seed."""

    dataset: str
    split: str
    tower: str
    sampler: str
    num_candidates: int
    arm: str

    @classmethod
    def of(cls, key: CellKey) -> Setting:
        """Return the setting of a cell."""
        return cls(key.dataset, key.split, key.tower, key.sampler, key.num_candidates, key.arm)

    def cell(self, phase: Phase, lr: float, seed: int) -> CellKey:
        """Return a cell of this setting."""
        return CellKey(
            phase,
            self.dataset,
            self.split,
            self.tower,
            self.sampler,
            self.num_candidates,
            self.arm,
            lr,
            seed,
        )


class Grid:
    """All cells of a study.

    Args:
        study: the study file.

    Attributes:
        seeds: by setting, the seeds of the main cells.
        pilots: by setting, the one whose pilot chooses the learning rate.
        positions: by setting, also those of the pilot, the number of the first grid that needs it.

    Raises:
        ConfigError: the recipe of a cell is wrong.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.seeds: dict[Setting, tuple[int, ...]] = {}
        self.positions: dict[Setting, int] = {}
        for position, setting, seeds in _settings(study):
            self.positions.setdefault(setting, position)
            self.positions.setdefault(_pilot_of(setting, study), position)
            known = self.seeds.get(setting, ())
            self.seeds[setting] = known + tuple(seed for seed in seeds if seed not in known)
        self.pilots = {setting: _pilot_of(setting, study) for setting in self.seeds}
        # Once for each setting, before anything runs.
        phases: tuple[tuple[Phase, Iterable[Setting]], ...] = (
            ("main", self.seeds),
            ("pilot", dict.fromkeys(self.pilots.values())),
        )
        for phase, settings in phases:
            for setting in settings:
                self.config(setting.cell(phase, study.learning_rates(setting.dataset)[0], 0))
        self._check_softmax()

    def config(self, key: CellKey) -> RunConfig:
        """Return the recipe of a cell.

        Raises:
            ConfigError: it cannot work.
        """
        study = self.study
        parts = [
            BASE,
            study.config.recipe,
            study.datasets[key.dataset].recipe,
            study.config.towers[key.tower],
            *([study.pilot.recipe] if key.phase == "pilot" else []),
            arm_settings(key.arm, key.sampler, key.num_candidates),
            {"seed": key.seed, "training": {"lr": key.lr}},
        ]
        table: Table = {}
        for part in parts:
            table = merged(table, part)
        source = f"{study.source}: {key.label}"
        config = parse_config(table, source)
        _check_is_recorded(config, source)
        return _with_checkpoints(config)

    def digest(self, key: CellKey, dataset: str) -> str:
        """Return a checksum of everything that a cell depends on.

        Args:
            key: of the cell.
            dataset: fingerprint of its dataset.
        """
        content = {
            "recipe": self.config(key).model_dump(mode="json"),
            "dataset": dataset,
        }
        if key.phase == "main":
            content["measure"] = self.study.measure.model_dump(mode="json")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def has_settings_of(self, record: Record) -> bool:
        """Whether the recipe of a record is the one that its cell has now.

        The content of the dataset is not compared: it would have to be opened.
        """
        key, study = record.key, self.study
        return (
            key.dataset in study.datasets
            and key.split in study.datasets[key.dataset].split_names
            and key.tower in study.config.towers
            and record.settings == self.config(key).model_dump(mode="json")
        )

    def pilot_cells(self, records: Mapping[CellKey, Record]) -> list[CellKey]:
        """Return the cells of the pilot, with those by which a range is extended.

        Args:
            records: of the cells that have ended.
        """
        cells = []
        for setting in dict.fromkeys(self.pilots.values()):
            rates = self.rates(setting, records)
            cells += [setting.cell("pilot", rate, self.study.pilot.seed) for rate in rates]
        return cells

    def rates(self, setting: Setting, records: Mapping[CellKey, Record]) -> tuple[float, ...]:
        """Return the learning rates that the pilot of a setting tries: ascending."""
        rates = self.study.learning_rates(setting.dataset)
        for _ in range(MAX_EXTENSIONS if self.study.pilot.extend else 0):
            values = self._values(setting, rates, records)
            more = None if None in values.values() else extension(values)
            if more is None:
                break
            rates = tuple(sorted((*rates, more)))
        return rates

    def chosen_rate(self, setting: Setting, records: Mapping[CellKey, Record]) -> float | None:
        """Return the learning rate of the main cells of a setting.

        None: the pilot has not ended, or all its cells failed.
        """
        pilot = self.pilots[setting]
        values = self._values(pilot, self.rates(pilot, records), records)
        if None in values.values():
            return None
        return best_rate({rate: value for rate, value in values.items() if value is not None})

    def at_edge(self, records: Mapping[CellKey, Record]) -> set[Setting]:
        """Return the settings whose learning rate is the smallest or largest one of their pilot.

        A better one may lie beyond it.
        """
        found = set()
        for setting, pilot in self.pilots.items():
            rates = self.rates(pilot, records)
            if self.chosen_rate(setting, records) in (rates[0], rates[-1]):
                found.add(setting)
        return found

    def may_extend(self, records: Mapping[CellKey, Record]) -> list[CellKey]:
        """Return the cells by which pilots that have not ended are expected to extend their range.

        Only their number is an expectation of use: their learning rates are those of other cells.
        """
        cells = []
        for setting in dict.fromkeys(self.pilots.values()):
            rates = self.study.learning_rates(setting.dataset)
            is_open = None in self._values(setting, rates, records).values()
            if self.study.pilot.extend and len(rates) > 1 and is_open:
                one = setting.cell("pilot", rates[0], self.study.pilot.seed)
                cells += [one] * EXPECTED_EXTENSIONS
        return cells

    def main_cells(self, records: Mapping[CellKey, Record]) -> list[CellKey]:
        """Return the main cells whose learning rate is chosen, all arms of one seed together."""
        cells = []
        for setting, seeds in self.seeds.items():
            rate = self.chosen_rate(setting, records)
            if rate is not None:
                cells += [(number, setting.cell("main", rate, s)) for number, s in enumerate(seeds)]
        return [cell for _, cell in sorted(cells, key=lambda pair: pair[0])]

    def missing_cells(self, ended: Mapping[CellKey, Record]) -> list[CellKey]:
        """Return the cells that have not ended, in the order in which they run.

        Grid after grid, so that the results of the first ones are complete early: of each the
        pilot, then the main cells whose learning rate is chosen.

        Args:
            ended: records of the cells that have ended.
        """
        cells = [*self.pilot_cells(ended), *self.main_cells(ended)]
        missing = [key for key in cells if key not in ended]
        return sorted(missing, key=lambda key: self.positions[Setting.of(key)])

    @property
    def num_pilots(self) -> int:
        """Number of cells of the pilot, without extensions."""
        pilots = dict.fromkeys(self.pilots.values())
        return sum(len(self.study.learning_rates(setting.dataset)) for setting in pilots)

    @property
    def num_main(self) -> int:
        """Number of main cells."""
        return sum(map(len, self.seeds.values()))

    def _check_softmax(self) -> None:
        """Refuse a softmax over the trained items beside arms whose softmax is over all items.

        Raises:
            ConfigError: there is one; their NLL and their excess could not be compared.
        """
        full = {
            (s.dataset, s.split, s.tower): s for s in self.seeds if find_arm(s.arm).reads_catalog
        }
        for setting in self.seeds:
            anchor = full.get((setting.dataset, setting.split, setting.tower))
            if anchor is None or not find_arm(setting.arm).samples_all_items(setting.sampler):
                continue
            rate = self.study.learning_rates(anchor.dataset)[0]
            if self.config(anchor.cell("main", rate, 0)).training.softmax_over == "trained":
                raise ConfigError(
                    f"{self.study.source}: {setting.dataset} {setting.tower}: the arm "
                    f"{anchor.arm!r} is over the training targets alone (training.softmax_over = "
                    f"'trained'), but {setting.arm!r} with the sampler {setting.sampler!r} samples "
                    "all items, so that they cannot be compared: set training.softmax_over = "
                    "'all', or leave one of them out"
                )

    def _values(
        self, setting: Setting, rates: Iterable[float], records: Mapping[CellKey, Record]
    ) -> dict[float, float | None]:
        """Return the value of each learning rate, larger is better; None: it has not ended."""
        pilot = self.study.pilot
        values: dict[float, float | None] = {}
        for rate in rates:
            record = records.get(setting.cell("pilot", rate, pilot.seed))
            values[rate] = None if record is None else _value(record, pilot.metric)
        return values


def merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> Table:
    """Return a recipe table with the keys of another one on top.

    A component of another type replaces the one before, whose settings rarely apply to it.

    Example:
        >>> merged({"training": {"epochs": 4, "lr": 0.1}}, {"training": {"lr": 0.2}})
        {'training': {'epochs': 4, 'lr': 0.2}}
    """
    result = dict(table)
    for key, value in changes.items():
        before = result.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            is_other = "type" in value and value["type"] != before.get("type")
            result[key] = dict(value) if is_other else merged(before, value)
        else:
            result[key] = value
    return result


def by_key(records: Sequence[Record]) -> dict[CellKey, Record]:
    """Return records by key."""
    return {record.key: record for record in records}


def _check_is_recorded(config: RunConfig, source: str) -> None:
    """Refuse a recipe without the values of a record.

    Raises:
        ConfigError: a metric or the log is missing.
    """
    measured = config.evaluation
    if 10 not in measured.ks or "ndcg" not in measured.metrics or not measured.nll:
        raise ConfigError(
            f"{source}: a study records NDCG@10 and NLL: evaluation.ks needs 10, "
            "evaluation.metrics needs 'ndcg', and evaluation.nll must be true"
        )
    if "jsonl" not in config.training.trackers:
        raise ConfigError(
            f"{source}: a study reads its curves from the log: training.trackers needs 'jsonl'"
        )


def _with_checkpoints(config: RunConfig) -> RunConfig:
    """Return a recipe with a checkpoint at each validation within an epoch.

    An epoch may be longer than the whole training of a cell, which would begin anew after a kill.
    """
    training = config.training
    is_given = training.model_fields_set & {"checkpoint_every", "checkpoint_every_steps"}
    if training.validate_every_steps is None or is_given:
        return config
    steps = {"checkpoint_every_steps": training.validate_every_steps}
    return config.model_copy(update={"training": training.model_copy(update=steps)})


def _value(record: Record, metric: str) -> float:
    if not record.is_finished or metric not in record.validation:
        return -math.inf
    value = record.validation[metric].value
    return -value if metric == "nll" else value


def _settings(study: Study) -> Iterator[tuple[int, Setting, tuple[int, ...]]]:
    """Yield the number of each grid with its settings and their seeds.

    The arms of one sampler and n are together.
    """
    for position, grid in enumerate(study.grids):
        for dataset in grid.datasets:
            of_dataset = study.datasets[dataset].split_names
            for split in (one for one in of_dataset if one in grid.splits):
                for tower in grid.towers:
                    for sampler, n, arm in _candidates(
                        grid.samplers, grid.num_candidates, grid.arms
                    ):
                        setting = Setting(dataset, split, tower, sampler, n, arm)
                        yield position, setting, grid.seeds


@lru_cache
def _candidates(
    samplers: tuple[str, ...], sizes: tuple[int, ...], arms: tuple[str, ...]
) -> tuple[tuple[str, int, str], ...]:
    """Return sampler, n and arm of all combinations that are defined."""
    result = [(NO_SAMPLER, 0, arm) for arm in arms if find_arm(arm).reads_catalog]
    for sampler in samplers:
        for n in (0,) if sampler == "whole_batch" else sizes:
            result += [(sampler, n, arm) for arm in arms if sampler in find_arm(arm).samplers]
    return tuple(result)


def _pilot_of(setting: Setting, study: Study) -> Setting:
    """Return the setting with the nearest n of the pilot, the smaller of two equally near ones."""
    sizes, n = study.pilot.num_candidates, setting.num_candidates
    if not sizes or not n:
        return setting
    nearest = min(sizes, key=lambda size: (abs(math.log(size / n)), size))
    return replace(setting, num_candidates=nearest)
