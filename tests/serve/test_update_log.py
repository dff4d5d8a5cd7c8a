"""The log of item updates: order, durability, compaction, repair, updates of other models."""

import errno
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time

import pytest

from candid.errors import ConfigError
from candid.serve.errors import RequestError
from candid.serve.update_file import to_record
from candid.serve.update_log import ItemUpdate, ItemUpdates

DARK = ItemUpdate("Dark Wood", {"genres": ["Horror"], "year": 2001})


@pytest.fixture(name="path")
def _path(tmp_path):
    return tmp_path / "updates.jsonl"


@pytest.fixture(name="events")
def _events(monkeypatch):
    """Log lines as (event, fields)."""
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append((record.getMessage(), record.fields))

    logger = logging.getLogger("candid.serve")
    monkeypatch.setattr(logger, "handlers", [Handler()])
    monkeypatch.setattr(logger, "level", logging.INFO)
    return lines


def reopened(path, model="films"):
    updates = ItemUpdates(path)
    updates.close()
    return updates.latest(model)


def test_latest_update_of_each_item_in_the_order_of_the_updates(path):
    updates = ItemUpdates(path)
    updates.append("films", 500, DARK)
    updates.append("films", 501, None)
    updates.append("other", 500, None)
    updates.append("films", "500", ItemUpdate(None, {}))
    updates.append("films", 500, None)
    expected = [(501, None), ("500", ItemUpdate(None, {})), (500, None)]
    assert list(updates.latest("films").items()) == expected
    assert updates.get("films", "500") == ItemUpdate(None, {})
    assert updates.get("films", 7) is None
    assert updates.counts() == {"films": 3, "other": 1}
    updates.close()
    assert list(reopened(path).items()) == expected


def test_large_ids_and_text_keep_their_type_and_value(path):
    ids = [2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, "9007199254740993", "007", "ü\u2028\n\t\0"]
    updates = ItemUpdates(path)
    for source_id in ids:
        updates.append("films", source_id, DARK)
    updates.close()
    found = list(reopened(path))
    assert found == ids
    assert list(map(type, found)) == list(map(type, ids))


def test_append_is_on_disk_before_it_is_in_memory(path, monkeypatch):
    updates = ItemUpdates(path)
    seen = []
    real = os.fsync

    def fsync(descriptor):
        seen.append((path.read_bytes().count(b"\n"), len(updates._latest)))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    updates.append("films", 500, DARK)
    assert seen == [(1, 0)]


def test_failed_append_changes_nothing(path, events, monkeypatch):
    updates = ItemUpdates(path)
    updates.append("films", 500, DARK)
    content = path.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    for update in (ItemUpdate("Other", {}), None):
        with pytest.raises(RequestError, match="No space left on device") as caught:
            updates.append("films", 500, update)
        assert (caught.value.code, caught.value.retry_after) == ("not_stored", 30)
        assert str(path) not in caught.value.message
    monkeypatch.undo()
    assert updates.latest("films") == {500: DARK}
    assert path.read_bytes() == content
    assert [event for event, _ in events] == ["item update not stored"] * 2
    assert events[0][1]["reason"] == "No space left on device"
    updates.append("films", 500, None)
    updates.close()
    assert reopened(path) == {500: None}


def test_torn_end_is_removed_and_logged(path, events):
    record = to_record({"model": "films", "item": 500, "update": None})
    path.write_bytes(record + record[:30])
    assert reopened(path) == {500: None}
    assert path.read_bytes() == record
    assert events == [("incomplete item update removed", {"file": str(path), "bytes": 30})]


