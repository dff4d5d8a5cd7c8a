"""The positives of recent batches as candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

import torch
from pydantic import Field
from torch import Tensor

from candid.candidates import NO_OWNER, Candidates
from candid.errors import ConfigError
from candid.samplers.config import EXCLUDE_SAME_USER, SamplerConfig
from candid.samplers.expected_count import CountParts, log_expected_count
from candid.samplers.frequency import (
    FREQUENCY_DESCRIPTION,
    Counts,
    ExactFrequency,
    Frequency,
    FrequencyComponent,
    as_frequency,
)
from candid.samplers.sampler import Sampler
from candid.samplers.table_module import scalar_tensor

WARM_UP: Final = 0
"""Default of ``warm_up``."""


class CrossBatchMemory(Sampler):
    """The positives of this batch and of earlier ones, treated as samples from the frequency Q.

    Cross-batch negatives, after Wang et al., "Cross-batch memory for embedding learning" (CVPR
    2020), with one difference: the memory holds ids, and the loss encodes them again, so no
    vector is stale. A step then encodes and differentiates as many items as are in memory.
    The expected count is n·Q(d), with n the number of rows in memory and in the batch. As in
    ``InBatch`` a row's own positive and the rows of its own user are masked, and the rest is
    renormalised.

    The rows are only approximately independent samples from Q: an epoch contains each
    interaction once, so rows in memory do not recur soon, and rows of one user come together.
    If popularity changes, the memory has the popularity of ``mean_age`` steps ago.

    Args:
        frequency: item counts [V], or any ``Frequency``.
        size: number of rows of earlier batches in memory, the latest ones.
        warm_up: number of initial steps with candidates from the batch alone; the memory is
            filled during them.
        exclude_same_user: mask the other positives of a row's own user.

    Raises:
        ConfigError: ``size`` is less than 1 or ``warm_up`` less than 0.
        DataError: counts that are not a vector of finite non-negative numbers with a
            positive sum.

    Example:
        >>> import torch
        >>> from candid.samplers import CrossBatchMemory
        >>> sampler = CrossBatchMemory(torch.tensor([5, 3, 1]), size=4)
        >>> sampler.observe(torch.tensor([0, 1]))
        >>> sampler.sample(torch.tensor([0, 2])).ids
        tensor([0, 2, 0, 1])
    """

    class Config(SamplerConfig):
        """Settings of ``CrossBatchMemory``."""

        size: int = Field(4096, ge=1, le=2**48, description="rows of earlier batches in memory")
        warm_up: int = Field(
            WARM_UP,
            ge=0,
            description="number of initial steps with candidates from the batch alone",
        )
        exclude_same_user: bool = Field(
            EXCLUDE_SAME_USER, description="never use a user's other positives as negatives"
        )
        frequency: FrequencyComponent = Field(
            default_factory=ExactFrequency.Config, description=FREQUENCY_DESCRIPTION
        )

        def candidates_per_row(self, batch_rows: int) -> int:
            """Return the rows of the full memory and of the batch; see ``SamplerConfig``."""
            return self.size + batch_rows

        @property
        def reads_batch(self) -> bool:
            """True; see ``SamplerConfig``."""
            return True

        @property
        def memory_rows(self) -> int:
            """``size``; see ``SamplerConfig``."""
            return self.size

        @property
        def warm_up_steps(self) -> int:
            """``warm_up``; see ``SamplerConfig``."""
            return self.warm_up

        def build(self, counts: Tensor) -> CrossBatchMemory:
            """Build with the frequency for a catalog with these training counts."""
            return CrossBatchMemory(
                self.frequency.build(counts),
                size=self.size,
                warm_up=self.warm_up,
                exclude_same_user=self.exclude_same_user,
            )

    extra_tensor_names: ClassVar[tuple[str, ...]] = ("num_rows", "num_steps")

    rows: Tensor

    takes_batch_rows = True
    reads_query = False

    def __init__(
        self,
        frequency: Frequency | Counts,
        *,
        size: int,
        warm_up: int = WARM_UP,
        exclude_same_user: bool = EXCLUDE_SAME_USER,
    ) -> None:
        if size < 1 or warm_up < 0:
            raise ConfigError(
                f"size must be at least 1 and warm_up at least 0, got {size} and {warm_up}"
            )
        checked = as_frequency(frequency)
        super().__init__(checked.num_items)
        self.frequency: Frequency = checked
        self.size = size
        self.warm_up = warm_up
        self.exclude_same_user = exclude_same_user
        # Item, user and step of each row; row r of the stream is in column r % size.
        self.register_buffer("rows", torch.zeros(3, size, dtype=torch.int64))
        self._num_rows = 0
        self._num_steps = 0

    @property
    def num_remembered(self) -> int:
        """Number of rows in memory."""
        return min(self._num_rows, self.size)

    @property
    def mean_age(self) -> float:
        """Mean age of the rows in memory, in steps; 1 is the step before."""
        if not self.num_remembered:
            return 0.0
        steps = self.rows[2, : self.num_remembered]
        return self._num_steps - float(steps.double().mean())

    def sample(
        self,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Candidates:
        """Take the candidates of one step; see ``Sampler.sample``.

        Raises:
            DataError: a positive has frequency 0 (checked on the CPU, where it needs no
                device synchronisation).
        """
        row_user_ids = user_ids if self.exclude_same_user else None
        memory = self.rows[:2, : self._num_used]
        ids = torch.cat([positive_ids, memory[0]])
        self.frequency.check_positives(ids)
        source_rows = torch.full_like(ids, -1)
        source_rows[: len(positive_ids)] = torch.arange(len(positive_ids), device=ids.device)
        return Candidates(
            ids=ids,
            log_expected_count=self.log_expected_count_of(ids, positive_ids),
            log_expected_count_positive=self.log_expected_count_of(positive_ids, positive_ids),
            num_samples=len(ids),
            owner=None if row_user_ids is None else torch.cat([row_user_ids, memory[1]]),
            row_user_ids=row_user_ids,
            source_rows=source_rows if row_user_ids is None else None,
        )

    def log_expected_count_of(
        self,
        ids: Tensor,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
    ) -> Tensor:
        """Return the log expected count of items; see ``Sampler.log_expected_count_of``."""
        num_samples = len(positive_ids) + self._num_used
        return log_expected_count(self.frequency.log_q(ids), num_samples, distinct=False)

    def count_parts(
        self,
        ids: Tensor,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
    ) -> CountParts:
        """Return log Q: all candidates are rows of batches; see ``Sampler.count_parts``."""
        return CountParts(None, (self.frequency.log_q(ids),))

    def support(self, is_positive: Tensor) -> Tensor:
        """Items that are ever a positive; see ``Sampler.support``."""
        return self.frequency.support(is_positive)

    def observe(self, positive_ids: Tensor, user_ids: Tensor | None = None) -> None:
        """Store a batch in place of the oldest rows; see ``Sampler.observe``."""
        if user_ids is None:
            user_ids = torch.full_like(positive_ids, NO_OWNER)
        steps = torch.full_like(positive_ids, self._num_steps)
        rows = torch.stack([positive_ids, user_ids, steps])
        num_rows = rows.shape[1]
        rows = rows[:, max(0, num_rows - self.size) :]
        first = self._num_rows + num_rows - rows.shape[1]
        columns = torch.arange(rows.shape[1], device=rows.device) + first
        self.rows = self.rows.index_copy(1, columns % self.size, rows)
        self._num_rows += num_rows
        self._num_steps += 1
        self.frequency.observe(positive_ids)

    def metrics(self) -> dict[str, float]:
        """Return the rows in memory and their ``mean_age``; see ``Sampler.metrics``."""
        return {"memory_rows": float(self.num_remembered), "memory_age": self.mean_age}

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """Return the number of rows and steps observed."""
        return {
            "num_rows": scalar_tensor(self._num_rows),
            "num_steps": scalar_tensor(self._num_steps),
        }

    def set_extra_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Continue with the rows and steps of a state."""
        self._num_rows = int(state["num_rows"])
        self._num_steps = int(state["num_steps"])

    @property
    def _num_used(self) -> int:
        """Number of rows of earlier batches that are candidates now."""
        return self.num_remembered if self._num_steps >= self.warm_up else 0
