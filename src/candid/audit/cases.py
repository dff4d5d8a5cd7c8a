"""Audit cases: a sampler with a number of candidates and the estimators to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Final

from candid.component import lookup
from candid.errors import ConfigError
from candid.losses.correction import SHIFTS_BOTH, corrections_for, hit_rules
from candid.losses.estimator import Estimator
from candid.samplers.config import SamplerConfig
from candid.samplers.registry import SAMPLERS

SAMPLES_PER_ROW_UP_TO = 200_000
"""Largest catalog for which samplers with a separate sample per row are affordable: each sample
descends a tree, and the sums of their gradients hold the whole catalog."""

ALL_ESTIMATORS: Final = (
    *(
        Estimator(correction, accidental_hits=rule)
        for correction in corrections_for(has_exact=False)
        for rule in hit_rules(correction)
    ),
    Estimator("refined", jackknife=True),
    Estimator(SHIFTS_BOTH, cap=3.0),
)
"""Every correction with each of its rules of accidental hits, the jackknife of refined, and the
learnt partition function with its default cap.

The jackknife removes bias of ``refined``; ``logq`` has no drift with independent samples.
"""


@dataclass(frozen=True, slots=True)
class AuditCase:
    """One sampler to audit, with one or more estimators.

    Attributes:
        name: name in tables.
        sampler: settings of the sampler.
        num_candidates: requested number of candidates per row.
        estimators: estimators to measure, all on the same candidates.
        batch_rows: number of other rows of a batch, for samplers that take candidates from it;
            None: ``num_candidates``.
        is_recipe: whether the audited recipe trains with this sampler.
    """

    name: str
    sampler: SamplerConfig
    _: KW_ONLY
    num_candidates: int
    estimators: Sequence[Estimator]
    batch_rows: int | None = None
    is_recipe: bool = False


def estimators_for(sampler: SamplerConfig) -> tuple[Estimator, ...]:
    """Return the estimators that are defined for a sampler.

    Some corrections are not defined with exact candidates, and the jackknife is biased for a
    set of distinct items. On sets the rules of accidental hits are one and the same: only the
    default is listed.
    """
    corrections = corrections_for(sampler.has_exact, sampler.is_set)
    return tuple(
        estimator
        for estimator in ALL_ESTIMATORS
        if estimator.correction in corrections
        and not (sampler.is_set and (estimator.jackknife or not estimator.has_default_hit_rule))
    )


def sampler_config(table: Mapping[str, Any]) -> SamplerConfig:
    """Make the config of a sampler from a recipe table with its ``type``.

    Raises:
        UnknownNameError: the type is not registered.
        ConfigError: a setting is unknown, missing or has a wrong value.
    """
    component: Any = lookup(SAMPLERS, "sampler", table["type"])
    settings = {key: value for key, value in table.items() if key != "type"}
    config: SamplerConfig = component.Config(**settings)
    return config


def affordable_cases(
    cases: Sequence[AuditCase], num_items: int
) -> tuple[list[AuditCase], str | None]:
    """Leave out cases that would take hours in a large catalog.

    Args:
        cases: such as the standard cases.
        num_items: V.

    Returns:
        the affordable cases, and one sentence that names the others; None: all are affordable.
    """
    slow = [case for case in cases if case.sampler.samples_per_row]
    if num_items <= SAMPLES_PER_ROW_UP_TO or not slow:
        return list(cases), None
    names = " and ".join(dict.fromkeys(case.name for case in slow))
    return [case for case in cases if case not in slow], (
        f"not measured: the {names} samplers, which sample separately for each row and would take "
        f"hours with {num_items:,} items (the limit is {SAMPLES_PER_ROW_UP_TO:,}); the sampler of "
        "an audited recipe is always measured"
    )


def standard_cases(
    sizes: Sequence[int],
    num_items: int,
    *,
    only_fitting: bool = False,
    min_count: float = 0.0,
    rows_per_batch: int | None = None,
) -> list[AuditCase]:
    """Return the standard cases: every family of samplers with each number of candidates.

    Args:
        sizes: numbers of candidates, at least 2 each.
        num_items: V.
        only_fitting: for a number above V, leave out the sets of distinct items and the exact
            candidates that exceed the catalog, instead of raising an error.
        min_count: least count of an item for popularity samplers; above 0 it lets them sample
            items without a training interaction.
        rows_per_batch: number of other rows in a batch of the audited data; in-batch candidates
            are then measured once, with that number. None: with each of ``sizes``.

    Raises:
        ConfigError: a number below 2, or above V without ``only_fitting``.
    """
    for size in sizes:
        if size < 2:
            raise ConfigError(f"--n {size}: an estimate needs at least 2 candidates")
        if size > num_items and not only_fitting:
            raise ConfigError(
                f"--n {size}: a set of distinct items cannot be larger than the catalog of "
                f"{num_items:,}; use at most {num_items}"
            )
    cases = [
        case
        for size in sizes
        for case in _cases(size, min_count)
        if size <= num_items or _fits(case, num_items)
    ]
    if rows_per_batch is None:
        return cases
    in_batch = {case.name: case for case in cases if case.sampler.reads_batch}
    return [case for case in cases if not case.sampler.reads_batch] + [
        replace(case, num_candidates=rows_per_batch) for case in in_batch.values()
    ]


def _fits(case: AuditCase, num_items: int) -> bool:
    settings = case.sampler.model_dump()
    return not case.sampler.is_set and settings.get("num_exact", 0) <= num_items


def _cases(size: int, min_count: float) -> list[AuditCase]:
    half, remainder = size // 2, size - size // 2
    popularity = {"type": "popularity", "num_candidates": size, "min_count": min_count}
    rest = popularity | {"num_candidates": remainder}
    nearest = {"type": "exact_nearest", "num_exact": half, "k": half, "rest": rest}
    tables: dict[str, dict[str, Any]] = {
        "uniform": {"type": "uniform", "num_candidates": size},
        "popularity": popularity,
        "popularity, distinct": popularity | {"distinct": True},
        "in-batch": {"type": "in_batch"},
        "in-batch, distinct": {"type": "in_batch", "distinct": True},
        "popularity + uniform": {
            "type": "mixture",
            "components": [rest, {"type": "uniform", "num_candidates": half}],
        },
        "exact popular": {"type": "exact_popular", "num_exact": half, "rest": rest},
        "exact nearest, shared": nearest,
        "exact nearest, per row": nearest | {"shared": False},
        "random Fourier": {"type": "random_fourier", "num_candidates": size},
        "quadratic": {"type": "quadratic", "num_candidates": size},
    }
    configs = {
        name: sampler_config(table) for name, table in tables.items() if table["type"] in SAMPLERS
    }
    return [
        AuditCase(name, config, num_candidates=size, estimators=estimators_for(config))
        for name, config in configs.items()
    ]
