"""Steps of two processes with a fault in the program, run as a program: MUTATION_CASES FOLDER."""

import sys
from functools import partial
from pathlib import Path

import step_cases as cases
import torch

from candid.distributed import Group, open_group
from candid.training.gradient_sums import GradientSums
from candid.training.optimizer import ModelOptimizer
from candid.training.step import SAMPLE_STREAM, Step, derived_seed

UNCHANGED = "unchanged"
WORLD_SIZE = 2


def seed_samples_by_rank():
    def seed_samples(self):
        self.generator.manual_seed(derived_seed(self._seed, SAMPLE_STREAM) + self._group.rank)

    Step.seed_samples = seed_samples


def add_means_of_shares():
    def mean_of_share(self, loss, batch, share):
        mean = loss.mean() if len(loss) else loss.sum()
        return mean / self._group.world_size

    Step._share_of_mean = mean_of_share


def keep_own_gradients_of_queries():
    def own_rows(self, rows, counts, name="scatter"):
        return rows.split(list(counts))[self.rank]

    Group.scatter_sum = own_rows


def keep_own_gradients_of_tables():
    gathered = GradientSums._gathered

    def own_gradient(self, table, gradient, counts):
        every = gathered(self, table, gradient, counts)
        return torch.zeros_like(every) if gradient is None else gradient

    GradientSums._gathered = own_gradient


def count_sharded_rows_twice():
    sharded_norms = ModelOptimizer._sharded_norms
    ModelOptimizer._sharded_norms = lambda self: [norm * 2**0.5 for norm in sharded_norms(self)]


def count_shared_rows_on_every_process():
    """The rows that every process holds are in the sum over processes."""
    sharded_norms, shared_rows = ModelOptimizer._sharded_norms, ModelOptimizer._replicated_rows

    def norms(self):
        of_shared = [rows.square().sum() for rows in shared_rows(self)]
        return [
            (norm.square() + WORLD_SIZE * sum(of_shared)).sqrt() for norm in sharded_norms(self)
        ]

    ModelOptimizer._sharded_norms = norms
    ModelOptimizer._replicated_rows = lambda self: []


MUTANTS = {
    "samples seeded by rank": (seed_samples_by_rank, "mixture, refined"),
    "mean of the means of shares": (add_means_of_shares, "mixture, refined"),
    "mean of the means of weighted shares": (add_means_of_shares, "weights"),
    "query gradients without those of other processes": (
        keep_own_gradients_of_queries,
        "sharded/row-wise full softmax",
    ),
    "table gradients without those of other processes": (
        keep_own_gradients_of_tables,
        "row-wise tables",
    ),
    "sharded rows counted twice in the norm": (
        count_sharded_rows_twice,
        "sharded/row-wise mixture, tables of codes, micro-batch",
    ),
    "shared rows counted on every process in the norm": (
        count_shared_rows_on_every_process,
        "sharded/row-wise mixture, tables of codes, micro-batch",
    ),
}
"""Changes of the program by name, each with a case whose steps it must change."""
CASES = dict.fromkeys(case for _, case in MUTANTS.values())


def settings_of(case, world_size):
    """Return the settings of a case; one process has whole tables."""
    prefix, _, name = case.rpartition("/")
    settings = cases.CASES[name]
    return cases.with_sharded_tables(settings) if prefix and world_size > 1 else settings


def run(rank, names, mutate=None):
    if mutate is not None:
        mutate()  # In a process of its own, which ends afterwards.
    with open_group(60) as group:
        return {name: cases.steps_of(settings_of(name, group.world_size), group) for name in names}


def main(folder):
    sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
    from ranks import run_ranks

    def start(world_size, name, names, mutate=None):
        call = partial(run, names=names, mutate=mutate)
        codes = run_ranks(world_size, call, folder / name)
        assert codes == [0] * world_size, (name, codes)

    start(1, "one", CASES)
    start(WORLD_SIZE, UNCHANGED, CASES)
    for name, (mutate, case) in MUTANTS.items():
        start(WORLD_SIZE, name, [case], mutate)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
