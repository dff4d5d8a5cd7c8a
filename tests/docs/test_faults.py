"""The page on the fault campaign against its results."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _skipped(found, campaign):
    """The number of skipped cases, which earlier results do not have."""
    if "skipped" not in found:
        return "not counted"
    return f"{sum(found['skipped'].get(campaign, {}).values()):,}"


def test_page_has_the_cases_and_the_failures_of_the_results():
    docs = (ROOT / "docs" / "benchmarks" / "faults.md").read_text()
    found = json.loads((ROOT / "benchmarks" / "results" / "faults.json").read_text())
    failed = {failure["case"] for failure in found["failures"]}
    for campaign, cases in found["cases"].items():
        number = sum(case.startswith(f"{campaign}:") for case in failed)
        row = next(line for line in docs.splitlines() if line.startswith(f"| `{campaign}` |"))
        assert row.endswith(f" | {cases:,} | {_skipped(found, campaign)} | {number} |")
    assert {line[3:].split("`")[0] for line in docs.splitlines() if line[:3] == "- `"} == failed
    assert f"The {found['failed_cases']} failed cases" in docs
    settings = found["settings"]
    assert f"--seed {settings['seed']} --seconds {settings['seconds']:.0f}" in docs


def test_stated_times_are_those_of_the_results():
    docs = (ROOT / "docs" / "benchmarks" / "faults.md").read_text().replace("\n", " ")
    times = json.loads((ROOT / "benchmarks" / "results" / "faults.json").read_text())[
        "milliseconds"
    ]
    overload = times.pop(next(name for name in times if name.startswith("overload")))
    asked = [ms for name, some in times.items() if name.endswith("recommend") for ms in some]
    probes = [ms for name, some in times.items() if name.endswith("healthz") for ms in some]
    assert f"slowest of {len(asked)} ordinary requests took {max(asked):.0f} ms" in docs
    assert f"slowest of {len(probes)} probes {max(probes):.0f} ms" in docs
    assert f"slowest of {len(overload)} probes took {max(overload):.0f} ms" in docs


def test_probes_under_overload_on_an_idle_machine_are_within_the_goal():
    docs = (ROOT / "docs" / "benchmarks" / "faults.md").read_text().replace("\n", " ")
    found = json.loads((ROOT / "benchmarks" / "results" / "faults_requests.json").read_text())
    overload = next(ms for name, ms in found["milliseconds"].items() if name.startswith("overload"))
    assert f"slowest of {len(overload)} such probes took {max(overload):.0f} ms" in docs
    assert max(overload) < 100
    assert found["failed_cases"] == 0
