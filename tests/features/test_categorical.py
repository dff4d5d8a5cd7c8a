import polars as pl

from candid.features import Categorical


def codes(feature, column):
    return feature.encode(pl.Series(column)).ids[:, 0].tolist()


def test_rare_values_share_the_unknown_bucket():
    feature = Categorical.Config(min_count=2).fit(pl.Series(["b", "a", "b", "c", "a"]))
    assert codes(feature, ["a", "b", "c", "d"]) == [1, 2, 0, 0]
    assert feature.encode(pl.Series(["a"])).num_codes == 3


def test_frequent_null_has_a_code():
    seen = Categorical.Config(min_count=2).fit(pl.Series(["a", "a", None, ""]))
    assert codes(seen, ["a", None, "", "new"]) == [1, 2, 2, 0]
    assert seen.encode(pl.Series([None])).num_codes == 3
    rare = Categorical.Config(min_count=2).fit(pl.Series(["a", "a", None]))
    assert codes(rare, ["a", None]) == [1, 0]
    assert rare.encode(pl.Series(["a"])).num_codes == 2


def test_max_values_keeps_the_most_frequent():
    column = pl.Series([1, 2, 2, 3, 3, 4, 4, 4])
    feature = Categorical.Config(min_count=1, max_values=2).fit(column)
    # 2 and 3 are equally frequent: the smaller stays.
    assert codes(feature, [1, 2, 3, 4]) == [0, 1, 0, 2]


def test_booleans_have_codes():
    feature = Categorical.Config(min_count=1).fit(pl.Series([True, False, None]))
    assert codes(feature, [False, True, None]) == [1, 2, 3]


def test_blanks_around_text_are_removed():
    feature = Categorical.Config(min_count=1).fit(pl.Series(["a", " b "]))
    assert feature.vocabulary.values == ["a", "b"]
    assert feature.encode(pl.Series([" a", "b", "\t", "c"])).ids[:, 0].tolist() == [1, 2, 0, 0]
