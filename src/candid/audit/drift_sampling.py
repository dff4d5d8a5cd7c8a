"""Numbers of users and samples of a drift measurement, chosen from the size of the catalog."""

from __future__ import annotations

from dataclasses import dataclass, replace

from candid.audit.audit_input import AuditInput
from candid.audit.drift import DriftBudget
from candid.audit.statistics import NUM_GROUPS
from candid.errors import ConfigError

MAX_USERS = 32
"""Largest default number of users."""

SUMS = 1 << 18
"""Number of entries of users times items up to which more users are measured by default: with seven
estimators the sums of the gradients then take 112 MiB."""

MIN_USERS = 8
"""Least default number of users, however large the catalog is."""

MAX_REPEATS = 2048
"""Largest default number of samples of candidates for each user."""

SCORES = 1 << 22
"""Default number of scores of a measurement: users · positives · candidates · samples."""

SCORES_PER_ROW = 1 << 18
"""The same where each row has a sample of its own, which takes longer and varies less in the mean
over users."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSampling:
    """Size of the drift measurements of an audit.

    Attributes:
        users: number of users; None: 32, and fewer in a catalog of more than 8,192 items, at
            least 8.
        repeats: samples of candidates for each user; None: 16 to 2,048, fewer where a sample has
            many candidates.
        num_positives: positives of each user that are compared with a sample.
        memory: bytes for the sums of gradients; users that do not fit together are measured one
            after the other.
        scores: users · positives · candidates · samples, above which there are fewer samples, where
            the users share their samples.

    Raises:
        ConfigError: a number is too small.
    """

    users: int | None = None
    repeats: int | None = None
    num_positives: int = 1
    memory: int = 1 << 30
    scores: int = SCORES

    def __post_init__(self) -> None:
        if self.users is not None and self.users < 1:
            raise ConfigError(f"--drift-users {self.users} must be at least 1")
        if self.repeats is not None and self.repeats < 2 * NUM_GROUPS:
            raise ConfigError(
                f"--drift-repeats {self.repeats} must be at least {2 * NUM_GROUPS}: two samples "
                f"for each of the {NUM_GROUPS} blocks from which the standard error is computed"
            )
        self._budget(self.repeats or MAX_REPEATS, seed=0)

    def users_of(self, data: AuditInput) -> AuditInput:
        """Return the input with the first of its rows, which are in random order."""
        number = self.users
        if number is None:
            number = max(MIN_USERS, min(MAX_USERS, SUMS // data.num_items))
        return replace(
            data,
            query=data.query[:number],
            positive_ids=data.positive_ids[:number],
            user_ids=data.user_ids[:number],
        )

    def budget(
        self, num_users: int, num_scores: int, seed: int, *, samples_per_row: bool = False
    ) -> DriftBudget:
        """Return the number of samples of one measurement.

        Args:
            num_users: users that are measured.
            num_scores: scores of a row in a step.
            seed: of the positives.
            samples_per_row: whether each row has a sample of its own.
        """
        repeats = self.repeats
        if repeats is None:
            scores = SCORES_PER_ROW if samples_per_row else self.scores
            of_a_repeat = num_users * self.num_positives * num_scores
            repeats = max(2 * NUM_GROUPS, min(MAX_REPEATS, scores // max(1, of_a_repeat)))
        return self._budget(repeats, seed)

    def _budget(self, repeats: int, seed: int) -> DriftBudget:
        return DriftBudget(
            repeats=repeats, num_positives=self.num_positives, memory=self.memory, seed=seed
        )
