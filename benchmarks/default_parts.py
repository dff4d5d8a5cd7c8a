"""Parts of the default recipe, each changed alone, for equal CPU seconds of training.

    CANDID_DATA=../shared/data nice python benchmarks/default_parts.py             # all sets, days
    CANDID_DATA=../shared/data nice python benchmarks/default_parts.py --datasets ml-100k
    python benchmarks/default_parts.py --page            # write the page from the results only

The base of a set is what ``candid train --data SET`` trains; ``--share`` shortens it to a share of
its epochs. A variant is a table of recipe keys over the base (``default_parts_variants.py``). First
the CPU seconds of a step are measured for all variants of a set, in turn, in one process, and those
of the initial item vectors. Each variant trains as many steps as the CPU seconds of the base allow;
its warm-up and its mean of weights stay those of the base, and its learning rate decays to zero
over its own steps.

``--rates`` are factors of the learning rate of a variant: with several ones, the first seed runs
with each of them, and the other seeds with the one of the highest validation metric.

The metric of each user, averaged over the seeds, is compared with that of the base by the paired
test of ``candid.compare``.

A finished measurement is in the results and is not repeated. Stop at any time with Ctrl-C or
SIGTERM: the same command continues, also an interrupted training. Several processes may run at
once: each takes measurements that no other one is doing. Data, runs and the values of each user
stay in ``--work``; with the one of ``quality.py``, prepared sets are shared.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from candid.data import PreparedDataset
from candid.errors import CandidError
from candid.evaluation import PerUser, compare
from default_parts_page import chosen_rate, runs_of, set_table, with_blocks
from default_parts_variants import (
    DEFAULT,
    SETS,
    VARIANTS,
    CostTask,
    RunTask,
    base_key,
    base_settings,
    base_steps,
    length_keys,
    run_settings,
    variants_of,
)
from measurement_queue import BenchmarkError, Child, ResultsFile, run_all
from measurement_runs import forget_cell, load_users, mean_of
from quality_sets import METRIC, SEEDS, prepare_set, source_of
from quality_tasks import Settings

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "default_parts.json"
PAGE = ROOT / "docs" / "benchmarks" / "default_parts.md"
RUN_SCRIPT = Path(__file__).with_name("default_parts_runs.py")
EMPTY: dict[str, Any] = {
    "command": "python benchmarks/default_parts.py",
    "clock": "CPU seconds of one process on one thread; other work shared the machine",
    "metric": METRIC,
} | {part: {} for part in ("bases", "runs", "comparisons")}
"""Results before the first measurement."""
Task = CostTask | RunTask


class Bench:
    """Measurements of a work folder.

    Args:
        data: folder of the public sets.
        work: folder of prepared data, runs and values of each user.
        results: the results.
        share: of the epochs of the default recipe.
    """

    def __init__(self, data: Path, work: Path, results: ResultsFile, share: float = 1) -> None:
        self.data, self.work, self.results, self.share = data, work, results, share
        self._datasets: dict[str, PreparedDataset] = {}

    def dataset(self, name: str) -> PreparedDataset:
        """Return a set, prepared once."""
        if name not in self._datasets:
            self._datasets[name] = prepare_set(name, self.data, self.work).dataset
        return self._datasets[name]

    def base(self, name: str) -> dict[str, Any] | None:
        """Return the base of a set, None before its costs are measured.

        Raises:
            BenchmarkError: the results are those of another default recipe, or of other data.
        """
        key = base_key(name, self.share)
        base: dict[str, Any] | None = self.results.read()["bases"].get(key)
        if base is not None and base["full"] != base_settings(self.dataset(name), {}).digest:
            raise BenchmarkError(
                f"{self.results.path} has figures of another default recipe, or of other data, "
                f"for {key}; --again '{key}/*' measures them again"
            )
        return base

    def settings(self, task: RunTask) -> Settings:
        """Return the settings of a training now; the costs of its set must be measured."""
        base = self.base(task.set_name)
        assert base is not None
        return run_settings(task, self.dataset(task.set_name), base["costs"])[1]

    def is_finished(self, task: Task) -> bool:
        """Whether the results contain the measurement."""
        if isinstance(task, CostTask):
            return self.base(task.set_name) is not None
        earlier = self.results.read()["runs"].get(task.key)
        if earlier is not None and earlier["settings"] != self.settings(task).digest:
            print(
                f"{task.key} is kept, but its settings have changed since; measure it again with "
                f"--again '{task.key}'",
                flush=True,
            )
        return earlier is not None

    def command(self, task: Task) -> list[str]:
        """Return the command of the process of a measurement, whose set is prepared first."""
        self.dataset(task.set_name)
        places = ["--data", str(self.data), "--work", str(self.work), task.set_name]
        command = [sys.executable, str(RUN_SCRIPT), *places]
        if isinstance(task, RunTask):
            command += [str(self.results.path), str(task.share), task.variant]
            command += [str(task.rate), str(task.seed)]
        return command

    def record(self, task: Task) -> dict[str, Any]:
        """Move the result of a finished process into the results, and compare."""
        if isinstance(task, CostTask):
            return self._record_costs(task)
        cell = _read(task.cell(self.work, self.settings(task).digest))
        with self.results.change() as content:
            content["runs"][task.key] = cell
            compared = VARIANTS if task.variant == DEFAULT else (task.variant,)
            for variant in compared:
                self._compare(content, task.set_name, variant)
        return cell

    def _record_costs(self, task: CostTask) -> dict[str, Any]:
        """Store the costs of a set with the default recipe that they are for."""
        dataset = self.dataset(task.set_name)
        full = base_settings(dataset, {})
        costs = _read(task.cell(self.work, full.digest))
        num_batches = costs["num_batches"]
        steps = base_steps(full.config, num_batches, self.share)
        base = full
        if steps != full.config.training.epochs * num_batches:
            base = base_settings(dataset, length_keys(steps, num_batches))
        with self.results.change() as content:
            content["bases"][base_key(task.set_name, self.share)] = {
                "full": full.digest,
                "settings": base.digest,
                "steps": steps,
                "epochs": full.config.training.epochs,
                "variants": [one for one in variants_of(base.config) if one in costs["seconds"]],
                "config": base.stored,
                "chosen": base.chosen,
                "costs": costs,
            }
        return costs

    def _compare(self, content: dict[str, Any], name: str, variant: str) -> None:
        """Compare a variant with the default recipe on the seeds that both have."""
        key = f"{base_key(name, self.share)}/{variant}"
        content["comparisons"].pop(key, None)
        runs = runs_of(content, name, self.share, variant)
        defaults = runs_of(content, name, self.share, DEFAULT)
        seeds = sorted({one["seed"] for one in runs} & {one["seed"] for one in defaults})
        if variant == DEFAULT or not seeds:
            return
        try:
            users, others = (
                mean_of([self._users(one) for one in part if one["seed"] in seeds])
                for part in (runs, defaults)
            )
        except FileNotFoundError as error:
            print(
                f"{key} is not compared: {error.filename} is missing, which is in the work folder "
                "of its run; measure that again with --again",
                flush=True,
            )
            return
        content["comparisons"][key] = {
            "seeds": seeds,
            "settings": [one["settings"] for one in (runs[0], defaults[0])],
            **asdict(compare(users, others, METRIC)),
        }

    def _users(self, record: Mapping[str, Any]) -> PerUser:
        task = RunTask(*(record[key] for key in ("set", "share", "variant", "rate", "seed")))
        return load_users(task.cell(self.work, record["settings"]).with_suffix(".npz"))

    def forget(self, pattern: str) -> None:
        """Remove measurements from the results and the work folder, and bases without any left.

        Raises:
            BenchmarkError: the results have no such measurement.
        """
        with self.results.change() as content:
            matching = fnmatch.filter([*content["runs"], *_cost_keys(content)], pattern)
            for key in matching:
                one = content["runs"].pop(key, None)
                if one is not None:
                    task = RunTask(*(one[k] for k in ("set", "share", "variant", "rate", "seed")))
                    forget_cell(self.work, task.cell(self.work, one["settings"]))
                    content["comparisons"].pop(f"{task.base_key}/{task.variant}", None)
            for key in _cost_keys(content):
                base = key.removesuffix("/costs")
                if key in matching and not any(
                    one.startswith(f"{base}/") for one in content["runs"]
                ):
                    full = content["bases"].pop(base)["full"]
                    costs = CostTask(base.split("/")[0]).cell(self.work, full)
                    costs.unlink(missing_ok=True)
        if not matching:
            raise BenchmarkError(
                f"--again {pattern!r} matches no measurement; keys are such as "
                "'ml-1m/1/two heads/1/0' and 'ml-1m/1/costs', and * matches anything"
            )


def _cost_keys(content: Mapping[str, Any]) -> list[str]:
    return [f"{key}/costs" for key in content["bases"]]


def _read(path: Path) -> dict[str, Any]:
    cell: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return cell


def tasks_of(
    bench: Bench,
    sets: Sequence[str],
    variants: Sequence[str],
    seeds: Sequence[int],
    rates: Sequence[float],
) -> Iterator[Task]:
    """Yield the costs of the sets, then the trainings, seed after seed; the default is the first.

    A set whose costs could not be measured is left out. With several rates, other seeds than the
    first are left out until it has run with all of them.
    """
    yield from map(CostTask, sets)
    first = seeds[0]
    for seed in seeds:
        for name in sets:
            base = bench.base(name)
            if base is None:
                continue
            for variant in base["variants"]:
                if variant not in (DEFAULT, *variants):
                    continue
                tried = [RunTask(name, bench.share, variant, rate, first) for rate in rates]
                if seed == first:
                    yield from tried
                    continue
                runs = bench.results.read()["runs"]
                if len(rates) > 1 and not all(one.key in runs for one in tried):
                    print(
                        f"{name}, {variant}: no rate is chosen yet; run the command again",
                        flush=True,
                    )
                    continue
                rate = chosen_rate([runs[one.key] for one in tried]) if len(rates) > 1 else rates[0]
                yield RunTask(name, bench.share, variant, rate, seed)


def _line(task: Task, cell: Mapping[str, Any]) -> str:
    if isinstance(task, CostTask):
        steps = ", ".join(f"{name} {1000 * one:.1f}" for name, one in cell["seconds"].items())
        return f"{task.key}: CPU ms a step: {steps}"
    figure = cell["metrics"][METRIC]
    return (
        f"{task.key}: {METRIC} {figure['value']:.4f} ± {figure['se']:.4f}, "
        f"{cell['steps']:,} steps, {cell['train_cpu_seconds'] / 60:.1f} CPU minutes of training"
    )


def measure_all(
    bench: Bench, tasks: Iterator[Task], child: Child, minutes: float, page: Path | None
) -> list[str]:
    """Do the measurements that are missing; return the keys of those that failed."""

    def on_record(task: Task, cell: dict[str, Any]) -> None:
        print(_line(task, cell), flush=True)
        if page is not None:
            bench.results.write_page(page, with_blocks)

    return run_all(bench, tasks, child, minutes, on_record)


def main() -> None:
    """Measure what is missing, compare, and write results and page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--share", type=float, default=1.0, help="share of the epochs [default: 1]")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=float,
        default=[1.0],
        help="factors of learning rates [default: 1]",
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="CPU minutes after which no run starts"
    )
    parser.add_argument(
        "--again", nargs="+", default=[], metavar="KEY", help="measure again, such as 'ml-1m/1/*'"
    )
    parser.add_argument("--data", type=Path, help="folder of the sets [default: $CANDID_DATA]")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "default_parts")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="write the page only")
    options = parser.parse_args()
    if not 0 < options.share < float("inf"):
        parser.error(f"--share must be above 0, got {options.share:g}")
    if min(options.rates) <= 0:
        parser.error(f"--rates must be above 0, got {min(options.rates):g}")
    page = PAGE if options.results.resolve() == RESULTS.resolve() else None
    data = (options.data or Path(os.environ.get("CANDID_DATA", "../shared/data"))).resolve()
    try:
        results = ResultsFile(options.results.resolve(), EMPTY)
        if options.page:
            if page is None:
                parser.error("--page writes the page from the project's results; drop --results")
            results.write_page(page, with_blocks)
            return
        for name in options.datasets:
            if not source_of(name, data).exists():
                raise BenchmarkError(
                    f"{source_of(name, data)} does not exist; name the folder of the sets with "
                    "--data, or leave the set out with --datasets"
                )
        bench = Bench(data, options.work.resolve(), results, options.share)
        for pattern in options.again:
            bench.forget(pattern)
        tasks = tasks_of(bench, options.datasets, options.variants, options.seeds, options.rates)
        failed = measure_all(bench, tasks, Child(), options.minutes, page)
        if page is None:
            content = results.read()
            for name in options.datasets:
                print(set_table(content, name, options.share), end="\n\n")
    except (BenchmarkError, CandidError) as error:
        sys.exit(str(error))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; fix the reason and start the same command again")


if __name__ == "__main__":
    main()
