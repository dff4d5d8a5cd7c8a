"""Checkpoints: one safetensors file with everything that an exact resume needs.

    model/<name>             parameters and buffers
    average/<name>           running mean of the parameters, if there is one
    average_step/<name>      of a row-wise trained table: the step that the mean of each row has
                             reached, [V] int64; ``Checkpoint.average`` has the mean after the last
    optimizer/<name>/<key>   the optimizer's state of a parameter
    random/<name>            states of the random generators
    loss/<name>              state of the loss and its sampler
    metadata["candid"]       JSON: the rest (loader position, best value so far, fingerprints), and
                             the checksum of everything

The file is written completely or not at all. It is not a pickle: opening it runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from candid.atomic import replacing
from candid.checksums import SEAL, is_verifying, read_error
from candid.errors import ArtifactError
from candid.json_text import parse_json
from candid.towers import sharded_tables
from candid.training.mean_decay import MeanDecay
from candid.training.optimizer import ModelOptimizer

FORMAT: Final = 3
"""Version of the layout above; another one is refused."""

RUN: Final = "run"
"""Key in the metadata, and in ``run.json``, of the id of the run that wrote a checkpoint."""

AVERAGE_DECAY: Final = "average_decay"
"""Key in the metadata: decay of the running mean, where there is an ``average_step``."""

RESTORE: Final = "restore it from a copy, or train again"


class DamagedCheckpointError(ArtifactError):
    """A checkpoint that is missing or whose content is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        tensors: tensors by the names above.
        meta: plain JSON values.
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors below ``prefix/``, by their names without it."""
        start = prefix + "/"
        return {
            name.removeprefix(start): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(start)
        }

    def average(self) -> dict[str, Tensor]:
        """Return the running mean of the parameters after the last step; empty without one."""
        means = self.part("average")
        for name, since in self.part("average_step").items():
            decay, step = MeanDecay(self.meta[AVERAGE_DECAY]), self.meta["state"]["step"]
            weights = self.tensors[f"model/{name}"]
            means[name] = decay.finished(means[name], weights, since, step)
        return means


def write_checkpoint(
    path: Path | str, checkpoint: Checkpoint, *, keep: Path | str | None = None
) -> None:
    """Write a checkpoint to a temporary file, sync it, and rename it to ``path``.

    Args:
        path: the file; a missing folder is created.
        checkpoint: its content; tensors may be on any device.
        keep: name that an earlier file at ``path`` gets; None: it is removed.

    Raises:
        ArtifactError: the file cannot be written.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
    content = {"format": FORMAT, **checkpoint.meta}
    meta = json.dumps({**content, SEAL: _checksum(tensors.items(), json.dumps(content))})
    with replacing(Path(path)) as temporary:
        try:
            save_file(tensors, temporary, metadata={"candid": meta})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        if keep is not None and Path(path).exists():
            _keep(Path(path), Path(keep))


def _keep(path: Path, keep: Path) -> None:
    """Give a file a second name; where the file system has no links, another name."""
    link = keep.with_name(f".{keep.name}.{uuid.uuid4().hex}.tmp")
    try:
        link.hardlink_to(path)
    except OSError:
        path.replace(keep)
        return
    try:
        link.replace(keep)
    finally:
        # Renaming one name of a file to another name of it does nothing.
        link.unlink(missing_ok=True)


def read_checkpoint(
    path: Path | str, device: torch.device | None = None, *, run: str | None = None
) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: the file.
        device: device of the tensors; None for the CPU.
        run: id of the run that wrote it, from ``run.json``; None: any run.

    Raises:
        DamagedCheckpointError: the file is missing, cut short or damaged, or of another run.
        ArtifactError: it is not a checkpoint, or one of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise DamagedCheckpointError(f"{path} does not exist: train first, or choose another run")
    if not os.access(path, os.R_OK):
        raise ArtifactError(f"{path} cannot be read: give this user read permission")
    try:
        with safe_open(path, framework="pt", device=str(device or "cpu")) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, MemoryError) as error:
        raise read_error(path, error) from error
    except SafetensorError as error:
        raise DamagedCheckpointError(
            f"{path} is damaged or not a checkpoint ({error}): {RESTORE}"
        ) from None
    if "candid" not in metadata:
        raise ArtifactError(f"{path} was not written by candid: choose a checkpoint of a run")
    try:
        meta = parse_json(metadata["candid"])
        seal = meta.pop(SEAL, None)
        text = json.dumps(meta)
        version = meta.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedCheckpointError(f"{path} is damaged: {RESTORE}") from None
    if version != FORMAT:
        raise ArtifactError(
            f"{path} has the checkpoint format of another version of candid: train again"
        )
    if is_verifying() and seal != _checksum(tensors.items(), text):
        raise DamagedCheckpointError(f"{path} differs from its checksum: {RESTORE}")
    if is_verifying() and run is not None and meta.get(RUN) != run:
        raise DamagedCheckpointError(
            f"{path} is not of the run that run.json beside it describes: {RESTORE}"
        )
    return Checkpoint(tensors, meta)


