"""What feeds the graphs, as files: enough to encode by, and what known ids come to."""

import json

import polars as pl
import pytest
import torch

from candid.export import Material
from candid.export.input_files import write_inputs
from candid.features import FEATURES, Bags, Codes


@pytest.fixture(scope="module")
def folder(everything, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs") / "inputs"
    write_inputs(Material(everything.parts), folder)
    return folder


def test_features_can_be_made_again_from_it(folder, everything):
    """Another program restores each feature from the file alone, and encodes alike."""
    document = json.loads((folder / "inputs.json").read_text())
    assert document["fingerprint"] == everything.parts.fingerprint
    assert document["event_types"] == {"view": 1, "buy": 2}
    assert (document["padding"], document["max_length"]) == (-1, 6)
    items = everything.run.dataset.items
    known = everything.run.features.item.values
    assert list(document["features"]["item"]) == list(known)
    for name, told in document["features"]["item"].items():
        config = FEATURES[told["type"]].Config(**told["settings"])
        values = config.restore(told["state"]).encode(items[told["column"]])
        assert type(values) is type(known[name])
        for ours, theirs in zip(tensors(values), tensors(known[name]), strict=True):
            assert torch.equal(ours, theirs)


def tensors(values):
    if isinstance(values, Bags):
        return [values.ids, values.offsets]
    return [values.ids if isinstance(values, Codes) else values.values]


def test_tables_hold_what_known_ids_come_to(folder, everything):
    for side, count in (("item", 17), ("user", 12)):
        table = pl.read_parquet(folder / f"{side}s.parquet")
        assert table[f"{side}_id"].to_list() == list(range(count))
        assert table["source_id"].to_list() == [f"s{row}" for row in range(count)]
        for name, values in getattr(everything.run.features, side).values.items():
            found = table[f"{side}.{name}"].to_list()
            for row in range(count):
                one = values.take(torch.tensor([row]))
                expected = one.ids if isinstance(one, Bags) else tensors(one)[0][0]
                assert found[row] == expected.tolist()


def test_users_are_left_out_where_nobody_asks_for_them(plain, tmp_path):
    write_inputs(Material(plain.parts), tmp_path / "inputs")
    assert not (tmp_path / "inputs" / "users.parquet").exists()
    assert (tmp_path / "inputs" / "items.parquet").exists()
