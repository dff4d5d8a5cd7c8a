"""What a loss is handed, and one sentence where it does not fit."""

from __future__ import annotations

import torch
from torch import Tensor

from candid.candidates import Candidates
from candid.errors import ConfigError, DataError


def check_shapes(query: Tensor, positive_ids: Tensor, candidates: Candidates) -> None:
    """Refuse queries, positives and candidates that do not belong together.

    Raises:
        ConfigError: ``query`` is not [B, D], ``positive_ids`` not B integers, or the candidates
            were drawn for another number of rows.
    """
    check_rows(query, positive_ids)
    num_drawn = len(candidates.log_expected_count_positive)
    if num_drawn != len(query):
        raise ConfigError(
            f"the candidates were drawn for {num_drawn} rows, but query has {len(query)}: draw "
            "them for the batch that is scored"
        )
    if candidates.log_expected_count.shape != candidates.ids.shape or candidates.ids.ndim > 2:
        raise ConfigError(
            "candidates must have ids [N] or [G, N] and a log_expected_count of the same shape, got "
            f"{list(candidates.ids.shape)} and {list(candidates.log_expected_count.shape)}"
        )


def check_rows(query: Tensor, positive_ids: Tensor) -> None:
    """Refuse a query that is not [B, D], or positives that are not B integers.

    Raises:
        ConfigError: they are not.
    """
    if query.ndim != 2:
        raise ConfigError(
            f"query must be [B, D], got {list(query.shape)}: make every position of a sequence "
            "that has a positive a row"
        )
    if positive_ids.shape != query.shape[:1] or not is_integer(positive_ids):
        raise ConfigError(
            f"positive_ids must be {len(query)} integers, one for each row of query, got "
            f"{list(positive_ids.shape)} of {positive_ids.dtype}"
        )


def check_width(
    query: Tensor, vectors: Tensor, num_vectors: int, name: str = "item vectors"
) -> None:
    """Refuse vectors that are not [n, D] for the D of the query.

    Raises:
        ConfigError: they are not.
    """
    if vectors.shape != (num_vectors, query.shape[1]):
        raise ConfigError(
            f"{name} must be {[num_vectors, query.shape[1]]}, one a row and as wide as query, got "
            f"{list(vectors.shape)}"
        )


def check_ids(ids: Tensor, num_items: int) -> None:
    """Refuse ids that are not 0 to V - 1, on the CPU, where looking is free.

    Nothing is looked at while ``torch.compile`` traces.

    Raises:
        DataError: an id below 0 or above V - 1.
    """
    if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling():
        lowest, highest = (int(extreme) for extreme in torch.aminmax(ids))
        if lowest < 0 or highest >= num_items:
            raise DataError(
                f"item id {lowest if lowest < 0 else highest} is outside the catalog: "
                f"ids must be 0 to {num_items - 1}"
            )


def wants_finite_check(check_finite: bool | None, query: Tensor) -> bool:
    """Whether to look for NaN: as told, and where nothing is told on the CPU only.

    A look on an accelerator waits for it. Nothing is looked at while ``torch.compile`` traces.
    """
    if torch.compiler.is_compiling():
        return False
    return query.device.type == "cpu" if check_finite is None else check_finite


def check_finite_rows(vectors: Tensor, what: str, names: Tensor | None = None) -> None:
    """Refuse vectors that hold NaN or infinite values, and name the first.

    Args:
        vectors: [n, D].
        what: how a message calls one: "{what} 3 holds NaN".
        names: [n], the number to call each by; None for its position.

    Raises:
        DataError: a vector is not finite.
    """
    # A sum is finite only if all of it is, but for an overflow: look again then.
    if bool(torch.isfinite(vectors.detach().float().sum())):
        return
    bad = torch.nonzero(~torch.isfinite(vectors.detach()).all(dim=1))[:, 0]
    if len(bad):
        first = int(bad[0]) if names is None else int(names[bad[0]])
        raise DataError(
            f"{what} {first} holds NaN or infinite values, as do {len(bad)} of {len(vectors)} in "
            "all: lower the learning rate, clip gradients, or look at the input of that row"
        )


def is_integer(ids: Tensor) -> bool:
    """Whether a tensor may hold ids."""
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
