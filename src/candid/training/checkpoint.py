"""Checkpoints: one safetensors file, whole or absent, with all that an exact resume needs.

    model/<name>             parameters and buffers
    average/<name>           running mean of the parameters, where one is kept
    optimizer/<name>/<key>   the optimizer's state of a parameter
    random/<name>            states of the random generators
    loss/<name>              state of the loss and its sampler
    metadata["candid"]       JSON: the rest (loader position, best value so far, fingerprints)

Never pickle: opening a checkpoint runs nobody's code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from candid.atomic import replacing
from candid.errors import ArtifactError
from candid.training.optimizer import ModelOptimizer

FORMAT = 2
"""Version of the layout above; another one is refused."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        tensors: by the names above.
        meta: plain JSON values.
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below ``prefix/``, without it."""
        start = prefix + "/"
        return {
            name.removeprefix(start): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(start)
        }


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write to a temporary name, fsync, rename: ``path`` is the old file or the new one."""
    meta = json.dumps({"format": FORMAT, **checkpoint.meta})
    tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"candid": meta})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_checkpoint(path: Path, device: torch.device | None = None) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ArtifactError: missing, truncated, not a checkpoint, or of another format.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: train first, or name another run")
    if not os.access(path, os.R_OK):
        raise ArtifactError(f"{path} cannot be read: give this user the permission")
    try:
        with safe_open(path, framework="pt", device=str(device or "cpu")) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ArtifactError(
            f"{path} is damaged or not a checkpoint ({error}); delete it and train again"
        ) from None
    if "candid" not in metadata:
        raise ArtifactError(f"{path} was not written by candid: name a checkpoint of a run")
    meta = json.loads(metadata["candid"])
    if meta.pop("format") != FORMAT:
        raise ArtifactError(f"{path} has another checkpoint format; train again with this version")
    return Checkpoint(tensors, meta)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """State of a model under ``model/``; a shared table is kept once, under its first name."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[f"model/{name}"] = tensor.detach()
    return tensors


class UnsetWeights(TorchFunctionMode):
    """While it is entered, random fills leave weights as memory has them.

    For a model that ``load_model`` sets: to draw hundreds of megabytes of random numbers, only to
    write over them, is most of the time that it takes to open a run.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Leave out what fills a tensor with random numbers; pass all else on."""
        kwargs = kwargs or {}
        if func in _RANDOM_FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_RANDOM_FILLS = frozenset(
    {
        Tensor.normal_,
        Tensor.uniform_,
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.trunc_normal_,
        nn.init.xavier_normal_,
        nn.init.xavier_uniform_,
        nn.init.kaiming_normal_,
        nn.init.kaiming_uniform_,
    }
)
"""Where a function of ``nn.init`` is left out, what it would call is never seen here."""


def load_model(
    model: nn.Module, checkpoint: Checkpoint, path: Path, *, averaged: bool = False
) -> None:
    """Put a checkpoint's parameters into ``model``.

    Args:
        model: of the same architecture.
        checkpoint: what was read.
        path: where from, for messages.
        averaged: take the running mean of the weights where there is one.

    Raises:
        ArtifactError: names or shapes differ: another architecture or another catalog.
    """
    expected = {name.removeprefix("model/"): t for name, t in model_tensors(model).items()}
    found = checkpoint.part("model")
    if averaged:
        found |= checkpoint.part("average")
    for name in sorted(expected.keys() ^ found.keys()):
        state = "lacks" if name in expected else "has an unknown"
        raise ArtifactError(f"{path} {state} parameter {name!r}: it belongs to another model")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise ArtifactError(
                f"{path} has {name!r} of shape {tuple(tensor.shape)}, this model and dataset "
                f"need {tuple(expected[name].shape)}: it belongs to another model or dataset"
            )
    model.load_state_dict(found, strict=False)


def load_loss(loss: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Load the state of a loss and its sampler from a checkpoint.

    Args:
        loss: with the settings of the run.
        checkpoint: its content.
        path: of the checkpoint, for messages.

    Raises:
        ArtifactError: it is the state of another loss or sampler.
    """
    try:
        loss.load_state_dict(checkpoint.part("loss"))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        raise ArtifactError(
            f"{path} has the state of another sampler ({reason}): resume with the [sampler] of "
            "the run"
        ) from None


def optimizer_tensors(model: nn.Module, optimizer: ModelOptimizer) -> dict[str, Tensor]:
    """State of an optimizer under ``optimizer/``, by parameter name."""
    return {
        f"optimizer/{name}/{key}": value
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for key, value in optimizer.state_of(parameter).items()
    }


def load_optimizer(model: nn.Module, optimizer: ModelOptimizer, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's moments into ``optimizer``.

    Raises:
        ArtifactError: they are those of another rule.
    """
    parameters = dict(model.named_parameters())
    for name, value in checkpoint.part("optimizer").items():
        parameter_name, key = name.rsplit("/", 1)
        parameter = parameters[parameter_name]
        if key not in optimizer.state_names(parameter):
            raise ArtifactError(
                f"the checkpoint has {key!r} of {parameter_name!r}, which training.optimizer and "
                "training.tables as they are now do not use: resume with those of the run"
            )
        target = value if key == "step" and not parameter.is_cuda else value.to(parameter.device)
        optimizer.state_of(parameter)[key] = target.clone()
