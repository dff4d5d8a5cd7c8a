from collections import namedtuple

import pytest
import torch
from torch import Tensor

COUNTS = torch.tensor([40, 25, 15, 8, 5, 3, 2, 1, 1, 0])
Rows = namedtuple("Rows", "positive_ids user_ids query")


@pytest.fixture
def counts() -> Tensor:
    return COUNTS.clone()


@pytest.fixture
def rows() -> Rows:
    query = torch.randn(6, 4, generator=torch.Generator().manual_seed(6))
    return Rows(torch.tensor([0, 1, 0, 4, 2, 7]), torch.tensor([3, 3, 1, 2, 2, 9]), query)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
