"""The tower over context features."""

import pytest
import torch

from candid.batches import Queries
from candid.errors import ConfigError, DataError
from candid.features import Codes, FeatureTable, Numbers
from candid.towers import ContextFeatures, TowerContext

FORMS = {
    "hour": Codes(torch.zeros(0, 1, dtype=torch.int64), 24),
    "gap": Numbers(torch.zeros(0, 2)),
}


def queries_at(hours, gaps=None):
    gaps = torch.zeros(len(hours), 2) if gaps is None else gaps
    context = {"hour": Codes(torch.tensor(hours)[:, None], 24), "gap": Numbers(gaps)}
    return Queries(user_ids=torch.zeros(len(hours), dtype=torch.int64), context=context)


def make(**settings):
    context = TowerContext(3, 4, 5, context_features=FeatureTable({}, {}, FORMS))
    torch.manual_seed(0)
    return ContextFeatures.Config(dim=6, field_dim=8, hidden=(16,), **settings).build(context)


def test_vector_depends_on_the_context_alone():
    tower = make().eval()
    vectors = tower(queries_at([3, 5, 3]))
    assert vectors.shape == (3, 6)
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.allclose(vectors[0], vectors[1])
    late = tower(queries_at([3], torch.tensor([[2.0, 0.0]])))
    assert not torch.allclose(vectors[:1], late)


def test_preference_by_hour_is_learnt():
    tower = make(dropout=0.0, unknown_rate=0.0)
    items = torch.nn.Parameter(torch.randn(2, 6) * 0.1)
    hours = torch.arange(24)
    targets = (hours >= 12).long()
    optimizer = torch.optim.Adam([*tower.parameters(), items], lr=0.02)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(
            tower(queries_at(hours.tolist())) @ items.T, targets
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_missing_context_or_feature_is_named():
    with pytest.raises(ConfigError, match=r"\[features\.context\.NAME\]"):
        ContextFeatures.Config().build(TowerContext(3, 4, 5))
    with pytest.raises(ConfigError, match=r"pass context="):
        make()(Queries(user_ids=torch.zeros(1, dtype=torch.int64)))
    without_hour = Queries(
        user_ids=torch.zeros(1, dtype=torch.int64), context={"gap": Numbers(torch.zeros(1, 2))}
    )
    with pytest.raises(DataError, match="reads feature 'hour'"):
        make()(without_hour)
