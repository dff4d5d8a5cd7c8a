"""The encoder of rows: ids, features, unknown rows, and how often each row is encoded."""

import pytest
import torch

from candid.errors import DataError
from candid.features import Codes
from candid.towers import feature_encoder
from candid.towers.feature_encoder import FeatureEncoder

NEUTRAL = {
    "field_dim": 32,
    "unknown_rate": 0.0,
    "interaction": "none",
    "cross_layers": 2,
    "attention_layers": 1,
    "attention_heads": 2,
    "hidden": (128,),
    "activation": "gelu",
    "dropout": 0.0,
    "id_mode": "residual",
    "id_dropout": 0.0,
    "side": "item",
}
"""Settings without randomness in training."""

SETTINGS = [
    {"id_mode": "none"},
    {"id_mode": "field"},
    {"id_mode": "residual"},
    {"id_mode": "override"},
    {"id_mode": "field", "interaction": "cross"},
    {"id_mode": "residual", "interaction": "attention", "hidden": (8, 8)},
    {"id_mode": "residual", "hidden": (), "activation": "relu"},
]


def test_id_outside_the_table_is_refused(values_of):
    encoder = FeatureEncoder(values_of(5), dim=4, **NEUTRAL).eval()
    for wrong in (5, -2):
        with pytest.raises(DataError, match=f"id {wrong} is outside the table"):
            encoder(torch.tensor([0, wrong]))


def name_of(settings):
    return "-".join(str(value) for value in settings.values())


def make(values, is_trained=None, **settings):
    torch.manual_seed(0)
    settings = NEUTRAL | {"dim": 6, "field_dim": 4, "hidden": (8,)} | settings
    encoder = FeatureEncoder(values, is_trained, **settings)
    with torch.no_grad():  # move zeros away from zero, so that a missing term changes the result
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder.eval()


def equal_values(num_rows=6):
    """Rows with the same features."""
    return {"type": Codes(torch.ones(num_rows, 1).long(), 3)}


@pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
def test_every_row_equals_single_rows(values_of, settings, monkeypatch):
    encoder = make(values_of(10), torch.arange(10) % 3 > 0, **settings)
    whole = encoder.every_row()
    assert whole.requires_grad
    assert whole.shape == (10, 6)
    torch.testing.assert_close(encoder(torch.arange(10)), whole)
    ids = torch.tensor([[9], [2], [2], [0]])[:, 0]
    torch.testing.assert_close(encoder(ids), whole[ids])
    monkeypatch.setattr(feature_encoder, "CHUNK", 3)
    with torch.no_grad():
        torch.testing.assert_close(encoder.every_row(), whole)


def test_rows_without_gradient_are_encoded_in_chunks(values_of, monkeypatch):
    encoder = make(values_of(10))
    monkeypatch.setattr(feature_encoder, "CHUNK", 4)
    sizes = []
    encoder.perceptron.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    reports = []
    with torch.no_grad():
        encoder.every_row(lambda *done: reports.append(done))
    assert sizes == [4, 4, 2]
    assert reports == [(4, 10), (8, 10), (10, 10)]
    encoder.every_row()
    assert sizes[3:] == [10]


def test_each_distinct_id_is_encoded_once_and_its_gradients_add_up(values_of):
    encoder = make(values_of(10))
    sizes = []
    encoder.perceptron.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    encoder(torch.tensor([3, 5, 3, 3])).sum().backward()
    assert sizes == [2]
    assert torch.equal(encoder.ids.weight.grad[4], torch.full((6,), 3.0))  # code 0 is unknown
    assert torch.equal(encoder.ids.weight.grad[6], torch.ones(6))
    assert encoder(torch.zeros(0).long()).shape == (0, 6)


@pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
def test_every_parameter_gets_a_gradient(values_of, settings):
    encoder = make(values_of(10), torch.arange(10) > 1, id_dropout=0.3, **settings).train()
    weights = torch.randn(10, 6)
    for _ in range(20):  # enough samples for the unknown id
        (encoder.every_row() * weights).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        assert parameter.dtype == torch.float32


@pytest.mark.parametrize("mode", ["field", "residual", "override"])
def test_untrained_rows_share_the_unknown_id(mode):
    encoder = make(
        equal_values(), torch.tensor([True, True, False, True, False, True]), id_mode=mode
    )
    vectors = encoder.every_row()
    assert torch.equal(vectors[2], vectors[4])
    assert len(vectors.unique(dim=0)) == 5
    torch.testing.assert_close(encoder.encode_values(equal_values(1)), vectors[[2]])


