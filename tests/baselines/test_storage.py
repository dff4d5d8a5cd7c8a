"""Arrays of fitted baselines: written, read back, and refused where they are damaged."""

import numpy as np
import pytest

from candid.baselines import BASELINES, training_rows
from candid.baselines.als import ALS
from candid.baselines.storage import read_baseline, write_arrays
from candid.errors import ArtifactError

FITTED = [name for name in BASELINES if name != "als"]


def fitted(name, shop):
    """Fit a baseline; ALS, whose fit needs another package, has random factors."""
    rows, baseline = training_rows(shop), BASELINES[name]
    if name != "als":
        return baseline.fit(rows, baseline.Config())
    factors = np.random.default_rng(5).normal(size=(28, 6)).astype(np.float32)
    return ALS(ALS.Config(factors=6), rows.target_counts, factors)


@pytest.mark.parametrize("name", [*FITTED, "als"])
def test_scores_are_the_same_after_a_round_trip(name, shop, shop_histories, make_queries, tmp_path):
    model = fitted(name, shop)
    write_arrays(tmp_path / "arrays", model)
    again = read_baseline(tmp_path / "arrays", BASELINES[name], model.config)
    assert type(again) is type(model)
    users = np.arange(len(shop_histories))  # the rows of the users themselves are left out
    for user_ids in (None, users):
        queries = make_queries(shop_histories, user_ids)
        expected, scores = model.score_catalog(queries), again.score_catalog(queries)
        assert scores.equal(expected)
        assert len(np.unique(expected.numpy())) > 2


def test_settings_of_a_query_are_read_from_the_config(shop, shop_histories, make_queries, tmp_path):
    baseline = BASELINES["item_knn"]
    model = baseline.fit(training_rows(shop), baseline.Config())
    write_arrays(tmp_path / "arrays", model)
    other = baseline.Config(decay=0.3)
    queries = make_queries(shop_histories)
    scores = read_baseline(tmp_path / "arrays", baseline, other).score_catalog(queries)
    assert scores.equal(baseline.fit(training_rows(shop), other).score_catalog(queries))
    assert not scores.equal(model.score_catalog(queries))


def test_damaged_and_foreign_files_are_refused(shop, tmp_path):
    path = tmp_path / "arrays"
    baseline = BASELINES["item_knn"]
    with pytest.raises(ArtifactError, match="arrays does not exist: save the baseline again"):
        read_baseline(path, baseline, baseline.Config())
    write_arrays(path, fitted("ease", shop))
    with pytest.raises(ArtifactError, match=r"damaged .*similarities"):
        read_baseline(path, baseline, baseline.Config())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="is damaged"):
        read_baseline(path, BASELINES["ease"], BASELINES["ease"].Config())


def test_an_index_beyond_the_catalog_is_refused(shop, tmp_path):
    model = fitted("item_knn", shop)
    model.similarities.indices[3] = 1000
    write_arrays(tmp_path / "arrays", model)
    with pytest.raises(ArtifactError, match="is damaged"):
        read_baseline(tmp_path / "arrays", type(model), model.config)
