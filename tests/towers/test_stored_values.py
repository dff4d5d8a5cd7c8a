"""Feature values stored in a tower."""

from dataclasses import dataclass

import torch

from candid.features import Bags, Codes, Numbers
from candid.towers.stored_values import StoredValues


def test_take_returns_rows_and_the_unknown_row():
    stored = StoredValues(
        {
            "type": Codes(torch.tensor([[1], [2]]), 3),
            "genres": Bags(torch.tensor([1, 2, 2]), torch.tensor([0, 2, 3]), 4),
            "age": Numbers(torch.tensor([[0.5, 0.0], [2.0, 0.0]]), (0.0, 1.0)),
            "picture": Numbers(torch.tensor([[0.5, 1.0], [2.0, 3.0]])),
        }
    )
    taken = stored.take(torch.tensor([1, -1, 0]))
    assert taken["type"].ids.tolist() == [[2], [0], [1]]
    assert taken["type"].num_codes == 3
    assert taken["genres"].ids.tolist() == [2, 1, 2]
    assert taken["genres"].offsets.tolist() == [0, 1, 1, 3]
    assert taken["genres"].num_codes == 4
    assert taken["age"].values.tolist() == [[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]]
    assert taken["picture"].values.tolist() == [[2.0, 3.0], [0.0, 0.0], [0.5, 1.0]]


def test_values_move_with_the_model_and_are_not_in_checkpoints(values_of):
    stored = StoredValues(values_of(5))
    assert stored.state_dict() == {}
    assert len(list(stored.buffers())) == 5
    assert {buffer.device.type for buffer in stored.to("meta").buffers()} == {"meta"}


@dataclass(frozen=True, slots=True)
class ManyTensors(Codes):
    """Codes with enough tensors that a set of their names has another order."""

    b: torch.Tensor
    c: torch.Tensor
    d: torch.Tensor
    e: torch.Tensor
    f: torch.Tensor
    g: torch.Tensor


def test_buffers_have_the_order_of_the_fields_in_every_process():
    values = ManyTensors(torch.zeros(2, 1), 3, *torch.zeros(6, 2))
    stored = StoredValues({"codes": values, "bags": Bags(torch.zeros(1), torch.zeros(2), 3)})
    names = [f"{key}_0" for key in ("ids", "b", "c", "d", "e", "f", "g")]
    assert [name for name, _ in stored.named_buffers()] == [*names, "ids_1", "offsets_1"]
