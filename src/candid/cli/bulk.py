"""Lines about a bulk recommendation, for the verbs that write one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from candid.runs import BulkResult


def bulk_lines(result: BulkResult, noun: str) -> list[str]:
    """Return the lines to print.

    Args:
        result: of the bulk recommendation.
        noun: "user" or "item".
    """
    lines = []
    if result.num_resumed:
        lines.append(f"continued after {result.num_resumed:,} {noun}s of an earlier call")
    if result.left_out:
        lines.append(
            f"{result.left_out:,} {noun}s have no list: they have no history, which the model "
            "needs (--fallback popular gives them one), or no target of the split"
        )
    lines.append(f"{result.rows:,} rows for {result.queries:,} {noun}s written to {result.path}")
    return lines
