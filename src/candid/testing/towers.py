"""Checks of the contract that every query or item tower must keep."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from candid.batches import Queries, pack_histories
from candid.component import type_name
from candid.features import Bags, Codes, FeatureTable, Numbers, Values
from candid.towers.embedding import ItemEmbedding
from candid.towers.protocol import ItemTower, QueryTower, TowerConfig, TowerContext
from candid.towers.registry import TOWERS

U, V, L, D = 7, 11, 5, 8
"""Users, items, longest history and width that the checks use."""

HISTORIES: Final = ([1, 2, 3], [4], [5, 6, 6, 1])


def check_tower(tower: Any, *, is_registered: bool = True, **settings: Any) -> None:
    """Check that a tower keeps the promises of ``QueryTower`` or ``ItemTower``.

    The dataset of the checks has user, item and context features, two event types and times.

    Args:
        tower: class with a nested ``Config``, or a config.
        is_registered: also write the config as a table and read it back, which needs the
            registered name.
        settings: keywords of the ``Config`` of a class, such as those without a default; ``dim``
            is 8 if the config has it.

    Raises:
        AssertionError: a promise is broken; the message states which one.

    Example:
        >>> from candid.towers import UserEmbedding
        >>> check_tower(UserEmbedding)
    """
    config = tower
    if not isinstance(tower, TowerConfig):
        width = {"dim": D} if "dim" in tower.Config.model_fields else {}
        config = tower.Config(**width | settings)
    _check_config(config, is_registered)
    built = build_tower(config)
    for name, check in (ITEM_CHECKS if isinstance(built, ItemTower) else QUERY_CHECKS).items():
        try:
            check(config)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


def tower_context(seed: int = 0) -> TowerContext:
    """Return the dataset of the checks; another ``seed`` gives other feature values."""
    return TowerContext(
        num_users=U,
        num_items=V,
        max_length=L,
        item_features=FeatureTable({}, {}, feature_values(V, seed)),
        user_features=FeatureTable({}, {}, feature_values(U, seed)),
        context_features=FeatureTable({}, {}, {"gap": Numbers(torch.zeros(0, 2))}),
        num_event_types=2,
        has_times=True,
        item_is_trained=torch.arange(V) != 3,
    )


def feature_values(num_rows: int, seed: int = 0) -> dict[str, Values]:
    """Return features of each form: codes, hashes, bags (the first one empty) and numbers."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (num_rows,), generator=generator)
    lengths[0] = 0
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return {
        "type": Codes(torch.randint(0, 6, (num_rows, 1), generator=generator), 6),
        "city": Codes(torch.randint(0, 9, (num_rows, 3), generator=generator), 9),
        "genres": Bags(torch.randint(0, 5, (int(offsets[-1]),), generator=generator), offsets, 5),
        "age": Numbers(torch.randn(num_rows, 2, generator=generator)),
    }


def build_tower(config: TowerConfig, context: TowerContext | None = None) -> Any:
    """Build a tower for the dataset of the checks, in evaluation mode, with a fixed seed."""
    context = context or tower_context()
    torch.manual_seed(0)
    items = ItemEmbedding.Config(dim=getattr(config, "dim", D)).build(context)
    torch.manual_seed(1)
    return config.build(dataclasses.replace(context, item_tower=items)).eval()


def make_queries(
    histories: tuple[list[int], ...] = HISTORIES,
    *,
    user_ids: tuple[int, ...] | None = None,
    gap: float = 0.0,
    rows: slice = slice(None),
) -> Queries:
    """Return queries of users 0, 1, … with histories and a context.

    Args:
        histories: item ids of each query.
        user_ids: of each query; None: 0, 1, ….
        gap: added to the context feature.
        rows: queries to return.
    """
    users = np.arange(len(histories)) if user_ids is None else np.array(user_ids)
    users, histories = users[rows].astype(np.int64), histories[rows]
    lengths = np.array([len(history) for history in histories])
    items = np.concatenate([np.array(history, dtype=np.int64) for history in histories])
    numbers = np.stack([users % 3 + gap, users], axis=1)
    return pack_histories(
        users,
        items,
        lengths,
        event_types=torch.from_numpy(items % 2 + 1),
        times=torch.from_numpy(1_000_000 * items**2).cumsum(0),
        context={"gap": Numbers(torch.from_numpy(numbers).float())},
    )


def _check_config(config: TowerConfig, is_registered: bool) -> None:
    for key, field in type(config).model_fields.items():
        _check(bool(field.description), f"the setting {key} must have a description")
    if is_registered:
        table = config.model_dump(mode="json")
        again = TOWERS[type_name(TOWERS, "tower", config)].Config.model_validate(table)
        _check(again == config, "a config must be the same after a round trip through a table")


def _check_item_shapes(config: TowerConfig) -> None:
    tower = build_tower(config)
    ids = torch.tensor([3, 0, 3, 10])
    vectors, catalog = tower(ids), tower.catalog()
    _check(tower.num_items == V, f"num_items must be {V}, got {tower.num_items}")
    _check_shape(vectors, (4, tower.dim), "forward")
    _check_shape(catalog, (V, tower.dim), "catalog")
    _check_close(vectors, catalog[ids], "forward must return the rows of catalog")
    _check(len(tower(ids[:0])) == 0, "forward must accept zero items")


def _check_item_features(config: TowerConfig) -> None:
    first, second = build_tower(config), build_tower(config, tower_context(seed=1))
    second.load_state_dict(first.state_dict())
    differs = not torch.equal(first.catalog(), second.catalog())
    _check_flag(first.reads_features, differs, "reads_features", "the features of the items")
    if not first.reads_features:
        return
    values = feature_values(V)
    new = first.encode_values(values)
    _check_shape(new, (V, first.dim), "encode_values")
    ids = torch.arange(V)
    _check_close(first.encode_values(values, ids), first.catalog(), "encode_values(values, ids)")


