"""The contract of ``candid.testing.losses`` for every registered loss and setting."""

import pytest
import torch

from candid.component import ComponentConfig
from candid.errors import UnknownNameError
from candid.losses import LOSSES, LossComponent, LossConfig, LossOutput, SampledLoss
from candid.losses.estimator import Estimator
from candid.samplers import Uniform
from candid.testing.losses import CHECKS, V, check_groups, check_loss, ignores_constant, loss_inputs


def configs():
    for name, component in LOSSES.items():
        yield pytest.param(component.Config(), id=name)
    for correction in ("none", "logq", "refined"):
        for jackknife in (False, True):
            config = LOSSES["sampled_softmax"].Config(correction=correction, jackknife=jackknife)
            yield pytest.param(config, id=f"sampled_softmax-{correction}-{jackknife}")
    config = LOSSES["sampled_softmax"].Config(correction="logq", accidental_hits="mask")
    yield pytest.param(config, id="sampled_softmax-logq-mask")
    yield pytest.param(LOSSES["full_softmax"].Config(precision="bfloat16"), id="full-bfloat16")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("config", list(configs()))
def test_contract(config, check):
    CHECKS[check](config)


@pytest.mark.parametrize("name", ["full_softmax", "sampled_softmax", "bce", "gbce"])
def test_only_softmax_losses_ignore_a_constant_added_to_all_scores(name):
    assert ignores_constant(LOSSES[name].Config()) == name.endswith("softmax")


def with_sets():
    # Not gbce: its beta is one number per batch, that of the longest set.
    return [param for param in configs() if param.id.startswith(("sampled_softmax", "bce"))]


@pytest.mark.parametrize("num_groups", [2, 3, 5, 7, 20])
@pytest.mark.parametrize("config", with_sets())
def test_groups_of_sets_give_each_row_its_group(config, num_groups):
    check_groups(config, Uniform(V, num_candidates=V, distinct=True), num_groups)


CAPABILITIES = {
    "full_softmax": {"needs_candidates": False, "needs_full_support": False, "estimator": None},
    "sampled_softmax": {
        "needs_candidates": True,
        "needs_full_support": True,
        "estimator": Estimator("logq", False, "keep"),
    },
    "bce": {"needs_candidates": True, "needs_full_support": False, "estimator": None},
    "gbce": {"needs_candidates": True, "needs_full_support": False, "estimator": None},
}


@pytest.mark.parametrize("name", CAPABILITIES)
def test_capabilities_of_each_loss(name):
    config = LOSSES[name].Config()
    assert {key: getattr(config, key) for key in CAPABILITIES[name]} == CAPABILITIES[name]
    assert config.estimates_probability == name.endswith("softmax")
    assert config.works_with_sets


def test_capabilities_of_a_sampled_softmax_follow_its_settings():
    make = LOSSES["sampled_softmax"].Config
    assert "uncorrected" in make(correction="none").why_no_probability
    assert make(correction="logq").why_no_probability is None
    assert not make(jackknife=True).works_with_sets
    assert make(correction="logq", jackknife=True).estimator == Estimator("logq", True, "keep")
    masked = make(correction="logq", accidental_hits="mask").estimator
    assert masked == Estimator("logq", False, "mask")


def test_estimator_of_a_learnt_partition_function_has_its_cap():
    assert LOSSES["learnt_partition"].Config(cap=2.0).estimator == Estimator(cap=2.0)


def test_repr_shows_the_settings():
    expected = {
        "full_softmax": "FullSoftmax(precision='float32')",
        "sampled_softmax": "SampledSoftmax(precision='float32', correction='logq', "
        "jackknife=False, accidental_hits='keep')",
        "bce": "BCE(precision='float32', row_reduction='sum')",
        "gbce": "GBCE(precision='float32', row_reduction='mean', num_items=9, t=0.75)",
    }
    assert {name: repr(LOSSES[name].Config().build(9)) for name in expected} == expected


class Recipe(ComponentConfig):
    loss: LossComponent


def test_unknown_loss_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"known: .*full_softmax, .*sampled_softmax"):
        Recipe.model_validate({"loss": "softmax2"})


@pytest.mark.parametrize("name", LOSSES)
def test_config_survives_a_recipe(name):
    recipe = Recipe.model_validate({"loss": name})
    assert recipe.model_dump()["loss"]["type"] == name
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


class BPR(SampledLoss):
    """Bayesian personalised ranking, as the file of a new loss would define it."""

    class Config(SampledLoss.Config):
        margin: float = 0.0

        def build(self, num_items):
            return BPR(self.margin)

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def row_losses(self, comparison):
        scores, mask = comparison.negatives()
        gap = scores - comparison.positive_scores[:, None] + self.margin
        return torch.nn.functional.softplus(gap).masked_fill(mask, 0.0).sum(dim=1)


def test_new_loss_is_one_class_and_one_registry_line(monkeypatch):
    monkeypatch.setitem(LOSSES, "bpr", BPR)
    recipe = Recipe.model_validate({"loss": {"type": "bpr", "margin": 2.0}})
    assert recipe.model_dump() == {"loss": {"type": "bpr", "margin": 2.0}}
    check_loss(recipe.loss)
    check_loss(BPR)


def test_new_loss_estimates_no_probability_by_default():
    config = BPR.Config()
    assert not config.estimates_probability
    assert "BPR" in config.why_no_probability
    assert config.estimator is None
    assert not config.needs_full_support


class LossWithoutBase:
    """A loss without the base class that breaks one promise of the contract."""

    needs_candidates = True

    class Config(LossConfig):
        needs_candidates = True
        fault: str = "none"

        def build(self, num_items):
            return LossWithoutBase(self.fault)

    def __init__(self, fault):
        self.fault = fault

    def __call__(
        self, query, item_embeddings, positive_ids, candidates=None, *, effective_sample_size=False
    ):
        scores = query @ item_embeddings.T
        positive = scores.gather(1, positive_ids[:, None])[:, 0]
        gap = scores[:, candidates.ids].mean(dim=1) - positive
        loss = torch.relu(1.0 + (-gap if self.fault == "sign" else gap))
        zero = torch.zeros_like(loss.detach())
        return LossOutput(loss.double() if self.fault == "dtype" else loss, zero, zero, zero + 1)


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("dtype", "record", "loss must be a float32 tensor"),
        ("sign", "direction", "a higher score of the positive must lower the loss"),
        ("none", "row without negatives", "the loss must be 0 where every candidate"),
    ],
)
def test_broken_promise_is_named(fault, check, message):
    with pytest.raises(AssertionError, match=message):
        CHECKS[check](LossWithoutBase.Config(fault=fault))
    with pytest.raises(AssertionError):
        check_loss(LossWithoutBase.Config(fault=fault), is_registered=False)


def test_loss_outside_the_registry_is_named():
    with pytest.raises(AssertionError, match="pass is_registered=False"):
        check_loss(BPR)
    check_loss(BPR, is_registered=False)


def test_inputs_are_the_same_each_time():
    for first, second in zip(loss_inputs()[:3], loss_inputs()[:3], strict=True):
        assert torch.equal(first, second)
