"""What the losses that draw for themselves share: modules of a training loop of your own.

``SampledSoftmax`` and its like in ``LOSSES`` are the losses of a recipe: settings, to be given
candidates that training drew. ``SampledSoftmaxLoss`` and ``InBatchSoftmaxLoss`` hold a sampler
too, for loops that are not ours. They have no parameters, unless a temperature that is one is
handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from candid.candidates import Positives
from candid.errors import ConfigError, UnknownNameError
from candid.losses.blockwise.tiles import Precision
from candid.losses.correction import Correction
from candid.samplers import AdaptiveSampler, Observer, Sampler, Stateful

RowReduction = Literal["mean", "sum", "none"]
"""How the losses of the rows become the value of a module: one number, or [B] with "none"."""


class CandidateLoss(nn.Module):
    """What the modules share: settings, the sampler's part of a checkpoint, the reduction."""

    def __init__(
        self,
        sampler: Sampler,
        correction: Correction,
        jackknife: bool,
        temperature: float | Tensor,
        precision: Precision,
        reduction: RowReduction,
        check_finite: bool | None,
    ) -> None:
        super().__init__()
        for kind, name, known in (
            ("correction", correction, get_args(Correction)),
            ("precision", precision, get_args(Precision)),
            ("reduction", reduction, get_args(RowReduction)),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        if not isinstance(temperature, Tensor) and not temperature > 0:
            raise ConfigError(f"the temperature must be above 0, got {temperature}")
        self.sampler = sampler
        self.correction: Correction = correction
        self.jackknife = jackknife
        self.temperature = temperature
        self.precision: Precision = precision
        self.reduction: RowReduction = reduction
        self.check_finite = check_finite
        self._steps = 0

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return (
            f"{type(self.sampler).__name__}, correction={self.correction!r}, "
            f"jackknife={self.jackknife}, reduction={self.reduction!r}"
        )

    def _reduced(self, loss: Tensor) -> Tensor:
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()

    def _observe(self, batch: Positives) -> None:
        if self.training:
            self._steps += 1
            if isinstance(self.sampler, Observer):
                self.sampler.observe(batch)

    def _sampler_state(self) -> dict[str, Tensor]:
        state = dict(self.sampler.state()) if isinstance(self.sampler, Stateful) else {}
        if refresh_interval(self.sampler) is not None:
            state["steps"] = torch.tensor(self._steps)
        return state

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # As tensors of their own, not as torch's extra state: safetensors takes nothing else.
        for name, value in self._sampler_state().items():
            destination[f"{prefix}sampler.{name}"] = value.clone()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        start = f"{prefix}sampler."
        mine = {k: value for k, value in state_dict.items() if k.startswith(start)}
        rest = {k: value for k, value in state_dict.items() if k not in mine}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if not self._sampler_state() and not isinstance(self.sampler, Stateful):
            unexpected_keys.extend(mine)
            return
        if not mine:
            missing_keys.extend(f"{start}{name}" for name in self._sampler_state())
            return
        state = {k.removeprefix(start): value for k, value in mine.items()}
        self._steps = int(state.pop("steps", torch.tensor(0)))
        if isinstance(self.sampler, Stateful):
            self.sampler.restore(state)


def refresh_interval(sampler: Sampler) -> int | None:
    """Steps between refreshes of a sampler that follows the model; None where none does."""
    return sampler.refresh_every if isinstance(sampler, AdaptiveSampler) else None
