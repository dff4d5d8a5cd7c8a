"""Which samplers and corrections are audited where nobody names any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from candid.component import lookup
from candid.errors import ConfigError
from candid.losses import Correction
from candid.samplers import (
    SAMPLERS,
    ExactNearest,
    ExactPopular,
    Quadratic,
    RandomFourier,
    SamplerConfig,
)


@dataclass(frozen=True, slots=True)
class Variant:
    """How drawn candidates are compared; see ``losses.corrected_log_softmax``."""

    correction: Correction = "refined"
    jackknife: bool = False

    @property
    def label(self) -> str:
        """The name in tables."""
        return f"{self.correction} + jackknife" if self.jackknife else self.correction


REFINED = (Variant(), Variant(jackknife=True))
ALL = (Variant("none"), Variant("logq"), *REFINED)
"""The corrections of draws; beside an exact head only the refined ones are defined."""


def variants_of(config: SamplerConfig) -> tuple[Variant, ...]:
    """The variants that are defined for a sampler: no jackknife of a set of distinct items."""
    has_head = isinstance(config, ExactPopular.Config | ExactNearest.Config)
    return tuple(
        variant
        for variant in (REFINED if has_head else ALL)
        if not (variant.jackknife and config.is_set)
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """One sampler to audit, under one or more corrections.

    Attributes:
        name: the name in tables.
        config: the sampler.
        n: candidates that it is meant to give a row.
        variants: the corrections.
        batch_rows: other rows of a batch, where candidates come from it; None: n.
        is_yours: whether it is what the audited recipe trains with.
    """

    name: str
    config: SamplerConfig
    n: int
    variants: Sequence[Variant] = ALL
    batch_rows: int | None = None
    is_yours: bool = False


def sampler_config(table: Mapping[str, Any]) -> SamplerConfig:
    """Make a sampler's config from a table with its type."""
    component: Any = lookup(SAMPLERS, "sampler", table["type"])
    settings = {key: value for key, value in table.items() if key != "type"}
    config: SamplerConfig = component.Config.model_validate(settings)
    return config


KERNELS_UP_TO = 200_000
"""Items up to which the standard set draws by the model: every row has draws of its own there,
each a walk down a tree, and sums of their gradients touch the whole catalog."""


def affordable(plans: Sequence[Plan], num_items: int) -> tuple[list[Plan], str | None]:
    """Leave out what would take hours in a large catalog.

    Args:
        plans: such as the standard set.
        num_items: V.

    Returns:
        the others, and a sentence that names what was left out; None: nothing was.
    """
    kernels = (RandomFourier.Config, Quadratic.Config)
    slow = [plan for plan in plans if isinstance(plan.config, kernels)]
    if num_items <= KERNELS_UP_TO or not slow:
        return list(plans), None
    names = " and ".join(dict.fromkeys(plan.name for plan in slow))
    return [plan for plan in plans if plan not in slow], (
        f"not measured: {names} samplers, which draw for each row apart and would take hours in "
        f"a catalog of {num_items:,} items (the limit is {KERNELS_UP_TO:,}); a recipe that trains "
        "with one is measured all the same"
    )


def standard_plans(
    ns: Sequence[int], num_items: int, *, only_fitting: bool = False, min_count: float = 0.0
) -> list[Plan]:
    """The standard set: every family of samplers, at each number of candidates.

    Args:
        ns: numbers of candidates, at least 2 each.
        num_items: V.
        only_fitting: of a number above V leave out sets of distinct items and heads that are
            larger than the catalog, rather than refuse it.
        min_count: least count of an item in popularity draws; above 0 where there are items without
            a count, which they would never reach otherwise.

    Raises:
        ConfigError: a number below 2, or above V: a set of distinct items cannot be larger than
            the catalog.
    """
    for n in ns:
        if n < 2:
            raise ConfigError(f"--n {n}: an estimate needs at least 2 candidates")
        if n > num_items and not only_fitting:
            raise ConfigError(
                f"--n {n}: a set of distinct items cannot be larger than the catalog of "
                f"{num_items:,}; name at most {num_items}"
            )
    return [
        plan
        for n in ns
        for plan in _plans(n, min_count)
        if n <= num_items or _fits(plan, num_items)
    ]


def _fits(plan: Plan, num_items: int) -> bool:
    table = plan.config.model_dump()
    return not table.get("distinct") and table.get("num_exact", 0) <= num_items


def _plans(n: int, min_count: float) -> list[Plan]:
    half, rest = n // 2, n - n // 2
    popularity = {"type": "popularity", "num_candidates": n, "min_count": min_count}
    tail = popularity | {"num_candidates": rest}
    tables: dict[str, dict[str, Any]] = {
        "uniform": {"type": "uniform", "num_candidates": n},
        "popularity": popularity,
        "popularity, distinct": popularity | {"distinct": True},
        "in-batch": {"type": "in_batch"},
        "in-batch, distinct": {"type": "in_batch", "distinct": True},
        "popularity + uniform": {
            "type": "mixture",
            "components": [tail, {"type": "uniform", "num_candidates": half}],
        },
        "popular head + tail": {"type": "exact_popular", "num_exact": half, "rest": tail},
        "nearest head, shared": {
            "type": "exact_nearest",
            "num_exact": half,
            "k": half,
            "rest": tail,
        },
        "nearest head of each row": {
            "type": "exact_nearest",
            "shared": False,
            "num_exact": half,
            "k": half,
            "rest": tail,
        },
        "random Fourier": {"type": "random_fourier", "num_candidates": n},
        "quadratic": {"type": "quadratic", "num_candidates": n},
    }
    configs = {
        name: sampler_config(table) for name, table in tables.items() if table["type"] in SAMPLERS
    }
    return [Plan(name, config, n, variants_of(config)) for name, config in configs.items()]