def test_damage_is_copied_logged_and_costs_no_other_update(path, events):
    records = [to_record({"model": "films", "item": n, "update": None}) for n in range(4)]
    damaged = records[1].replace(b'"item": 1', b'"item": 9')
    content = records[0] + damaged + records[2] + records[3][:20]
    path.write_bytes(content)
    assert reopened(path) == {0: None, 2: None}
    assert path.read_bytes() == records[0] + records[2]
    copy = path.with_name("updates.jsonl.damaged")
    assert copy.read_bytes() == content
    [(event, fields), (second, _)] = events
    assert (event, second) == ("item updates damaged", "incomplete item update removed")
    assert fields["valid_updates"] == 2
    assert fields["copy"] == str(copy)
    path.write_bytes(damaged + records[0])
    assert reopened(path) == {0: None}
    assert path.with_name("updates.jsonl.damaged-2").read_bytes() == damaged + records[0]


def test_repair_that_fails_does_not_stop_the_start(path, events, monkeypatch):
    record = to_record({"model": "films", "item": 500, "update": None})
    content = record[:-9] + b"\n" + record + record[:30]
    path.write_bytes(content)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("candid.serve.update_file.shutil.copyfile", fail)
        updates = ItemUpdates(path)
    assert path.read_bytes() == content
    assert events[-1][0] == "item updates not repaired"
    updates.append("films", 501, DARK)
    updates.close()
    assert reopened(path) == {500: None, 501: DARK}


@pytest.mark.campaign
def test_compaction_while_updates_arrive_loses_none(path, events, monkeypatch):
    monkeypatch.setattr("candid.serve.update_log.SLACK", 2000)
    updates = ItemUpdates(path)
    rng = random.Random(0)

    def write(model):
        for number in range(400):
            updates.append(model, rng.randrange(20), ItemUpdate(str(number), {}))

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {name: updates.latest(name) for name in "abc"}
    updates.close()
    compactions = [fields for event, fields in events if event == "item updates compacted"]
    assert compactions
    assert all(fields["after"] < fields["before"] for fields in compactions)
    for name in "abc":
        assert list(reopened(path, name).items()) == list(expected[name].items())
    assert not list(path.parent.glob(".*.tmp"))


def test_file_stays_below_twice_its_latest_updates(path, monkeypatch):
    monkeypatch.setattr("candid.serve.update_log.SLACK", 500)
    updates = ItemUpdates(path)
    sizes = []
    for number in range(200):
        updates.append("films", number % 10, ItemUpdate(f"{number:03}", {}))
        if updates._compaction is not None:
            updates._compaction.join()
        sizes.append(path.stat().st_size)
    updates.close()
    num_bytes = len(path.read_bytes().splitlines()[-1]) + 1
    assert max(sizes) <= 2 * 10 * num_bytes + 500
    assert len(reopened(path)) == 10


def test_failed_compaction_keeps_the_file_and_is_not_repeated_at_once(path, events, monkeypatch):
    monkeypatch.setattr("candid.serve.update_log.SLACK", 500)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fail)
    updates = ItemUpdates(path)
    for number in range(100):
        updates.append("films", 1, ItemUpdate(str(number), {}))
        if updates._compaction is not None:
            updates._compaction.join()
    updates.close()
    assert 1 <= [event for event, _ in events].count("item updates not compacted") <= 5
    assert reopened(path) == {1: ItemUpdate("99", {})}


def test_large_file_is_compacted_at_the_start(path):
    record = to_record({"model": "films", "item": 500, "update": None})
    path.write_bytes(record * 2000)
    assert reopened(path) == {500: None}
    assert path.read_bytes() == record


def test_removed_file_is_written_again(path, events):
    updates = ItemUpdates(path)
    updates.append("films", 500, DARK)
    path.unlink()
    updates.append("films", 501, None)
    updates.close()
    assert events[0][0] == "item updates file was removed"
    assert reopened(path) == {500: DARK, 501: None}


