"""Recall@100 and queries per second of an index, as candid tunes it, and ScaNN, in turns.

    python -m venv scann && scann/bin/pip install --no-deps scann numpy protobuf
    python benchmarks/index_vectors.py --out vectors        # "trained": a model of 761,088 items
    python benchmarks/index_scann.py --scann-python scann/bin/python --vectors vectors
    python benchmarks/index_scann.py --docs                 # only write the table of the docs

ScaNN needs an environment of its own and runs there in a process. Both processes read the vectors
from one file in the same way. Both are built and tuned on one half of the queries to the fastest
settings whose recall, less twice its standard error, reaches 0.95: of candid the index "int8" with
its choices of lists, of ScaNN √V and 2√V leaves, one or two dimensions per code, the anisotropic
loss of its documentation, and as fine steps of leaves and candidates. ``--stored-scann`` builds
ScaNN with the settings that an earlier call chose for the same vectors. Then both search the other
half in turns, in batches of 32. Times are CPU time of one thread: the machine may be busy, so the
ratio of the turns is the result. The vectors "hard" and "clustered" are those of
``benchmarks/index_compare.py``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

import candid
from candid.atomic import write_json
from candid.index import BENCHMARKED_INDEXES, benchmark_index, compute_ground_truth
from candid.index.measurement import BATCH, SCORE_TOLERANCE, GroundTruth, measure_index
from index_compare import vectors
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "index_scann.json"
DOCS = ROOT / "docs" / "benchmarks" / "index_search.md"
WORKER = Path(__file__).with_name("scann_worker.py")
K, TARGET, QUERIES = 100, 0.95, 512
KINDS = ("hard", "clustered", "trained")


class Scann:
    """The process of ``scann_worker.py``."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"command": command, **arguments}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"ScaNN ended during {command!r} with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(
    kind: str,
    items: Any,
    query: Any,
    python: str,
    turns: int,
    name: str,
    stored: dict[str, Any] | None,
) -> dict[str, Any]:
    """Build and tune both, then measure them in turns.

    Args:
        kind: of the vectors.
        items: [V, D] float32.
        query: [Q, D] float32.
        python: of the environment with ScaNN.
        turns: counted turns.
        name: of our index, a key of ``BENCHMARKED_INDEXES``.
        stored: the line "scann" of an earlier result with its settings; None: tune.
    """
    truth = compute_ground_truth(items, query, K)
    scann = Scann(python)
    with tempfile.TemporaryDirectory() as folder:
        lengths = query.norm(dim=1) * items.norm(dim=1).max()
        last = truth.result.scores[:, -1] - SCORE_TOLERANCE * lengths
        arrays = {"items": items, "queries": query, "last_scores": last}
        for array, values in arrays.items():
            np.save(Path(folder) / f"{array}.npy", values.numpy())
        scann.call("load", folder=folder, k=K, batch=BATCH)
        # As ScaNN reads them: NumPy may place arrays in other pages of memory than torch.
        items = torch.from_numpy(np.load(Path(folder) / "items.npy"))
    config = BENCHMARKED_INDEXES[name]
    ours = benchmark_index(config, items, truth, target_recall=TARGET, name=name)
    line: dict[str, Any] = {"kind": kind, "items": len(items), "ours": ours.to_json()}
    print(kind, "ours", ours.settings, round(ours.measurement.queries_per_second), flush=True)
    root = round(len(items) ** 0.5)
    if stored is not None:
        names = ("leaves", "dims", "leaves_to_search", "reorder")
        scann.call("use", **{setting: stored[setting] for setting in names})
        line["scann"] = scann.call("chosen") | {"tried": stored["tried"]}
    else:
        for leaves in (root, 2 * root):
            for dims in (1, 2):
                print(kind, "scann", scann.call("tune", leaves=leaves, dims=dims, target=TARGET))
        line["scann"] = scann.call("chosen")
    if "leaves" in line["scann"]:
        line |= take_turns(ours.index, truth.split()[1], items, scann, turns)
    scann.close()
    return line


