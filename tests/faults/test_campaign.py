"""The fault campaign: short runs of it on candid, and on candid with planted faults."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CAMPAIGN = ROOT / "benchmarks" / "faults.py"

# Folders are written in place: a kill leaves half of one where a finished one belongs.
WRITE_IN_PLACE = """
import contextlib, sys
sys.path.insert(0, {folder!r})
import candid.atomic

@contextlib.contextmanager
def atomic_folder(out):
    out.mkdir(parents=True, exist_ok=True)
    yield out

candid.atomic.atomic_folder = atomic_folder
import faults
sys.exit(faults.main(sys.argv[1:]))
"""

# Checksums are stored and not compared.
COMPARE_NO_CHECKSUMS = """
import sys
sys.path.insert(0, {folder!r})
from candid.checksums import verification
import faults
with verification(False):
    sys.exit(faults.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """Run the campaign in a process of its own; return its exit code and report."""
    work = tmp_path_factory.mktemp("faults")

    def run(*arguments, program=None):
        results = work / "results.json"
        results.unlink(missing_ok=True)
        start = [str(CAMPAIGN)]
        if program is not None:
            start = ["-c", program.format(folder=str(CAMPAIGN.parent))]
        command = [sys.executable, *start, "--work", str(work), "--reuse", "--results",
                   str(results), *arguments]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert results.exists(), done.stderr
        return done.returncode, json.loads(results.read_text())

    return run


SHORT = {
    "kills": ("prepare_again", "prepare_ids_from", "recommend_shards", "index_exact_again"),
    "mutations": (
        "data.toml",
        "index_exact",
        "items.csv",
        "log.csv",
        "log.parquet",
        "run_features",
    ),
    "requests": ("mutated_requests", "malformed_heads"),
}


@pytest.mark.slow
def test_short_campaign_finds_no_failure(campaign):
    scenarios = ",".join(name for names in SHORT.values() for name in names)
    code, report = campaign(
        "--seed", "4", "--only", ",".join(SHORT), "--scenarios", scenarios, "--size", "0.2",
        "--cases", "kills=25,mutations=500,requests=2", "--seconds", "3000",
    )  # fmt: skip
    assert report["failures"] == []
    assert code == 0
    assert sum(report["skipped"].get("mutations", {}).values()) < 9
    # The seed selects among all scenarios, so the numbers change with a new scenario.
    cases = report["cases"]
    assert (cases["kills"] >= 3, cases["mutations"] >= 60, cases["requests"]) == (True, True, 2)


@pytest.mark.campaign
def test_campaign_with_trainings_and_updates_finds_no_failure(campaign):
    code, report = campaign(
        "--only", "kills,mutations,updates", "--cases", "40", "--scenarios",
        "prepare_again,train,recommend,killed_updates,run,log.csv,index_usearch",
    )  # fmt: skip
    assert report["failures"] == []
    assert code == 0
    assert min(report["cases"][name] for name in ("kills", "mutations", "updates")) >= 2


@pytest.mark.campaign
def test_campaign_reports_folders_that_are_written_in_place(campaign):
    code, report = campaign(
        "--only", "kills", "--cases", "190", "--scenarios", "prepare", program=WRITE_IN_PLACE
    )
    assert code == 1
    failures = [failure["failure"] for failure in report["failures"]]
    assert any("neither the earlier nor the finished" in failure for failure in failures)


@pytest.mark.campaign
def test_campaign_reports_answers_from_damaged_files(campaign):
    code, report = campaign(
        "--only", "mutations", "--cases", "200", "--scenarios", "data", program=COMPARE_NO_CHECKSUMS
    )
    assert code == 1
    failures = [failure["failure"] for failure in report["failures"]]
    assert any("another answer without an error" in failure for failure in failures)
