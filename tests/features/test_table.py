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


def test_fit_table_fits_training_rows_and_encodes_all():
    table = fit_table(CONFIGS, FRAME, TRAINED, "features.item")
    assert len(table) == 4
    assert table.columns == {"genres": "genres", "year": "released"}
    assert codes(table.values["genres"]) == [1, 2, 2, 0]
    assert table.values["year"].values.tolist() == [[-1, 0], [1, 0], [1, 0], [0, 1]]


def test_encode_uses_the_fitted_state_for_other_rows():
    table = fit_table(CONFIGS, FRAME, TRAINED, "features.item")
    new = pl.DataFrame({"released": [1995], "genres": ["b|z"]})
    values = table.encode(new)
    assert list(values) == ["genres", "year"]
    assert codes(values["genres"]) == [2, 0]
    assert values["year"].values.tolist() == [[0, 0]]


def test_restored_table_encodes_the_same():
    table = fit_table(CONFIGS, FRAME, TRAINED, "features.item")
    state = json.loads(json.dumps(table.state()))
    restored = restore_table(CONFIGS, state, FRAME, "features.json")
    assert restored.state() == table.state()
    assert codes(restored.values["genres"]) == codes(table.values["genres"])


def test_missing_column_is_named_with_the_existing_ones():
    with pytest.raises(ConfigError, match=r"features.item.age: .*'age'.*genres, released"):
        fit_table({"age": Number.Config()}, FRAME, TRAINED, "features.item")
    table = fit_table(CONFIGS, FRAME, TRAINED, "features.item")
    with pytest.raises(DataError, match=r"'year' needs column 'released'.*only genres"):
        table.encode(FRAME.select("genres"))


def test_wrong_value_is_named_with_feature_and_column():
    with pytest.raises(DataError, match=r"features.item.x, column 'genres': 'a\|b' is not"):
        fit_table({"x": Number.Config(column="genres")}, FRAME, TRAINED, "features.item")
    # In a row that is not a training row.
    frame = FRAME.with_columns(pl.Series("released", ["1", "2", "soon", None]))
    with pytest.raises(DataError, match="'year', column 'released': 'soon' is not"):
        fit_table(CONFIGS, frame, TRAINED, "features.item")
    # New text values for a feature that was fitted on integers.
    table = fit_table({"released": Categorical.Config()}, FRAME, TRAINED, "features.item")
    assert table.features["released"].vocabulary.kind == "integer"
    with pytest.raises(DataError, match=r"'released'.*text.*integer"):
        table.encode(pl.DataFrame({"released": ["1990"]}))


@pytest.mark.parametrize(
    "states",
    [{}, {"genres": {}, "year": {}}, {"genres": None, "year": 3}, {"genres": {"vocabulary": 1}}],
)
def test_states_of_other_features_are_an_artifact_error(states):
    with pytest.raises(ArtifactError, match=r"features.json has no valid state of .*'genres'"):
        restore_table(CONFIGS, states, FRAME, "features.json")


def test_missing_package_is_a_config_error(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    configs = {"genres": FEATURES["text"].Config()}
    with pytest.raises(ConfigError, match=r"features.item.genres: .*candid-retrieval\[text\]"):
        fit_table(configs, FRAME, TRAINED, "features.item")
    with pytest.raises(ConfigError, match=r"features.json, .*'genres': .*candid-retrieval\[text\]"):
        restore_table(configs, {"genres": {"encoder": "wordllama 1"}}, FRAME, "features.json")


def test_pattern_extracts_the_value_from_a_text():
    frame = pl.DataFrame({"title": ["Heat (1995)", "Babe (1997)", "Untitled", None, "X (1896)"]})
    configs = {
        "year": Number.Config(column="title", pattern=r"\((\d{4})\)$"),
        "decade": Categorical.Config(column="title", pattern=r"\((\d{3})\d\)$", min_count=1),
    }
    trained = np.array([True, True, False, False, False])
    table = fit_table(configs, frame, trained, "features.item")
    # Mean 1996, deviation 1; a text without a year is missing, and an older year is clipped.
    assert table.values["year"].values.tolist() == [[-1, 0], [1, 0], [0, 1], [0, 1], [-1, 0]]
    decades = codes(table.values["decade"])
    assert decades[0] == decades[1] != decades[4]
    assert decades[2] == decades[3]
    state = json.loads(json.dumps(table.state()))
    restored = restore_table(configs, state, frame, "features.json")
    assert codes(restored.values["decade"]) == decades
    assert codes(restored.encode(pl.DataFrame({"title": ["New (1999)"]}))["decade"]) == decades[:1]


def test_wrong_pattern_or_column_of_numbers_is_refused():
    for pattern, sentence in (("(", "not a regular expression"), ("year", "has no group")):
        with pytest.raises(ConfigError, match=sentence):
            Number.Config(pattern=pattern)
    configs = {"year": Number.Config(column="released", pattern=r"(\d+)")}
    fractions = FRAME.with_columns(pl.col("released") / 2)
    with pytest.raises(DataError, match=r"features.item.year, column 'released': a pattern needs"):
        fit_table(configs, fractions, TRAINED, "features.item")


def test_integers_of_a_text_file_are_text_where_text_is_needed():
    # A column of numbers alone is read as integers, so that its type depends on its values.
    frame = pl.DataFrame({"zip": [48067, 55117], "genres": [3, 7]})
    configs = {"zip": Number.Config(pattern=r"^(\d)"), "genres": Bag.Config(min_count=1)}
    table = fit_table(configs, frame, np.array([True, True]), "features.item")
    assert table.values["zip"].values[:, 1].tolist() == [0, 0]  # not missing
    assert table.features["genres"].vocabulary.values == ["3", "7"]
    later = table.encode(pl.DataFrame({"zip": ["48067-12"], "genres": ["7|3"]}))
    assert sorted(later["genres"].ids.tolist()) == [1, 2]
