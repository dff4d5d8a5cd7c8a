"""The runner of a study: records, resume, failures, budget, and pairs of arms."""

import copy
import dataclasses
import platform
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

import candid
from candid.batches import target_counts
from candid.errors import ConfigError, DataError, Interrupted
from candid.locks import acquire
from candid.runs import train_run
from candid.samplers.popularity import Popularity
from candid.study import parse_study, read_records, read_users, run_study
from candid.study import run as run_module
from candid.study.cell import Cell, softmax_items
from candid.study.cost import CostModel
from candid.study.datasets import Datasets
from candid.study.folder import Commits, open_folder
from candid.study.grid import Grid
from candid.study.records import RECORDS, append_record
from candid.training import Trainer

PROGRAM = Path(__file__).with_name("small_study.py")
SMALL = runpy.run_path(str(PROGRAM))
STUDY, Silent = SMALL["STUDY"], SMALL["Silent"]
CLOCKS = ("cpu_seconds", "measure_cpu_seconds", "peak_mib")


def study_with(**changes):
    return parse_study(copy.deepcopy(STUDY) | changes, "study")


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """An uninterrupted study of three arms, and its result."""
    out = tmp_path_factory.mktemp("study") / "complete"
    return out, run_study(study_with(), out)


@pytest.fixture
def copied(complete, tmp_path):
    """A folder with the datasets and times of the complete study, and no record."""
    out = tmp_path / "study"
    subprocess.run(["cp", "-r", complete[0], out], check=True)
    (out / RECORDS).unlink()
    return out


@pytest.fixture
def started(monkeypatch):
    """The labels of the cells that start."""
    labels = []
    original = Cell.run

    def spy(self, *arguments):
        labels.append(self.key.label)
        return original(self, *arguments)

    monkeypatch.setattr(Cell, "run", spy)
    return labels


def open_synthetic(study, out):
    return Datasets(study, out, threading.Event()).open("synthetic", "leave-one-out")


def without_clocks(record):
    curve = tuple(dataclasses.replace(point, cpu_seconds=0.0) for point in record.curve)
    return dataclasses.replace(record, curve=curve, **dict.fromkeys(CLOCKS, 0.0))


