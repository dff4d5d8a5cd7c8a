"""New items from a file, recommended beside the catalog."""

import json

import pytest

from candid.cli import run

RECIPE = """
name = "new"
threads = 1
device = "cpu"
[data]
interactions = "{folder}/log.csv"
user = "who"
item = "what"
time = "at"
[data.items]
path = "{folder}/items.csv"
item = "what"
attributes = ["colour"]
[features.item]
colour = {{ type = "categorical" }}
[model.query_tower]
type = "causal_transformer"
dim = 8
num_blocks = 1
[model.item_tower]
type = "item_features"
dim = 8
[loss]
type = "full_softmax"
[training]
epochs = 1
trackers = ["jsonl"]
[evaluation]
ks = [1]
metric = "ndcg@1"
intervals = false
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("new")
    log = [f"{u},{(u + s) % 6},{s}" for u in range(8) for s in range(5)]
    (root / "log.csv").write_text("\n".join(["who,what,at", *log]) + "\n")
    items = [f"{i},Film {i},{['red', 'blue'][i % 2]}" for i in range(6)]
    (root / "items.csv").write_text("\n".join(["what,title,colour", *items]) + "\n")
    (root / "new.toml").write_text(RECIPE.format(folder=root))
    prepared = ["prepare", str(root / "new.toml"), "--out", str(root / "data"), "--quiet"]
    assert run(prepared) == 0
    train = ["train", str(root / "new.toml"), "--data", str(root / "data"), "--quiet"]
    assert run([*train, "--out", str(root / "run")]) == 0
    return root


def recommend_with(folder, content, capsys, k=8):
    path = folder / "added.csv"
    path.write_text(content)
    arguments = ["recommend", str(folder / "run"), "--user", "1", "--include-seen", "-k", str(k)]
    capsys.readouterr()
    code = run([*arguments, "--new-items", str(path), "--json"])
    return code, *capsys.readouterr()


def test_new_items_are_recommended_with_id_and_title(folder, capsys):
    code, out, err = recommend_with(
        folder, "what,title,colour\n71,New,red\n70,Newer,green\n", capsys
    )
    assert code == 0, err
    result = {row["item"]: row["title"] for row in json.loads(out)["answers"][0]["items"]}
    assert result == {i: f"Film {i}" for i in range(6)} | {71: "New", 70: "Newer"}


def test_new_items_with_ids_as_floats(folder, capsys):
    code, out, err = recommend_with(folder, "what,title,colour\n71.0,New,red\n", capsys, k=7)
    assert code == 0, err
    assert 71 in {row["item"] for row in json.loads(out)["answers"][0]["items"]}


@pytest.mark.parametrize(
    ("content", "code", "sentence"),
    [
        ("what,title,colour\n3,Old,red\n", 2, "new item 3 is in the catalog"),
        ("what,title,colour\n70,A,red\n70,B,red\n", 3, "lists item 70 more than once"),
        ("what,title,colour\nx,A,red\n", 3, "column 'what' of"),
        ("what,title\n70,A\n", 3, "colour"),
        ("what,title,colour\n", 3, "has no rows: write one row per new item"),
    ],
)
def test_wrong_new_items_are_refused(folder, capsys, content, code, sentence):
    answer, out, err = recommend_with(folder, content, capsys, k=1)
    assert answer == code
    assert out == ""
    assert sentence in err.splitlines()[-1]