def test_file_that_is_removed_during_a_compaction_is_not_replaced_by_its_copy(path, monkeypatch):
    updates = ItemUpdates(path)
    for number in (0, 0, 0, 1, 2):
        updates.append("films", number, DARK)
    size, num_replaced = updates._file.size, updates._file.num_replaced
    records = updates._records()
    path.unlink()
    for number in (7, 8, 9, 10):
        updates.append("films", number, DARK)
    assert updates._file.size > size
    updates._compact(updates._file, records, size, num_replaced)
    expected = updates.latest("films")
    updates.close()
    assert reopened(path) == expected
    assert list(expected) == [0, 1, 2, 7, 8, 9, 10]
    assert not list(path.parent.glob(".*.tmp"))


@pytest.mark.parametrize("seed", range(30))
def test_random_failures_and_restarts_keep_exactly_the_answered_updates(path, monkeypatch, seed):
    """Writes, syncs and renames fail at random, after a part of their work."""
    rng = random.Random(seed)
    monkeypatch.setattr("candid.serve.update_log.SLACK", 400)
    real_write, real_fsync, real_replace = os.write, os.fsync, os.replace
    share = 0.0

    def may_fail():
        if rng.random() < share:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(descriptor, data):
        if rng.random() < share:
            real_write(descriptor, data[: rng.randrange(len(data))])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(descriptor, data[: rng.randrange(1, len(data) + 1)])

    def fsync(descriptor):
        may_fail()
        real_fsync(descriptor)

    def replace(source, target):
        may_fail()
        real_replace(source, target)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    expected, refused = {}, 0
    updates = ItemUpdates(path)
    for number in range(120):
        share = rng.choice([0.0, 0.0, 0.3])
        item = rng.randrange(6)
        update = None if rng.random() < 0.2 else ItemUpdate(str(number), {})
        try:
            updates.append("films", item, update)
            expected.pop(item, None)
            expected[item] = update
        except RequestError:
            refused += 1
        if rng.random() < 0.1:
            path.unlink(missing_ok=True)
        if updates._compaction is not None:
            updates._compaction.join()
        share = 0.0
        assert list(updates.latest("films").items()) == list(expected.items())
        if rng.random() < 0.1:
            # The next append writes the file again if it was removed.
            updates.append("films", 99, None)
            expected.pop(99, None)
            expected[99] = None
            updates.close()
            updates = ItemUpdates(path)
            assert list(updates.latest("films").items()) == list(expected.items())
    assert refused > 2
    updates.close()


def test_updates_of_models_that_are_not_served_are_logged_and_kept(path, events):
    updates = ItemUpdates(path)
    updates.append("films", 500, DARK)
    updates.append("old", 500, DARK)
    updates.append("old", 501, None)
    updates.log_unserved(["films", "new"])
    assert events == [("item updates of models that are not served", {"items": {"old": 2}})]
    updates.log_unserved(["films", "old"])
    assert len(events) == 1
    updates.close()
    assert reopened(path, "old") == {500: DARK, 501: None}


def test_missing_folder_is_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.* does not exist; create it, or choose"):
        ItemUpdates(tmp_path / "nowhere" / "updates.jsonl")


def test_log_loads_no_torch():
    program = "import sys, candid.serve.update_log; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(output.stdout.decode().strip().lower()) is False


APPEND_FOREVER = """
import sys
from candid.serve import update_log
from candid.serve.update_log import ItemUpdate, ItemUpdates

update_log.SLACK = 1000
updates = ItemUpdates(sys.argv[1])
for number in range(10**9):
    updates.append("films", number % 5, ItemUpdate(str(number), {}))
    print(number, flush=True)
"""


@pytest.mark.parametrize("seed", range(8))
def test_update_that_returned_survives_a_kill_at_any_time(path, seed):
    """The process compacts its file every few updates."""
    rng = random.Random(seed)
    with subprocess.Popen(
        [sys.executable, "-c", APPEND_FOREVER, str(path)], stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        numbers = [0, *map(int, process.stdout.read().split(b"\n")[:-1])]
    stored = {item: int(update.title) for item, update in reopened(path).items()}
    for number in numbers[-5:]:
        assert stored[number % 5] in (number, numbers[-1] + 1)
    assert not list(path.parent.glob(".*.tmp"))
