"""ONNX and torch.export as files, run by ONNX Runtime and by torch, against the model itself."""

import functools
import sys

import onnx
import onnxruntime
import pytest
import torch

from candid.errors import ArtifactError, ConfigError
from candid.export import Material, program

HISTORIES = [[3], [1, 2, 3, 4, 5, 6], [16, 0], [5, 5, 5], [0, 9, 2, 7]]


class Written:
    """Both formats of one model, read again by what the world reads them with."""

    def __init__(self, made, root):
        self.made, self.root = made, root
        self.material = Material(made.parts)
        (root / "onnx").mkdir()
        (root / "torch").mkdir()
        self.onnx = program.write_onnx(self.material, root / "onnx")
        self.torch = program.write_torch(self.material, root / "torch")

    @functools.cache  # noqa: B019
    def read(self, name):
        session = onnxruntime.InferenceSession(self.root / "onnx" / f"{name}.onnx")
        return session, torch.export.load(self.root / "torch" / f"{name}.pt2").module()

    def ask(self, name, named):
        session, loaded = self.read(name)
        inputs = {one.name: named[one.name].numpy() for one in session.get_inputs()}
        assert set(inputs) == set(named)
        return torch.from_numpy(session.run(["vectors"], inputs)[0]), loaded(named)


def close(found, expected):
    for one in found:
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-5, equal_nan=True)


def answers_queries(written, ask, histories, *, by_features):
    asked = ask(written.made, histories=histories, by_features=by_features)
    with torch.no_grad():
        expected = written.made.run.model.encode_queries(asked.queries)
    name = "query_by_features" if by_features else "query"
    close(written.ask(name, dict(sorted(asked.named.items()))), expected)


def answers_items(written, item_rows, ids):
    """Features of every type, of items that are known or, at -1, new."""
    values, named = item_rows(written.made, len(ids))
    with torch.no_grad():
        model, known = written.made.run.model, None if (ids < 0).all() else ids
        expected = model.encode_item_values(values, known)
    inputs = dict(sorted({**named, "item_id": ids}.items()))
    close(written.ask("item_by_features", inputs), expected)


@pytest.mark.slow
def test_a_model_that_reads_everything(everything, ask, item_rows, tmp_path):
    # One test, so that two workers do not each trace the same graphs.
    written = Written(everything, tmp_path)
    for facts in (written.onnx, written.torch):
        assert set(facts["graphs"]) == {"query", "query_by_features", "item", "item_by_features"}
    for histories in (HISTORIES, [[7]], [[], [2]], [[1, 2, 3, 4, 5, 6]]):
        for by_features in (False, True):
            answers_queries(written, ask, histories, by_features=by_features)
    for ids in ([5], [0, 1, 2, 3, 4, 5, 6, 16], [-1], [-1, -1, -1]):
        answers_items(written, item_rows, torch.tensor(ids))
    ids = torch.tensor([16, 2, 2])
    with torch.no_grad():
        close(written.ask("item", {"item_id": ids}), everything.run.model.encode_items(ids))
    shapes = shapes_of(onnx.load(tmp_path / "onnx" / "query.onnx"))
    assert shapes["history"] == ["batch", "length"]
    assert shapes["user_id"] == ["batch"]
    assert shapes["context.hour"] == ["batch", 5]
    stated = {one["name"]: one["shape"] for one in written.onnx["graphs"]["query"]["inputs"]}
    assert shapes == {**stated, "vectors": ["batch", 8]}


def shapes_of(model):
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }


@pytest.fixture(scope="module")
def small(plain, tmp_path_factory):
    return Written(plain, tmp_path_factory.mktemp("plain"))


def test_a_transformer_with_learned_positions(small, ask):
    for histories in (HISTORIES, [[7]]):
        answers_queries(small, ask, histories, by_features=False)


def test_what_files_say_of_themselves(small):
    model = onnx.load(small.root / "onnx" / "query.onnx")
    onnx.checker.check_model(model)
    assert (small.onnx["opset"], model.opset_import[0].version) == (20, 20)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told["candid.fingerprint"] == small.made.parts.fingerprint
    assert told["candid.similarity"] == "inner product"
    files = {"candid.fingerprint": ""}
    torch.export.load(small.root / "torch" / "query.pt2", extra_files=files)
    assert files["candid.fingerprint"] == told["candid.fingerprint"]
    for facts in (small.onnx, small.torch):
        assert all(graph["largest_difference"] <= 1e-5 for graph in facts["graphs"].values())


def test_no_history_where_there_must_be_one_is_nan(small):
    [found, also] = small.ask("query", {"history": torch.full((2, 3), -1)})
    assert found.isnan().all()
    assert also.isnan().all()


def test_a_history_that_is_too_long_is_refused(small):
    named = {"history": torch.zeros(2, 7, dtype=torch.int64)}
    session = onnxruntime.InferenceSession(small.root / "onnx" / "query.onnx")
    with pytest.raises(Exception, match=r"positions|broadcast|dimension"):
        session.run(None, {"history": named["history"].numpy()})
    loaded = torch.export.load(small.root / "torch" / "query.pt2").module()
    with pytest.raises(Exception, match="6"):
        loaded(named)


def test_factors_by_id(factors, tmp_path):
    written = Written(factors, tmp_path)
    ids = torch.tensor([11, 0])
    close(written.ask("query", {"user_id": ids}), factors.run.model.query_tower.embedding(ids))
    close(written.ask("item", {"item_id": torch.tensor([-1])}), torch.full((1, 8), torch.nan))


def test_a_history_of_one_is_no_free_axis(make_model, tmp_path):
    tower = {"type": "causal_transformer", "dim": 8}
    item = {"type": "item_embedding", "dim": 8}
    made = make_model({"query_tower": tower, "item_tower": item}, features=False, max_length=1)
    material = Material(made.parts)
    graph = material.graphs[0]
    assert graph.inputs[0].axes == ("batch", 1)
    found = program.traced(graph).module()({"history": torch.tensor([[4], [2]])})
    torch.testing.assert_close(found, graph.reference({"history": torch.tensor([[4], [2]])}))


def test_a_file_that_disagrees_is_refused(factors, tmp_path, monkeypatch):
    material = Material(factors.parts)
    wrong = material.graphs[0].module.part
    wrong.table += 1
    with pytest.raises(ArtifactError, match=r"query\.pt2 gives vectors that differ"):
        program.write_torch(material, tmp_path)


def test_a_missing_package_is_one_sentence(factors, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime: install it with pip install candid"):
        program.write_onnx(Material(factors.parts), tmp_path)
