import importlib.metadata
import json

import numpy as np
import polars as pl
import pytest

from candid.errors import ArtifactError, ConfigError, DataError
from candid.features import FEATURES, Bag, Categorical, Number, fit_table, restore_table

FRAME = pl.DataFrame(
    {
        "source_id": [1, 2, 3, 4],
        "genres": ["a|b", "b", "c", None],
        "released": [1990, 2000, 3000, None],
    }
)
TRAINED = np.array([True, True, False, False])
CONFIGS = {"genres": Bag.Config(min_count=1), "year": Number.Config(column="released")}


def codes(values):
    return values.ids.tolist()


def test_only_trained_rows_are_learnt_and_all_rows_encoded():
    table = fit_table(CONFIGS, FRAME, TRAINED, "features.item")
    assert len(table) == 4
    assert table.columns == {"genres": "genres", "year": "released"}
    assert codes(table.values["genres"]) == [1, 2, 2, 0]
    assert table.values["year"].values.tolist() == [[-1, 0], [1, 0], [1, 0], [0, 1]]


def test_other_rows_are_encoded_with_what_was_learnt():
    table = fit_table(CONFIGS, FRAME, TRAINED, "features.item")
    new = pl.DataFrame({"released": [1995], "genres": ["b|z"]})
    found = table.encode(new)
    assert list(found) == ["genres", "year"]
    assert codes(found["genres"]) == [2, 0]
    assert found["year"].values.tolist() == [[0, 0]]


def test_a_stored_table_encodes_the_same():
    table = fit_table(CONFIGS, FRAME, TRAINED, "features.item")
    state = json.loads(json.dumps(table.state()))
    restored = restore_table(CONFIGS, state, FRAME, "features.json")
    assert restored.state() == table.state()
    assert codes(restored.values["genres"]) == codes(table.values["genres"])


def test_a_missing_column_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match=r"features.item.age: .*'age'.*genres, released"):
        fit_table({"age": Number.Config()}, FRAME, TRAINED, "features.item")
    table = fit_table(CONFIGS, FRAME, TRAINED, "features.item")
    with pytest.raises(DataError, match=r"'year' needs column 'released'.*has genres"):
        table.encode(FRAME.select("genres"))


def test_a_wrong_value_is_named_with_feature_and_column():
    with pytest.raises(DataError, match=r"features.item.x, column 'genres': 'a\|b' is not"):
        fit_table({"x": Number.Config(column="genres")}, FRAME, TRAINED, "features.item")
    # In a row that was not trained on.
    frame = FRAME.with_columns(pl.Series("released", ["1", "2", "soon", None]))
    with pytest.raises(DataError, match="'year', column 'released': 'soon' is not"):
        fit_table(CONFIGS, frame, TRAINED, "features.item")
    # In service, where training saw integers.
    table = fit_table({"released": Categorical.Config()}, FRAME, TRAINED, "features.item")
    assert table.features["released"].vocabulary.kind == "integer"
    with pytest.raises(DataError, match=r"'released'.*text.*integer"):
        table.encode(pl.DataFrame({"released": ["1990"]}))


@pytest.mark.parametrize(
    "states",
    [{}, {"genres": {}, "year": {}}, {"genres": None, "year": 3}, {"genres": {"vocabulary": 1}}],
)
def test_states_of_other_features_are_an_artifact_error(states):
    with pytest.raises(ArtifactError, match=r"features.json does not hold .*'genres'"):
        restore_table(CONFIGS, states, FRAME, "features.json")


def test_a_missing_package_is_no_damage(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    configs = {"genres": FEATURES["text"].Config()}
    with pytest.raises(ConfigError, match=r"features.item.genres: .*candid\[text\]"):
        fit_table(configs, FRAME, TRAINED, "features.item")
    with pytest.raises(ConfigError, match=r"features.json, feature 'genres': .*candid\[text\]"):
        restore_table(configs, {"genres": {"encoder": "wordllama 1"}}, FRAME, "features.json")


def test_a_pattern_finds_the_value_in_a_text():
    frame = pl.DataFrame({"title": ["Heat (1995)", "Babe (1997)", "Untitled", None, "X (1896)"]})
    configs = {
        "year": Number.Config(column="title", pattern=r"\((\d{4})\)$"),
        "decade": Categorical.Config(column="title", pattern=r"\((\d{3})\d\)$", min_count=1),
    }
    trained = np.array([True, True, False, False, False])
    table = fit_table(configs, frame, trained, "features.item")
    # Mean 1996, deviation 1; no year is missing, and an older one is as old as any met.
    assert table.values["year"].values.tolist() == [[-1, 0], [1, 0], [0, 1], [0, 1], [-1, 0]]
    decades = codes(table.values["decade"])
    assert decades[0] == decades[1] != decades[4]
    assert decades[2] == decades[3]
    state = json.loads(json.dumps(table.state()))
    restored = restore_table(configs, state, frame, "features.json")
    assert codes(restored.values["decade"]) == decades
    assert codes(restored.encode(pl.DataFrame({"title": ["New (1999)"]}))["decade"]) == decades[:1]


def test_a_pattern_must_be_one_and_reads_text():
    for pattern, sentence in (("(", "not a regular expression"), ("year", "has no group")):
        with pytest.raises(ValueError, match=sentence):
            Number.Config(pattern=pattern)
    configs = {"year": Number.Config(column="released", pattern=r"(\d+)")}
    with pytest.raises(DataError, match=r"features.item.year, column 'released': a pattern reads"):
        fit_table(configs, FRAME, TRAINED, "features.item")
