"""Files of ONNX and torch.export, run by ONNX Runtime and torch, compared with the model."""

import functools
import sys

import onnx
import onnxruntime
import pytest
import torch

from candid.errors import ArtifactError, ConfigError
from candid.export import ExportContext, program
from candid.export.tracing import trace

HISTORIES = [[3], [1, 2, 3, 4, 5, 6], [16, 0], [5, 5, 5], [0, 9, 2, 7]]


class Written:
    """Both formats of one model, read by the libraries that users read them with."""

    def __init__(self, made, root):
        self.made, self.root = made, root
        self.context = ExportContext(made.export_input)
        (root / "onnx").mkdir()
        (root / "torch").mkdir()
        self.onnx = program.write_onnx(self.context, root / "onnx")
        self.torch = program.write_torch(self.context, root / "torch")

    @functools.cache  # noqa: B019
    def read(self, name):
        session = onnxruntime.InferenceSession(self.root / "onnx" / f"{name}.onnx")
        return session, torch.export.load(self.root / "torch" / f"{name}.pt2").module()

    def encode(self, name, tensors):
        session, loaded = self.read(name)
        inputs = {one.name: tensors[one.name].numpy() for one in session.get_inputs()}
        assert set(inputs) == set(tensors)
        return torch.from_numpy(session.run(["vectors"], inputs)[0]), loaded(tensors)


def check_close(outputs, expected):
    for vectors in outputs:
        torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5, equal_nan=True)


def check_queries(written, queries_of, histories, *, by_features):
    queries = queries_of(written.made, histories=histories, by_features=by_features)
    with torch.no_grad():
        expected = written.made.run.model.encode_queries(queries.queries)
    name = "query_by_features" if by_features else "query"
    check_close(written.encode(name, dict(sorted(queries.tensors.items()))), expected)


def check_items(written, item_rows, ids):
    """Compare items by features of every type; id -1 is a new item."""
    values, tensors = item_rows(written.made, len(ids))
    with torch.no_grad():
        model, known = written.made.run.model, None if (ids < 0).all() else ids
        expected = model.encode_item_values(values, known)
    inputs = dict(sorted({**tensors, "item_id": ids}.items()))
    check_close(written.encode("item_by_features", inputs), expected)


@pytest.mark.slow
def test_files_of_a_model_that_reads_everything_equal_the_model(
    everything, queries_of, item_rows, tmp_path
):
    # One test: two workers would each trace the same graphs.
    written = Written(everything, tmp_path)
    for facts in (written.onnx, written.torch):
        assert set(facts["graphs"]) == {"query", "query_by_features", "item", "item_by_features"}
    for histories in (HISTORIES, [[7]], [[], [2]], [[1, 2, 3, 4, 5, 6]]):
        for by_features in (False, True):
            check_queries(written, queries_of, histories, by_features=by_features)
    for ids in ([5], [0, 1, 2, 3, 4, 5, 6, 16], [-1], [-1, -1, -1]):
        check_items(written, item_rows, torch.tensor(ids))
    ids = torch.tensor([16, 2, 2])
    with torch.no_grad():
        check_close(
            written.encode("item", {"item_id": ids}), everything.run.model.encode_items(ids)
        )
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


@pytest.mark.slow
def test_transformer_with_learned_positions_equals_the_model(small, queries_of):
    for histories in (HISTORIES, [[7]]):
        check_queries(small, queries_of, histories, by_features=False)


@pytest.mark.slow
def test_transformer_with_ligr_blocks_and_times_equals_the_model(make_model, queries_of, tmp_path):
    tower = {"type": "causal_transformer", "dim": 8, "num_heads": 2, "positions": "rotary"}
    tower |= {"feed_forward": "swiglu", "gated_residual": True, "hidden": 12}
    tower |= {"read_time_gaps": True, "time_bias": True, "read_query_gap": True}
    made = make_model(
        {"query_tower": tower, "item_tower": {"type": "item_embedding", "dim": 8}}, features=False
    )
    written = Written(made, tmp_path)
    for histories in (HISTORIES, [[7]]):
        check_queries(written, queries_of, histories, by_features=False)


