"""Checks of the inputs of a loss: shapes, dtypes, ids and finite values."""

from __future__ import annotations

import torch
from torch import Tensor

from candid.candidates import NO_OWNER, Candidates
from candid.errors import ConfigError, DataError


def widened(scores: Tensor) -> Tensor:
    """Raise scores narrower than float32 to float32."""
    return scores if scores.dtype == torch.float64 else scores.float()


def check_shapes(query: Tensor, positive_ids: Tensor, candidates: Candidates) -> None:
    """Refuse queries, positives and candidates of different batches.

    Raises:
        ConfigError: ``query`` is not [B, D], ``positive_ids`` not B integers, or the candidates
            were sampled for another number of rows.
    """
    check_rows(query, positive_ids)
    num_sampled_rows = len(candidates.log_expected_count_positive)
    if num_sampled_rows != len(query):
        raise ConfigError(
            f"the candidates were sampled for {num_sampled_rows} rows, but query has "
            f"{len(query)}: sample them for the same batch"
        )
    if candidates.log_expected_count.shape != candidates.ids.shape or candidates.ids.ndim > 2:
        raise ConfigError(
            "candidates must have ids [N] or [G, N] and a log_expected_count of the same shape, "
            f"got {list(candidates.ids.shape)} and {list(candidates.log_expected_count.shape)}"
        )


def check_rows(query: Tensor, positive_ids: Tensor) -> None:
    """Refuse a query that is not [B, D], or positives that are not B integers.

    Raises:
        ConfigError: a shape or dtype is wrong.
    """
    if query.ndim != 2:
        raise ConfigError(
            f"query must be [B, D], got {list(query.shape)}: flatten a sequence so that every "
            "position with a positive is a row"
        )
    if positive_ids.shape != query.shape[:1] or not is_integer(positive_ids):
        raise ConfigError(
            f"positive_ids must be {len(query)} integers, one for each row of query, got "
            f"{list(positive_ids.shape)} of {positive_ids.dtype}"
        )


def check_users(user_ids: Tensor | None, num_rows: int) -> None:
    """Refuse user ids that are not B integers, or -1, which marks candidates of no single user.

    The check for -1 needs no synchronisation on the CPU and is made there only.

    Raises:
        ConfigError: a shape or dtype is wrong.
        DataError: a user id is -1.
    """
    if user_ids is None:
        return
    if user_ids.shape != (num_rows,) or not is_integer(user_ids):
        raise ConfigError(
            f"user_ids must be {num_rows} integers, one for each row of query, got "
            f"{list(user_ids.shape)} of {user_ids.dtype}: leave it out if every row belongs to "
            "another user"
        )
    if user_ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    is_no_user = user_ids == NO_OWNER
    if bool(is_no_user.any()):
        raise DataError(
            f"user_ids holds {NO_OWNER} in row {int(is_no_user.nonzero()[0])}, which marks "
            "candidates of no user: give each unknown user another number"
        )


def check_width(
    query: Tensor, vectors: Tensor, num_vectors: int, name: str = "item vectors"
) -> None:
    """Refuse vectors that are not [n, D] for the D of the query.

    Raises:
        ConfigError: the shape is wrong.
    """
    if vectors.shape != (num_vectors, query.shape[1]):
        raise ConfigError(
            f"{name} must be {[num_vectors, query.shape[1]]}, one per row and as wide as query, "
            f"got {list(vectors.shape)}"
        )


def check_ids(ids: Tensor, num_items: int) -> None:
    """Refuse ids that are not 0 to V - 1, on the CPU, where the check needs no synchronisation.

    Nothing is checked while ``torch.compile`` traces.

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
    """Return whether to check for NaN: ``check_finite``; for None, on the CPU only.

    On an accelerator the check forces a synchronisation. Nothing is checked while
    ``torch.compile`` traces.
    """
    if torch.compiler.is_compiling():
        return False
    return query.device.type == "cpu" if check_finite is None else check_finite


def check_finite_rows(vectors: Tensor, what: str, names: Tensor | None = None) -> None:
    """Refuse vectors that hold NaN or infinite values, and name the first.

    Args:
        vectors: [n, D].
        what: name of one vector in the message: "{what} 3 holds NaN".
        names: [n], the number of each in the message; None for its position.

    Raises:
        DataError: a vector is not finite.
    """
    # A finite sum has finite terms only; an infinite one may be an overflow: check each row.
    if bool(torch.isfinite(vectors.detach().float().sum())):
        return
    bad = torch.nonzero(~torch.isfinite(vectors.detach()).all(dim=1))[:, 0]
    if len(bad):
        first = int(bad[0]) if names is None else int(names[bad[0]])
        raise DataError(
            f"{what} {first} holds NaN or infinite values, as do {len(bad)} of {len(vectors)} in "
            "all: lower the learning rate, clip gradients, or check the input of that row"
        )


def is_integer(ids: Tensor) -> bool:
    """Return whether a tensor has an integer dtype."""
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
