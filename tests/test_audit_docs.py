"""What docs/audit.md says is what was measured, and its example runs."""

import importlib.util
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "audit.md").read_text()


def benchmark():
    path = ROOT / "benchmarks" / "audit.py"
    spec = importlib.util.spec_from_file_location("audit_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_results():
    results = json.loads((ROOT / "benchmarks/results/audit.json").read_text())["results"]
    assert benchmark().with_tables(DOCS, results) == DOCS


def test_every_estimator_of_the_standard_set_was_measured():
    script = benchmark()
    results = json.loads((ROOT / "benchmarks/results/audit.json").read_text())["results"]
    measured = {(one["items"], one["name"], one["correction"], one["n"]) for one in results}
    assert measured == {
        (num_items, plan.name, variant.label, plan.n)
        for num_items in script.SIZES
        for plan in script.plans_of(num_items)
        for variant in plan.variants
    }


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    exec(compile(example, "docs/audit.md", "exec"), {"__name__": "example"})
    label, sentence = capsys.readouterr().out.splitlines()
    assert "n = 16" in label
    assert sentence.startswith("without a budget the full softmax is the choice")
