"""Messages and bytes of a training step over several processes, counted and by a model.

    python benchmarks/process_messages.py            # count; write the results and the page
    python benchmarks/process_messages.py --tables   # write the tables of the page only

A small model trains on random data with 1, 2, 4 and 8 processes (gloo). ``Group.traffic`` counts
the messages and bytes that each process passes to collectives; ``process_costs`` computes the same
from the number of parameters and from the rows that the look-ups of the step read. The script fails
if a process sends anything else in any step. Counts do not depend on the speed of the machine.

In a network namespace of its own the script also compares the bytes on the network with the model:

    unshare --net sh -c 'ip link set lo up && python benchmarks/process_messages.py'

The times at 64 GPUs are computed, not measured: ``CLUSTERS`` has the assumptions.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing

import process_costs
from candid.distributed import open_group
from candid.distributed.exchange import RowRanges
from candid.towers import row_tables
from candid.training import Trainer
from candid.training.batch_shares import Share
from page_blocks import with_block
from process_costs import Cluster, Plan, RemoteRows, Sent, StepCosts, network_bytes, together
from process_trainings import BATCH, CASES, LENGTH, NUM_ITEMS, STEPS, WIDTH, make_trainer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "process_messages.json"
DOCS = ROOT / "docs" / "guides" / "many_machines.md"
FRAME_BYTES = 66
"""Ethernet, IP and TCP headers of a segment with time stamps, which /proc/net/dev counts."""
CLUSTERS = {
    "400 Gb/s for each GPU": Cluster(64, 50e9, 10e-6, 989e12, 0.35),
    "25 Gb/s for each GPU": Cluster(64, 3.125e9, 20e-6, 989e12, 0.35),
}
"""By name: bytes a second, seconds of a message, dense bfloat16 peak of an H100, share of it."""
PLANS = [
    Plan("in-batch, all rows", 10**9, 128, 4096, 64 * 4096, 2_000_000, 40),
    Plan("in-batch, num_candidates = 8192", 10**9, 128, 4096, 8192, 2_000_000, 40),
    Plan("uniform, num_candidates = 65536", 10**9, 128, 4096, 65_536, 2_000_000, 40),
]


def count(case: str, folder: Path) -> dict[str, Any]:
    """Train a case on this process; return its traffic and the rows that it read, by step."""
    snapshots: list[tuple[dict[str, dict[str, int]], tuple[int, int]]] = []
    read: list[list[list[int]]] = []

    class CountedTrainer(Trainer):
        def step(self, *args: Any, **keywords: Any) -> Any:
            # From the start of one step to that of the next one, with what the loop sends.
            snapshots.append((self.group.traffic.to_json(), loopback()))
            read.append([])
            return super().step(*args, **keywords)

    trainer = make_trainer(folder, case, trainer_type=CountedTrainer)
    tables = [table for _, table in row_tables(trainer.model) if table.rows_of is not None]
    assert len(tables) == 1, "the formulas of this script are for one table"
    tables[0].register_forward_pre_hook(lambda _, ids: read[-1].append(ids[0].unique().tolist()))
    trainer.run()
    dense = [p for p in trainer.model.parameters() if p.requires_grad]
    if trainer.config.tables != "dense":
        dense = [p for p in dense if p is not tables[0].weight]
    steps = [
        {"sent": difference(before, after), "loopback": tuple(np.subtract(end, start).tolist())}
        for (before, start), (after, end) in pairwise(snapshots)
    ]
    shares = [
        Share.of(trainer.loader.batch(0, step), trainer.group).counts for step in range(len(steps))
    ]
    return {
        "steps": [
            {**step, "read": rows, "rows": sum(counts), "largest_share": max(counts)}
            for step, rows, counts in zip(steps, read, shares, strict=False)
        ],
        "dense_numbers": sum(p.numel() for p in dense),
        "dense_tensors": len(dense),
    }


def difference(
    before: Mapping[str, Mapping[str, int]], after: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    """Return the traffic between two snapshots, without the names that sent nothing."""
    none = {"messages": 0, "bytes": 0}
    changes = {
        name: {key: value - before.get(name, none)[key] for key, value in counters.items()}
        for name, counters in after.items()
    }
    return {name: change for name, change in changes.items() if change["messages"]}


def loopback() -> tuple[int, int]:
    """Return bytes and packets of the loopback device; zeros where other programs use it too."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    except OSError:
        return 0, 0
    devices = {
        name.strip(): rest.split() for name, _, rest in (line.partition(":") for line in lines)
    }
    # A namespace has either lo alone, or idle devices that the kernel adds, but no eth or veth.
    if any(int(fields[8]) for name, fields in devices.items() if name != "lo"):
        return 0, 0
    fields = devices.get("lo", ["0"] * 16)
    return int(fields[8]), int(fields[9])


