"""The exact softmax over the whole catalog, in memory that does not grow with B × V."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from candid.candidates import Candidates
from candid.distributed import Group
from candid.errors import ConfigError
from candid.losses.blockwise.accidental_hits import AccidentalHits, IdMatch
from candid.losses.blockwise.softmax import blockwise_softmax
from candid.losses.blockwise.tiles import Precision
from candid.losses.config import PRECISION, LossConfig
from candid.losses.inputs import check_ids, check_rows, check_width, widened
from candid.losses.output import ItemEmbeddings, LossOutput
from candid.losses.sharded_full import sharded_full_softmax


def full_softmax(
    query: Tensor,
    item_embeddings: Tensor,
    positive_ids: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    precision: Precision = "float32",
    effective_sample_size: bool = False,
) -> LossOutput:
    """Compute the negative log-likelihood of each row's positive under a softmax over all V items.

    ``log_z`` leaves the positive out (it is masked inside the sum, not subtracted from it,
    which would cancel for a confident row), so loss, ``log_z`` and ``sample_weight``
    mean the same as those of a sampled softmax. With a catalog of one item ``log_z`` is
    -inf, loss 0 and gradient 0.

    Args:
        query: [B, D].
        item_embeddings: [V, D], the table.
        positive_ids: [B] int64.
        temperature: scores are divided by it.
        precision: dtype of the matrix products. "bfloat16" is faster and rounds every score to 8
            significant bits (a score of 10 to about 0.03); sums, exponentials and gradients
            are kept in float32 either way. float64 input is computed in float64.
        effective_sample_size: report ``effective_sample_size``, here the effective number of
            other items.

    Returns:
        [B] losses and ``log_z``, both carrying the gradient of query and table, and sample
        weights 1 - P.

    Raises:
        ConfigError: shapes that do not fit together.
        DataError: a positive outside the table (checked on the CPU, where it needs no device
            synchronisation).

    Example:
        >>> import torch
        >>> from candid.losses import full_softmax
        >>> items = torch.zeros(10, 4)
        >>> full_softmax(torch.randn(2, 4), items, torch.tensor([1, 2])).loss.exp()
        tensor([10., 10.])
    """
    check_rows(query, positive_ids)
    check_width(query, item_embeddings, len(item_embeddings))
    check_ids(positive_ids, len(item_embeddings))
    query, items = widened(query / temperature), widened(item_embeddings)
    positive_ids = positive_ids.long()
    positives = AccidentalHits(IdMatch(positive_ids))
    loss, log_z = blockwise_softmax(query, items, positive_ids, positives, precision=precision)
    ess = None
    if effective_sample_size:
        with torch.no_grad():
            # Σ w² is the sum over the doubled scores.
            _, log_square = blockwise_softmax(
                2.0 * query, items, positive_ids, positives, precision=precision
            )
            ess = torch.exp(2.0 * log_z - log_square)
            ess.masked_fill_(log_z.isneginf(), 0.0)
    return LossOutput(
        loss=loss,
        log_z=log_z,
        sample_weight=-torch.expm1(-loss.detach()),
        effective_sample_size=ess,
    )


class FullSoftmax:
    """``full_softmax`` with its settings.

    Args:
        precision: dtype of the matrix products.
    """

    needs_candidates = False

    class Config(LossConfig):
        """Settings of ``FullSoftmax``."""

        precision: Precision = Field("float32", description=PRECISION)

        @property
        def why_no_probability(self) -> None:
            """None: the scores are the logits of the softmax."""

        def build(self, num_items: int) -> FullSoftmax:
            """Build for a catalog of any size."""
            return FullSoftmax(precision=self.precision)

    def __init__(self, *, precision: Precision) -> None:
        self.precision: Precision = precision

    def __repr__(self) -> str:
        return f"FullSoftmax(precision={self.precision!r})"

    def __call__(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        candidates: Candidates | None = None,
        *,
        effective_sample_size: bool = False,
    ) -> LossOutput:
        """Compare positives with the whole catalog; ``candidates`` are ignored.

        Args:
            query: [B, D].
            item_embeddings: the table [V, D].
            positive_ids: [B] int64.
            candidates: ignored.
            effective_sample_size: report ``effective_sample_size``.

        Raises:
            ConfigError: ``item_embeddings`` is not a table, or shapes do not fit together.
            DataError: a positive outside the table (checked on the CPU only).
        """
        if not isinstance(item_embeddings, Tensor):
            raise ConfigError("the loss 'full_softmax' needs the table of all item vectors [V, D]")
        return full_softmax(
            query,
            item_embeddings,
            positive_ids,
            precision=self.precision,
            effective_sample_size=effective_sample_size,
        )

    def compare_shards(
        self,
        query: Tensor,
        own_embeddings: Tensor,
        positive_ids: Tensor,
        *,
        own_items: range,
        num_items: int,
        group: Group,
        counts: Sequence[int] | None = None,
        effective_sample_size: bool = False,
    ) -> LossOutput:
        """Compare positives with the items of all processes, as ``sharded_full_softmax`` does.

        Args:
            query: [b, D], the rows of this process.
            own_embeddings: [n, D], the vectors of the items of this process.
            positive_ids: [b] int64, items of the whole catalog.
            own_items: ids of the items of this process, a range of length n.
            num_items: V, items of the whole catalog.
            group: the processes.
            counts: b of every process, if known; None: they are exchanged first.
            effective_sample_size: report ``effective_sample_size``.

        Raises:
            ConfigError: shapes that do not fit together.
            DataError: a positive outside the catalog, on any process.
        """
        return sharded_full_softmax(
            query,
            own_embeddings,
            positive_ids,
            own_items=own_items,
            num_items=num_items,
            group=group,
            counts=counts,
            precision=self.precision,
            effective_sample_size=effective_sample_size,
        )
