"""Checks of the contract that every loss must keep."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from candid.candidates import Candidates
from candid.errors import ConfigError
from candid.losses.config import LossConfig
from candid.losses.output import LossOutput
from candid.losses.registry import LOSSES
from candid.samplers.exact_popular import ExactPopular
from candid.samplers.in_batch import InBatch
from candid.samplers.mixture import Mixture
from candid.samplers.sampler import Sampler, sample_groups
from candid.samplers.uniform import Uniform

V, B, D = 12, 7, 4
"""Items, rows and width of the vectors that the checks use."""

POSITIVE_IDS: Final = (0, 1, 1, 5, 7, 2, 0)
USER_IDS: Final = (0, 0, 1, 2, 2, 3, 4)


def check_loss(loss: Any, *, is_registered: bool = True) -> None:
    """Check that a loss keeps the promises of ``candid.losses.Loss`` and ``LossConfig``.

    Args:
        loss: the class, whose ``Config`` must have a default for each setting, or a config.
        is_registered: also write the config as a table and read it back, which needs the
            registered name.

    Raises:
        AssertionError: a promise is broken; the message states which one.

    Example:
        >>> from candid.losses import BCE
        >>> check_loss(BCE)
    """
    config: LossConfig = loss if isinstance(loss, LossConfig) else loss.Config()
    for name, check in CHECKS.items():
        if is_registered or name != "registry":
            check(config)


def loss_inputs() -> tuple[Tensor, Tensor, Tensor, Candidates]:
    """Return query [B, D], item table [V, D], positive ids [B] and candidates, always the same.

    The candidates are uniform samples and the other rows' positives.
    """
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(B, D, generator=generator).requires_grad_()
    items = torch.randn(V, D, generator=generator).requires_grad_()
    positive_ids, user_ids = torch.tensor(POSITIVE_IDS), torch.tensor(USER_IDS)
    candidates = _mixture().sample(positive_ids, user_ids, generator=generator)
    return query, items, positive_ids, candidates


def check_groups(config: LossConfig, sampler: Sampler, num_groups: int) -> None:
    """Check that the loss of each row depends only on the candidates of its own group.

    Args:
        config: of a loss with candidates.
        sampler: over V items.
        num_groups: groups of candidates, each for ceil(B / G) rows.
    """
    query, items, positive_ids, _ = loss_inputs()
    user_ids = torch.tensor(USER_IDS)
    loss = config.build(V)
    generator = torch.Generator().manual_seed(5)
    groups = sample_groups(sampler, num_groups, positive_ids, user_ids, generator=generator)
    out = loss(query, items, positive_ids, groups, effective_sample_size=True)
    generator.manual_seed(5)
    size = -(-B // min(num_groups, B))
    outputs = []
    for start in range(0, B, size):
        rows = slice(start, start + size)
        alone = sampler.sample(positive_ids, user_ids, generator=generator)
        alone = alone.of_rows(rows)
        outputs.append(
            loss(query[rows], items, positive_ids[rows], alone, effective_sample_size=True)
        )
    what = f"with {num_groups} groups of candidates, each row must use those of its group"
    for field in dataclasses.fields(LossOutput):
        expected = torch.cat([getattr(output, field.name) for output in outputs])
        _check_close(getattr(out, field.name), expected, f"{what}: {field.name}", 1e-5)
    total = torch.stack([output.loss.sum() for output in outputs]).sum()
    for grad, expected in zip(
        torch.autograd.grad(out.loss.sum(), (query, items)),
        torch.autograd.grad(total, (query, items)),
        strict=True,
    ):
        _check_close(grad, expected, f"{what}: gradient", 1e-5)


def _check_capabilities(config: LossConfig) -> None:
    reason, estimator = config.why_no_probability, config.estimator
    _check(
        reason is None or (isinstance(reason, str) and bool(reason.strip())),
        f"why_no_probability must be None or a reason, not {reason!r}",
    )
    _check(
        config.estimates_probability == (reason is None),
        "estimates_probability must be whether why_no_probability is None",
    )
    _check(
        estimator is None or config.needs_candidates,
        "a loss with an estimator compares with candidates: set needs_candidates of its Config",
    )
    built = config.build(V)
    _check(
        built.needs_candidates == config.needs_candidates,
        f"needs_candidates is {config.needs_candidates} in the Config and "
        f"{built.needs_candidates} in the loss",
    )


def _check_registry(config: LossConfig) -> None:
    name = LOSSES.name_of(type(config))
    if name is None:
        raise AssertionError(
            f"{type(config).__qualname__} belongs to no registered loss: add the class to "
            "candid.losses.LOSSES, or pass is_registered=False"
        )
    loaded = LOSSES[name].Config.model_validate_json(config.model_dump_json())
    _check(
        loaded == config,
        f"the config of {name!r} must be the same after a round trip through JSON, got {loaded!r}",
    )


def _check_record(config: LossConfig) -> None:
    query, items, positive_ids, candidates = loss_inputs()
    loss = config.build(V)
    out = loss(query, items, positive_ids, candidates, effective_sample_size=True)
    _check(isinstance(out, LossOutput), f"a loss must return LossOutput, not {type(out)}")
    for field in dataclasses.fields(LossOutput):
        values = getattr(out, field.name)
        _check(
            isinstance(values, Tensor) and values.shape == (B,) and values.dtype == torch.float32,
            f"{field.name} must be a float32 tensor [B], got {values!r}",
        )
        _check(bool(torch.isfinite(values).all()), f"{field.name} must be finite")
    weight, sample_size = out.sample_weight, out.effective_sample_size
    assert sample_size is not None
    _check(bool(((weight >= 0) & (weight <= 1)).all()), "sample_weight must be between 0 and 1")
    _check(bool((sample_size >= 0.999).all()), "effective_sample_size must be at least 1")
    _check(not weight.requires_grad, "sample_weight must be detached")
    _check(not sample_size.requires_grad, "effective_sample_size must be detached")
    _check(
        loss(query, items, positive_ids, candidates).effective_sample_size is None,
        "effective_sample_size must be None where it was not requested",
    )
    query_grad, item_grad = torch.autograd.grad(out.loss.sum(), (query, items))
    _check(
        bool(torch.isfinite(query_grad).all() & torch.isfinite(item_grad).all()),
        "the gradients of query and items must be finite",
    )
    _check(bool((query_grad.abs().sum(dim=1) > 0).all()), "every row must have a gradient")


def _check_direction(config: LossConfig) -> None:
    query, items, _, _ = loss_inputs()
    counts = torch.full((4,), -0.5)
    candidates = Candidates(torch.tensor([1, 2, 4, 6]), counts, torch.tensor([-0.5]), 4)
    out = config.build(V)(query[:1], items, torch.tensor([3]), candidates)
    (grad,) = torch.autograd.grad(out.loss.sum(), items)
    slopes = (grad @ query[0]).tolist()
    _check(slopes[3] < 0, "a higher score of the positive must lower the loss")
    # Checked for the sum, because a jackknife may lower the loss for a single item.
    _check(sum(slopes) - slopes[3] > 0, "higher scores of the other items must raise the loss")


def _check_arguments_are_not_changed(config: LossConfig) -> None:
    inputs = loss_inputs()
    copies = copy.deepcopy([tensor.detach() for tensor in inputs[:3]])
    ids, log_expected_count = inputs[3].ids.clone(), inputs[3].log_expected_count.clone()
    config.build(V)(*inputs, effective_sample_size=True).loss.sum().backward()
    for name, tensor, before in zip(
        ("query", "item_embeddings", "positive_ids"), inputs[:3], copies, strict=True
    ):
        _check(torch.equal(tensor, before), f"the loss must not write to {name}")
    _check(
        torch.equal(inputs[3].ids, ids)
        and torch.equal(inputs[3].log_expected_count, log_expected_count),
        "the loss must not write to the candidates",
    )


def _check_row_order(config: LossConfig) -> None:
    query, items, positive_ids, candidates = loss_inputs()
    order = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    loss = config.build(V)
    out = loss(query, items, positive_ids, candidates).loss[order]
    moved_out = loss(query[order], items, positive_ids[order], candidates.of_rows(order)).loss
    _check_close(moved_out, out, "the loss of a row must not depend on the order of the rows")


def ignores_constant(config: LossConfig) -> bool:
    """Return whether a constant added to all scores leaves the loss unchanged, as in a softmax."""
    query, items, positive_ids, candidates = loss_inputs()
    # One more coordinate, 1 in every item vector: it adds its query value to every score.
    raised_query = torch.cat([query, torch.full((B, 1), 2.0)], dim=1)
    raised_items = torch.cat([items, torch.ones(V, 1)], dim=1)
    loss = config.build(V)
    return torch.allclose(
        loss(raised_query, raised_items, positive_ids, candidates).loss,
        loss(query, items, positive_ids, candidates).loss,
        atol=0.05 if getattr(config, "precision", None) == "bfloat16" else 1e-5,
    )


def _check_constant(config: LossConfig) -> None:
    _check(
        ignores_constant(config) or not config.estimates_probability,
        "a constant added to all scores must not change a loss that estimates probabilities",
    )


def _check_row_without_negatives(config: LossConfig) -> None:
    query, items, _, _ = loss_inputs()
    positive_ids = torch.zeros(B, dtype=torch.int64)
    # Samples of the row's own user are masked by every loss.
    masked = Candidates(
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(3),
        torch.zeros(B),
        3,
        owner=torch.zeros(3, dtype=torch.int64),
        row_user_ids=torch.zeros(B, dtype=torch.int64),
    )
    out = config.build(1)(query, items[:1], positive_ids, masked, effective_sample_size=True)
    what = "where every candidate comes from the user of the row"
    assert out.effective_sample_size is not None
    _check(not bool(out.loss.any()), f"the loss must be 0 {what}")
    _check(bool(out.log_z.isneginf().all()), f"log_z must be -inf {what}")
    _check(not bool(out.sample_weight.any()), f"sample_weight must be 0 {what}")
    _check(not bool(out.effective_sample_size.any()), f"effective_sample_size must be 0 {what}")
    for grad in torch.autograd.grad(out.loss.sum(), (query, items)):
        _check(not bool(grad.any()), f"the gradient must be 0 {what}")


def _check_empty_batch(config: LossConfig) -> None:
    query, items, positive_ids, _ = loss_inputs()
    samplers = (
        Uniform(V, num_candidates=4),
        InBatch(torch.ones(V)),
        InBatch(torch.ones(V), distinct=True),
    )
    for sampler in samplers:
        candidates = sampler.sample(positive_ids[:0], positive_ids[:0])
        out = config.build(V)(query[:0], items, positive_ids[:0], candidates)
        _check(
            out.loss.shape == out.log_z.shape == out.sample_weight.shape == (0,),
            "a batch without rows must give tensors [0]",
        )
        for grad in torch.autograd.grad(out.loss.sum(), (query, items)):
            _check(not bool(grad.any()), "a batch without rows must give no gradient")


def _check_candidates_argument(config: LossConfig) -> None:
    inputs, loss = loss_inputs(), config.build(V)
    if not config.needs_candidates:
        _check(
            torch.equal(loss(*inputs[:3]).loss, loss(*inputs).loss),
            "a loss with needs_candidates = False must ignore candidates",
        )
        return
    try:
        loss(*inputs[:3])
    except ConfigError:
        return
    raise AssertionError("a loss with needs_candidates = True must raise ConfigError without them")


def _check_device(config: LossConfig) -> None:
    # "meta" stands for an accelerator: mixed devices are an error there too, and so is reading a
    # value, which would force a synchronisation.
    query, items, positive_ids, candidates = loss_inputs()
    query, items = (tensor.detach().to("meta").requires_grad_() for tensor in (query, items))
    out = config.build(V)(
        query, items, positive_ids.to("meta"), candidates.to("meta"), effective_sample_size=True
    )
    for field in dataclasses.fields(LossOutput):
        device = getattr(out, field.name).device.type
        _check(device == "meta", f"{field.name} must be on the device of the query, not {device}")
    out.loss.mean().backward()


def _check_narrow_query(config: LossConfig) -> None:
    query, items, positive_ids, candidates = loss_inputs()
    narrow, loss = query.detach().bfloat16(), config.build(V)
    out = loss(narrow, items, positive_ids, candidates).loss
    _check(out.dtype == torch.float32, f"the loss of a bfloat16 query must be float32: {out.dtype}")
    expected = loss(narrow.float(), items, positive_ids, candidates).loss
    _check_close(out, expected, "a bfloat16 query with float32 items must be raised to float32")


def _check_all_groups(config: LossConfig) -> None:
    if not config.needs_candidates:
        return
    rest = Uniform(V, num_candidates=20)
    for sampler in (_mixture(), ExactPopular(torch.arange(V, 0, -1), num_exact=3, rest=rest)):
        for num_groups in (2, 3, 5, 7, 20):
            check_groups(config, sampler, num_groups)


def _mixture() -> Mixture:
    return Mixture([Uniform(V, num_candidates=20), InBatch(torch.arange(V, 0, -1))])


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _check_close(
    values: Tensor, expected: Tensor, message: str, tolerance: float | None = None
) -> None:
    torch.testing.assert_close(
        values,
        expected,
        rtol=tolerance,
        atol=tolerance,
        msg=lambda difference: f"{message}: {difference}",
    )


CHECKS: Final[dict[str, Callable[[LossConfig], None]]] = {
    "capabilities": _check_capabilities,
    "registry": _check_registry,
    "record": _check_record,
    "direction": _check_direction,
    "arguments": _check_arguments_are_not_changed,
    "row order": _check_row_order,
    "constant": _check_constant,
    "row without negatives": _check_row_without_negatives,
    "empty batch": _check_empty_batch,
    "candidates argument": _check_candidates_argument,
    "device": _check_device,
    "narrow query": _check_narrow_query,
    "groups": _check_all_groups,
}
"""The checks that ``check_loss`` runs, by name."""
