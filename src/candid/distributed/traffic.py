"""Traffic between processes: the messages and bytes of each kind of collective, counted."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Traffic:
    """Counters of one process.

    Attributes:
        messages: by name of the collective, the number of calls.
        num_bytes: by name of the collective, the bytes of the tensors that this process passed
            to it. What crosses the network follows from the algorithm: a ring all-reduce of n
            bytes among W processes sends 2 · n · (W - 1) / W bytes from each.
    """

    messages: dict[str, int] = field(default_factory=dict)
    num_bytes: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, num_bytes: int) -> None:
        """Count one call."""
        self.messages[name] = self.messages.get(name, 0) + 1
        self.num_bytes[name] = self.num_bytes.get(name, 0) + num_bytes

    def clear(self) -> None:
        """Set all counters to zero."""
        self.messages.clear()
        self.num_bytes.clear()

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return messages and bytes by name."""
        return {
            name: {"messages": count, "bytes": self.num_bytes[name]}
            for name, count in sorted(self.messages.items())
        }