def modelled(ranks: Sequence[Mapping[str, Any]], case: str, step: int) -> list[dict[str, Sent]]:
    """Return the modelled costs of a step by process, from the rows that all processes read."""
    costs = StepCosts(len(ranks), WIDTH)
    chosen = CASES[case]
    base = costs.dense(ranks[0]["dense_numbers"], ranks[0]["dense_tensors"])
    if len(ranks) == 1:
        return [base]
    one = ranks[0]["steps"][step]
    is_full_softmax = chosen.sampler == "full softmax"
    if chosen.sampler == "random Fourier":
        base = together(base, costs.queries(one["largest_share"]))
    if is_full_softmax:
        base = together(base, costs.full_softmax(one["rows"], one["largest_share"]))
    if chosen.loss == "learnt_partition":
        base = together(base, costs.learnt_partition())
    if chosen.logs:
        base = together(base, costs.logging(one["rows"] if is_full_softmax else None))
    reads = [
        [np.array(ids, dtype=np.int64) for ids in rank["steps"][step]["read"]] for rank in ranks
    ]
    in_step = [np.unique(np.concatenate(each)) for each in reads]
    if chosen.tables == "row_adam":
        base = together(base, costs.tables_by_row([max(map(len, in_step))]))
    if chosen.tables != "sharded_row_adam":
        return [base] * len(ranks)
    # The table has a row for each item, and no other.
    ranges = RowRanges(NUM_ITEMS, len(ranks))

    def remote(rank: int, ids: Sequence[Any]) -> RemoteRows:
        own = ranges.of(rank)
        is_own = [(each >= own.start) & (each < own.stop) for each in ids]
        served = sum(int(mask.sum()) for other, mask in enumerate(is_own) if other != rank)
        return RemoteRows(int((~is_own[rank]).sum()), served)

    return [
        together(
            base,
            costs.sharded_tables(
                [remote(rank, ids) for ids in zip(*reads, strict=True)], [remote(rank, in_step)]
            ),
        )
        for rank in range(len(ranks))
    ]


def _rank_main(rank: int, num_processes: int, cases: Sequence[str], folder: str) -> None:
    torch.set_num_threads(1)
    if num_processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_processes
        )
    results = {}
    with open_group(120):
        for number, case in enumerate(cases):
            run = Path(folder) / f"run-{number}"
            run.mkdir(exist_ok=True)
            results[case] = count(case, run)
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(results))


