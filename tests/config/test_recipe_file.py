import pytest

from candid.config import parse_override, read_toml, with_overrides, with_values
from candid.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.epochs=5", ("training.epochs", 5)),
        ("training.lr = 1e-3", ("training.lr", 0.001)),
        ("loss.correction=logq", ("loss.correction", "logq")),
        ('data.user="user id"', ("data.user", "user id")),
        ("data.user=user id", ("data.user", "user id")),
        ("training.betas=[0.9, 0.98]", ("training.betas", [0.9, 0.98])),
        ("loss={type='bce'}", ("loss", {"type": "bce"})),
        ("data.interactions=a=b.csv", ("data.interactions", "a=b.csv")),
        ("sampler=", ("sampler", None)),
        ("name=1\nseed = 2", ("name", "1\nseed = 2")),
    ],
)
def test_parse_override_reads_a_dotted_key_and_a_toml_value_or_a_bare_string(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("training.epochs", "no '='"),
        ("=5", "not a dotted key"),
        ("a..b=5", "not a dotted key"),
        ("a b=5", "not a dotted key"),
        ("training.betas=[0.9", "not a complete TOML value"),
        ("name='x", "not a complete TOML value"),
        ("training.trackers=[jsonl]", "quote it for the shell"),
    ],
)
def test_malformed_override_error_quotes_the_override(text, word):
    with pytest.raises(ConfigError) as caught:
        parse_override(text)
    assert repr(text) in str(caught.value)
    assert word in str(caught.value)


def test_with_overrides_applies_in_turn_to_a_copy():
    table = {"training": {"epochs": 3}, "seed": 1}
    changed = with_overrides(table, ["training.epochs=4", "training.lr=0.1", "seed=", "a.b.c=1"])
    assert changed == {"training": {"epochs": 4, "lr": 0.1}, "a": {"b": {"c": 1}}}
    assert table == {"training": {"epochs": 3}, "seed": 1}


def test_override_of_type_empties_the_section_only_if_the_type_differs():
    table = {"loss": {"type": "gbce", "t": 0.5}}
    assert with_overrides(table, ["loss.type=bce"]) == {"loss": {"type": "bce"}}
    assert with_overrides(table, ["loss.type=gbce"]) == table


def test_override_of_a_key_of_a_component_given_by_name():
    changed = with_overrides({"loss": "gbce"}, ["loss.t=0.5"])
    assert changed == {"loss": {"type": "gbce", "t": 0.5}}


def test_override_key_through_a_plain_value_is_refused():
    with pytest.raises(ConfigError, match="'seed' is a value, not a section"):
        with_overrides({"seed": 1}, ["seed.x=2"])


def test_with_values_does_not_parse_values():
    assert with_values({"data": {"user": "u"}}, {"data.user": "1", "data.k_core": 5}) == {
        "data": {"user": "1", "k_core": 5}
    }


def test_read_toml_accepts_path_and_str(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("name = 'x'\n[training]\nepochs = 2\n")
    assert read_toml(path) == read_toml(str(path)) == {"name": "x", "training": {"epochs": 2}}


def test_unreadable_recipe_error_names_the_file(tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("name = 'x'\n[training\n")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"name = '\xff'")
    for path, word in [
        (broken, "line 2"),
        (binary, "UTF-8"),
        (tmp_path / "missing.toml", "not found"),
        (tmp_path, "or a prepared dataset with --data"),
    ]:
        with pytest.raises(ConfigError) as caught:
            read_toml(path)
        assert str(path) in str(caught.value)
        assert word in str(caught.value)


@pytest.mark.parametrize("content", [b"user_id,item_id\n1,2\n", b"PAR1\xff"])
def test_table_in_the_place_of_a_recipe_is_refused_with_the_verb_for_tables(tmp_path, content):
    table = tmp_path / "plays.csv"
    table.write_bytes(content)
    with pytest.raises(ConfigError, match=r"not a recipe .*: candid prepare --interactions .*csv"):
        read_toml(table)


def test_read_toml_nested_too_deeply_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "deep.toml"
    path.write_text("a = " + "[" * 100_000 + "]" * 100_000)
    with pytest.raises(ConfigError, match="not valid TOML: nested too deeply"):
        read_toml(path)
    with pytest.raises(ConfigError, match="not a complete TOML value"):
        parse_override("a=" + "[" * 100_000)
