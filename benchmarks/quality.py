"""Quality of the default recipe on public data, beside tuned baselines and published figures.

    CANDID_DATA=../shared/data nice python benchmarks/quality.py                 # everything, days
    CANDID_DATA=../shared/data nice python benchmarks/quality.py --datasets ml-100k --minutes 60
    python benchmarks/quality.py --page              # write the page from the results only

For each set: every baseline of ``candid.baselines``, tuned on validation; the default recipe,
which is ``candid train --data SET`` with nothing but the seed and one thread; and the best recipe
of ``benchmarks/recipes/SET.toml``, if there is one. All are measured on the same test targets over
the whole catalog. Each measurement is a process of its own on one thread (``quality_runs.py``).

The metrics of each user, averaged over the seeds of a recipe, are compared with those of the
baseline that is best on validation and of the one that is best on test, by the paired test of
``candid.compare``. This happens when all baselines of the set and at least one seed are finished.

A finished measurement is in the results and is not repeated. Stop at any time with Ctrl-C or
SIGTERM: the same command continues, also an interrupted training. Several processes may run at
once: each takes measurements that no other one is doing. Data, runs and the values of each user
stay in ``--work``. A measurement whose settings have changed since is named and kept; ``--again``
repeats it, and so it does with a baseline that was left out because of a missing package.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from candid.baselines import BASELINES
from candid.errors import CandidError
from measurement_queue import BenchmarkError, Child, ResultsFile, run_all
from quality_page import goal_table, summary, with_blocks
from quality_results import EMPTY, Bench, part_of
from quality_sets import BEST_RECIPE, DEFAULT, METRIC, SEEDS, SETS, source_of
from quality_tasks import Task, canonical, recipe_file

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
PAGE = ROOT / "docs" / "benchmarks" / "quality.md"


def tasks_of(
    sets: Sequence[str], seeds: Sequence[int], recipes: Sequence[str], baselines: Sequence[str]
) -> list[Task]:
    """Return the measurements in their order: baselines, then seed after seed."""
    tasks = [Task(name, one) for name in sets for one in baselines]
    for recipe in recipes:
        for seed in seeds:
            for name in sets:
                if recipe == DEFAULT or recipe_file(name).exists():
                    tasks.append(Task(name, recipe, seed))
    return tasks


def measure_all(
    bench: Bench, tasks: Sequence[Task], child: Child, minutes: float, page: Path | None
) -> list[str]:
    """Do the measurements that are missing; return the keys of those that failed."""

    def on_record(task: Task, cell: dict[str, Any]) -> None:
        print(_line(task, cell), flush=True)
        if page is not None:
            bench.results.write_page(page, with_blocks)

    return run_all(bench, tasks, child, minutes, on_record)


def _line(task: Task, cell: dict[str, Any]) -> str:
    if "skipped" in cell:
        return f"{task.key}: skipped: {cell['skipped']}"
    figure = cell["metrics"][METRIC]
    return (
        f"{task.key}: {METRIC} {figure['value']:.4f} ± {figure['se']:.4f}, "
        f"{cell['cpu_seconds'] / 60:.1f} CPU minutes, {cell['peak_mib']:,} MiB"
    )


def report_changes(bench: Bench, tasks: Sequence[Task]) -> None:
    """Print which finished measurements have other settings than they would have now."""
    content = bench.results.read()
    for task in tasks:
        earlier = content[part_of(task)].get(task.key)
        if earlier is None or "skipped" in earlier:
            continue
        now = bench.settings(task)
        configs = {now.digest: now.stored} | content["configs"]
        if canonical(earlier["settings"], configs) != canonical(now.digest, configs):
            print(
                f"{task.key} is kept, but its settings have changed since; measure it again with "
                f"--again '{task.key}'",
                flush=True,
            )


def main() -> None:
    """Measure what is missing, compare, and write results and page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--recipes", nargs="*", choices=(DEFAULT, BEST_RECIPE), default=[DEFAULT, BEST_RECIPE]
    )
    parser.add_argument("--baselines", nargs="*", choices=BASELINES, default=list(BASELINES))
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="CPU minutes after which no run starts"
    )
    parser.add_argument("--limit", type=float, help="CPU minutes of a training [default: by set]")
    parser.add_argument(
        "--again", nargs="+", default=[], metavar="KEY", help="measure again, such as 'ml-1m/als'"
    )
    parser.add_argument("--data", type=Path, help="folder of the sets [default: $CANDID_DATA]")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quality")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of each recipe, for a trial; needs --results",
    )
    parser.add_argument("--page", action="store_true", help="write the page only")
    options = parser.parse_args()
    is_default = options.results.resolve() == RESULTS.resolve()
    if (options.overrides or options.limit is not None) and is_default:
        parser.error("--set and --limit need another file of results: name it with --results")
    data = options.data or Path(os.environ.get("CANDID_DATA", "../shared/data"))
    page = PAGE if is_default else None
    try:
        results = ResultsFile(options.results, EMPTY)
        if options.page:
            if page is None:
                parser.error("--page writes the page from the project's results; drop --results")
            results.write_page(page, with_blocks)
            return
        bench = Bench(
            data.resolve(),
            options.work.resolve(),
            results,
            limit=options.limit,
            overrides=options.overrides,
        )
        sets = _present(options.datasets, bench.data)
        tasks = tasks_of(sets, options.seeds, options.recipes, options.baselines)
        _forget(bench, tasks, options.again)
        report_changes(bench, tasks)
        failed = measure_all(bench, tasks, Child(), options.minutes, page)
        if page is None:
            print(summary(results.read()), goal_table(results.read()), sep="\n\n")
    except (BenchmarkError, CandidError) as error:
        sys.exit(str(error))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; fix the reason and start the same command again")


def _present(names: Sequence[str], data: Path) -> list[str]:
    """Return the sets that are there, and print which ones are not."""
    present = [name for name in names if source_of(name, data).exists()]
    for name in names:
        if name not in present:
            print(f"{name} is left out: {source_of(name, data)} does not exist", flush=True)
    if not present:
        raise BenchmarkError(f"{data} has none of the sets; name their folder with --data")
    return present


def _forget(bench: Bench, tasks: Sequence[Task], patterns: Sequence[str]) -> None:
    """Remove measurements that match a pattern from the results and the work folder."""
    for pattern in patterns:
        matching = [task for task in tasks if fnmatch.fnmatchcase(task.key, pattern)]
        if not matching:
            raise BenchmarkError(
                f"--again {pattern!r} matches no measurement of this command; keys are such as "
                "'ml-1m/markov' and 'ml-1m/default/0', and * matches anything"
            )
        for task in matching:
            bench.forget(task)
            with bench.results.change() as content:
                content[part_of(task)].pop(task.key, None)
                for recipe in (DEFAULT, BEST_RECIPE):
                    content["comparisons"].pop(f"{task.set_name}/{recipe}", None)


if __name__ == "__main__":
    main()