def on_processes(num_processes: int, function: Any, *arguments: Any) -> list[Any]:
    """Call ``function(rank, num_processes, *arguments, folder)`` in forked processes.

    Returns:
        the JSON that each of them wrote to ``folder/rank-N.json``.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            function,
            (num_processes, *arguments, folder),
            nprocs=num_processes,
            start_method="fork",
        )
        return [
            json.loads(Path(folder, f"rank-{rank}.json").read_text())
            for rank in range(num_processes)
        ]


def compare(ranks: Sequence[Mapping[str, Any]], case: str) -> dict[str, Any]:
    """Compare counted and modelled traffic of a case; return the line of the results.

    Raises:
        AssertionError: a process sent other messages or bytes than the model gives, in some step.
    """
    num_processes, num_steps = len(ranks), len(ranks[0]["steps"])
    by_step = []
    for step in range(num_steps):
        expected = modelled(ranks, case, step)
        for rank, sent in enumerate(expected):
            counted = ranks[rank]["steps"][step]["sent"]
            model = {
                name: {"messages": each.messages, "bytes": each.num_bytes}
                for name, each in sent.items()
            }
            assert counted == model, (case, num_processes, step, rank, counted, model)
        by_step.append(expected)
    names = sorted(by_step[0][0])
    every = [(name, sent[name]) for step in by_step for sent in step for name in names]
    total = num_steps * num_processes
    on_network = sum(network_bytes(name, sent.num_bytes, num_processes) for name, sent in every)
    largest = max(
        sum(sent.num_bytes for step in by_step for sent in step[rank].values())
        for rank in range(num_processes)
    )
    # Rank 0 reads the counters of the device, which all processes share.
    device = np.sum([step["loopback"] for step in ranks[0]["steps"]], axis=0)
    payload = int(device[0] - FRAME_BYTES * device[1])
    return {
        "case": case,
        "processes": num_processes,
        "messages": sum(by_step[0][0][name].messages for name in names),
        "bytes": round(sum(sent.num_bytes for _, sent in every) / total),
        "largest_bytes": round(largest / num_steps),
        "network_bytes": round(on_network / total),
        "by_name": {
            name: {
                "messages": by_step[0][0][name].messages,
                "bytes": round(sum(s.num_bytes for other, s in every if other == name) / total),
            }
            for name in names
        },
        "steps_compared": total,
        "loopback_payload_bytes": round(payload / total) if device[0] else None,
    }


def measure(processes: Sequence[int], cases: Sequence[str]) -> list[dict[str, Any]]:
    """Count all cases with each number of processes."""
    lines = []
    for num_processes in processes:
        ranks = on_processes(num_processes, _rank_main, tuple(cases))
        for case in cases:
            lines.append(compare([rank[case] for rank in ranks], case))
            print(json.dumps(lines[-1]), flush=True)
    return lines


def plans() -> list[dict[str, Any]]:
    """Return the modelled steps on large clusters."""
    return [
        {"cluster": name, **plan.estimate(cluster)}
        for name, cluster in CLUSTERS.items()
        for plan in PLANS
    ]


def tables(results: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each generated block of the page."""
    formulas = [line for line in str(process_costs.__doc__).splitlines() if line.startswith("|")]
    yield "process formulas", "\n".join([*formulas, ""])
    by_key = {(line["case"], line["processes"]): line for line in results}
    counts = sorted({line["processes"] for line in results} - {1})
    largest = max(results, key=lambda line: line["largest_bytes"] / max(line["bytes"], 1))
    lines = [
        f"KiB that a process passes to collectives in a step, a mean over processes: {NUM_ITEMS:,} "
        f"items, D = {WIDTH}, {BATCH} histories of at most {LENGTH} interactions.",
        "",
        "| `training.tables`, sampler | messages "
        + "".join(f"| KiB, W = {number} " for number in counts)
        + "|",
        f"|---|{'---:|' * (len(counts) + 1)}",
    ]
    for case in CASES:
        cells = [f"{by_key[case, number]['bytes'] / 1024:,.1f}" for number in counts]
        lines.append(f"| {case} | {by_key[case, counts[0]]['messages']} | {' | '.join(cells)} |")
    lines += [
        "",
        "The items are sorted by popularity here, so that process 0 owns the popular rows. It "
        f"passes up to {largest['largest_bytes'] / largest['bytes']:.1f} times the mean "
        f"({largest['case']}, W = {largest['processes']}). Source ids in another order divide the "
        "rows evenly.",
        "",
    ]
    yield "process messages", "\n".join(lines)
    lines = [
        "| KiB from a process, by the model / by the kernel "
        + "".join(f"| W = {number} " for number in counts)
        + "|",
        f"|---|{'---:|' * len(counts)}",
    ]
    for case in CASES:
        cells = [
            f"{by_key[case, number]['network_bytes'] / 1024:,.1f} / "
            f"{by_key[case, number]['loopback_payload_bytes'] / 1024:,.1f}"
            for number in counts
        ]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    yield "process network", "\n".join([*lines, ""])
    lines = []
    for name, cluster in CLUSTERS.items():
        lines.append(
            f"- *{name}* (assumed): {cluster.num_processes} GPUs, "
            f"{cluster.bandwidth / 1e9:g} GB/s and {cluster.latency * 1e6:g} µs a message; the "
            f"loss at {cluster.utilisation:.0%} of {cluster.flops / 1e12:,.0f} TFLOP/s."
        )
    first = PLANS[0].estimate(next(iter(CLUSTERS.values())))
    lines += [
        f"- {PLANS[0].num_items:,} items, D = {PLANS[0].width}, float32: {first['table_gib']:.1f} "
        f"GiB of the table on each GPU. {PLANS[0].rows:,} rows and as many items of histories on "
        f"each GPU; {PLANS[0].dense_numbers:,} dense parameters.",
        "",
        "| network | candidates of the step | messages | MiB from each GPU | network, ms "
        "| loss, ms |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for plan in plans():
        lines.append(
            f"| {plan['cluster']} | {plan['case']} | {plan['messages']} "
            f"| {plan['network_mib']:,.0f} | {plan['network_ms']:,.1f} | {plan['loss_ms']:,.2f} |"
        )
    yield "process plan", "\n".join([*lines, ""])


def with_tables(content: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Return the page with its generated blocks filled from the results."""
    for name, block in tables(results):
        content = with_block(content, name, block)
    return content


def main() -> None:
    """Count, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="write the tables only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.tables:
        report = {
            "command": "python benchmarks/process_messages.py",
            "what": "of one process in one step: messages and bytes that it passes to collectives; "
            "largest_bytes: of the process that passes most; network_bytes: bytes that leave it, "
            "by the model; loopback_payload_bytes: counted by "
            "the kernel in a network namespace, without frame headers. A mean over processes and "
            "steps; every step of every process equals the model",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "sizes": {
                "items": NUM_ITEMS,
                "width": WIDTH,
                "histories": BATCH,
                "length": LENGTH,
                "steps": STEPS,
            },
            "results": measure(given.processes, given.cases),
            "model_of_64_gpus": {
                "assumptions": {name: asdict(cluster) for name, cluster in CLUSTERS.items()},
                "plans": plans(),
            },
        }
        given.results.write_text(json.dumps(report, indent=1) + "\n")
    if given.results == RESULTS or given.tables:
        results = json.loads(RESULTS.read_text())["results"]
        DOCS.write_text(with_tables(DOCS.read_text(), results))


if __name__ == "__main__":
    main()
