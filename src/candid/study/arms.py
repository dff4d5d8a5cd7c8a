"""Arms and samplers of a study, as literal recipe settings.

An arm is a loss with its candidates. All arms of a sampler, n and seed have the same initial
weights and batches. Arms that use the sampler as it is, or its distinct items, have the same
samples too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from candid.errors import ConfigError, UnknownNameError

Table = dict[str, Any]

NO_SAMPLER: Final = "none"
"""Sampler of an arm that reads the whole catalog."""

CandidateRule = Literal["sampler", "distinct", "half_nearest", "random_fourier", "catalog"]
"""Candidates of an arm: those of the sampler; the same with each item once; n/2 exact nearest items
and n/2 of the sampler; n by random Fourier features in the place of the sampler; all items."""

WITH_DISTINCT: Final = ("uniform", "popularity", "in_batch", "whole_batch")
WITH_REPLACEMENT: Final = ("uniform", "popularity", "in_batch", "whole_batch", "mixed")
INDEPENDENT: Final = ("uniform", "popularity")
FULL_SUPPORT: Final = ("uniform", "mixed")
"""Samplers that draw all items, those too that are never a training target."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to estimate the loss.

    Attributes:
        meaning: one sentence for tables.
        loss: the section [loss] of the recipe.
        candidates: which candidates it compares with.
        samplers: names of the samplers that it is defined for; empty: it takes none.
    """

    meaning: str
    loss: Mapping[str, Any]
    candidates: CandidateRule = "sampler"
    samplers: tuple[str, ...] = WITH_REPLACEMENT

    @property
    def reads_catalog(self) -> bool:
        """Whether the loss reads all items and takes no candidates."""
        return self.candidates == "catalog"

    def samples_all_items(self, sampler: str) -> bool:
        """Whether the candidates can be items that are never a training target.

        Args:
            sampler: name of the sampler.
        """
        return self.candidates == "random_fourier" or sampler in FULL_SUPPORT


def _softmax(correction: str, **settings: Any) -> Table:
    return {"type": "sampled_softmax", "correction": correction, **settings}


ARMS: Final[Mapping[str, Arm]] = {
    "none": Arm("sampled softmax without a correction", _softmax("none")),
    "published_code": Arm(
        "baseline of the code published with the refined correction: candidates shifted by log Q "
        "without log n",
        _softmax("published_code"),
        samplers=("popularity", "in_batch", "whole_batch"),
    ),
    "logq_masked": Arm(
        "logQ for positive and candidates, accidental hits masked",
        _softmax("logq", accidental_hits="mask"),
    ),
    "logq_kept": Arm(
        "logQ for positive and candidates, accidental hits kept",
        _softmax("logq", accidental_hits="keep"),
    ),
    "logq_distinct": Arm(
        "logQ on the distinct items of the sample, with inclusion probabilities",
        _softmax("logq"),
        candidates="distinct",
        samplers=WITH_DISTINCT,
    ),
    "refined": Arm("refined correction: candidates alone are shifted", _softmax("refined")),
    "refined_distinct": Arm(
        "refined correction on the distinct items of the sample, with inclusion probabilities",
        _softmax("refined"),
        candidates="distinct",
        samplers=WITH_DISTINCT,
    ),
    "refined_jackknife": Arm(
        "refined correction with the jackknife over users, or over samples that come from no user",
        _softmax("refined", jackknife=True),
    ),
    "logq_nearest": Arm(
        "logQ, half of the candidates the nearest items, exact",
        _softmax("logq"),
        candidates="half_nearest",
        samplers=INDEPENDENT,
    ),
    "refined_nearest": Arm(
        "refined correction, half of the candidates the nearest items, exact",
        _softmax("refined"),
        candidates="half_nearest",
        samplers=INDEPENDENT,
    ),
    "logq_random_fourier": Arm(
        "logQ, candidates of each row by random Fourier features",
        _softmax("logq"),
        candidates="random_fourier",
        samplers=("popularity",),
    ),
    "refined_random_fourier": Arm(
        "refined correction, candidates of each row by random Fourier features",
        _softmax("refined"),
        candidates="random_fourier",
        samplers=("popularity",),
    ),
    "learnt_partition": Arm("learnt partition function", {"type": "learnt_partition"}),
    "bce": Arm("binary cross-entropy", {"type": "bce"}),
    "gbce": Arm("generalised binary cross-entropy", {"type": "gbce"}),
    "full_softmax": Arm(
        "softmax over the whole catalog",
        {"type": "full_softmax"},
        candidates="catalog",
        samplers=(),
    ),
}
"""Arms by the name used in study files."""

SAMPLERS: Final[Mapping[str, str]] = {
    "uniform": "n items, uniformly",
    "popularity": "n items, by popularity",
    "in_batch": "n of the positives of the batch",
    "whole_batch": "all positives of the batch; n is that of the loader",
    "mixed": "n/2 of the positives of the batch and n/2 items uniformly",
}
"""Samplers by the name used in study files, with their meaning."""


def sampler_settings(name: str, n: int) -> Table:
    """Return the section [sampler] of a recipe.

    Args:
        name: one of ``SAMPLERS``.
        n: number of candidates; not used for "whole_batch".

    Raises:
        UnknownNameError: no such sampler.
        ConfigError: n is too small.

    Example:
        >>> sampler_settings("popularity", 64)
        {'type': 'popularity', 'num_candidates': 64}
    """
    if name not in SAMPLERS:
        raise UnknownNameError("sampler of a study", name, SAMPLERS)
    if name == "whole_batch":
        return {"type": "in_batch"}
    if name == "mixed":
        _check_halves(n, "the sampler 'mixed'")
        halves = [sampler_settings("in_batch", n - n // 2), sampler_settings("uniform", n // 2)]
        return {"type": "mixture", "components": halves}
    return {"type": name, "num_candidates": n}


def arm_settings(name: str, sampler: str, n: int) -> Table:
    """Return the sections [loss] and [sampler] of a recipe; no [sampler] for a whole catalog.

    Args:
        name: one of ``ARMS``.
        sampler: one of ``SAMPLERS`` that the arm is defined for, or "none".
        n: number of candidates.

    Raises:
        UnknownNameError: no such arm or sampler.
        ConfigError: n is too small.

    Example:
        >>> arm_settings("logq_distinct", "popularity", 64)["sampler"]
        {'type': 'popularity', 'num_candidates': 64, 'distinct': True}
    """
    arm = find_arm(name)
    loss = dict(arm.loss)
    if arm.candidates == "catalog":
        return {"loss": loss}
    table = sampler_settings(sampler, n)
    if arm.candidates == "distinct":
        table["distinct"] = True
    elif arm.candidates == "half_nearest":
        _check_halves(n, f"the arm {name!r}")
        exact = n // 2
        rest = sampler_settings(sampler, n - exact)
        table = {"type": "exact_nearest", "num_exact": exact, "k": exact, "rest": rest}
    elif arm.candidates == "random_fourier":
        table = {"type": "random_fourier", "num_candidates": n}
    return {"loss": loss, "sampler": table}


def find_arm(name: str) -> Arm:
    """Return an arm by its name.

    Raises:
        UnknownNameError: no such arm.
    """
    if name not in ARMS:
        raise UnknownNameError("arm", name, ARMS)
    return ARMS[name]


def _check_halves(n: int, what: str) -> None:
    if n < 2:
        raise ConfigError(f"{what} needs num_candidates of at least 2, got {n}")
