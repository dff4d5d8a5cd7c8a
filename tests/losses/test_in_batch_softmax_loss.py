"""The in-batch softmax as a module."""

import pytest
import torch
from torch import nn

from candid import InBatchSoftmaxLoss, in_batch_softmax
from candid.errors import ConfigError
from candid.samplers import StreamingFrequency

V, B, D = 8, 6, 4
COUNTS = torch.tensor([9, 7, 5, 3, 2, 1, 1, 1])
IDS = torch.tensor([0, 1, 0, 4, 2, 7])
USERS = torch.tensor([3, 3, 1, 2, 2, 9])


def vectors(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_module_equals_the_function(reduction):
    query, positives, negatives = vectors(B, D), vectors(B, D) + 1, vectors(B, 2, D)
    negative_ids = torch.tensor([[3, -1], [5, 6], [-1, -1], [0, 4], [2, 1], [6, 6]])
    settings = {"correction": "logq", "jackknife": True, "temperature": 0.3}
    negative_arguments = {"negative_vectors": negatives, "negative_ids": negative_ids}
    module = InBatchSoftmaxLoss(COUNTS, reduction=reduction, **settings)
    out = in_batch_softmax(
        query, positives, IDS, frequency=COUNTS, user_ids=USERS, **negative_arguments, **settings
    )
    expected = {"mean": out.loss.mean(), "sum": out.loss.sum(), "none": out.loss}[reduction]
    torch.testing.assert_close(module(query, positives, IDS, USERS, **negative_arguments), expected)
    record = module.compare(query, positives, IDS, USERS, **negative_arguments)
    torch.testing.assert_close(record.log_z, out.log_z)


def test_streaming_frequency_is_updated_in_training_and_stored():
    query, positives = vectors(B, D), vectors(B, D)
    module = InBatchSoftmaxLoss(StreamingFrequency(V))
    module.eval()
    fresh = module(query, positives, IDS)
    assert module(query, positives, IDS) == fresh
    module.train()
    for _ in range(20):
        module(query, positives, IDS)
    learnt = module.eval()(query, positives, IDS)
    assert learnt != fresh
    other = InBatchSoftmaxLoss(StreamingFrequency(V)).eval()
    assert other(query, positives, IDS) == fresh
    state = module.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other.load_state_dict(state)
    assert other(query, positives, IDS) == learnt


def test_temperature_parameter_has_a_gradient():
    scale = nn.Parameter(torch.tensor(0.5))
    InBatchSoftmaxLoss(COUNTS, temperature=scale)(vectors(B, D), vectors(B, D) + 1, IDS).backward()
    assert scale.grad != 0


def test_negative_temperature_is_refused():
    with pytest.raises(ConfigError, match="temperature must be above 0, got -1"):
        InBatchSoftmaxLoss(COUNTS, temperature=-1)
