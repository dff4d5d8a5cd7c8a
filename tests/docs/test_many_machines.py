"""The page on many machines against the counts, the model and the code."""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "many_machines.md"
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("process_messages")


@pytest.fixture(scope="module")
def report():
    return json.loads((RESULTS / "process_messages.json").read_text())


def test_two_processes_send_what_the_model_and_the_results_state(
    script, report, on_ranks, tmp_path
):
    cases = [
        "dense, random Fourier",
        "dense, uniform, learnt partition",
        "sharded_row_adam, mixture",
        "sharded_row_adam, full softmax, every step logs",
    ]

    def count(rank, num_ranks):
        return {case: script.count(case, tmp_path / case) for case in cases}

    for case in cases:
        (tmp_path / case).mkdir()
    ranks = on_ranks(count, 2)
    stored = {line["case"]: line for line in report["results"] if line["processes"] == 2}
    for case in cases:
        # Fails where a process sent something else than the model, in some step.
        line = script.compare([rank[case] for rank in ranks], case)
        assert line["steps_compared"] == 2 * script.STEPS
        for key in ("messages", "bytes", "largest_bytes", "network_bytes", "by_name"):
            assert line[key] == stored[case][key]


def test_tables_match_results(script, benchmark_script, report):
    page = PAGE.read_text()
    assert script.with_tables(page, report["results"]) == page
    overhead = json.loads((RESULTS / "process_overhead.json").read_text())["results"]
    assert benchmark_script("process_overhead").with_table(page, overhead) == page
    indexes = json.loads((RESULTS / "index_processes.json").read_text())
    assert benchmark_script("index_processes").with_table(page, indexes) == page
    for line in overhead:
        one, two = line["one"]["parts_ms"], line["two"]["parts_ms"]
        growth = {part: two[part] - one[part] for part in one}
        assert max(growth, key=growth.get) == "loss"
        assert growth["batch"] + growth["sample"] < 0.05 * sum(growth.values())


def test_results_have_every_case_and_the_model_of_the_script(script, report):
    lines = {(line["case"], line["processes"]): line for line in report["results"]}
    assert lines.keys() == {(case, number) for case in script.CASES for number in (1, 2, 4, 8)}
    assert report["model_of_64_gpus"]["plans"] == script.plans()
    for (_, number), line in lines.items():
        assert line["steps_compared"] == number * script.STEPS
        if number == 1:
            assert line["messages"] == line["bytes"] == 0
        else:
            # Headers of gloo and messages of TCP without payload.
            assert 1 <= line["loopback_payload_bytes"] / line["network_bytes"] < 1.07


def test_manifests_of_the_page_are_valid_yaml():
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    service, job = yaml.safe_load_all(block)
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    template = job["spec"]["template"]["spec"]
    assert template["subdomain"] == service["metadata"]["name"]
    (arguments,) = template["containers"][0]["args"]
    assert f"--nnodes {job['spec']['completions']} " in arguments
    assert f"--master-addr {job['metadata']['name']}-0.{template['subdomain']} " in arguments


def test_index_of_mapped_vectors_needs_less_memory_than_one_of_vectors_in_memory():
    report = json.loads((RESULTS / "index_processes.json").read_text())
    private = {(line["kind"], line["processes"]): line["private_mib"] for line in report["results"]}
    for kind in ("pq", "ivf"):
        (in_memory,), (one,) = private[kind, "in memory"], private[kind, "1"]
        assert len(private[kind, "2"]) == 2
        assert max(one, *private[kind, "2"]) < in_memory