def take_turns(
    index: Any, half: GroundTruth, items: Any, scann: Scann, turns: int
) -> dict[str, Any]:
    """Search the same queries with both, one after the other; the first turn does not count."""
    pairs = []
    for _ in range(turns + 1):
        mine = measure_index(index, half, items, with_latency=False)
        pairs.append((mine, scann.call("turn")))
    pairs = pairs[1:]
    ratios = [mine.queries_per_second / other["queries_per_second"] for mine, other in pairs]
    mine_speeds = [mine.queries_per_second for mine, _ in pairs]
    scann_speeds = [other["queries_per_second"] for _, other in pairs]
    result = {
        "recall": [round(pairs[0][0].recall, 4), round(pairs[0][1]["recall"], 4)],
        "queries_per_second": [
            round(statistics.median(mine_speeds)),
            round(statistics.median(scann_speeds)),
        ],
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "turns": len(pairs),
    }
    print(result, flush=True)
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Return the table of the docs."""
    rows = [
        "| vectors | index | recall@100 | queries/s | ours to ScaNN | build, CPU s |"
        " beside the vectors, MB | settings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in results:
        ours, scann = line["ours"], line["scann"]
        if "ratio" not in line:
            rows.append(f"| {line['kind']} | ScaNN | below {TARGET} | – | – | – | – | – |")
            continue
        low, high = line["ratio_range"]
        settings = ours["index"]
        rows += [
            f"| {line['kind']}, {line['items']:,} items | candid, {ours['name']} "
            f"| {line['recall'][0]:.3f} | {line['queries_per_second'][0]:,} "
            f"| **{line['ratio']:.2f}** ({low:.2f} to {high:.2f}) "
            f"| {ours['build_cpu_seconds']:.0f} | {ours['index_bytes'] / 1e6:.0f} "
            f"| {settings['num_lists']:,} lists, num_probes {settings['num_probes']:g}, "
            f"oversample {settings['oversample']:g} |",
            f"| | ScaNN | {line['recall'][1]:.3f} | {line['queries_per_second'][1]:,} | "
            f"| {scann['build_cpu_seconds']:.0f} | {scann['index_bytes'] / 1e6:.0f} "
            f"| {scann['leaves']:,} leaves, {scann['leaves_to_search']} searched, "
            f"{scann['dims']} per code, {scann['reorder']} candidates |",
        ]
    return "\n".join(rows) + "\n"


def with_table(content: str, results: list[dict[str, Any]]) -> str:
    """Return the page with its generated block filled from the results."""
    return with_block(content, "index_scann", table(results))


def main() -> None:
    """Measure and write; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scann-python", help="Python of an environment with ScaNN")
    parser.add_argument("--vectors", type=Path, help="folder of benchmarks/index_vectors.py")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--items", type=float, default=1e6, help="of the synthetic vectors")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--index", default="int8", choices=list(BENCHMARKED_INDEXES))
    parser.add_argument(
        "--stored-scann", action="store_true", help="settings of ScaNN from the stored results"
    )
    parser.add_argument("--docs", action="store_true", help="only write the table of the docs")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else []
    if options.docs:
        DOCS.write_text(with_table(DOCS.read_text(), results))
        return
    if options.scann_python is None:
        print("skipped: ScaNN is not compared without --scann-python, see --help")
        return
    torch.set_num_threads(1)
    packages = [options.scann_python, "-m", "pip", "list", "--format", "json"]
    listed = json.loads(subprocess.run(packages, capture_output=True, check=True).stdout)
    for kind in options.kinds:
        if kind == "trained" and options.vectors is None:
            print("skipped: vectors of a trained model need --vectors")
            continue
        if kind == "trained":
            items, query = (
                torch.from_numpy(np.load(options.vectors / f"{name}.npy"))
                for name in ("items", "queries")
            )
        else:
            items, query = vectors(kind, int(options.items), QUERIES)
        earlier = {one["kind"]: one["scann"] for one in results}
        line = compare(
            kind,
            items,
            query,
            options.scann_python,
            options.turns,
            options.index,
            earlier[kind] if options.stored_scann else None,
        )
        results = [one for one in results if one["kind"] != kind] + [line]
        results.sort(key=lambda one: KINDS.index(one["kind"]))
        report = {
            "command": "python benchmarks/index_scann.py --scann-python scann/bin/python "
            f"--vectors vectors --kinds {' '.join(options.kinds)} --turns {options.turns} "
            f"--index '{options.index}'{' --stored-scann' if options.stored_scann else ''}",
            "candid": candid.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "faiss": faiss.__version__,
            "scann": next(one["version"] for one in listed if one["name"] == "scann"),
            "threads": 1,
            "note": "CPU time on a machine shared with other work; compare the ratios of turns",
            "results": results,
        }
        write_json(RESULTS, report)
    return DOCS.write_text(with_table(DOCS.read_text(), results))


if __name__ == "__main__":
    main()