def _check_query_shapes(config: TowerConfig) -> None:
    tower = build_tower(config)
    together = tower(make_queries())
    _check_shape(together, (len(HISTORIES), tower.dim), "forward")
    alone = [tower(make_queries(rows=slice(row, row + 1))) for row in range(len(HISTORIES))]
    _check_close(together, torch.cat(alone), "a query must be encoded alone as among others")


def _check_query_flags(config: TowerConfig) -> None:
    tower = build_tower(config)
    vectors = tower(make_queries())
    other = tower(make_queries(([7, 8, 9], [10], [0, 2, 9, 9])))
    differs = not torch.equal(vectors, other)
    _check_flag(tower.reads_history, differs, "reads_history", "the history")
    differs = not torch.equal(vectors, tower(make_queries(gap=5.0)))
    _check_flag(tower.reads_context, differs, "reads_context", "the context")
    second = build_tower(config, tower_context(seed=1))
    second.load_state_dict(tower.state_dict())
    differs = not torch.equal(vectors, second(make_queries()))
    _check_flag(
        tower.reads_user_features, differs, "reads_user_features", "the features of the user"
    )
    if not tower.needs_history:
        empty = tower(make_queries(([], [4], [])))
        _check(bool(empty.isfinite().all()), "needs_history is False: accept an empty history")
    if not tower.needs_user:
        unknown = tower(make_queries(user_ids=(-1, -1, -1)))
        _check(bool(unknown.isfinite().all()), "needs_user is False: accept user id -1")


def _check_query_positions(config: TowerConfig) -> None:
    tower = build_tower(config)
    if not tower.reads_history:
        return
    whole = make_queries()
    history = whole.history
    assert history is not None
    cuts = [(row, stop) for row, items in enumerate(HISTORIES) for stop in range(1, len(items) + 1)]
    rows = torch.tensor([row for row, _ in cuts])
    positions = history.offsets[rows] + torch.tensor([stop - 1 for _, stop in cuts])
    assert whole.context is not None
    queries = dataclasses.replace(
        whole,
        user_ids=whole.user_ids[rows],
        context={name: values.take(rows) for name, values in whole.context.items()},
        history=dataclasses.replace(history, query_positions=positions),
    )
    vectors = tower(queries)
    _check_shape(vectors, (len(cuts), tower.dim), "forward with several queries per history")
    prefixes = make_queries(
        tuple(HISTORIES[row][:stop] for row, stop in cuts),
        user_ids=tuple(row for row, _ in cuts),
    )
    _check_close(
        vectors,
        tower(prefixes),
        "a query must read its history up to query_positions, and no later interaction",
    )


def _check_empty_histories(config: TowerConfig) -> None:
    context = dataclasses.replace(tower_context(), empty_histories=True)
    tower = build_tower(config, context)
    if not tower.needs_history:
        vectors = tower(make_queries(([], [4], [])))
        _check_shape(vectors, (3, tower.dim), "forward with empty histories")


def _check_gradients(config: TowerConfig) -> None:
    tower = build_tower(config).train()
    vectors = _encode(tower)
    _check(bool(vectors.isfinite().all()), "vectors must be finite in training mode")
    (vectors * torch.randn(vectors.shape)).sum().backward()
    parameters = dict(tower.named_parameters())
    trained = [n for n, p in parameters.items() if p.grad is not None and bool(p.grad.any())]
    _check(bool(trained) or not parameters, "backward must give a gradient to a parameter")


def _check_state(config: TowerConfig) -> None:
    tower, other = build_tower(config), build_tower(config)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    other.load_state_dict(tower.state_dict())
    same = torch.equal(_encode(other), _encode(tower))
    _check(same, "a tower with the state_dict of another must return the same vectors")
    _check(torch.equal(_encode(tower), _encode(tower)), "eval mode must be deterministic")


def _encode(tower: nn.Module) -> Tensor:
    if isinstance(tower, ItemTower):
        return tower.catalog()
    assert isinstance(tower, QueryTower)
    vectors: Tensor = tower(make_queries())
    return vectors


ITEM_CHECKS: Final = {
    "shapes": _check_item_shapes,
    "features": _check_item_features,
    "gradients": _check_gradients,
    "state": _check_state,
}
QUERY_CHECKS: Final = {
    "shapes": _check_query_shapes,
    "flags": _check_query_flags,
    "query positions": _check_query_positions,
    "empty histories": _check_empty_histories,
    "gradients": _check_gradients,
    "state": _check_state,
}


def _check_shape(vectors: Tensor, shape: tuple[int, ...], name: str) -> None:
    _check(tuple(vectors.shape) == shape, f"{name} must return {shape}, got {vectors.shape}")
    _check(vectors.dtype == torch.float32, f"{name} must return float32, got {vectors.dtype}")


def _check_close(vectors: Tensor, expected: Tensor, message: str) -> None:
    close = torch.allclose(vectors, expected, rtol=1e-4, atol=1e-5)
    _check(close, f"{message}; largest difference {_largest(vectors, expected)}")


def _largest(first: Tensor, second: Tensor) -> float:
    return float((first - second).detach().abs().max())


def _check_flag(flag: bool, depends: bool, name: str, on: str) -> None:
    _check(flag or not depends, f"{name} is False, but the vectors depend on {on}; set it to True")
    _check(depends or not flag, f"{name} is True, but the vectors do not depend on {on}")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
