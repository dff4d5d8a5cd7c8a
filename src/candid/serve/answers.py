"""Answers as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice

import numpy as np
from pydantic_core import to_json

from candid.serve.errors import RequestError
from candid.serve.items import ItemTable
from candid.serve.search import TopItems

Result = bytes | RequestError
"""The JSON of one answer, or the error of its query."""


def write_answers(
    results: Sequence[TopItems | RequestError],
    *,
    items: ItemTable,
    model: str,
    version: int,
    include_attributes: Sequence[bool],
    ignored: Sequence[int],
    log_z: Mapping[int, float],
    recommended_by: Sequence[str],
) -> list[Result]:
    """Write the JSON of several answers; the items of all of them are looked up at once.

    Args:
        results: of each query.
        items: describes the items.
        model: name of the model.
        version: of the model.
        include_attributes: of each query.
        ignored: of each query, the number of unknown items in its history.
        log_z: log partition by position of a query, where probabilities are wanted.
        recommended_by: of each query, "model" or the name of a fallback.
    """
    # [0]: items without attributes, [1]: items with attributes.
    item_ids: list[list[int]] = [[], []]
    for with_attributes, result in zip(include_attributes, results, strict=True):
        if not isinstance(result, RequestError):
            item_ids[with_attributes] += result[0].tolist()
    texts = [iter(items.describe_json(ids, bool(which))) for which, ids in enumerate(item_ids)]
    begin = to_json({"model": model, "version": version}).decode()[:-1]
    answers: list[Result] = []
    for position, result in enumerate(results):
        if isinstance(result, RequestError):
            answers.append(result)
            continue
        scores = result[1].astype(np.float64)
        has_probability = position in log_z
        columns = [islice(texts[include_attributes[position]], len(scores)), scores.tolist()]
        if has_probability:
            columns.append(np.exp(np.minimum(scores - log_z[position], 0.0)).tolist())
        template = _items_template(len(scores), has_probability)
        entries = template % tuple(chain.from_iterable(zip(*columns, strict=True)))
        answers.append(
            f'{begin},"items":[{entries}],"ignored":{ignored[position]},'
            f'"recommended_by":"{recommended_by[position]}"}}'.encode()
        )
    return answers


@lru_cache(maxsize=128)
def _items_template(count: int, has_probability: bool) -> str:
    """Return one %-format for ``count`` ranked items: description, score and probability of each.

    Nine digits distinguish any two float32.
    """
    probability = "%.7g" if has_probability else "null"
    return ",".join(
        f'%s,"rank":{rank},"score":%.9g,"probability":{probability}}}'
        for rank in range(1, count + 1)
    )