def test_study_records_every_cell(complete):
    out, result = complete
    assert result.is_complete
    assert not result.failed
    assert (result.status.pilot, result.status.main) == ((3, 3), (3, 3))
    assert read_records(out) == list(result.records)
    assert not list((out / "cells").iterdir())
    assert not list((out / "locks").iterdir())
    for record in result.records:
        assert record.validation.keys() >= {"ndcg@10", "nll"}
        assert len(record.curve) == -(-record.steps // SMALL["VALIDATE_EVERY_STEPS"]) > 2
        assert record.curve[0].sample_weight is not None
        assert record.cpu_seconds > 0
        assert record.peak_mib > 100  # torch alone takes more
        assert record.versions == {
            "candid": candid.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        settings = record.settings
        assert settings["training"]["lr"] == record.key.lr == 0.05
        assert settings["training"]["epochs"] == (1 if record.key.phase == "pilot" else 3)
        assert settings["seed"] == record.key.seed
        sampler = settings["sampler"]
        if record.key.arm == "full_softmax":
            assert settings["loss"]["type"] == "full_softmax"
            assert sampler is None
        else:
            correction = {"logq_kept": "logq", "refined": "refined"}[record.key.arm]
            assert settings["loss"]["correction"] == correction
            assert (sampler["type"], sampler["num_candidates"]) == ("popularity", 4)
        assert (record.test == {}) == (record.key.phase == "pilot")


def test_items_of_the_softmax_are_all_or_those_with_a_target():
    for softmax_over, number in (("all", 3), ("trained", 2)):
        run = SimpleNamespace(
            config=SimpleNamespace(training=SimpleNamespace(softmax_over=softmax_over)),
            dataset=SimpleNamespace(num_items=3),
            item_counts=np.array([4.0, 0.0, 1.0]),
        )
        assert softmax_items(run) == number


def test_measurements_of_a_main_cell_agree_with_each_other(complete):
    out, result = complete
    batches = Grid(study_with()).config(result.records[0].key).batches
    num_trained = np.count_nonzero(target_counts(open_synthetic(study_with(), out), batches))
    for record in (one for one in result.records if one.key.phase == "main"):
        users = read_users(out, record)
        assert len(users.user_ids) == record.num_users > 20
        assert record.test["nll"].value == pytest.approx(users.nll.mean())
        assert record.test["ndcg@10"].value == pytest.approx(np.nanmean(users.ndcg))
        error = users.nll.std(ddof=1) / len(users.nll) ** 0.5
        assert record.test["nll"].standard_error == pytest.approx(error)
        groups = np.bincount(users.decile, minlength=11)
        assert [one.targets for one in record.popularity] == groups[groups > 0].tolist()
        mean_nll = np.average(
            [one.nll.value for one in record.popularity], weights=groups[groups > 0]
        )
        assert mean_nll == pytest.approx(users.nll.mean())
        bins = record.calibration
        assert sum(one.pairs for one in bins) == 20 * record.ranked_items
        assert sum(one.pairs * one.stated for one in bins) == pytest.approx(20, rel=1e-5)
        assert sum(one.pairs * one.observed for one in bins) == pytest.approx(20)
        assert all(one.low <= one.stated <= one.high for one in bins)
        assert (record.softmax_items, record.ranked_items) == (num_trained, record.num_items)
        is_sampled = record.key.arm != "full_softmax"
        assert (record.chi2_users, record.drift_users) == (60, 60) if is_sampled else (0, 0)
        assert (record.drift is not None) == (record.chi2 is not None) == is_sampled
        assert record.candidates_per_row == (4 if is_sampled else record.softmax_items)


def test_killed_study_has_the_records_of_an_uninterrupted_one(complete, copied):
    done = subprocess.run([sys.executable, str(PROGRAM), str(copied)], check=False)
    assert done.returncode == -9
    assert len(read_records(copied)) == 5  # the pilot and two main cells
    (folder,) = (copied / "cells").iterdir()
    assert (folder / "run" / "last.safetensors").exists()
    steps = []

    class Watch(Silent):
        def on_step(self, key, state, status):
            steps.append(state.step)

    result = run_study(study_with(), copied, progress=Watch())
    assert min(steps) == 5  # after the validation within the first epoch
    before = complete[1].records
    assert [*map(without_clocks, result.records)] == [*map(without_clocks, before)]
    for record in before:
        if record.users is not None:
            name = record.users
            assert (copied / name).read_bytes() == (complete[0] / name).read_bytes()


@pytest.mark.parametrize("name", ["interactions.parquet", "settings.json", "items.parquet"])
def test_changed_file_of_a_synthetic_dataset_is_written_again(complete, copied, name):
    """Other interactions would be another dataset, of which no cell has a record."""
    path = copied / "data" / "synthetic-files" / name
    before = path.read_bytes()
    path.write_bytes(before[:-9])
    opened = [open_synthetic(study_with(), out) for out in (complete[0], copied)]
    assert path.read_bytes() == before
    assert opened[0].fingerprint == opened[1].fingerprint


def test_files_of_a_synthetic_dataset_of_an_earlier_version_are_kept(complete, copied):
    folder = copied / "data" / "synthetic-files"
    study = study_with()
    (folder / "settings.json").write_text(study.synthetic("synthetic").model_dump_json())
    before = (folder / "interactions.parquet").stat().st_mtime_ns
    open_synthetic(study, copied)
    assert (folder / "interactions.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ["[]", '{"a": "b"}', "null", '{"a": -1.0, "b": Infinity}'])
def test_timings_with_other_values_are_left_out(tmp_path, text):
    (tmp_path / "timings.json").write_text(text)
    study = study_with()
    datasets = Datasets(study, tmp_path, threading.Event())
    assert CostModel(Grid(study), datasets, tmp_path, print)._known == {}


def test_arms_of_a_seed_share_weights_batches_and_samples(complete, tmp_path, monkeypatch):
    arms = ["none", "logq_masked", "refined", "refined_jackknife", "learnt_partition", "bce"]
    distinct = ["logq_distinct", "refined_distinct"]
    # Their candidates are others; weights and batches are the same.
    nearest, fourier = ["logq_nearest", "refined_nearest"], ["logq_random_fourier"]
    grids = [
        # Fourier features sample all items: not beside a full softmax over the trained ones.
        Grid(study_with(grids=[{"num_candidates": [4], "arms": found, "seeds": [0, 1]}]))
        for found in (arms + distinct + nearest + ["full_softmax"], fourier)
    ]
    seen, drawn, initial, batches = {}, {}, {}, {}
    original, original_ids = Popularity.sample, Popularity._sample_ids

    def spy(self, positive_ids, *arguments, **keywords):
        candidates = original(self, positive_ids, *arguments, **keywords)
        seen.setdefault(name, []).append(torch.cat([positive_ids, candidates.ids]))
        return candidates

    def spy_on_ids(self, *arguments):
        ids = original_ids(self, *arguments)
        drawn.setdefault(name, []).append(ids)
        return ids

    original_run, original_step = Trainer.run, Trainer.step

    def spy_on_run(self, *arguments, **keywords):
        state = self.model.state_dict()
        initial[name] = {key: tensor.clone() for key, tensor in state.items()}
        return original_run(self, *arguments, **keywords)

    def spy_on_step(self, batch, *arguments, **keywords):
        rows = (batch.user_ids, batch.positive_ids)
        batches.setdefault(name, []).append(torch.stack(rows))
        return original_step(self, batch, *arguments, **keywords)

    monkeypatch.setattr(Trainer, "run", spy_on_run)
    monkeypatch.setattr(Trainer, "step", spy_on_step)
    monkeypatch.setattr(Popularity, "sample", spy)
    monkeypatch.setattr(Popularity, "_sample_ids", spy_on_ids)
    dataset = complete[0] / "data" / "synthetic-leave-one-out"
    for grid, setting in ((one, setting) for one in grids for setting in one.seeds):
        for seed in (0, 1):
            name = (setting.arm, seed)
            config = grid.config(setting.cell("main", 0.05, seed))
            training = config.training.model_copy(update={"max_steps": 3})
            config = config.model_copy(update={"training": training})
            train_run(config, dataset, tmp_path / f"{setting.arm}-{seed}")
    everywhere = [*arms, *distinct, *nearest, *fourier, "full_softmax"]
    assert initial.keys() == batches.keys() == {(a, seed) for a in everywhere for seed in (0, 1)}
    for seed in (0, 1):
        for arm in everywhere:
            assert initial[arm, seed].keys() == initial["none", seed].keys()
            for key, tensor in initial["none", seed].items():
                assert torch.equal(initial[arm, seed][key], tensor), (arm, key)
            rows = torch.stack(batches["none", seed])
            assert len(rows) == 3
            assert torch.equal(torch.stack(batches[arm, seed]), rows), arm
        first = torch.stack(seen["none", seed])
        assert len(first) == 3
        for arm in arms:
            assert torch.equal(torch.stack(seen[arm, seed]), first), arm
        samples = torch.stack(drawn["none", seed])
        assert torch.equal(samples, first[:, -4:])
        for arm in distinct:
            assert torch.equal(torch.stack(drawn[arm, seed]), samples), arm
            for row, items, draws in zip(first, seen[arm, seed], samples, strict=True):
                assert torch.equal(items, torch.cat([row[:-4], draws.unique()])), arm
    assert not torch.equal(seen["none", 0][0], seen["none", 1][0])
    one, other = (initial["none", seed] for seed in (0, 1))
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def without_row_tables(monkeypatch):
    """Let the trainings with row-wise tables fail."""

    def train(config, *arguments, **keywords):
        if config.training.tables == "row_adam":
            raise ConfigError("this training fails: set training.tables = 'dense'")
        return train_run(config, *arguments, **keywords)

    monkeypatch.setattr("candid.study.cell.train_run", train)


def test_failed_cell_is_recorded_and_runs_again_only_when_asked(
    copied, started, without_row_tables
):
    # Only the main cells have row-wise tables.
    recipe = copy.deepcopy(STUDY["recipe"])
    recipe["training"]["tables"] = "row_adam"
    pilot = copy.deepcopy(STUDY["pilot"])
    pilot["recipe"]["training"]["tables"] = "dense"
    grids = [{"arms": ["full_softmax"], "seeds": [0, 1]}]
    study = study_with(recipe=recipe, pilot=pilot, grids=grids)
    result = run_study(study, copied)
    assert result.is_complete
    assert [record.key.seed for record in result.failed] == [0, 1]
    assert all("set training.tables = 'dense'" in record.error for record in result.failed)
    assert [label.split()[0] for label in started] == ["pilot", "main", "main"]
    run_study(study, copied)
    assert len(started) == 3
    result = run_study(study, copied, retry_failed=True)
    assert len(started) == 5
    assert len(result.failed) == 2

    class OtherProcess(Silent):
        """Retries the second cell while this process runs the first one."""

        def on_cell(self, key, status):
            if key.seed == 0:
                append_record(copied, dataclasses.replace(result.failed[1], error="again"))

    result = run_study(study, copied, retry_failed=True, progress=OtherProcess())
    assert len(started) == 6
    assert {one.key.seed: one.error == "again" for one in result.failed} == {0: False, 1: True}


def test_failed_pilot_leaves_its_arm_without_a_learning_rate(copied, without_row_tables):
    recipe = copy.deepcopy(STUDY["recipe"])
    recipe["training"]["tables"] = "row_adam"
    study = study_with(recipe=recipe, grids=[{"arms": ["full_softmax"], "seeds": [0, 1]}])
    result = run_study(study, copied)
    assert result.is_complete
    assert result.without_rate == 2
    assert [record.key.phase for record in result.records] == ["pilot"]
    assert result.status.remaining == 0
    again = run_study(study, copied)  # nothing is timed any more
    assert (again.without_rate, again.status.remaining) == (2, 0)


def test_panic_of_a_library_fails_its_cell(copied, monkeypatch):
    def panic(*arguments, **keywords):
        raise pl.exceptions.PanicException("index out of bounds")

    monkeypatch.setattr("candid.study.cell.train_run", panic)
    result = run_study(study_with(grids=[{"arms": ["full_softmax"]}]), copied)
    assert [record.error for record in result.failed] == [
        "unexpected PanicException: index out of bounds"
    ]


class Killed(BaseException):
    """Ends a cell as a kill does: nothing catches it."""


@pytest.fixture
def ended_by(monkeypatch):
    """Return a function that lets each training end by an exception, or run as it is with None."""

    def choose(error):
        def train(*arguments, **keywords):
            raise error

        replacement = train_run if error is None else train
        monkeypatch.setattr("candid.study.cell.train_run", replacement)

    return choose


def test_cell_that_is_killed_again_and_again_fails(copied, ended_by):
    study = study_with(grids=[{"arms": ["full_softmax"]}])
    ended_by(Killed())
    for _ in range(3):
        with pytest.raises(Killed):
            run_study(study, copied)
    result = run_study(study, copied)
    (error,) = [record.error for record in result.failed]
    assert error.startswith("its process was killed 3 times before a new checkpoint")
    ended_by(None)
    assert not run_study(study, copied).records[0].is_finished
    assert run_study(study, copied, retry_failed=True).records[0].is_finished


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("stopped at step 3")], ids=str)
def test_stop_by_a_signal_does_not_count_as_a_kill(copied, ended_by, error):
    study = study_with(grids=[{"arms": ["full_softmax"]}])
    for ends, exception in [(error, Interrupted)] * 4 + [(Killed(), Killed)] * 2:
        ended_by(ends)
        with pytest.raises(exception):
            run_study(study, copied)
    ended_by(error)
    for _ in range(2):  # two kills and a stop are two kills
        with pytest.raises(Interrupted, match=r"stopped in pilot .* run the same command"):
            run_study(study, copied)
    ended_by(None)
    assert not run_study(study, copied).failed


def test_study_over_its_budget_is_refused_with_the_estimate(copied, started):
    study = study_with(budget={"cpu_hours": 1e-6})
    with pytest.raises(
        ConfigError, match=r"needs about \S+ CPU hours .* budget\.cpu_hours = 1e-06"
    ):
        run_study(study, copied)
    assert started == []
    result = run_study(study, copied, allow_over_budget=True, minutes=1e-9)
    assert not result.is_complete
    assert started == []
    assert result.status.remaining > 0


def test_estimate_counts_a_rate_more_for_a_pilot_that_may_extend(copied):
    remaining = []
    for extend in (False, True):
        pilot = STUDY["pilot"] | {"learning_rates": [0.05, 0.1], "extend": extend}
        study = study_with(pilot=pilot, grids=[{"arms": ["full_softmax"]}])
        remaining.append(run_study(study, copied, minutes=1e-9).status.remaining)
    # Two pilots of an epoch and a main cell of three, with its measurements.
    assert 1.05 * remaining[0] < remaining[1] < 1.35 * remaining[0]


def test_changed_setting_runs_its_cells_again(complete, tmp_path, started):
    out = tmp_path / "study"
    subprocess.run(["cp", "-r", complete[0], out], check=True)
    run_study(study_with(), out)
    assert started == []
    # A process that was killed after the record of a cell has left the folder of the cell.
    record = complete[1].records[0]
    stale = out / "cells" / f"{record.key.id}-{record.digest[:8]}"
    other = out / "cells" / "0123456789abcdef-01234567"  # of a cell without a record
    mine = out / "cells" / f"{record.key.id}-copy"
    for folder in (stale, other, mine):
        (folder / "run").mkdir(parents=True)
    run_study(study_with(), out)
    assert [folder.exists() for folder in (stale, other, mine)] == [False, True, True]
    grids = [{"num_candidates": [4, 8], "arms": ["logq_kept"]}]
    result = run_study(study_with(grids=grids), out)
    assert sorted({label.split(" n=")[1] for label in started}) == [
        "8 logq_kept lr=0.05 seed=0",
        "8 logq_kept lr=0.05 seed=1000",
    ]
    assert len(result.records) == 4
    run_study(study_with(measure={"drift": False}, grids=grids), out)
    assert len(started) == 2 + 2  # a pilot does not measure
    assert mine.exists()


def test_cell_of_another_process_is_left_to_it(complete, tmp_path, monkeypatch):
    out = tmp_path / "study"
    subprocess.run(["cp", "-r", complete[0], out], check=True)
    (out / RECORDS).unlink()
    pilot = next(one for one in complete[1].records if one.key.arm == "full_softmax")
    other = acquire(out / "locks" / f"{pilot.key.id}.lock")
    notes = []

    class Watch(Silent):
        def on_note(self, line):
            notes.append(line)
            if line.startswith("other processes run"):
                append_record(out, pilot)
                other.release()

    monkeypatch.setattr(run_module, "POLL_SECONDS", 0.01)
    study = study_with(grids=[{"arms": ["full_softmax"]}])
    result = run_study(study, out, progress=Watch())
    assert result.is_complete
    assert len(result.records) == 2
    assert notes[-1] == "other processes run the 1 cells that are left"


def test_dataset_without_a_validation_split_is_refused(tmp_path, started):
    dataset = STUDY["datasets"]["synthetic"] | {"splits": {"whole": {"kind": "none"}}}
    with pytest.raises(DataError, match="the dataset synthetic, split whole, has no validation"):
        run_study(study_with(datasets={"synthetic": dataset}), tmp_path / "study")
    assert started == []


def test_folder_of_another_study_is_refused(complete, tmp_path):
    with pytest.raises(ConfigError, match="holds the study 'small', not 'other'"):
        run_study(study_with(name="other"), complete[0])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no study"):
        run_study(study_with(), tmp_path)


def test_commit_of_the_code_is_that_of_the_repository_that_has_it(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=candid", "-c", "user.email=candid@localhost", "-C", tmp_path]
    package = tmp_path / "candid" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    (tmp_path / "notes.txt").touch()
    monkeypatch.setattr("candid.study.folder.PACKAGE", package.parent)

    def run(*arguments):
        return subprocess.run([*git, *arguments], check=True, capture_output=True).stdout.decode()

    run("init", "-q")
    run("add", "notes.txt")
    run("commit", "-q", "-m", "Add notes")
    head = run("rev-parse", "HEAD").strip()
    # An environment in the folder of another repository.
    assert Commits.of(tmp_path) == Commits(study=head, code=None)
    run("add", "candid")
    run("commit", "-q", "-m", "Add the code")
    head = run("rev-parse", "HEAD").strip()
    assert Commits.of(tmp_path) == Commits(study=head, code=head)
    package.write_text("changed")
    assert Commits.of(tmp_path).code == f"{head}-dirty"


def test_study_killed_before_its_first_record_begins_anew(tmp_path):
    (tmp_path / f".study.json.{'a' * 32}.tmp").touch()
    open_folder(study_with(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]
