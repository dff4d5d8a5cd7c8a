"""Steps with every sampler and every correction, run as a program: PRODUCT_CASES FOLDER."""

import sys
from pathlib import Path
from typing import get_args

import step_cases as cases

from candid.distributed import open_group
from candid.errors import ConfigError
from candid.losses import Correction, SampledSoftmax
from candid.losses.correction import hit_rules
from candid.samplers import SAMPLERS

DISTINCT = {"distinct": True}
SAMPLER_SETTINGS = {
    "uniform": cases.UNIFORM,
    "uniform, distinct": cases.UNIFORM | DISTINCT,
    "popularity": cases.POPULARITY,
    "popularity, distinct": cases.POPULARITY | DISTINCT,
    "in_batch": cases.IN_BATCH,
    "in_batch, distinct": cases.DISTINCT,
    "in_batch, capped": cases.CAPPED,
    "in_batch, streaming": cases.STREAM,
    "in_batch, count_min": cases.COUNT_MIN,
    "cross_batch_memory": cases.MEMORY,
    "random_fourier": cases.FOURIER,
    "quadratic": cases.QUADRATIC,
    "exact_popular": cases.POPULAR,
    "exact_nearest": cases.NEAREST,
    "mixture": cases.MIXTURE,
}
SHARDED_AT = 4
"""Number of processes of the cases with sharded tables, the first of ``OF_TABLES``."""
SHARDED_CASES = list(cases.OF_TABLES)[:3]


def losses():
    """Return the sampled softmax with each correction and each rule of accidental hits, by name."""
    return {
        f"{correction}, {rule}": cases.softmax(correction, accidental_hits=rule)
        for correction in get_args(Correction)
        for rule in hit_rules(correction)
    }


def is_defined(loss, sampler):
    """Whether a recipe may combine them."""
    loss, sampler = (
        registry.Config(**{key: value for key, value in settings.items() if key != "type"})
        for registry, settings in ((SampledSoftmax, loss), (SAMPLERS[sampler["type"]], sampler))
    )
    try:
        loss.check_candidates(has_exact=sampler.has_exact, is_set=sampler.is_set)
    except ConfigError:
        return False
    return True


CASES = {
    f"{name}; {correction}": cases.case(loss, sampler)
    for name, sampler in SAMPLER_SETTINGS.items()
    for correction, loss in losses().items()
    if is_defined(loss, sampler)
}
CASES |= {
    f"{name}; refined, context": cases.case(cases.softmax(), sampler, "context")
    for name, sampler in SAMPLER_SETTINGS.items()
    if is_defined(cases.softmax(), sampler)
}


def run(rank):
    with open_group(300) as group:
        results = {name: cases.steps_of(settings, group) for name, settings in CASES.items()}
        for name in SHARDED_CASES if group.world_size in (1, SHARDED_AT) else []:
            settings = cases.CASES[name]
            if group.world_size > 1:
                settings = cases.with_sharded_tables(settings)
            results[name] = cases.steps_of(settings, group)
        return results


def main(folder):
    sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
    from ranks import run_ranks

    for world_size in (1, *cases.WORLD_SIZES):
        codes = run_ranks(world_size, run, folder / str(world_size), 900)
        assert codes == [0] * world_size, (world_size, codes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
