"""Help and version: light, one form for every verb, and the keys of a recipe."""

import re
import subprocess
import sys

import pytest
from typer.main import get_command

import candid as package
from candid.cli import app
from candid.config.sections import SECTIONS

VERBS = [
    "demo",
    "data",
    "prepare",
    "recipe",
    "train",
    "tune",
    "study",
    "evaluate",
    "baselines",
    "compare",
    "audit",
    "recommend",
    "index",
    "export",
    "serve",
    "similar",
    "verify",
]


def test_verbs_are_the_registered_commands():
    names = [command.callback.__name__ for command in app.registered_commands]
    assert sorted(names) == sorted(VERBS)


def test_version_is_printed(candid):
    assert candid("--version").out == f"candid {package.__version__}\n"


def test_overview_lists_every_verb(candid):
    overview = candid()
    assert overview.code == 0
    for verb in VERBS:
        assert re.search(rf"^  {verb} +[A-Z].*[^.]$", overview.out, re.MULTILINE), verb


def test_module_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "candid", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"candid {package.__version__}\n"


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_a_terminal_of_80_columns(candid, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    answer = candid(*([verb] if verb else []), "--help")
    assert answer.code == 0
    assert [line for line in answer.out.splitlines() if len(line) > 80] == []
    assert not re.search(r"[a-z ]\.\.\.", answer.out)  # a truncated text


@pytest.mark.parametrize("verb", VERBS)
def test_help_texts_are_fragments_with_the_default_in_one_form(verb):
    for parameter in get_command(app).commands[verb].params:
        if parameter.name == "help":
            continue
        text = parameter.help
        assert text, parameter.name
        assert text[0].isupper() or text[0].isdigit(), text
        assert not re.search(r"\.( \[default: [^]]*\])?$", text), text
        if "default" in text.lower():
            assert re.search(r" \[default: .+\]$", text), text


def test_commands_import_no_torch_before_they_need_it(tmp_path):
    rows = [f"{user},{(user + step) % 5},{step}" for user in range(5) for step in range(5)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,t", *rows]))
    log, out = tmp_path / "log.csv", tmp_path / "d"
    commands = [[verb, "--help"] for verb in VERBS]
    commands += [["--help"], ["--version"]]
    commands.append(
        ["prepare", "--interactions", str(log), "--order", "t", "--out", str(out), "--quiet"]
    )
    program = (
        "import sys\n"
        "from candid.cli import run\n"
        f"for command in {commands!r}:\n"
        "    assert run(command) == 0, command\n"
        "    assert 'torch' not in sys.modules, command\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "manifest.json").exists()


def test_train_help_lists_the_sections_of_a_recipe(candid):
    text = candid("train", "--help").out
    for section in SECTIONS:
        assert re.search(rf"^  {section} +\w", text, re.MULTILINE), section
    assert len(text.splitlines()) < 60


@pytest.mark.parametrize(
    "words",
    [
        "training.lr (number; default: 0.001) peak learning rate",
        'loss.correction (none | logq | refined | published_code; default: "logq") [only '
        "sampled_softmax]",
        "data.interactions (text | list of text; required)",
        'data.split.roles (table; default: { train = "train", history',
        "top level name (text; required)",
    ],
)
def test_train_keys_lists_each_key_with_type_default_and_meaning(candid, words):
    answer = candid("train", "--keys")
    assert answer.code == 0
    assert words in " ".join(answer.out.split())


def test_train_keys_lists_one_section(candid):
    answer = candid("train", "--keys", "training")
    assert answer.code == 0
    assert answer.out.startswith("[training]\n")
    keys = re.findall(r"^  (\S+)  \(", answer.out, re.MULTILINE)
    assert "training.lr" in keys
    assert all(key.startswith("training.") for key in keys)
    assert candid("train", "--keys", "training.lr").out.count("training.lr") == 1


def test_train_keys_of_an_unknown_section_names_the_known_ones(candid):
    answer = candid("train", "--keys", "trainig")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: unknown section 'trainig': did you mean 'training'? known")
