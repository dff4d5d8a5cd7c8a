"""Training steps without synchronisation between the CPU and the device.

Reading a number of a tensor, or a result whose shape depends on values, makes the CPU wait for the
device. Tensors of the device "meta" have no values, so that such an operation fails there; code
that asks for the type of the device takes the path of accelerators. On a CUDA device the same steps
run in torch's sync debug mode.
"""

import pytest
import torch
from torch import nn

from candid.batches import Batch, History, Queries
from candid.losses import LOSSES, sampled
from candid.losses.candidate_loss import ObjectiveWithSampler
from candid.samplers import CrossBatchMemory, ExactPopular, InBatch, Mixture, Popularity, Uniform
from candid.towers import CausalTransformer, RowTable
from candid.training import TrainingConfig
from candid.training.optimizer import make_optimizer

V, B, D = 50, 32, 8
COUNTS = torch.arange(V, 0, -1).double()
SAMPLERS = {
    "uniform": lambda: Uniform(V, num_candidates=16),
    "popularity": lambda: Popularity(COUNTS, num_candidates=16),
    "in-batch": lambda: InBatch(COUNTS),
    "mixture": lambda: Mixture([InBatch(COUNTS), Uniform(V, num_candidates=16)]),
    "exact": lambda: ExactPopular(COUNTS, num_exact=5, rest=Popularity(COUNTS, num_candidates=9)),
    "memory": lambda: CrossBatchMemory(COUNTS, size=64),
}


class Tables(nn.Module):
    def __init__(self, device):
        super().__init__()
        self.users = RowTable(V, D)
        self.items = RowTable(V, D)
        # The fused Adam of torch refuses meta tensors.
        self.out = nn.Identity() if device.type == "meta" else nn.Linear(D, D)


def make_step(sampler, loss, tables, device):
    """Return a function that takes one training step of two tables and a layer."""
    model = Tables(device).to(device)
    optimizer = make_optimizer(model, TrainingConfig(tables=tables))
    settings = {"correction": loss} if loss in ("logq", "refined") else {}
    objective = LOSSES["sampled_softmax" if settings else loss].Config(**settings).build(V)
    objective = ObjectiveWithSampler(objective, sampler)
    objective = objective.to(device)
    generator = torch.Generator().manual_seed(0)
    users, positives = (torch.randint(V, (B,), generator=generator).to(device) for _ in range(2))

    def step():
        optimizer.zero_grad()
        query = model.out(model.users(users))
        output = objective.compare(query, model.items, positives, users)
        output.loss.mean().backward()
        optimizer.step(0.1, clip_norm=1.0)

    return step


@pytest.fixture(params=["dense scores", "tiles"])
def scores(request, monkeypatch):
    monkeypatch.setattr(sampled, "DENSE_SCORES", -1 if request.param == "tiles" else 2**40)


@pytest.mark.usefixtures("scores")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("loss", ["logq", "refined"])
@pytest.mark.parametrize("tables", ["row_adam", "row_adagrad"])
def test_step_reads_no_values(sampler, loss, tables):
    step = make_step(SAMPLERS[sampler](), loss, tables, torch.device("meta"))
    step()
    step()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("scores")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("loss", ["logq", "refined"])
def test_step_on_cuda_does_not_synchronise(sampler, loss):
    step = make_step(SAMPLERS[sampler](), loss, "row_adam", torch.device("cuda"))
    step()  # the first checks the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


TRANSFORMERS = {
    "learned": {"positions": "learned"},
    "rotary": {"positions": "rotary"},
    "time": {"positions": "rotary", "read_time_gaps": True, "time_bias": True},
    "query gap": {"positions": "rotary", "read_query_gap": True},
    "attention dropout": {"positions": "rotary", "attention_dropout": 0.1},
    "attention dropout, time": {"positions": "rotary", "time_bias": True, "attention_dropout": 0.1},
    "ligr": {"positions": "rotary", "feed_forward": "swiglu", "gated_residual": True},
}


def make_transformer_step(transformer, device):
    """Return a function that encodes histories of several lengths, and its gradient."""
    settings = {"num_blocks": 2, "num_heads": 2, "hidden": None, "max_length": 9}
    settings |= {"feed_forward": "gelu", "gated_residual": False}
    settings |= {"dropout": 0.1, "attention_dropout": 0.0} | TRANSFORMERS[transformer]
    model = CausalTransformer(num_items=V, dim=D, **settings, empty_histories=True)
    model = model.to(device)
    lengths = torch.tensor([3, 0, 9, 1, 9, 2])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    ids = torch.arange(int(offsets[-1]))
    queries = Queries(
        user_ids=ids,
        history=History(item_ids=ids, offsets=offsets, query_positions=ids, times=10**6 * ids),
        times=10**6 * ids + 10**9,
    )

    def step():
        model(queries.to(device)).square().sum().backward()

    return step


@pytest.mark.parametrize("transformer", TRANSFORMERS)
def test_step_of_a_transformer_reads_no_values(transformer):
    make_transformer_step(transformer, torch.device("meta"))()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("transformer", TRANSFORMERS)
def test_step_of_a_transformer_on_cuda_does_not_synchronise(transformer):
    step = make_transformer_step(transformer, torch.device("cuda"))
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_move_to_cuda_without_synchronisation():
    ids = torch.arange(B)
    history = History(item_ids=ids, offsets=torch.tensor([0, B]), query_positions=ids)
    batch = Batch(user_ids=ids, positive_ids=ids, weights=torch.ones(B), history=history)
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = batch.to(torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert moved.positive_ids.tolist() == moved.history.item_ids.tolist() == ids.tolist()
    assert moved.weights.device.type == "cuda"
