"""Item vectors of the last refresh, as state of a sampler that follows the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from candid.errors import ArtifactError, ConfigError
from candid.samplers.table_module import TableModule

T = TypeVar("T")


class ItemVectors(TableModule, Generic[T]):
    """The item vectors of the last refresh and the search structure built over them.

    The vectors are state: a resumed run continues with the stale vectors of the interrupted
    one. The structure is not: it is built again after a load and after a move to a device.

    Args:
        num_items: V.
        build: builds the structure (an index, a tree) over vectors [V, D].

    Attributes:
        vectors: [V, D] float32; [0, 0] before the first refresh.
    """

    extra_tensor_names: ClassVar[tuple[str, ...]] = ("vectors",)

    vectors: Tensor

    def __init__(self, num_items: int, build: Callable[[Tensor], T]) -> None:
        super().__init__()
        self._num_items = num_items
        self._build = build
        self._structure: T | None = None
        self.register_buffer("vectors", torch.empty(0, 0), persistent=False)

    def set(self, item_vectors: Tensor) -> None:
        """Store vectors [V, D], which must not change later, and build the structure.

        Raises:
            ConfigError: not [V, D].
            ArtifactError: a vector is not finite; names the item.
        """
        self.vectors = checked_item_vectors(item_vectors, self._num_items)
        self._structure = self._build(self.vectors)

    @property
    def structure(self) -> T:
        """The structure over the stored vectors.

        Raises:
            ConfigError: before the first refresh.
        """
        if self._structure is None:
            if not len(self.vectors):
                raise ConfigError(
                    "this sampler follows the model and has no item vectors yet: call "
                    "refresh(item_vectors) before the first sample"
                )
            self._structure = self._build(self.vectors)
        return self._structure

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """Return the vectors, nothing before the first refresh."""
        return {"vectors": self.vectors} if len(self.vectors) else {}

    def set_extra_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Store the vectors of a state, if it has any."""
        if "vectors" not in state:
            return
        if len(state["vectors"]) != self._num_items:
            raise ArtifactError(
                f"the stored sampler has {len(state['vectors'])} item vectors, but the catalog "
                f"has {self._num_items} items: load the state of the same catalog"
            )
        self.vectors = state["vectors"].to(self.vectors.device, copy=True)
        self._structure = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._structure = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_structure": None}


def checked_item_vectors(item_vectors: Tensor, num_items: int) -> Tensor:
    """Return the vectors [V, D] of a catalog, detached, in float32.

    Raises:
        ConfigError: not a matrix with a row for each of the ``num_items`` items.
        ArtifactError: a vector is not finite; names the item.
    """
    if item_vectors.ndim != 2 or len(item_vectors) != num_items:
        raise ConfigError(
            f"item_vectors must be [{num_items}, D], a row for each item of the catalog, got "
            f"{list(item_vectors.shape)}"
        )
    vectors = item_vectors.detach().float()
    # The sum is finite only if every number is, except for an overflow: then check each row.
    if not bool(torch.isfinite(vectors.sum())):
        bad = torch.nonzero(~torch.isfinite(vectors).all(dim=1))[:, 0]
        if len(bad):
            raise ArtifactError(
                f"the vector of item {int(bad[0])} (row {int(bad[0])} of the item vectors) holds "
                f"NaN or infinite values, as do {len(bad)} of {num_items} in total: the model has "
                "diverged; lower the learning rate or start from an earlier checkpoint"
            )
    return vectors
