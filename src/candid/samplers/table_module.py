"""Base of samplers and frequencies: a module of tables and counters without parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor, nn

_MISSING: Final = object()


class TableModule(nn.Module):
    """A module whose tables keep their dtype and whose whole state is in ``state_dict``.

    ``module.bfloat16()`` or ``module.half()`` of a model that contains it moves the tables but
    does not round them: expected counts need float64.

    State that is not a buffer of fixed shape (a Python integer, or a table whose size is not
    known before its first use) goes through ``get_extra_tensors`` and ``set_extra_tensors``.
    They are torch's ``get_extra_state`` and ``set_extra_state`` as plain tensors, which
    safetensors can store.
    """

    extra_tensor_names: ClassVar[tuple[str, ...]] = ()
    """Every name that ``get_extra_tensors`` may return."""

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """Return the state beside the buffers, by names from ``extra_tensor_names``."""
        return {}

    def set_extra_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state that ``get_extra_tensors`` returned, on any device.

        Raises:
            ArtifactError: the state belongs to a module with other settings.
        """

    def extra_repr(self) -> str:
        """Return the numbers and names among the constructor's arguments, for ``repr``."""
        settings = {
            name: getattr(self, name, _MISSING) for name in signature(type(self)).parameters
        }
        return ", ".join(
            f"{name}={value!r}"
            for name, value in settings.items()
            if value is None or isinstance(value, bool | int | float | str)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def apply_to_device(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(apply_to_device, recurse)  # type: ignore[no-untyped-call]  # torch's
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self.get_extra_tensors().items():
            destination[prefix + name] = tensor

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
        names = {prefix + name: name for name in self.extra_tensor_names}
        extra = {names[key]: value for key, value in state_dict.items() if key in names}
        rest = {key: value for key, value in state_dict.items() if key not in names}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        missing = [name for name in self.get_extra_tensors() if name not in extra]
        missing_keys.extend(prefix + name for name in missing)
        if not missing:
            self.set_extra_tensors(extra)


def scalar_tensor(value: int) -> Tensor:
    """Return a counter as ``get_extra_tensors`` stores it: int64 [], on the CPU."""
    return torch.tensor(value, dtype=torch.int64)
