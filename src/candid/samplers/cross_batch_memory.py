"""The positives of recent batches as candidates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from candid.candidates import Candidates, Positives
from candid.errors import ArtifactError, ConfigError
from candid.samplers.config import SamplerConfig
from candid.samplers.expected_count import log_expected_count
from candid.samplers.frequency import (
    Counts,
    ExactFrequency,
    Frequency,
    FrequencyComponent,
    StreamFrequency,
    check_positives,
)


class CrossBatchMemory:
    """The batch's positives and those of the batches before, as draws from the frequency Q.

    Cross-batch negatives, after Wang et al., "Cross-batch memory for embedding learning" (CVPR
    2020), with one difference: the memory holds ids, and the loss encodes them anew, so that no
    vector is stale; a step then encodes and differentiates as many items as are remembered.
    Expected count n·Q(d), n the rows in memory and in the batch together. As in ``InBatch`` a
    row's own positive and its own user's rows are masked, and the rest renormalised.

    The rows are independent draws from Q only nearly: an epoch deals each interaction once, so
    that what is remembered is not dealt again soon, and rows of one user come together. Where
    popularity changes with time the memory holds that of ``mean_age`` steps ago.

    Args:
        frequency: item counts [V], or any ``Frequency``.
        size: rows of earlier batches to remember, the latest.
        warm_up: steps, from the first, with candidates from the batch alone; the memory fills
            meanwhile.
        exclude_same_user: mask the other positives of a row's own user.

    Raises:
        ConfigError: ``size`` is less than 1 or ``warm_up`` less than 0.
        DataError: counts that are not a vector of finite non-negative numbers with a
            positive sum.
    """

    class Config(SamplerConfig):
        """Settings of ``CrossBatchMemory``."""

        size: int = Field(4096, ge=1, description="rows of earlier batches to remember")
        warm_up: int = Field(
            0, ge=0, description="steps, from the first, that take candidates from the batch alone"
        )
        exclude_same_user: bool = Field(
            True, description="never take a user's other positives as that user's negatives"
        )
        frequency: FrequencyComponent = Field(
            default_factory=ExactFrequency.Config,
            description="how often each item is a positive: 'exact', from the training counts, "
            "or learnt from the stream of batches",
        )

        def candidates_per_row(self, batch_rows: int) -> int:
            """Rows of the full memory and of the batch; see ``SamplerConfig``."""
            return self.size + batch_rows

        @property
        def reads_batch(self) -> bool:
            """True; see ``SamplerConfig``."""
            return True

        def build(self, counts: Tensor) -> CrossBatchMemory:
            """Build with the frequency for a catalog with these training counts."""
            frequency = self.frequency.build(counts)
            return CrossBatchMemory(frequency, self.size, self.warm_up, self.exclude_same_user)

    def __init__(
        self,
        frequency: Frequency | Counts,
        size: int,
        warm_up: int = 0,
        exclude_same_user: bool = True,
    ) -> None:
        if size < 1 or warm_up < 0:
            raise ConfigError(
                f"size must be at least 1 and warm_up at least 0, got {size} and {warm_up}"
            )
        self.frequency: Frequency = (
            frequency if isinstance(frequency, Frequency) else ExactFrequency(frequency)
        )
        self.size = size
        self.warm_up = warm_up
        self.exclude_same_user = exclude_same_user
        # Item, user and step of each row; row r of the stream is in column r % size.
        self._rows = torch.zeros(3, size, dtype=torch.int64)
        self._num_rows = 0
        self._num_steps = 0

    @property
    def num_remembered(self) -> int:
        """Rows in memory."""
        return min(self._num_rows, self.size)

    @property
    def mean_age(self) -> float:
        """Steps since the rows in memory were seen, on average; 1 is the step before."""
        if not self.num_remembered:
            return 0.0
        steps = self._rows[2, : self.num_remembered]
        return self._num_steps - float(steps.double().mean())

    def sample(self, batch: Positives, generator: torch.Generator | None = None) -> Candidates:
        """Take the candidates of one step; see ``Sampler.draw``.

        Raises:
            DataError: a positive that the frequency says never occurs (checked on the CPU,
                where it needs no device synchronisation).
        """
        remembered = self._rows[:2, : self._num_used].to(batch.positive_ids.device)
        ids = torch.cat([batch.positive_ids, remembered[0]])
        check_positives(self.frequency, ids)
        owner = torch.cat([batch.user_ids, remembered[1]])
        return Candidates(
            ids=ids,
            log_expected_count=self.log_expected_count_of(ids, batch),
            log_expected_count_positive=self.log_expected_count_of(batch.positive_ids, batch),
            num_samples=len(ids),
            owner=owner if self.exclude_same_user else None,
            row_user_ids=batch.user_ids if self.exclude_same_user else None,
        )

    def log_expected_count_of(self, ids: Tensor, batch: Positives) -> Tensor:
        """Log expected count of any items; see ``Sampler.log_expected_count_of``."""
        num_samples = len(batch.positive_ids) + self._num_used
        return log_expected_count(self.frequency.log_q(ids), num_samples, distinct=False)

    def support(self, is_positive: Tensor) -> Tensor:
        """Items that are ever a positive, and no others; see ``HasSupport.support``."""
        return is_positive.clone()

    def observe(self, batch: Positives) -> None:
        """Remember a batch in place of the oldest rows; see ``Observer.observe``."""
        rows = torch.stack(
            [
                batch.positive_ids,
                batch.user_ids,
                torch.full_like(batch.positive_ids, self._num_steps),
            ]
        )
        num_rows = rows.shape[1]
        rows = rows[:, max(0, num_rows - self.size) :]
        first = self._num_rows + num_rows - rows.shape[1]
        columns = torch.arange(rows.shape[1], device=rows.device) + first
        self._rows = self._rows.to(rows.device).index_copy(1, columns % self.size, rows)
        self._num_rows += num_rows
        self._num_steps += 1
        if isinstance(self.frequency, StreamFrequency):
            self.frequency.observe(batch.positive_ids)

    def report(self) -> dict[str, float]:
        """Rows in memory and their ``mean_age``; see ``Reporter.report``."""
        return {"memory_rows": float(self.num_remembered), "memory_age": self.mean_age}

    def state(self) -> dict[str, Tensor]:
        """What is remembered, and what the frequency has learnt; see ``Stateful.state``."""
        state = {
            "rows": self._rows.clone(),
            "num_rows": torch.tensor(self._num_rows),
            "num_steps": torch.tensor(self._num_steps),
        }
        if isinstance(self.frequency, StreamFrequency):
            state |= {f"frequency/{key}": value for key, value in self.frequency.state().items()}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Remember what a state holds; see ``Stateful.restore``."""
        if "rows" not in state or state["rows"].shape != self._rows.shape:
            raise ArtifactError(
                f"there is no stored memory of {self.size} rows to continue from: keep the size "
                "that the run was started with"
            )
        self._rows = state["rows"].to(self._rows.device, copy=True)
        self._num_rows = int(state["num_rows"])
        self._num_steps = int(state["num_steps"])
        if isinstance(self.frequency, StreamFrequency):
            start = "frequency/"
            self.frequency.restore(
                {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            )

    @property
    def _num_used(self) -> int:
        """Rows of earlier batches that are candidates now."""
        return self.num_remembered if self._num_steps >= self.warm_up else 0
