"""Model of what a training step sends between processes, and of the time that it takes.

The formulas give messages and bytes of one process in one step. Letters: W processes, B rows of
the batch of all processes, N candidates of the batch, D width, P numbers in T parameters that every
process holds and that have a dense gradient, b bytes of a number (4). A message is one collective.

| part of a step | messages | bytes passed to the collectives |
|---|---|---|
| sum of the gradients | 1 | b (P + T + 1) |
| agreement on a stop | 1 | 16 |
| samplers that read query vectors | 1 | b D S |
| each table trained by row | 2, and 1 for all tables | r (8 + b D); 8 for each table |
| each look-up in a sharded table | 3 | 8 (W - 1) + 8 n + b D m |
| gradients of each sharded table | 3 | 8 (W - 1) + 8 n + b D n |
| norm of the gradients of sharded tables | 1 | b |
| full softmax over sharded items | 6 | 8 S + b (D S + D S W + 2 R + S) |
| loss `learnt_partition` | 1 | b (D + 3) |
| a step that logs (`training.log_every`) | 2 | 2 b |
| a step that logs, with the full softmax over sharded items | 3 | b (2 + R) |

R are the rows of the batch and S those of the largest share. r is the largest number of distinct
rows that a process reads in the step, n the distinct rows of other processes that this process
reads, m the rows of this process that the others read, both without repeats inside one look-up (or,
for gradients, inside the step). A look-up reads the items of the histories of a process, or its
positives with the N candidates of the whole batch: every process reads all N, so that n does not
fall as W grows. The full softmax looks up no item: it sends the queries to the owners of the items.

``network_bytes`` converts bytes passed to a collective to bytes that leave the process, for ring
algorithms: gloo uses them, and NCCL for large messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STOP_BYTES = 16
ID_BYTES = 8
SUMS = {"sum of gradients", "sum", "stop", "sum of positive scores", "sum of query gradients"}
"""gloo computes the last one, a sum of which a process needs its own rows, as a whole sum."""
GATHERS = {
    "gather of query vectors",
    "gather of positives",
    "gather of partition functions",
    "gather of loss gradients",
    "rows of tables",
    "ids of table rows",
    "gradients of table rows",
}
EXCHANGES = {"exchange"}


@dataclass(frozen=True, slots=True)
class Sent:
    """What a process passes to the collectives of one name in a step.

    Attributes:
        messages: number of collectives.
        num_bytes: of the tensors of this process.
    """

    messages: int
    num_bytes: float

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.messages + other.messages, self.num_bytes + other.num_bytes)


@dataclass(frozen=True, slots=True)
class RemoteRows:
    """Distinct rows of a sharded table that cross the network for one process.

    Attributes:
        read: n, rows of other processes that this process reads.
        served: m, rows of this process that others read, counted once for each of them.
    """

    read: float
    served: float

    @classmethod
    def balanced(cls, distinct: float, num_processes: int) -> RemoteRows:
        """Return n and m if every process reads ``distinct`` rows, spread evenly over owners."""
        share = distinct * (num_processes - 1) / num_processes
        return cls(share, share)


@dataclass(frozen=True, slots=True)
class StepCosts:
    """The formulas of one process.

    Attributes:
        num_processes: W.
        width: D.
        number_bytes: b, bytes of a number of rows and gradients.
    """

    num_processes: int
    width: int
    number_bytes: int = 4

    def dense(self, numbers: int, tensors: int) -> dict[str, Sent]:
        """Return the costs of P numbers in T parameters, and of the agreement on a stop."""
        if self.num_processes == 1:
            return {}
        return {
            "sum of gradients": Sent(1, self.number_bytes * (numbers + tensors + 1)),
            "stop": Sent(1, STOP_BYTES),
        }

    def queries(self, largest_share: int) -> dict[str, Sent]:
        """Return the costs of a sampler that reads the query vectors of all rows."""
        return {"gather of query vectors": Sent(1, self.number_bytes * self.width * largest_share)}

    def tables_by_row(self, rows: Sequence[int]) -> dict[str, Sent]:
        """Return the costs of tables that every process holds and trains by row.

        Args:
            rows: r of each table.
        """
        used = [number for number in rows if number]
        return {
            "rows of tables": Sent(1, ID_BYTES * len(rows)),
            "ids of table rows": Sent(len(used), ID_BYTES * sum(used)),
            "gradients of table rows": Sent(len(used), self.number_bytes * self.width * sum(used)),
        }

    def sharded_tables(
        self, look_ups: Sequence[RemoteRows], gradients: Sequence[RemoteRows]
    ) -> dict[str, Sent]:
        """Return the costs of sharded tables.

        Args:
            look_ups: rows of each look-up of the step.
            gradients: rows of each table that the process read in the step.
        """
        others, row = self.num_processes - 1, self.number_bytes * self.width
        sent = Sent(0, 0)
        for rows in look_ups:
            sent += Sent(3, ID_BYTES * (others + rows.read) + row * rows.served)
        for rows in gradients:
            sent += Sent(3, ID_BYTES * (others + rows.read) + row * rows.read)
        return {"exchange": sent, "sum": Sent(1, self.number_bytes)}

    def full_softmax(self, rows: int, largest_share: int) -> dict[str, Sent]:
        """Return the costs of the full softmax over sharded items.

        Args:
            rows: R of the batch.
            largest_share: S.
        """
        number = self.number_bytes
        query = number * self.width * largest_share
        return {
            "gather of positives": Sent(1, ID_BYTES * largest_share),
            "gather of query vectors": Sent(1, query),
            "gather of partition functions": Sent(1, number * rows),
            "sum of positive scores": Sent(1, number * rows),
            "gather of loss gradients": Sent(1, number * largest_share),
            "sum of query gradients": Sent(1, query * self.num_processes),
        }

    def learnt_partition(self) -> dict[str, Sent]:
        """Return the costs of the loss ``learnt_partition``, for the gradient of its prediction."""
        return {"sum": Sent(1, self.number_bytes * (self.width + 3))}

    def logging(self, rows: int | None = None) -> dict[str, Sent]:
        """Return the costs of a step that logs: two means over the rows of the batch.

        Args:
            rows: R, for the effective sample size of the full softmax over sharded items; None:
                another loss.
        """
        sums = {"sum": Sent(2, 2 * self.number_bytes)}
        if rows is None:
            return sums
        return sums | {"gather of partition functions": Sent(1, self.number_bytes * rows)}


def together(*parts: Mapping[str, Sent]) -> dict[str, Sent]:
    """Return the costs of several parts of a step, those of one name added."""
    total: dict[str, Sent] = {}
    for name, sent in (item for part in parts for item in part.items()):
        total[name] = total.get(name, Sent(0, 0)) + sent
    return total


def network_bytes(name: str, num_bytes: float, num_processes: int) -> float:
    """Return the bytes that leave a process for bytes that it passes to a collective of a name."""
    others = num_processes - 1
    if name in SUMS:
        return 2 * num_bytes * others / num_processes
    return num_bytes * others if name in GATHERS else num_bytes


def network_messages(name: str, messages: int, num_processes: int) -> int:
    """Return the messages that leave a process, one after the other, for some collectives."""
    others = num_processes - 1
    return messages * (2 * others if name in SUMS else others)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Assumptions about a cluster; none of them is measured.

    Attributes:
        num_processes: W, one for each GPU.
        bandwidth: bytes a second that leave a GPU for the others.
        latency: seconds of one message.
        flops: floating-point operations a second at the peak of a GPU.
        utilisation: reached share of the peak.
    """

    num_processes: int
    bandwidth: float
    latency: float
    flops: float
    utilisation: float

    def seconds(self, costs: Mapping[str, Sent]) -> float:
        """Return the time of the collectives of a step, one after the other."""
        processes = self.num_processes
        return sum(
            network_messages(name, sent.messages, processes) * self.latency
            + network_bytes(name, sent.num_bytes, processes) / self.bandwidth
            for name, sent in costs.items()
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A training whose step is to be estimated.

    Attributes:
        name: of the case.
        num_items: V.
        width: D.
        rows: rows of each process, B / W; their histories have as many items.
        candidates: N, candidates of the whole batch; all of them distinct, the worst case.
        dense_numbers: P.
        dense_tensors: T.
    """

    name: str
    num_items: int
    width: int
    rows: int
    candidates: int
    dense_numbers: int
    dense_tensors: int

    def estimate(self, cluster: Cluster) -> dict[str, Any]:
        """Return bytes, messages and milliseconds of a step with a sharded table of items."""
        processes = cluster.num_processes
        costs = StepCosts(processes, self.width)
        histories = min(self.rows, self.num_items)
        items = min(self.rows + self.candidates, self.num_items)
        look_ups = [RemoteRows.balanced(rows, processes) for rows in (histories, items)]
        # A history and the positives share most items; the bound counts both.
        distinct = min(histories + items, self.num_items)
        sent = costs.dense(self.dense_numbers, self.dense_tensors) | costs.sharded_tables(
            look_ups, [RemoteRows.balanced(distinct, processes)]
        )
        # Scores, and the gradients of queries and of candidates: three products.
        operations = 3 * 2 * self.rows * self.candidates * self.width
        return {
            "case": self.name,
            "candidates": self.candidates,
            "table_gib": self.num_items * self.width * 4 / processes / 2**30,
            "messages": sum(each.messages for each in sent.values()),
            "network_mib": sum(
                network_bytes(name, each.num_bytes, processes) for name, each in sent.items()
            )
            / 2**20,
            "network_ms": 1e3 * cluster.seconds(sent),
            "loss_teraflop": operations / 1e12,
            "loss_ms": 1e3 * operations / (cluster.flops * cluster.utilisation),
        }
