"""Tab completion, and suggestions for mistyped verbs and options."""

import os
import subprocess
import sys

import pytest


def complete(words):
    """Ask the command as bash does when Tab is pressed, and return its words."""
    line = words.split(" ")
    environment = os.environ | {
        "_CANDID_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(line) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "candid"], env=environment, capture_output=True, text=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("candid pre", ["prepare"]),
        ("candid re", ["recipe", "recommend"]),
        ("candid prepare --interac", ["--interactions"]),
        ("candid evaluate run --split ", ["validation", "test"]),
    ],
)
def test_tab_completes_verbs_options_and_values(words, expected):
    assert complete(words) == expected


def test_completion_of_a_shell_is_printed(tmp_path):
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "candid", "--show-completion"]
    done = subprocess.run([*command, "bash"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "complete -o default -F _candid_completion candid" in done.stdout
    unknown = subprocess.run([*command, "tcsh"], env=environment, capture_output=True, text=True)
    assert unknown.returncode != 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian", "r.toml"), ("No such command 'trian'", "Did you mean 'train'?")),
        (("prepare", "--itmes", "x"), ("No such option: --itmes", "--items")),
        (("evaluate", "run", "--splt", "test"), ("No such option: --splt", "--split")),
    ],
)
def test_mistyped_verbs_and_options_get_a_suggestion(candid, arguments, words):
    answer = candid(*arguments)
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    for word in words:
        assert word in answer.err
