"""The fault campaign: kills, damaged files, hostile requests and full disks, from one seed.

    python benchmarks/faults.py --seed 0 --seconds 600        # or: make faults
    python benchmarks/faults.py --only kills,mutations --cases kills=20,mutations=500
    python benchmarks/faults.py --case kills:0:17              # repeat one case

Five campaigns: ``kills`` of every verb that writes, ``disks`` that are full while it writes,
``mutations`` of every artifact and input, ``requests`` and clients of the server, and its
``updates`` and reloads. A case is CAMPAIGN:SEED:NUMBER and is repeated by this name; a kill at a
random time depends on the speed of the machine too. The report lists every failure with its case,
its command and its output; the exit code is 1 if there is one. A case that could do nothing, such
as one that needs root to mount a small disk, is counted as skipped, with the reason.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults_process import Skipped, preload

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "build" / "faults.json"
CAMPAIGNS = ("kills", "disks", "mutations", "requests", "updates")
SHARES = {"kills": 0.3, "disks": 0.1, "mutations": 0.35, "requests": 0.1, "updates": 0.15}


class Report:
    """Cases and failures so far, printed as they come."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings, self._began = settings, time.perf_counter()
        self.cases, self.seconds = Counter[str](), dict[str, float]()
        self.skipped: dict[str, Counter[str]] = {}
        self.failures: list[dict[str, Any]] = []
        self.measured: dict[str, Any] = {}

    def add(self, campaign: str, case: str, result: list[dict[str, Any]] | Skipped) -> None:
        """Count a case that ran, and store its failures; or count one that was skipped."""
        if isinstance(result, Skipped):
            self.skipped.setdefault(campaign, Counter())[result.reason] += 1
            return
        self.cases[campaign] += 1
        for failure in result:
            # The report names no folder of one machine.
            failure = failure | {"output": failure["output"].replace(sys.base_prefix, "PYTHON")}
            self.failures.append({"case": case, **failure})
            shown = failure | {"output": failure["output"][-300:]}
            print(f"{case}: {json.dumps(shown)}", flush=True)

    def document(self) -> dict[str, Any]:
        """Return the report."""
        import torch

        from candid.version import __version__

        return {
            "settings": self._settings,
            "candid": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "seconds": round(time.perf_counter() - self._began, 1),
            "cases": dict(self.cases),
            "skipped": {name: dict(reasons) for name, reasons in self.skipped.items()},
            "seconds_of": self.seconds,
            "failed_cases": len({failure["case"] for failure in self.failures}),
            "milliseconds": self.measured,
            "failures": self.failures,
        }


def run_campaign(
    name: str, fixture: Path, work: Path, given: argparse.Namespace, report: Report
) -> None:
    """Run the cases of one campaign until its share of the time or its number of cases is over."""
    began = time.perf_counter()
    seconds = given.seconds * SHARES[name] / sum(SHARES[other] for other in given.only)
    last = given.first + given.cases[name] if name in given.cases else sys.maxsize
    campaign = make_campaign(name, fixture, work, given)
    numbers = iter(range(given.first, last))
    while time.perf_counter() - began < seconds:
        wanted = (n for n in numbers if not given.scenarios or campaign.scenario_of(n)
                  in given.scenarios)  # fmt: skip
        batch = list(itertools.islice(wanted, given.batch if name == "mutations" else 1))
        if not batch:
            break
        for number, result in campaign.run_batch(batch):
            report.add(name, f"{name}:{given.seed}:{number}", result)
    report.seconds[name] = round(time.perf_counter() - began, 1)
    report.measured |= getattr(campaign, "measured", {})


def make_campaign(name: str, fixture: Path, work: Path, given: argparse.Namespace) -> Any:
    """Return a campaign by its name."""
    from faults_kills import FullDisks, Kills
    from faults_mutations import Mutations
    from faults_requests import Requests
    from faults_updates import Updates

    if name == "requests":
        return Requests(fixture, work, given.seed, given.size)
    classes = {"kills": Kills, "disks": FullDisks, "mutations": Mutations, "updates": Updates}
    return classes[name](fixture, work, given.seed)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600.0, help="of all campaigns together")
    parser.add_argument("--only", default=",".join(CAMPAIGNS), help="campaigns, with commas")
    parser.add_argument(
        "--cases", default="", help="largest number of cases: 100, or kills=20,mutations=500"
    )
    parser.add_argument(
        "--scenarios", default="", help="leave out the cases of others, with commas"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", help="one case to repeat, such as kills:0:17")
    parser.add_argument("--size", type=float, default=1.0, help="factor of requests and clients")
    parser.add_argument("--batch", type=int, default=100, help="mutations in one process")
    parser.add_argument("--work", type=Path, help="folder for the cases; default: temporary")
    parser.add_argument("--reuse", action="store_true", help="use the artifacts of an earlier call")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    given.only = given.only.split(",")
    given.scenarios = given.scenarios.split(",") if given.scenarios else []
    given.cases = _cases_of(given.cases)
    if given.case:
        name, seed, number = given.case.split(":")
        given.only, given.seed, given.first, given.cases = [name], int(seed), int(number), {name: 1}
    if unknown := set(given.only) - set(CAMPAIGNS):
        parser.error(f"unknown campaign {unknown.pop()}; known: {', '.join(CAMPAIGNS)}")
    return given


def _cases_of(text: str) -> dict[str, int]:
    """Return the largest number of cases by campaign; those without one end with the time."""
    if not text or text.isdecimal():
        return dict.fromkeys(CAMPAIGNS, int(text)) if text else {}
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name: int(number) for name, _, number in pairs}


def _folders(given: argparse.Namespace) -> Iterator[Path]:
    if given.work is not None:
        given.work.mkdir(parents=True, exist_ok=True)
        yield given.work.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="candid-faults-") as folder:
        yield Path(folder)


def main(arguments: list[str] | None = None) -> int:
    """Run the campaigns and write the report; return the exit code."""
    given = _parse(arguments)
    settings = {"seed": given.seed, "seconds": given.seconds, "only": given.only,
                "cases": given.cases, "first": given.first, "size": given.size}  # fmt: skip
    report = Report(settings)
    preload()
    from faults_fixture import make_fixture

    for work in _folders(given):
        fixture = work / "fixture"
        if not (given.reuse and fixture.exists()):
            make_fixture(fixture)
        for name in given.only:
            run_campaign(name, fixture, work, given, report)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    given.results.write_text(json.dumps(report.document(), indent=2) + "\n")
    for name, reasons in report.skipped.items():
        for reason, count in reasons.items():
            print(f"{name}: {count} cases skipped: {reason}")
    print(f"{dict(report.cases)}, {len(report.failures)} failures; report in {given.results}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