def check_has_training_state(checkpoint: Checkpoint, path: Path | str) -> None:
    """Refuse a checkpoint with weights only, such as a copy of the best one, to continue from.

    Args:
        checkpoint: its content.
        path: of the checkpoint, for the message.

    Raises:
        DamagedCheckpointError: it has no state of a training.
    """
    if not {"state", "position"} <= checkpoint.meta.keys():
        raise DamagedCheckpointError(
            f"{path} holds weights only, not the state of a training: {RESTORE}"
        )


def hash_entry(name: str, dtype: torch.dtype, shape: Iterable[int]) -> bytes:
    """Return what the checksum of a checkpoint covers of a tensor, before its values."""
    return f"{name} {dtype} {list(shape)}".encode()


def _checksum(tensors: Iterable[tuple[str, Tensor]], meta: str) -> str:
    """Return the checksum of a checkpoint.

    Args:
        tensors: by name, on the CPU or another device.
        meta: JSON text of the rest.
    """
    digest = hashlib.sha256(meta.encode())
    for name, tensor in sorted(tensors, key=itemgetter(0)):
        digest.update(hash_entry(name, tensor.dtype, tensor.shape))
        # As bytes: NumPy has no bfloat16.
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model under ``model/``; a shared table once, by its first name."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[f"model/{name}"] = tensor.detach()
    return tensors


class UnsetWeights(TorchFunctionMode):
    """A context in which random initialisation leaves weights uninitialised.

    For a model whose weights ``load_model`` sets: initialising hundreds of megabytes with random
    numbers that are overwritten is most of the time of opening a run.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Skip functions that fill a tensor with random numbers; call every other function."""
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
"""A skipped function of ``nn.init`` does not call the tensor methods above."""


def load_model(
    model: nn.Module,
    checkpoint: Checkpoint,
    path: Path | str,
    *,
    averaged: bool = False,
    mapped: bool = False,
) -> None:
    """Load the parameters of a checkpoint into ``model``; a sharded table loads its own rows.

    Args:
        model: of the same architecture.
        checkpoint: its content.
        path: of the checkpoint, for messages.
        averaged: use the running mean of the weights, if there is one.
        mapped: take the tensors of the checkpoint as parameters instead of copies of them, except
            those of another dtype: on the CPU they stay in the file until they are read.

    Raises:
        ArtifactError: names or shapes differ: another architecture or another catalog.
    """
    expected = {name.removeprefix("model/"): t for name, t in model_tensors(model).items()}
    stored = checkpoint.part("model")
    if averaged:
        stored |= checkpoint.average()
    for name in sorted(expected.keys() ^ stored.keys()):
        state = "lacks" if name in expected else "has an unknown"
        raise ArtifactError(f"{path} {state} parameter {name!r}: it belongs to another model")
    for name, table in sharded_tables(model).items():
        stored[name] = table.own_part(stored[name])
    for name, tensor in stored.items():
        if tensor.shape != expected[name].shape:
            raise ArtifactError(
                f"{path} has {name!r} of shape {tuple(tensor.shape)}, this model and dataset "
                f"need {tuple(expected[name].shape)}: it belongs to another model or dataset"
            )
    for name, parameter in model.named_parameters() if mapped else ():
        if name in stored and stored[name].dtype == parameter.dtype:
            parameter.data = stored.pop(name)
    model.load_state_dict(stored, strict=False)


def load_loss(loss: nn.Module, checkpoint: Checkpoint, path: Path | str) -> None:
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
    """Return the state of an optimizer under ``optimizer/``, by parameter name."""
    return {
        f"optimizer/{name}/{key}": value
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for key, value in optimizer.state_of(parameter).items()
    }


def load_optimizer(model: nn.Module, optimizer: ModelOptimizer, checkpoint: Checkpoint) -> None:
    """Load the optimizer state of a checkpoint into ``optimizer``, by parameter name.

    Raises:
        ArtifactError: they belong to another optimizer.
    """
    parameters, tables = dict(model.named_parameters()), sharded_tables(model)
    for name, value in checkpoint.part("optimizer").items():
        parameter_name, key = name.rsplit("/", 1)
        parameter = parameters[parameter_name]
        if key not in optimizer.state_names(parameter):
            raise ArtifactError(
                f"the checkpoint has {key!r} of {parameter_name!r}, which the present settings of "
                "training.optimizer and training.tables do not use: resume with those of the run"
            )
        if parameter_name in tables:
            value = tables[parameter_name].own_part(value)
        target = value if key == "step" and not parameter.is_cuda else value.to(parameter.device)
        optimizer.state_of(parameter)[key] = target.clone()
