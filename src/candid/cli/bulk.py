"""Lines about a bulk recommendation, for the verbs that write one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from candid.cli.console import counted

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
        lines.append(f"continued after {counted(result.num_resumed, noun)} of an earlier call")
    if result.without_history:
        lines.append(
            f"no list for {counted(result.without_history, noun)} without a history, which the "
            "model needs: --fallback popular gives one"
        )
    if result.without_target:
        lines.append(
            f"no list for {counted(result.without_target, noun)} without a target of the split"
        )
    rows, queries = counted(result.rows, "row"), counted(result.queries, noun)
    lines.append(f"{rows} for {queries} written to {result.path}")
    return lines
