"""Softmax over a positive and candidates that a sampler drew."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from candid.candidates import Candidates
from candid.errors import ConfigError
from candid.losses.blockwise import Precision
from candid.losses.comparison import gather_vectors
from candid.losses.config import PRECISION, LossConfig
from candid.losses.corrected import Correction
from candid.losses.corrected_blockwise import corrected_softmax
from candid.losses.inputs import wants_finite_check
from candid.losses.output import ItemEmbeddings, LossOutput


def sampled_softmax(
    query: Tensor,
    item_embeddings: ItemEmbeddings,
    positive_ids: Tensor,
    candidates: Candidates,
    *,
    correction: Correction = "refined",
    jackknife: bool = False,
    temperature: float | Tensor = 1.0,
    precision: Precision = "float32",
    effective_sample_size: bool = False,
    check_finite: bool | None = None,
) -> LossOutput:
    """Score each row's positive and candidates and compare them, corrected.

    A candidate that is the row's positive, or comes from the row's own user, is no negative
    of the row. For draws with replacement and ``refined`` the rest are renormalised: with n
    draws of which n_valid are left, e(d) = n_valid · Q(d) / (1 - Q(p)), the Q' of
    Khrylchenko et al. (RecSys 2025). ``logq`` is the habit of the field (Yi et al., RecSys
    2019): shifts of -log(n·Q), positive included, hits dropped, nothing renormalised.
    ``none`` ignores the counts.

    Args:
        query: [B, D].
        item_embeddings: the table [V, D], or a callable from ids [n] to vectors [n, D] (called
            once, for positives and candidates together).
        positive_ids: [B] int64.
        candidates: ids [N] shared by all rows (one matrix product) or [G, N] shared by runs of
            rows.
        correction: see ``corrected_log_softmax``.
        jackknife: see ``corrected_log_softmax``.
        temperature: scores are divided by it.
        precision: of the matrix products, see ``full_softmax``. Vectors that are bfloat16 already
            are multiplied as such in either case. Shared candidates [N] beyond 131,072 scores are
            compared in tiles, without the [B, N] scores, unless there is a jackknife.
        effective_sample_size: report ``effective_sample_size``.
        check_finite: refuse queries and item vectors that hold NaN, named by row and by item.
            None looks on the CPU only: on an accelerator a look waits for it.

    Returns:
        see ``corrected_log_softmax``.

    Raises:
        ConfigError: shapes that do not fit together.
        DataError: an id outside the table (checked on the CPU, where it needs no device
            synchronisation), or NaN where it is looked for.
    """
    vectors = gather_vectors(
        query / temperature,
        item_embeddings,
        positive_ids,
        candidates,
        precision=precision,
        check_finite=wants_finite_check(check_finite, query),
    )
    return corrected_softmax(
        vectors, correction, jackknife=jackknife, effective_sample_size=effective_sample_size
    )


class SampledSoftmax:
    """``sampled_softmax`` with its settings.

    Args:
        correction: see ``corrected_log_softmax``.
        jackknife: see ``corrected_log_softmax``.
        precision: see ``sampled_softmax``.
    """

    needs_candidates = True

    class Config(LossConfig):
        """Settings of ``SampledSoftmax``."""

        needs_candidates = True

        correction: Correction = Field(
            "refined",
            description="how candidates are corrected for how often they were expected: "
            "'none', 'logq' (positive too) or 'refined' (candidates only)",
        )
        jackknife: bool = Field(
            False,
            description="delete-one jackknife: less bias for a little more spread; not of sets "
            "(distinct = true), where it adds a bias",
        )
        precision: Precision = Field("float32", description=PRECISION)

        @property
        def needs_full_support(self) -> bool:
            """True: an item that is never sampled is missing from the partition function."""
            return True

        @property
        def why_no_probability(self) -> str | None:
            """The reason of an uncorrected softmax; None for the others."""
            if self.correction != "none":
                return None
            return (
                "the model was trained by a sampled softmax without correction, whose scores are "
                "off by the log of how often candidates were drawn"
            )

        @property
        def estimator(self) -> tuple[Correction, bool]:
            """Correction and jackknife."""
            return self.correction, self.jackknife

        @property
        def works_with_sets(self) -> bool:
            """False with the jackknife, which adds a bias to sets."""
            return not self.jackknife

        def build(self, num_items: int) -> SampledSoftmax:
            """Build for a catalog of any size."""
            return SampledSoftmax(self.correction, self.jackknife, self.precision)

    def __init__(
        self,
        correction: Correction = "refined",
        jackknife: bool = False,
        precision: Precision = "float32",
    ) -> None:
        self.correction: Correction = correction
        self.jackknife = jackknife
        self.precision: Precision = precision

    def __call__(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        candidates: Candidates | None = None,
        *,
        effective_sample_size: bool = False,
    ) -> LossOutput:
        """Score and compare; see ``Loss``."""
        if candidates is None:
            raise ConfigError("the loss 'sampled_softmax' needs a sampler to draw candidates")
        return sampled_softmax(
            query,
            item_embeddings,
            positive_ids,
            candidates,
            correction=self.correction,
            jackknife=self.jackknife,
            precision=self.precision,
            effective_sample_size=effective_sample_size,
            check_finite=False,  # whoever trains looks at the loss
        )
