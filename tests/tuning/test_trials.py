"""The record of a search: ranking, storage and the lock of its folder."""

import json

import pytest

from candid.checksums import sealed_text
from candid.errors import ArtifactError, ConfigError
from candid.tuning.trials import (
    RECIPE,
    TRIALS,
    History,
    Trial,
    TrialStatus,
    locked,
    read_history,
)
from candid.verification import verify


def history():
    trials = [
        Trial(0, {}, TrialStatus.COMPLETE, validations={1: 0.2, 2: 0.3}, best=0.3, best_epoch=2),
        Trial(1, {"a": [1]}, TrialStatus.PRUNED, validations={1: 0.9}, best=0.9, best_epoch=1),
        Trial(2, {"a": [2]}, TrialStatus.STOPPED, validations={1: 0.5}, best=0.5, best_epoch=1),
        Trial(3, {"a": [3]}, TrialStatus.COMPLETE, validations={1: 0.5}, best=0.5, best_epoch=1),
        Trial(4, {"a": [4]}, TrialStatus.FAILED, reason="diverged", cpu_seconds=1.5),
    ]
    return History("ndcg@10", {"space": {"a": {"choices": [[1], [2]]}}}, trials)


def test_ranking_has_trials_that_were_not_given_up():
    assert [trial.number for trial in history().ranking()] == [2, 3, 0]
    assert history().counts == {"complete": 2, "pruned": 1, "stopped": 1, "failed": 1}


def test_file_gives_the_same_history(tmp_path):
    history().save(tmp_path)
    assert read_history(tmp_path) == history()


def test_best_is_the_largest_validation():
    trial = Trial(1, {})
    for epoch, value in enumerate([0.1, 0.3, 0.2], 1):
        trial.add_validation(epoch, value, value / 10)
    assert (trial.best, trial.best_epoch, trial.standard_error) == (0.3, 2, 0.03)


def test_trials_are_compared_by_the_first_validation_of_an_epoch():
    """Trials with other batches have other numbers of validations within an epoch."""
    trial = Trial(1, {})
    for epoch, value in [(0, 0.1), (0, 0.2), (1, 0.3), (1, 0.5)]:
        trial.add_validation(epoch, value, None)
    assert (trial.validations, trial.best, trial.best_epoch) == ({0: 0.1, 1: 0.3}, 0.5, 1)


@pytest.mark.parametrize(
    ("text", "error"),
    [(None, ConfigError), ("{", ArtifactError), ("{}", ArtifactError), ("[]", ArtifactError)],
)
def test_folder_without_a_search_is_one_sentence(tmp_path, text, error):
    if text is not None:
        (tmp_path / TRIALS).write_text(text)
    with pytest.raises(error, match=str(tmp_path)):
        read_history(tmp_path)


def test_verify_finds_every_change_of_a_search(tmp_path):
    history().save(tmp_path)
    recipe = tmp_path / RECIPE
    recipe.write_text(sealed_text("seed = 1\nname = 'ü'\n"), encoding="utf-8")
    assert [check.path.name for check in verify(tmp_path)] == [TRIALS, RECIPE]
    assert all(check.is_ok for check in verify(tmp_path))
    for name in (TRIALS, RECIPE):
        path = tmp_path / name
        content = path.read_bytes()
        digit = content.replace(b"1", b"2", 1)
        for changed in (b"", b"no", digit, content[:-3], content + b"a = 1\n", content[1:]):
            path.write_bytes(changed)
            assert [c.path for c in verify(tmp_path) if not c.is_ok] == [path], changed
        path.write_bytes(content)
    recipe.unlink()
    assert [c.fault for c in verify(tmp_path) if not c.is_ok] == [
        "is missing; restore it from a copy, or continue the search with --resume"
    ]


def test_search_without_a_value_has_no_recipe(tmp_path):
    History("ndcg@10", {}, [Trial(0, {})]).save(tmp_path)
    assert [check.fault for check in verify(tmp_path)] == [None, None]


def test_other_format_is_refused(tmp_path):
    (tmp_path / TRIALS).write_text(json.dumps(history().to_json() | {"format": 99}))
    with pytest.raises(ArtifactError, match="format 99, this version reads 3"):
        read_history(tmp_path)


def test_folder_is_searched_by_one_process(tmp_path):
    with locked(tmp_path), pytest.raises(ConfigError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
