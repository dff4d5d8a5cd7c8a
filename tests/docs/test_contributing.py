"""The ten-line loss of CONTRIBUTING: it is registered, keeps the contract and trains."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from candid.losses import LOSSES
from candid.losses.candidate_loss import ObjectiveWithSampler
from candid.samplers import Uniform
from candid.testing import check_loss

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


@pytest.fixture(name="bpr")
def _bpr(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    module = types.ModuleType("candid_bpr")
    monkeypatch.setitem(sys.modules, "candid_bpr", module)
    exec(compile(code, "CONTRIBUTING.md", "exec"), vars(module))
    monkeypatch.setitem(LOSSES, "bpr", module.BPR)
    return module.BPR


def test_class_of_the_loss_has_ten_lines():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    lines = code[code.index("class") :].splitlines()
    assert len([line for line in lines if line.strip()]) <= 10


def test_loss_keeps_the_contract(bpr):
    check_loss(bpr)


def test_loss_equals_a_loop_over_the_candidates(bpr):
    query, items = torch.randn(3, 4), torch.randn(9, 4)
    positive_ids = torch.tensor([1, 8, 2])
    candidates = Uniform(9, num_candidates=6).sample(positive_ids)
    loss = bpr.Config().build(9)(query, items, positive_ids, candidates).loss
    for row, positive in enumerate(positive_ids.tolist()):
        scores = (items @ query[row]).tolist()
        gaps = [scores[d] - scores[positive] for d in candidates.ids.tolist() if d != positive]
        expected = sum(torch.tensor(gap).exp().log1p().item() for gap in gaps)
        assert loss[row].item() == pytest.approx(expected, rel=1e-5)


def test_loss_trains(bpr):
    torch.manual_seed(0)
    items = torch.nn.Embedding(20, 8)
    query = torch.nn.Parameter(torch.randn(16, 8))
    positive_ids = torch.randint(20, (16,))
    loss_of = ObjectiveWithSampler(bpr.Config().build(20), Uniform(20, num_candidates=8))
    optimizer = torch.optim.Adam([query, *items.parameters()], lr=0.1)
    losses = []
    for _ in range(30):
        loss = loss_of(query, items.weight, positive_ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