def test_files_carry_the_metadata_of_the_model(small):
    model = onnx.load(small.root / "onnx" / "query.onnx")
    onnx.checker.check_model(model)
    assert (small.onnx["opset"], model.opset_import[0].version) == (20, 20)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["candid.fingerprint"] == small.made.export_input.fingerprint
    assert metadata["candid.similarity"] == "inner product"
    files = {"candid.fingerprint": ""}
    torch.export.load(small.root / "torch" / "query.pt2", extra_files=files)
    assert files["candid.fingerprint"] == metadata["candid.fingerprint"]
    for facts in (small.onnx, small.torch):
        assert all(graph["largest_difference"] <= 1e-5 for graph in facts["graphs"].values())


def test_empty_history_without_an_answer_is_nan(small):
    [onnx_vectors, torch_vectors] = small.encode("query", {"history": torch.full((2, 3), -1)})
    assert onnx_vectors.isnan().all()
    assert torch_vectors.isnan().all()


@pytest.mark.slow
def test_misplaced_padding_is_nan_in_files(small, queries_of):
    histories = torch.tensor([[3, 4, -1, -1], [-1, -1, 3, 4], [3, -1, 4, -1], [3, -2, 4, 5]])
    sound = queries_of(small.made, histories=[[3, 4]], width=4).tensors
    [expected] = small.encode("query", sound)[:1]
    for vectors in small.encode("query", {"history": histories}):
        assert vectors.isnan().all(dim=1).tolist() == [False, True, True, True]
        torch.testing.assert_close(vectors[:1], expected, rtol=0, atol=1e-5)


def test_history_beyond_max_length_is_refused(small):
    tensors = {"history": torch.zeros(2, 7, dtype=torch.int64)}
    session = onnxruntime.InferenceSession(small.root / "onnx" / "query.onnx")
    with pytest.raises(Exception, match=r"positions|broadcast|dimension"):
        session.run(None, {"history": tensors["history"].numpy()})
    loaded = torch.export.load(small.root / "torch" / "query.pt2").module()
    with pytest.raises(Exception, match="6"):
        loaded(tensors)


def test_embedding_towers_are_looked_up_by_id(factors, tmp_path):
    written = Written(factors, tmp_path)
    ids = torch.tensor([11, 0])
    check_close(
        written.encode("query", {"user_id": ids}), factors.run.model.query_tower.embedding(ids)
    )
    check_close(
        written.encode("item", {"item_id": torch.tensor([-1])}), torch.full((1, 8), torch.nan)
    )


def test_max_length_of_one_has_a_fixed_axis(make_model, tmp_path):
    tower = {"type": "causal_transformer", "dim": 8}
    item = {"type": "item_embedding", "dim": 8}
    made = make_model({"query_tower": tower, "item_tower": item}, features=False, max_length=1)
    context = ExportContext(made.export_input)
    graph = context.graphs[0]
    assert graph.inputs[0].axes == ("batch", 1)
    vectors = trace(graph).module()({"history": torch.tensor([[4], [2]])})
    torch.testing.assert_close(vectors, graph.reference({"history": torch.tensor([[4], [2]])}))


def test_file_with_other_vectors_is_refused(factors, tmp_path, monkeypatch):
    context = ExportContext(factors.export_input)
    wrong = context.graphs[0].module.padded
    wrong.table += 1
    with pytest.raises(ArtifactError, match=r"query\.pt2 gives vectors that differ"):
        program.write_torch(context, tmp_path)


def test_missing_package_is_one_sentence(factors, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ConfigError, match=r"onnxruntime, .*; run pip install 'candid-retrieval\[export\]'"
    ):
        program.write_onnx(ExportContext(factors.export_input), tmp_path)
