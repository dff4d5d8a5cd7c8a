"""The campaign of item updates: a server in memory that is killed, and one that loses updates."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def updates(monkeypatch, tmp_path):
    """Return the failures of a case against a server in memory."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import faults_server
    import faults_updates

    def failures(seed, *, stores_cut_update=True, loses=False, mixes=False):
        stored = {}

        class Server:
            """Dies in its n-th update, before or after it is stored; ``stop`` has the number."""

            def __init__(self, folder, *arguments, stop=None):
                self.left = stop.number if stop else None
                self.command = SimpleNamespace(
                    kill=lambda: None, finish=lambda: SimpleNamespace(err="")
                )

            def listen(self):
                return True

            def ask(self, method, path, body=None, seconds=30.0):
                item = int(path.rpartition("/")[2])
                if method == "GET":
                    title = stored.get(item)
                    return (200, {"title": title}) if title else (404, {})
                dies = self.left == 1
                if self.left is not None:
                    self.left -= 1
                if not loses and (not dies or stores_cut_update):
                    stored[item] = None if method == "DELETE" else body["title"]
                if dies:
                    if mixes:
                        stored[item] = "neither"
                    raise ConnectionResetError
                return 200, {}

        monkeypatch.setattr(faults_updates, "Server", Server)
        monkeypatch.setattr(faults_server, "Server", Server)
        campaign = faults_updates.Updates(tmp_path, tmp_path, seed)
        return [text for text, _ in campaign._killed_updates(random.Random(seed))]

    return failures


@pytest.mark.parametrize("stores_cut_update", [True, False])
def test_update_that_a_kill_cut_may_be_stored_or_not(updates, stores_cut_update):
    for seed in range(40):
        assert updates(seed, stores_cut_update=stores_cut_update) == []


def test_lost_update_is_a_failure(updates):
    found = [text for seed in range(10) for text in updates(seed, loses=True)]
    assert any(text.startswith("an acknowledged update is lost: put") for text in found)


def test_item_between_two_states_is_a_failure(updates):
    found = [text for seed in range(40) for text in updates(seed, mixes=True)]
    assert any("neither as before a cut update nor as after it" in text for text in found)
