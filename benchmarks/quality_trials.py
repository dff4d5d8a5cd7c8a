"""Changes of the default recipe that were tried where it misses a goal of ``quality.py``.

    CANDID_DATA=../shared/data nice python benchmarks/quality_trials.py
    python benchmarks/quality_trials.py --page        # write the page from the results only

Each trial is the default recipe of a set with other settings, trained and measured by the process
that ``quality.py`` starts, with the same data, targets and limit. Figures of the default recipe
are those of ``results/quality.json``. A finished trial is not repeated; stop at any time and
start the same command to continue.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from candid.errors import CandidError
from measurement_queue import BenchmarkError, Child, ResultsFile, run_all
from quality_results import EMPTY, Bench
from quality_sets import DEFAULT, METRIC, SETS
from quality_tasks import Task

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "quality_trials.json"
PAGE = ROOT / "docs" / "benchmarks" / "quality.md"
BLOCK = re.compile(r"(<!-- quality trials -->\n).*?(<!-- /quality trials -->)", re.S)


@dataclass(frozen=True)
class Trial:
    """A change of the default recipe of a set.

    Attributes:
        set_name: of the set.
        idea: the change, in words.
        overrides: the settings, ``KEY=VALUE``.
        seeds: of the trainings.
    """

    set_name: str
    idea: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)

    def key(self, seed: int) -> str:
        """Name in the results."""
        return "; ".join((self.set_name, *self.overrides, str(seed)))


WIDE = ("model.query_tower.dim=256", "model.item_tower.dim=256")


def _candidates(number: int) -> str:
    kinds = ("popularity", "uniform")
    parts = ", ".join(f'{{ type = "{kind}", num_candidates = {number} }}' for kind in kinds)
    return f'sampler={{ type = "mixture", components = [{parts}] }}'


TRIALS = (
    Trial("ml-100k", "more dropout", ("model.query_tower.dropout=0.5",), (0, 1, 2)),
    Trial("ml-100k", "slower, and longer", ("training.lr=0.001", "training.epochs=80"), (0, 1, 2)),
    Trial("ml-1m-temporal", "twice the epochs", ("training.epochs=12",)),
    Trial("ml-1m-temporal", "the last window of each user", ('batches.windows="last"',)),
    Trial("amazon-beauty", "less dropout", ("model.query_tower.dropout=0.3",)),
    Trial("amazon-beauty", "wider, with more candidates", (*WIDE, _candidates(4096))),
    Trial("gowalla", "a higher temperature", ("model.temperature=0.1",)),
    Trial("diginetica", "less dropout", ("model.query_tower.dropout=0.3",)),
    Trial("diginetica", "more candidates", (_candidates(2048),)),
)


def measure(trial: Trial, seed: int, data: Path, work: Path, child: Child) -> dict[str, Any] | None:
    """Return the measurement of a trial; None: it failed, or another process is doing it."""
    name = hashlib.sha256(trial.key(seed).encode()).hexdigest()[:12]
    own = ResultsFile(work / "trials" / f"{name}.json", EMPTY)
    bench = Bench(data, work, own, overrides=trial.overrides)
    task = Task(trial.set_name, DEFAULT, seed)
    run_all(bench, [task], child, float("inf"), lambda *_: None)
    found: dict[str, Any] | None = own.read()["runs"].get(task.key)
    return found


def table(content: dict[str, Any], quality: dict[str, Any]) -> str:
    """Return the table of the trials beside the default recipe."""
    lines = [
        "| set | change | settings | seeds | NDCG@10 | default recipe |",
        "|---|---|---|---:|---:|---:|",
    ]
    for trial in TRIALS:
        cells = [content["trials"].get(trial.key(seed)) for seed in trial.seeds]
        values = [cell["metrics"][METRIC]["value"] for cell in cells if cell is not None]
        if not values:
            continue
        default = [
            run["metrics"][METRIC]["value"]
            for run in quality["runs"].values()
            if (run["set"], run["name"]) == (trial.set_name, DEFAULT)
        ]
        settings = "; ".join(f"`{one}`" for one in trial.overrides)
        lines.append(
            f"| {trial.set_name} | {trial.idea} | {settings} | {len(values)} | "
            f"{_mean(values)} | {_mean(default)} |"
        )
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def with_table(content: str, results: dict[str, Any]) -> str:
    """Return the page with the table of the results."""
    quality = ResultsFile(RESULTS.with_name("quality.json"), EMPTY).read()
    return BLOCK.sub(lambda found: f"{found[1]}{table(results, quality)}\n{found[2]}", content)


def main() -> None:
    """Measure the trials that are missing, and write results and page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--data", type=Path, help="folder of the sets [default: $CANDID_DATA]")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quality")
    parser.add_argument("--page", action="store_true", help="write the page only")
    options = parser.parse_args()
    data = (options.data or Path(os.environ.get("CANDID_DATA", "../shared/data"))).resolve()
    results = ResultsFile(
        RESULTS,
        {"command": "python benchmarks/quality_trials.py", "metric": METRIC, "trials": {}},
    )
    child, failed = Child(), []
    try:
        for trial in TRIALS if not options.page else ():
            for seed in trial.seeds if trial.set_name in options.datasets else ():
                key = trial.key(seed)
                if key in results.read()["trials"]:
                    continue
                cell = measure(trial, seed, data, options.work.resolve(), child)
                if cell is None:
                    failed.append(key)
                    continue
                with results.change() as content:
                    content["trials"][key] = cell | {"overrides": list(trial.overrides)}
                print(f"{key}: {METRIC} {cell['metrics'][METRIC]['value']:.4f}", flush=True)
        results.write_page(PAGE, with_table)
    except (BenchmarkError, CandidError) as error:
        sys.exit(str(error))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; fix the reason and start the same command again")


if __name__ == "__main__":
    main()