def test_id_mode_none_ignores_the_id():
    vectors = make(equal_values(), id_mode="none").every_row()
    assert torch.equal(vectors, vectors[:1].expand(6, 6))


@pytest.mark.parametrize("mode", ["field", "residual", "override"])
def test_id_dropout_gives_the_unknown_id_in_training_only(mode):
    encoder = make(equal_values(2000), id_mode=mode, id_dropout=0.25)
    unknown = encoder.encode_values(equal_values(1))
    assert not (encoder.every_row() == unknown).all(1).any()
    encoder.train()
    is_dropped = torch.isclose(encoder.every_row(), unknown).all(1)
    assert 0.2 < float(is_dropped.float().mean()) < 0.3
    once = torch.isclose(encoder(torch.arange(2000).repeat(2)), unknown).all(1)
    assert torch.equal(once[:2000], once[2000:])
    all_dropped = make(equal_values(), id_mode=mode, id_dropout=1.0).train().every_row()
    assert torch.equal(all_dropped, all_dropped[:1].expand(6, 6))


def test_override_uses_features_for_untrained_rows_only(values_of):
    is_trained = torch.arange(10) % 3 > 0
    encoder = make(values_of(10), is_trained, id_mode="override")
    alone = make(values_of(10), id_mode="none")
    alone.load_state_dict({k: v for k, v in encoder.state_dict().items() if "ids." not in k})
    vectors = encoder.every_row()
    torch.testing.assert_close(vectors[is_trained], encoder.ids.weight[1:11][is_trained])
    torch.testing.assert_close(vectors[~is_trained], alone.every_row()[~is_trained])
    vectors[is_trained].sum().backward()
    assert not encoder.perceptron.linear.weight.grad.any()


def test_unknown_id_is_initialised_to_zero():
    encoder = FeatureEncoder(equal_values(), dim=6, **NEUTRAL)
    assert not encoder.ids.weight[0].any()
    assert encoder.ids.weight[1:].any(1).all()


def test_negative_id_is_an_unknown_row(values_of):
    values = values_of(10)
    encoder = make(values)
    unknown = {
        "type": Codes(torch.zeros(1, 1).long(), 6),
        "a.b": Codes(torch.zeros(1, 3).long(), 9),
        "genres": values["genres"].take(torch.tensor([0])),  # the first bag is empty
        "age": type(values["age"])(torch.zeros(1, 2)),
    }
    expected = encoder.encode_values(unknown)
    torch.testing.assert_close(encoder(torch.tensor([3, -1, -1]))[1:], expected.expand(2, 6))


def test_new_rows_are_encoded_as_rows_of_the_dataset(values_of):
    values = values_of(10)
    encoder = make(values, torch.zeros(10, dtype=torch.bool))
    order = torch.randperm(10)
    shuffled = {name: value.take(order) for name, value in values.items()}
    torch.testing.assert_close(encoder.encode_values(shuffled), encoder.every_row()[order])
    with pytest.raises(DataError, match="'age'"):
        encoder.encode_values({name: shuffled[name] for name in ("type", "a.b", "genres")})
    with pytest.raises(DataError, match="none"):
        encoder.encode_values({})


def test_checkpoint_does_not_contain_the_values(values_of):
    settings = NEUTRAL | {"dim": 6, "field_dim": 4, "hidden": (8,)}
    first = make(values_of(10))
    second = FeatureEncoder(values_of(10, seed=1), **settings).eval()
    state = first.state_dict()
    assert state.keys() == dict(first.named_parameters()).keys()
    second.load_state_dict(state)
    assert not torch.allclose(second.every_row(), first.every_row())
    torch.testing.assert_close(
        second.encode_values(values_of(10)), first.encode_values(values_of(10))
    )


@pytest.mark.parametrize("interaction", ["none", "cross", "attention"])
def test_bfloat16_products_are_close_to_float32(values_of, interaction):
    encoder = make(values_of(10), interaction=interaction)
    exact = encoder.every_row()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder.every_row()
        rounded.sum().backward()
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)
    assert encoder.ids.weight.grad.dtype == torch.float32


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
def test_gpu_gives_the_same_vectors(values_of, settings):
    encoder = make(values_of(10), torch.arange(10) > 1, **settings)
    ids = torch.tensor([3, -1, 3, 0])
    expected, outside = encoder(ids), encoder.encode_values(values_of(4, seed=1))
    encoder.cuda()
    torch.testing.assert_close(encoder(ids.cuda()).cpu(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        encoder.encode_values(values_of(4, seed=1)).cpu(), outside, rtol=1e-4, atol=1e-5
    )
    encoder.train().every_row().sum().backward()
