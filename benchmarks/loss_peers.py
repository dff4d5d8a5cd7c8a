"""Softmax over the catalog, candid and the loss kernels of other libraries on a CPU, in turns.

    python benchmarks/peers/install.py loss_kernels
    python benchmarks/loss_peers.py            # measures what results/loss_peers.json lacks
    python benchmarks/loss_peers.py --again    # measures everything again
    python benchmarks/loss_peers.py --tables   # only writes the table of docs/benchmarks/speed.md

1,024 rows against 10,000 and 100,000 items, width 64: the loss, and the gradients of queries and
item vectors, float32 leaves in each case. The contenders are those of ``loss_peers_worker.py``:

- torch cross_entropy: ``F.cross_entropy(query @ vectors.T, positives)``; bfloat16 under autocast.
- cut-cross-entropy (Apple): ``linear_cross_entropy(impl="torch_compile")``. ``impl="cce"``, its own
  kernels, needs a GPU.
- Liger: the cross-entropy inside its chunked losses, compiled by torch, in one chunk of 1,024 rows
  (its default) and in chunks of 128. Its cross-entropy kernels need a GPU.
- candid: ``full_softmax``.

The others run in an environment of their own; the two processes take turns. A turn is two steps, of
which the second is timed. ``ms`` is the median of CPU milliseconds of one thread. ``peak_mib`` is
the growth of the resident set in two steps, after freed memory was given back to the system.
``loss_error`` is the difference from the loss in float64, ``gradient_error`` the larger of the
relative errors (L2 norm) of both gradients; a contender beyond ``TOLERANCE`` ends the run. Nothing
is compiled in a timed step, which is checked. A contender that cannot run on a CPU is listed with
its error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import candid
from loss_peers_worker import CHUNK, CONTENDERS, ROWS, WIDTH, inputs, plain
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "loss_peers.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
WORKER = Path(__file__).with_name("loss_peers_worker.py")
PEERS = ROOT / "build" / "peers" / "loss_kernels" / "bin" / "python"
PACKAGES = ("torch", "triton", "cut-cross-entropy", "liger-kernel")
SIZES = (10_000, 100_000)
TOLERANCE = {"float32": (1e-5, 1e-4), "bfloat16": (1e-2, 5e-2)}
"""Largest errors of the loss and of the gradients."""


class Worker:
    """A process of ``loss_peers_worker.py``."""

    def __init__(self, python: str | Path) -> None:
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
        self._process = subprocess.Popen(
            [python, WORKER],
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, *request: Any) -> dict[str, Any]:
        """Return the answer to a line."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def precision_of(name: str) -> str:
    """Return the precision of a contender's products."""
    return "bfloat16" if name.endswith("bfloat16") else "float32"


def errors_of(worker: Worker, name: str, size: int, truth: tuple[torch.Tensor, ...]) -> Any:
    """Return the errors of a contender's loss and gradients, or the error that it ended with."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "result.pt")
        answer = worker.run("check", name, size, file)
        if "error" in answer:
            return answer["error"]
        loss, *gradients = (tensor.double() for tensor in torch.load(file))
    loss_error = float((loss - truth[0]).abs())
    gradient_error = max(
        float((gradient - true).norm() / true.norm())
        for gradient, true in zip(gradients, truth[1:], strict=True)
    )
    limits = TOLERANCE[precision_of(name)]
    if not (loss_error <= limits[0] and gradient_error <= limits[1]):
        raise SystemExit(f"{name} is wrong: errors {loss_error:.2g}, {gradient_error:.2g}")
    return loss_error, gradient_error


def truth_of(size: int) -> tuple[torch.Tensor, ...]:
    """Return the loss and both gradients in float64."""
    *leaves, positives = inputs(ROWS, size)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    loss = plain(*wide, positives)
    return loss.detach(), *torch.autograd.grad(loss, wide)


def measure(size: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Measure one catalog: a line for each contender."""
    workers = {"candid": Worker(sys.executable), "peers": Worker(PEERS)}
    of = {name: workers[environment] for name, (environment, _) in CONTENDERS.items()}
    truth = truth_of(size)
    errors = {name: errors_of(of[name], name, size, truth) for name in CONTENDERS}
    able = [name for name, error in errors.items() if not isinstance(error, str)]
    seconds: dict[str, list[float]] = {name: [] for name in able}
    for _ in range(repeats):
        for name in able:
            answer = of[name].run("step", name, size)
            assert answer["compiled"] == 0, name
            seconds[name].append(answer["value"])
    for name, error in errors.items():
        line: dict[str, Any] = {"items": size, "contender": name}
        if name in able:
            times = [1e3 * value for value in seconds[name]]
            line |= {
                "ms": round(statistics.median(times), 2),
                "range": [round(min(times), 2), round(max(times), 2)],
                "peak_mib": round(of[name].run("peak", name, size)["value"], 1),
                "loss_error": float(f"{error[0]:.2g}"),
                "gradient_error": float(f"{error[1]:.2g}"),
            }
        else:
            line["error"] = error
        print(line, flush=True)
        yield line
    for worker in workers.values():
        worker.close()


def versions() -> dict[str, str]:
    """Return the versions in the environment of the others."""
    code = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    command = [PEERS, "-c", code, *PACKAGES]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    of_package: dict[str, str] = json.loads(found)
    return of_package


def table(results: list[dict[str, Any]]) -> str:
    """Write the Markdown table: a row per contender."""
    of = {(line["items"], line["contender"]): line for line in results}
    sizes = sorted({line["items"] for line in results})
    columns = [f"{size:,} items, ms / MiB | to candid" for size in sizes]
    rows = [f"| loss | {' | '.join(columns)} | gradient error |"]
    rows.append(f"|---|{'---:|' * (2 * len(sizes) + 1)}")
    for name in CONTENDERS:
        lines = [of[size, name] for size in sizes]
        if "error" in lines[0]:
            rows.append(f"| {name} |{' – |' * 2 * len(sizes)} needs a GPU |")
            continue
        cells = []
        for line in lines:
            ours = of[line["items"], f"candid full_softmax, {precision_of(name)}"]["ms"]
            cells.append(f"{line['ms']:,.0f} / {line['peak_mib']:,.0f} | {line['ms'] / ours:.1f}")
        error = max(line["gradient_error"] for line in lines)
        rows.append(f"| {name} | {' | '.join(cells)} | {error:.0e} |")
    return "\n".join(rows) + "\n"


def with_table(content: str, results: list[dict[str, Any]]) -> str:
    """Replace the generated block of the docs."""
    return with_block(content, "loss peers", table(results))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="measure existing sizes again")
    parser.add_argument("--tables", action="store_true", help="only write the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        report: dict[str, Any] = {
            "candid": candid.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "peers": versions(),
            "command": f"python benchmarks/loss_peers.py --repeats {options.repeats}",
            "clock": "CPU time of one thread; other work shared the machine, so read the ratios",
            "rows": ROWS,
            "width": WIDTH,
            "chunk": CHUNK,
            "results": [],
        }
        if RESULTS.exists() and not options.again:
            report["results"] = json.loads(RESULTS.read_text())["results"]
        measured = {line["items"] for line in report["results"]}
        for size in (size for size in SIZES if size not in measured):
            report["results"] += measure(size, options.repeats)
            RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    DOCS.write_text(with_table(DOCS.read_text(), json.loads(RESULTS.read_text())["results"]))


if __name__ == "__main__":
    main()
