"""Checks of the contract that every index must keep, on vectors with known results."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import polars as pl
import torch
from torch import Tensor

from candid.errors import ArtifactError, ConfigError
from candid.index import (
    Exclusions,
    IndexConfig,
    LiveIndex,
    SearchResult,
    open_snapshot,
    write_snapshot,
)

MIN_RECALL = 0.9
"""Recall that every index must reach where each query has about 100 clear neighbours."""


def check_index(index: Any, *, is_registered: bool = True) -> None:
    """Check that an index keeps the promises of ``candid.index.Index``.

    Args:
        index: the class, whose ``Config`` must have a default for each setting, or a config.
        is_registered: also write a snapshot and open it, which needs the registered name.

    Raises:
        AssertionError: a promise is broken; the message states which one.

    Example:
        >>> from candid.index import ExactIndex
        >>> check_index(ExactIndex)
    """
    config: IndexConfig = index if isinstance(index, IndexConfig) else index.Config()
    for name, check in CHECKS.items():
        if is_registered or name != "snapshot":
            check(config)


def _check_known_answer(config: IndexConfig) -> None:
    index = config.build(_checkerboard())
    _check(index.num_items == 12, f"num_items must be 12, not {index.num_items}")
    result = index.search(torch.eye(2), 3)
    _check_equal(result.item_ids, [[10, 8, 6], [11, 9, 7]], "item_ids of the nearest 3 items")
    _check_equal(result.scores, [[11.0, 9.0, 7.0], [12.0, 10.0, 8.0]], "scores")
    _check(result.item_ids.dtype == torch.int64, "item_ids must be int64")
    _check(result.scores.dtype == torch.float32, "scores must be float32")


def _check_recall(config: IndexConfig) -> None:
    items, query = _clusters(3000, 64)
    result = config.build(items).search(query, 10)
    recall = _recall(result, _exact_ids(query, items, 10))
    _check(recall >= MIN_RECALL, f"recall@10 must be at least {MIN_RECALL}, is {recall:.3f}")
    products = torch.einsum("bkd,bd->bk", items[result.item_ids], query)
    _check(
        torch.allclose(result.scores, products, rtol=1e-4, atol=1e-5),
        "scores must be the inner products of the query and the items",
    )
    _check(bool((result.scores.diff(dim=1) <= 0).all()), "scores must be in descending order")
    _check(
        all(len(set(row)) == 10 for row in result.item_ids.tolist()),
        "the items of a row must be distinct",
    )


def _check_exclusions(config: IndexConfig) -> None:
    index = config.build(_checkerboard())
    exclude = Exclusions(torch.tensor([8, 10, 11]), torch.tensor([0, 2, 3]))
    result = index.search(torch.eye(2), 2, exclude)
    _check_equal(result.item_ids, [[6, 4], [9, 7]], "item_ids without the excluded items")
    items, query = _clusters(3000, 8)
    exact = _exact_ids(query, items, 30)
    exclude = Exclusions(exact[:, :20].flatten(), torch.arange(0, 161, 20))
    result = config.build(items).search(query, 10, exclude)
    returned = [
        set(row) & set(excluded)
        for row, excluded in zip(result.item_ids.tolist(), exact[:, :20].tolist(), strict=True)
    ]
    _check(not any(returned), f"excluded items were returned: {returned}")
    recall = _recall(result, exact[:, 20:])
    _check(recall >= 0.8, f"recall@10 beside 20 exclusions must be at least 0.8, is {recall:.3f}")


def _check_short_rows(config: IndexConfig) -> None:
    exclude = Exclusions(torch.arange(11), torch.tensor([0, 11]))
    result = config.build(_checkerboard()).search(torch.ones(1, 2), 3, exclude)
    _check_equal(result.item_ids, [[11, -1, -1]], "item_ids of a row with one allowed item")
    _check_equal(result.scores, [[12.0, -torch.inf, -torch.inf]], "its scores")


def _check_bounds(config: IndexConfig) -> None:
    index = config.build(_checkerboard())
    for k in (0, 13):
        try:
            index.search(torch.eye(2), k)
        except ConfigError as error:
            _check(f"{k}" in str(error) and "12" in str(error), f"no bounds in: {error}")
        else:
            raise AssertionError(f"k {k} of 12 items must raise ConfigError")
    empty = index.search(torch.empty(0, 2), 3)
    _check(
        empty.item_ids.shape == empty.scores.shape == (0, 3),
        f"a search without queries must return [0, 3], not {list(empty.item_ids.shape)}",
    )


def _check_arguments_unchanged(config: IndexConfig) -> None:
    exclude = Exclusions(torch.tensor([8, 3, 8, 11]), torch.tensor([0, 3, 4]))
    arguments = {
        "item_vectors": _checkerboard(),
        "query": torch.eye(2),
        "exclude.item_ids": exclude.item_ids,
        "exclude.offsets": exclude.offsets,
    }
    before = {name: tensor.clone() for name, tensor in arguments.items()}
    config.build(arguments["item_vectors"]).search(arguments["query"], 3, exclude)
    for name, tensor in arguments.items():
        _check(torch.equal(tensor, before[name]), f"the argument {name} must not change")


def _check_threads(config: IndexConfig) -> None:
    items, query = _clusters(1500, 40)
    index = config.build(items)
    expected = index.search(query, 5).item_ids
    item_ids: dict[int, Tensor] = {}

    def search(row: int) -> None:
        item_ids[row] = index.search(query[row : row + 1], 5).item_ids[0]

    threads = [threading.Thread(target=search, args=(row,)) for row in range(len(query))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _check(
        torch.equal(torch.stack([item_ids[row] for row in range(len(query))]), expected),
        "searches in several threads must return the results of one search",
    )


def _check_changes(config: IndexConfig) -> None:
    items, query = _clusters(1200, 8)
    live = LiveIndex(config.build(items), items)
    best = _exact_ids(query, items, 1)[:, 0]
    live.delete(best)
    _check(
        not bool(torch.isin(live.search(query, 5).item_ids, best).any()),
        "LiveIndex returned a deleted item",
    )
    added = live.add(3 * query)
    nearest = live.search(3 * query, 1).item_ids[:, 0]
    _check(
        torch.equal(nearest, _exact_ids(query, query, 1)[:, 0] + 1200),
        "LiveIndex must return added items",
    )
    live.update(best[:1], 9 * query[:1])
    _check(
        int(live.search(query[:1], 1).item_ids) == int(best[0]),
        "LiveIndex must search the new vector of an updated item",
    )
    exclude = Exclusions(torch.stack([best[0], added[0]]), torch.tensor([0, 2]))
    result = live.search(query[:1], 5, exclude)
    _check(
        not bool(torch.isin(result.item_ids, exclude.item_ids).any()),
        "LiveIndex returned an excluded item",
    )


def _check_snapshot(config: IndexConfig) -> None:
    items, query = _clusters(1200, 8)
    index = config.build(items)
    source_ids = pl.Series("source_id", [f"i{n}" for n in range(1200)])
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "index"
        write_snapshot(folder, index, items, source_ids, config=config, fingerprint="model")
        snapshot = open_snapshot(folder, fingerprint="model", verify=True)
        _check(snapshot.config == config, f"the opened config differs: {snapshot.config}")
        expected, result = index.search(query, 10), snapshot.index.search(query, 10)
    _check(
        torch.equal(result.item_ids, expected.item_ids)
        and torch.equal(result.scores, expected.scores),
        "the opened index must return the results of the written one",
    )


def _check_file(config: IndexConfig) -> None:
    items, _ = _clusters(1200, 1)
    index = config.build(items)
    if not index.has_file:
        return
    with tempfile.TemporaryDirectory() as root:
        whole, damaged = Path(root) / "whole", Path(root) / "damaged"
        index.save(whole)
        content = whole.read_bytes()
        for wrong in (b"", content[: len(content) // 2], b"another format" * 9):
            damaged.write_bytes(wrong)
            _check_refused(config, items, damaged, "is damaged")
        _check_refused(config, items[:1100], whole, "1200 items")


def _check_parts(config: IndexConfig) -> None:
    if not config.has_parts:
        return
    items, query = _clusters(1200, 20)
    with tempfile.TemporaryDirectory() as root:
        trained, *parts, file = (Path(root) / name for name in ("trained", "0", "1", "2", "file"))
        config.train_parts(items, trained)
        for part, rows in zip(parts, (slice(500), slice(500, 500), slice(500, None)), strict=True):
            config.build_part(items[rows], trained, part)
        config.merge_parts(parts, file)
        expected = config.build(items).search(query, 10)
        result = config.open(items, file).search(query, 10)
    _check(
        torch.equal(result.item_ids, expected.item_ids)
        and torch.equal(result.scores, expected.scores),
        "merged parts must return the results of an index that was built whole",
    )


def _check_refused(config: IndexConfig, items: Tensor, file: Path, words: str) -> None:
    try:
        config.open(items, file)
    except ArtifactError as error:
        _check(words in str(error), f"the message must contain {words!r}: {error}")
    else:
        raise AssertionError(f"Config.open must raise ArtifactError for a file that {words}")


def _check_tuning(config: IndexConfig) -> None:
    items, query = _clusters(3000, 32)
    index, exact = config.build(items), _exact_ids(query, items, 20)
    axes = index.tuning_axes(20)
    if not axes:
        recall = _recall(index.search(query, 20), exact)
        _check(recall == 1, f"an index without tuning_axes must be exact, recall is {recall:.3f}")
        return
    unknown = set(axes) - set(type(config).model_fields)
    _check(not unknown, f"tuning_axes must be config keys: {unknown}")
    for name, values in axes.items():
        _check(list(values) == sorted(set(values)), f"values of {name} must ascend: {values}")
    least, most = (
        _recall(
            index.with_settings(**{name: values[end] for name, values in axes.items()}).search(
                query, 20
            ),
            exact,
        )
        for end in (0, -1)
    )
    _check(
        most >= max(least, 0.95),
        f"the last values of tuning_axes must reach recall 0.95 and that of the first values: "
        f"{most:.3f} after {least:.3f}",
    )
    try:
        index.with_settings(no_such_setting=1.0)
    except ConfigError:
        return
    raise AssertionError("with_settings must raise ConfigError for an unknown setting")


def _check_config(config: IndexConfig) -> None:
    fields = type(config).model_fields
    missing = [name for name, field in fields.items() if not field.description]
    _check(not missing, f"config fields without a description: {missing}")
    try:
        type(config).model_validate({"no_such_key": 1})
    except (ValueError, ConfigError):
        return
    raise AssertionError("the config must refuse unknown keys: derive it from IndexConfig")


CHECKS: Final[dict[str, Callable[[IndexConfig], None]]] = {
    "known_answer": _check_known_answer,
    "recall": _check_recall,
    "exclusions": _check_exclusions,
    "short_rows": _check_short_rows,
    "bounds": _check_bounds,
    "arguments_unchanged": _check_arguments_unchanged,
    "threads": _check_threads,
    "changes": _check_changes,
    "snapshot": _check_snapshot,
    "file": _check_file,
    "parts": _check_parts,
    "tuning": _check_tuning,
    "config": _check_config,
}
"""The single checks of ``check_index`` by name."""


def _checkerboard(num_items: int = 12) -> Tensor:
    """Return even items along the first axis, odd ones along the second; length 1 + id."""
    vectors = torch.zeros(num_items, 2)
    ids = torch.arange(num_items)
    vectors[ids, ids % 2] = 1.0 + ids
    return vectors


def _clusters(num_items: int, num_queries: int, dim: int = 16) -> tuple[Tensor, Tensor]:
    """Return items and queries around 30 centres: each query has about 100 near items."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(30, dim, generator=generator))

    def around(count: int) -> Tensor:
        noise = 0.1 * torch.randn(count, dim, generator=generator)
        return centres[torch.randint(30, (count,), generator=generator)] + noise

    return around(num_items), around(num_queries)


def _exact_ids(query: Tensor, items: Tensor, k: int) -> Tensor:
    return (query.double() @ items.double().T).topk(k).indices


def _recall(result: SearchResult, expected: Tensor) -> float:
    rows = zip(result.item_ids.tolist(), expected.tolist(), strict=True)
    return sum(len(set(row) & set(exact)) for row, exact in rows) / expected.numel()


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _check_equal(tensor: Tensor, expected: list[list[Any]], name: str) -> None:
    _check(tensor.tolist() == expected, f"{name} must be {expected}, not {tensor.tolist()}")
