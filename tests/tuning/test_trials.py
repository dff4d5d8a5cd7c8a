"""The record of a search: ranking, storage and the lock of its folder."""

import json

import pytest

from candid.errors import ArtifactError, ConfigError
from candid.tuning.trials import TRIALS, History, Trial, TrialStatus, locked, read_history


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


@pytest.mark.parametrize(
    ("text", "error"),
    [(None, ConfigError), ("{", ArtifactError), ("{}", ArtifactError), ("[]", ArtifactError)],
)
def test_folder_without_a_search_is_one_sentence(tmp_path, text, error):
    if text is not None:
        (tmp_path / TRIALS).write_text(text)
    with pytest.raises(error, match=str(tmp_path)):
        read_history(tmp_path)


def test_other_format_is_refused(tmp_path):
    (tmp_path / TRIALS).write_text(json.dumps(history().to_json() | {"format": 99}))
    with pytest.raises(ArtifactError, match="format 99, this version reads 3"):
        read_history(tmp_path)


def test_folder_is_searched_by_one_process(tmp_path):
    with locked(tmp_path), pytest.raises(ConfigError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
