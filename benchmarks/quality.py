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
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from candid.atomic import replacing
from candid.baselines import BASELINES
from candid.errors import CandidError
from quality_page import goal_table, summary, with_blocks
from quality_results import Bench, QualityError, ResultsFile, part_of
from quality_sets import BEST_RECIPE, DEFAULT, METRIC, SEEDS, SETS, source_of
from quality_tasks import BUSY, Task, recipe_file

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
PAGE = ROOT / "docs" / "benchmarks" / "quality.md"
ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "POLARS_MAX_THREADS",
    )
}


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


class Child:
    """The process of a measurement; a signal to this process stops it, and the training saves."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.is_stopping = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def run(self, command: Sequence[str], log: Path) -> int:
        """Run a command with one thread and return its exit code."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            # A session of its own: Ctrl-C reaches this process only, which passes it on once.
            self._process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=stream,
                env=os.environ | ONE_THREAD,
                start_new_session=True,
            )
            if self.is_stopping:  # a signal came while the process started
                self._process.terminate()
            return self._process.wait()

    def _stop(self, *_: Any) -> None:
        self.is_stopping = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    @cached_property
    def _begin(self) -> float:
        return _spent()

    @property
    def minutes(self) -> float:
        """CPU minutes of all processes so far."""
        return (_spent() - self._begin) / 60


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_all(
    bench: Bench, tasks: Sequence[Task], child: Child, minutes: float, page: Path | None
) -> list[str]:
    """Do the measurements that are missing; return the keys of those that failed."""
    failed = []
    for task in tasks:
        if child.is_stopping:
            raise QualityError("stopped; the same command continues")
        if bench.is_finished(task):
            continue
        if child.minutes >= minutes:
            raise QualityError(
                f"stopped after {child.minutes:.0f} CPU minutes, before {task.key}; the same "
                "command continues"
            )
        bench.prepared(task.set_name)
        log = bench.work / "logs" / f"{task.key.replace('/', '-')}.log"
        print(f"{task.key} … ({log})", flush=True)
        code = child.run(bench.command(task), log)
        if child.is_stopping:
            raise QualityError(f"stopped during {task.key}; the same command continues")
        if code == BUSY:
            print(f"{task.key}: another process is measuring it", flush=True)
            continue
        if code:
            failed.append(task.key)
            print(f"{task.key} failed with exit code {code}: {_last_line(log)}", flush=True)
            continue
        print(_line(task, bench.record(task)), flush=True)
        if page is not None:
            write_page(bench.results, page)
    return failed


def _line(task: Task, cell: dict[str, Any]) -> str:
    if "skipped" in cell:
        return f"{task.key}: skipped: {cell['skipped']}"
    figure = cell["metrics"][METRIC]
    return (
        f"{task.key}: {METRIC} {figure['value']:.4f} ± {figure['se']:.4f}, "
        f"{cell['cpu_seconds'] / 60:.1f} CPU minutes, {cell['peak_mib']:,} MiB"
    )


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


def write_page(results: ResultsFile, page: Path) -> None:
    """Write the generated blocks of the page."""
    with results.lock():
        content = with_blocks(page.read_text(encoding="utf-8"), results.read())
        with replacing(page) as temporary:
            temporary.write_text(content, encoding="utf-8")


def report_changes(bench: Bench, tasks: Sequence[Task]) -> None:
    """Print which finished measurements have other settings than they would have now."""
    content = bench.results.read()
    for task in tasks:
        earlier = content[part_of(task)].get(task.key)
        if earlier is None or "skipped" in earlier:
            continue
        if earlier["settings"] != bench.settings(task).digest:
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
        results = ResultsFile(options.results)
        if options.page:
            if page is None:
                parser.error("--page writes the page from the project's results; drop --results")
            write_page(results, page)
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
    except (QualityError, CandidError) as error:
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
        raise QualityError(f"{data} has none of the sets; name their folder with --data")
    return present


def _forget(bench: Bench, tasks: Sequence[Task], patterns: Sequence[str]) -> None:
    """Remove measurements that match a pattern from the results and the work folder."""
    for pattern in patterns:
        matching = [task for task in tasks if fnmatch.fnmatchcase(task.key, pattern)]
        if not matching:
            raise QualityError(
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
