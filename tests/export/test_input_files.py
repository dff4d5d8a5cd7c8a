"""The input files of graphs: they restore each feature and give the values of known ids."""

import json

import polars as pl
import pytest
import torch

from candid.export import ExportContext
from candid.export.input_files import write_inputs
from candid.features import FEATURES, Bags, Codes


@pytest.fixture(scope="module")
def folder(everything, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs") / "inputs"
    write_inputs(ExportContext(everything.export_input), folder)
    return folder


def test_inputs_json_restores_every_feature(folder, everything):
    """Another program restores each feature from the file alone and encodes the same values."""
    document = json.loads((folder / "inputs.json").read_text())
    assert document["fingerprint"] == everything.export_input.fingerprint
    assert document["event_types"] == {"view": 1, "buy": 2}
    assert (document["padding"], document["max_length"]) == (-1, 6)
    items = everything.run.dataset.items
    fitted = everything.run.features.item.values
    assert list(document["features"]["item"]) == list(fitted)
    for name, description in document["features"]["item"].items():
        config = FEATURES[description["type"]].Config(**description["settings"])
        values = config.restore(description["state"]).encode(items[description["column"]])
        assert type(values) is type(fitted[name])
        for ours, theirs in zip(tensors(values), tensors(fitted[name]), strict=True):
            assert torch.equal(ours, theirs)


def tensors(values):
    if isinstance(values, Bags):
        return [values.ids, values.offsets]
    return [values.ids if isinstance(values, Codes) else values.values]


def test_tables_hold_the_values_of_known_ids(folder, everything):
    for side, count in (("item", 17), ("user", 12)):
        table = pl.read_parquet(folder / f"{side}s.parquet")
        assert table[f"{side}_id"].to_list() == list(range(count))
        assert table["source_id"].to_list() == [f"s{row}" for row in range(count)]
        for name, values in getattr(everything.run.features, side).values.items():
            column = table[f"{side}.{name}"].to_list()
            for row in range(count):
                one = values.take(torch.tensor([row]))
                expected = one.ids if isinstance(one, Bags) else tensors(one)[0][0]
                assert column[row] == expected.tolist()


def test_users_are_left_out_without_a_user_input(plain, tmp_path):
    write_inputs(ExportContext(plain.export_input), tmp_path / "inputs")
    assert not (tmp_path / "inputs" / "users.parquet").exists()
    assert (tmp_path / "inputs" / "items.parquet").exists()
