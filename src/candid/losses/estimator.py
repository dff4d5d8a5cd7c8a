"""The estimator of a loss: a correction, with or without jackknife, or a learnt partition function.

It names the loss without its code: a config states it, and an audit compares it with others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from candid.errors import ConfigError
from candid.losses.correction import (
    DEFAULT_CORRECTION,
    SHIFTS_BOTH,
    Correction,
    HitRule,
    hit_rule,
)


@dataclass(frozen=True, slots=True)
class Estimator:
    """The estimate that a loss makes from sampled candidates.

    Attributes:
        correction: see ``candid.losses.correction``.
        jackknife: see ``candid.losses.corrected_log_softmax``.
        accidental_hits: "keep" or "mask", what happens to samples of a row's positive; None
            stands for the default of the correction and is replaced by it.
        cap: c of the loss ``learnt_partition``, which takes the expected counts of positive and
            candidates from the correction ``logq``; None: the loss is a softmax over the
            candidates.

    Raises:
        UnknownNameError: no such correction or rule.
        ConfigError: the correction is not defined with this rule or this cap.
    """

    correction: Correction = DEFAULT_CORRECTION
    jackknife: bool = False
    accidental_hits: HitRule | None = None
    cap: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "accidental_hits", self.hit_rule)
        if self.cap is None:
            return
        if not (self.cap > 0 and math.isfinite(self.cap)):
            raise ConfigError(f"cap = {self.cap:g} must be a positive number")
        if self.jackknife or (self.correction, self.hit_rule) != (SHIFTS_BOTH, "keep"):
            raise ConfigError(
                f"cap = {self.cap:g} is that of a learnt partition function: it needs "
                f"correction = {SHIFTS_BOTH!r}, accidental_hits = 'keep' and no jackknife"
            )

    @property
    def hit_rule(self) -> HitRule:
        """``accidental_hits``, or the default of the correction."""
        return hit_rule(self.correction, self.accidental_hits)

    @property
    def has_default_hit_rule(self) -> bool:
        """Whether ``accidental_hits`` is the default of the correction."""
        return self.hit_rule == hit_rule(self.correction)

    @property
    def label(self) -> str:
        """Name in tables."""
        if self.cap is not None:
            return f"learnt partition, cap {self.cap:g}"
        name: str = self.correction
        if not self.has_default_hit_rule:
            name += ", hits masked" if self.accidental_hits == "mask" else ", hits kept"
        return f"{name} + jackknife" if self.jackknife else name
