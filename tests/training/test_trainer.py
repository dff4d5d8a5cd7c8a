"""The loop on data with a known answer, and runs that are interrupted and resumed."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from candid.batches import BatchesConfig, Loader, offsets_of
from candid.data import PreparedDataset
from candid.errors import ArtifactError, ConfigError, Interrupted
from candid.losses import LOSSES
from candid.samplers import SAMPLERS
from candid.towers import (
    CausalTransformer,
    ItemEmbedding,
    ModelConfig,
    TowerContext,
    UserEmbedding,
)
from candid.training import (
    BEST,
    LAST,
    PREVIOUS,
    Checkpoint,
    DivergedError,
    Trainer,
    TrainingConfig,
    load_model,
    read_checkpoint,
    run_checkpoints,
    validated_checkpoint,
    write_checkpoint,
)
from candid.training.optimizer import clipped_norm
from candid.training.trackers import JsonlTracker

NUM_ITEMS = 20


def cycles(num_users=60, length=15, seed=0):
    """Item i is always followed by item i + 1, in a cycle."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, NUM_ITEMS, num_users)
    items = (starts[:, None] + np.arange(length)) % NUM_ITEMS
    return PreparedDataset(
        item_ids=items.ravel().astype(np.int32),
        user_offsets=offsets_of(np.full(num_users, length)),
        roles=np.zeros(num_users * length, dtype=np.uint8),
        users=pl.DataFrame({"source_id": np.arange(num_users)}),
        items=pl.DataFrame({"source_id": np.arange(NUM_ITEMS)}),
    )


def make_trainer(
    folder, *, loss="full_softmax", dataset=None, unit="sequence", sampler=None, **options
):
    dataset = dataset or cycles()
    torch.manual_seed(0)
    query = (
        CausalTransformer.Config(dim=16, dropout=0.1)
        if unit == "sequence"
        else UserEmbedding.Config(dim=16)
    )
    model = ModelConfig(query_tower=query, item_tower=ItemEmbedding.Config(dim=16)).build(
        TowerContext(dataset.num_users, NUM_ITEMS, 20)
    )
    counts = torch.from_numpy(dataset.train_counts)
    sampler = sampler or SAMPLERS["uniform"].Config(num_candidates=16).build(counts)
    settings = {"epochs": 4, "warmup_steps": 5, "lr": 1e-2, "patience": None, "log_every": 3}
    config = TrainingConfig(**(settings | options.pop("settings", {})))
    correction = {"correction": "refined"} if loss == "sampled_softmax" else {}
    objective = LOSSES[loss].Config(**correction).build(NUM_ITEMS)
    return Trainer(
        model=model,
        loader=Loader(dataset, BatchesConfig(unit=unit, batch_size=8, max_length=20), seed=1),
        loss=objective,
        sampler=sampler if objective.needs_candidates else None,
        config=config,
        folder=folder,
        seed=1,
        **({"metric": "ndcg@10"} if "validate" in options else {}),
        **options,
    )


def mean_nll(trainer):
    """Return the mean NLL of every training row, by dense log-softmax."""
    trainer.model.eval()
    with torch.no_grad():
        batch = trainer.loader.batch(0, 0)
        scores = trainer.model.encode_queries(batch) @ trainer.model.encode_catalog().T
        return float(torch.nn.functional.cross_entropy(scores, batch.positive_ids))


def metrics_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_learns_a_cycle(tmp_path, loss):
    is_softmax = "softmax" in loss
    trainer = make_trainer(tmp_path, loss=loss, settings={"epochs": 20 if is_softmax else 60})
    assert mean_nll(trainer) > 0.9 * math.log(NUM_ITEMS)
    trainer.run()
    trainer.model.eval()
    batch = trainer.loader.batch(0, 0)
    scores = trainer.model.encode_queries(batch) @ trainer.model.encode_catalog().T
    # A binary loss does not separate scores as a softmax does: five times chance is enough.
    accuracy = float((scores.argmax(dim=1) == batch.positive_ids).float().mean())
    assert accuracy > (0.95 if is_softmax else 0.25)


def test_bfloat16_learns_too(tmp_path):
    trainer = make_trainer(tmp_path, settings={"epochs": 12, "precision": "bfloat16"})
    trainer.run()
    assert mean_nll(trainer) < 0.5


def test_id_towers_learn_from_interactions(tmp_path):
    trainer = make_trainer(tmp_path, unit="interaction", settings={"epochs": 3})
    before = mean_nll(trainer)
    trainer.run()
    assert mean_nll(trainer) < before - 0.1


@pytest.mark.parametrize("tables", ["dense", "row_adam"])
@pytest.mark.parametrize("loss", ["full_softmax", "sampled_softmax"])
@pytest.mark.parametrize("cut", [5, 8, 16])
def test_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, loss, cut, tables):
    average = {"average": 0.9, "tables": tables}
    whole = make_trainer(tmp_path / make(tmp_path, "whole"), loss=loss, settings=average)
    whole.run()
    folder = tmp_path / make(tmp_path, "cut")
    make_trainer(folder, loss=loss, settings=average | {"max_steps": cut}).run()
    resumed = make_trainer(folder, loss=loss, settings=average)
    resumed.run(resume=True)
    assert resumed.state.step == whole.state.step
    assert resumed.state.rows == whole.state.rows
    for (name, a), b in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    means = [trainer.average.tensors() for trainer in (whole, resumed)]
    for name, mean in means[0].items():
        assert torch.equal(mean, means[1][name]), name
    losses = [[line["loss"] for line in metrics_lines(f)] for f in (tmp_path / "whole", folder)]
    assert losses[0] == losses[1]


def make(tmp_path, name):
    (tmp_path / name).mkdir()
    return name


@pytest.mark.parametrize("cut", [5, 10])  # refreshed at steps 0, 4, 8, …
def test_interruption_between_refreshes_changes_nothing(tmp_path, follower, cut):
    def trainer(name, **settings):
        return make_trainer(
            tmp_path / name, loss="sampled_softmax", sampler=follower(4), settings=settings
        )

    make(tmp_path, "whole")
    make(tmp_path, "cut")
    whole = trainer("whole")
    whole.run()
    trainer("cut", max_steps=cut).run()
    resumed = trainer("cut")
    resumed.run(resume=True)
    assert "refresh" not in resumed.candidate_loss.sampler.calls[:2]
    for (name, a), b in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    one, other = (trainer.candidate_loss.state_dict() for trainer in (whole, resumed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_item_vectors_are_those_of_evaluation_mode(tmp_path, follower):
    trainer = make_trainer(tmp_path, loss="sampled_softmax", sampler=follower(1))
    trainer.model.train()
    before = torch.get_rng_state()
    vectors = trainer._step.item_vectors().detach().clone()
    assert trainer.model.training
    assert torch.equal(before, torch.get_rng_state())
    with torch.no_grad():
        assert torch.equal(vectors, trainer.model.eval().encode_catalog())
    trainer.step(trainer.loader.batch(0, 0))
    stored = trainer.candidate_loss.sampler.vectors
    assert torch.equal(stored, vectors)
    assert not stored.requires_grad


def test_log_has_the_figures_of_a_step(tmp_path):
    trainer = make_trainer(tmp_path, loss="sampled_softmax", settings={"epochs": 1})
    trainer.run()
    line = metrics_lines(tmp_path)[0]
    assert line["step"] == 3
    assert 0 < line["sample_weight"] < 1
    assert 1 <= line["effective_sample_size"] <= 16
    assert line["rows_per_second"] > 0
    assert {"loss", "lr"} <= line.keys()
    assert 0 < line["gradient_norm_clipped"] <= min(line["gradient_norm"], 1.0)


def test_sample_groups_share_the_rows(tmp_path):
    trainer = make_trainer(
        tmp_path, loss="sampled_softmax", settings={"num_groups": 3, "epochs": 12}
    )
    batch = trainer.loader.batch(0, 0)
    seen, loss = [], trainer.candidate_loss.objective

    def recorded(query, items, positive_ids, candidates, **options):
        seen.append(candidates)
        return loss(query, items, positive_ids, candidates, **options)

    trainer.candidate_loss.objective = recorded
    _, output, _ = trainer.step(batch)
    assert len(output.loss) == len(batch)
    assert seen[0].ids.shape[0] == 3
    assert not torch.equal(seen[0].ids[0], seen[0].ids[1])
    trainer.candidate_loss.objective = loss
    trainer.run()
    assert mean_nll(trainer) < 0.5


def scripted(values):
    """Return a validation that returns the values one after the other."""
    remaining = iter(values)
    return lambda model: {"ndcg@10": next(remaining)}


def test_early_stopping_keeps_the_best(tmp_path):
    trainer = make_trainer(
        tmp_path,
        settings={"epochs": 50, "patience": 2},
        validate=scripted([0.1, 0.3, 0.2, 0.25, 0.9]),
    )
    state = trainer.run()
    assert (state.best, state.best_epoch, state.epoch) == (0.3, 2, 4)
    best = read_checkpoint(tmp_path / BEST)
    assert best.meta["state"]["best_epoch"] == 2
    assert not any(name.startswith("optimizer/") for name in best.tensors)


def test_metric_of_early_stopping_is_found_by_name(tmp_path):
    ndcg, popularity = iter([0.3, 0.1, 0.2]), iter([50.0, 70.0, 90.0])
    trainer = make_trainer(
        tmp_path,
        settings={"epochs": 3},
        validate=lambda model: {"popularity@1": next(popularity), "ndcg@10": next(ndcg)},
    )
    state = trainer.run()
    assert (state.metric, state.best, state.best_epoch, state.stale) == ("ndcg@10", 0.3, 1, 2)
    assert read_checkpoint(tmp_path / BEST).meta["state"]["metric"] == "ndcg@10"


def test_missing_metric_of_early_stopping_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, validate=lambda model: {"popularity@1": 70.0})
    with pytest.raises(ConfigError, match=r"metric 'ndcg@10', but .* popularity@1: choose one"):
        trainer.run()
    assert not (tmp_path / BEST).exists()


def test_checkpoint_without_a_metric_is_resumed(tmp_path):
    make_trainer(tmp_path, settings={"epochs": 1}, validate=scripted([0.3])).run()
    checkpoint = read_checkpoint(tmp_path / LAST)
    del checkpoint.meta["state"]["metric"]
    write_checkpoint(tmp_path / LAST, checkpoint)
    resumed = make_trainer(tmp_path, settings={"epochs": 2}, validate=scripted([0.4]))
    assert (resumed.run(resume=True).metric, resumed.state.best) == ("ndcg@10", 0.4)


def test_validation_and_checkpoint_intervals_include_the_end(tmp_path, monkeypatch):
    settings = {"epochs": 5, "validate_every": 2, "checkpoint_every": 3}
    trainer = make_trainer(tmp_path, settings=settings, validate=scripted([0.1, 0.2, 0.3]))
    saved, write = [], run_checkpoints.write_checkpoint

    def recorded(path, *arguments, **settings):
        saved.append((path.name, trainer.state.epoch))
        write(path, *arguments, **settings)

    monkeypatch.setattr(run_checkpoints, "write_checkpoint", recorded)
    state = trainer.run()
    assert [line["epoch"] for line in state.history] == [2, 4, 5]
    assert [one for one in saved if one[0] == LAST] == [(LAST, 3), (LAST, 5)]


def test_checkpoints_by_steps_are_written_within_epochs_and_at_the_end(tmp_path, monkeypatch):
    """An epoch has 8 steps."""
    settings = {"epochs": 2, "checkpoint_every_steps": 3, "validate_every_steps": 4}
    trainer = make_trainer(tmp_path, settings=settings, validate=scripted([0.1] * 4))
    saved, write = [], run_checkpoints.write_checkpoint

    def recorded(path, *arguments, **settings):
        if path.name == LAST:
            saved.append(trainer.state.step)
        write(path, *arguments, **settings)

    monkeypatch.setattr(run_checkpoints, "write_checkpoint", recorded)
    state = trainer.run()
    assert saved == [3, 6, 9, 12, 15, 16]
    assert [line["step"] for line in state.history] == [4, 8, 12, 16]


@pytest.mark.parametrize("tables", ["dense", "row_adam", "sharded_row_adam"])
def test_run_killed_within_an_epoch_continues_from_the_steps_of_its_checkpoint(tmp_path, tables):
    """Every gradient, sample and dropout after it is that of a run that was never stopped."""
    settings = {"epochs": 2, "tables": tables, "validate_every_steps": 4, "log_every": 1}
    settings["average"] = 0.9 if tables == "dense" else None
    options = {"loss": "sampled_softmax", "validate": weight_sum}
    whole = make_trainer(tmp_path / make(tmp_path, "whole"), settings=settings, **options)
    whole.run()

    class Killed(BaseException):
        """Ends the process without another checkpoint, as a kill does."""

    class Kills:
        def on_start(self, targets):
            pass

        def on_validation(self, state, metrics):
            pass

        def on_step(self, state, metrics):
            steps.append(state.step)
            if state.step in stops:
                raise Killed

    folder, settings = tmp_path / make(tmp_path, "cut"), settings | {"checkpoint_every_steps": 3}
    steps, stops = [], [5]
    with pytest.raises(Killed):
        make_trainer(folder, settings=settings, progress=Kills(), **options).run()
    for stop, first in ((11, 4), (None, 10)):
        steps, stops = [], [stop]
        resumed = make_trainer(folder, settings=settings, progress=Kills(), **options)
        failure = None
        try:
            resumed.run(resume=True)
        except Killed as error:
            failure = error
        assert (failure is None) == (stop is None)
        assert steps[0] == first
    assert all(torch.equal(weights(whole)[name], p) for name, p in weights(resumed).items())
    losses = [
        [line["loss"] for line in metrics_lines(one) if "loss" in line]
        for one in (tmp_path / "whole", folder)
    ]
    assert losses[0] == losses[1]
    history = [
        [{**line, "seconds": 0, "cpu_seconds": 0} for line in one.state.history]
        for one in (whole, resumed)
    ]
    assert history[0] == history[1]


def validated_models(folder):
    files = (folder / "checkpoints").glob("step-*.safetensors")
    return {int(file.stem.removeprefix("step-")): read_checkpoint(file) for file in files}


def weight_sum(model):
    return {"ndcg@10": float(model.item_tower.embedding.weight.detach().abs().sum())}


def failure_of(trainer, resume):
    """Train as a loop over trainings does that records the failures of single ones."""
    try:
        trainer.run(resume=resume)
    except Exception as error:
        return error


@pytest.mark.parametrize("tables", ["dense", "sharded_row_adam"])
def test_validation_by_steps_is_the_same_after_interruptions(tmp_path, tables):
    """Each signal arrives while the model is validated within an epoch, which has 8 steps."""
    settings = {"epochs": 2, "validate_every_steps": 3, "keep": "all", "tables": tables}
    settings["average"] = 0.9 if tables == "dense" else None
    for name in ("whole", "cut"):
        make(tmp_path, name)

    def trainer(name, validate=weight_sum):
        options = {"loss": "sampled_softmax", "settings": settings, "validate": validate}
        return make_trainer(tmp_path / name, **options)

    def interrupted(model):
        os.kill(os.getpid(), signal.SIGTERM)
        return weight_sum(model)

    whole = trainer("whole")
    whole.run()
    stops = []
    for resume in (False, True, True):
        cut = trainer("cut", interrupted)
        with pytest.raises(Interrupted, match="--resume to continue"):
            failure_of(cut, resume)
        stops.append(cut.state.step)
    resumed = trainer("cut")
    resumed.run(resume=True)
    assert stops == [3, 6, 9]
    history = [{**line, "seconds": 0, "cpu_seconds": 0} for line in whole.state.history]
    assert [line["step"] for line in history] == [3, 6, 9, 12, 15, 16]
    assert [line["epoch"] for line in history] == [0, 0, 1, 1, 1, 2]
    assert history == [{**line, "seconds": 0, "cpu_seconds": 0} for line in resumed.state.history]
    assert (resumed.state.stale, resumed.state.best_step) == (
        whole.state.stale,
        whole.state.best_step,
    )
    assert all(torch.equal(weights(whole)[name], p) for name, p in weights(resumed).items())
    one, other = (validated_models(tmp_path / name) for name in ("whole", "cut"))
    assert list(sorted(one)) == list(sorted(other)) == [3, 6, 9, 12, 15, 16]
    for step, checkpoint in one.items():
        assert checkpoint.meta["state"]["step"] == step
        for name, tensor in checkpoint.tensors.items():
            assert torch.equal(tensor, other[step].tensors[name]), (step, name)
    logged = [line for line in metrics_lines(tmp_path / "cut") if "validation/ndcg@10" in line]
    assert [line["step"] for line in logged] == [3, 6, 9, 12, 15, 16]


def test_signal_after_a_checkpoint_leaves_the_one_before_it(tmp_path):
    """It arrives while the second of three epochs, of 8 steps each, is validated."""
    calls = []

    def validate(model):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return weight_sum(model)

    with pytest.raises(Interrupted, match="stopped at step 16"):
        make_trainer(tmp_path, settings={"epochs": 3}, validate=validate).run()
    steps = [read_checkpoint(tmp_path / name).meta["state"]["step"] for name in (LAST, PREVIOUS)]
    assert steps == [16, 8]


def test_early_stopping_counts_validations_by_steps(tmp_path):
    settings = {"epochs": 50, "patience": 2, "validate_every_steps": 3, "keep": "none"}
    trainer = make_trainer(tmp_path, settings=settings, validate=scripted([0.3, 0.2, 0.1]))
    state = trainer.run()
    assert (state.step, state.epoch, state.best_step) == (9, 1, 3)
    assert {path.name for path in tmp_path.iterdir()} == {LAST, PREVIOUS, "metrics.jsonl"}
    settings["patience"] = 3
    resumed = make_trainer(tmp_path, settings=settings, validate=scripted([0.2]))
    assert resumed.run(resume=True).step == 12


def test_models_after_the_checkpoint_of_a_resume_are_removed(tmp_path):
    """Their validations were in a part of the training that a kill has lost."""
    settings = {"epochs": 1, "validate_every_steps": 3, "keep": "all"}
    make_trainer(tmp_path, settings=settings, validate=weight_sum).run()
    last = (tmp_path / LAST).read_bytes()
    assert sorted(validated_models(tmp_path)) == [3, 6, 8]
    settings["epochs"] = 2
    make_trainer(tmp_path, settings=settings, validate=weight_sum).run(resume=True)
    assert sorted(validated_models(tmp_path)) == [3, 6, 8, 9, 12, 15, 16]
    (tmp_path / LAST).write_bytes(last)
    settings["max_steps"] = 10
    make_trainer(tmp_path, settings=settings, validate=weight_sum).run(resume=True)
    assert sorted(validated_models(tmp_path)) == [3, 6, 8, 9, 10]
    assert validated_checkpoint(10) == "checkpoints/step-10.safetensors"
    make_trainer(tmp_path, settings=settings).run()
    assert not validated_models(tmp_path)


@pytest.mark.parametrize("name", ["validate_every", "checkpoint_every"])
def test_two_intervals_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name}_steps cannot be combined: leave one of"):
        TrainingConfig(**{name: 2, f"{name}_steps": 10})


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def weights(trainer):
    return dict(trainer.model.named_parameters())


def test_last_two_checkpoints_are_kept(tmp_path):
    make_trainer(tmp_path, settings={"epochs": 3}).run()
    names = sorted(path.name for path in tmp_path.glob("*"))
    assert [name for name in names if "safetensors" in name] == [LAST, PREVIOUS]
    states = [read_checkpoint(tmp_path / name).meta["state"] for name in (PREVIOUS, LAST)]
    assert [state["epoch"] for state in states] == [2, 3]


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_training_continues_from_the_checkpoint_before_a_damaged_one(tmp_path, damage):
    make(tmp_path, "whole")
    make(tmp_path, "cut")
    whole = make_trainer(tmp_path / "whole", settings={"epochs": 5})
    whole.run()
    make_trainer(tmp_path / "cut", settings={"epochs": 3}).run()
    path = tmp_path / "cut" / LAST
    if damage == "flipped":
        flip_last_bit(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    good = (tmp_path / "cut" / PREVIOUS).read_bytes()
    resumed = make_trainer(tmp_path / "cut", settings={"epochs": 5})
    lines, seen = [], []

    class Lines:
        def on_start(self, line):
            lines.append(line)

        def on_step(self, state, metrics):
            seen.append((tmp_path / "cut" / PREVIOUS).read_bytes() == good)

        def on_validation(self, state, metrics):
            pass

    resumed.progress = Lines()
    resumed.run(resume=True)
    [line] = lines
    assert str(path) in line
    assert f"training continues from {tmp_path / 'cut' / PREVIOUS}, step " in line
    assert seen[0], "the good checkpoint stays until there is another"
    assert all(torch.equal(weights(whole)[name], p) for name, p in weights(resumed).items())
    states = [read_checkpoint(tmp_path / "cut" / n).meta["state"] for n in (PREVIOUS, LAST)]
    assert [state["epoch"] for state in states] == [4, 5]


def test_good_checkpoint_survives_the_first_write_after_a_damaged_one(tmp_path):
    make_trainer(tmp_path, settings={"epochs": 2}).run()
    flip_last_bit(tmp_path / LAST)
    resumed = make_trainer(tmp_path, settings={"epochs": 2})
    with pytest.warns(RuntimeWarning, match="differs from its checksum; training continues"):
        resumed.run(resume=True)
    states = [read_checkpoint(tmp_path / name).meta["state"] for name in (PREVIOUS, LAST)]
    assert [state["epoch"] for state in states] == [1, 2]


def test_good_checkpoint_of_shards_stays_after_a_damaged_one(tmp_path):
    options = {"loss": "sampled_softmax", "unit": "interaction", "dataset": cycles(6, 4)}
    settings = {"tables": "sharded_row_adam"}
    first = make_trainer(tmp_path, settings=settings | {"epochs": 2}, **options)
    first.run()
    folder = tmp_path / "checkpoints"
    one, two = (folder / f"step-{first.loader.num_batches * epochs}" for epochs in (1, 2))
    flip_last_bit(two / "rank-0.safetensors")
    settings |= {"epochs": 3, "checkpoint_every": 3}
    resumed = make_trainer(tmp_path, settings=settings, **options)
    with pytest.warns(RuntimeWarning, match="differs from its checksum; training continues"):
        resumed.run(resume=True)
    three = folder / f"step-{resumed.state.step}"
    assert {path for path in folder.iterdir() if path.is_dir()} == {one, three}


def test_checkpoint_of_an_earlier_start_is_not_kept(tmp_path):
    make_trainer(tmp_path, settings={"epochs": 3}).run()
    (tmp_path / LAST).unlink()
    make_trainer(tmp_path, settings={"epochs": 1}).run()
    assert not (tmp_path / PREVIOUS).exists()


def test_two_damaged_checkpoints_are_refused_in_a_sentence(tmp_path):
    make_trainer(tmp_path, settings={"epochs": 2}).run()
    for name in (LAST, PREVIOUS):
        flip_last_bit(tmp_path / name)
    with pytest.raises(ArtifactError, match=rf"{LAST} and .*{PREVIOUS} are damaged: restore one"):
        make_trainer(tmp_path, settings={"epochs": 3}).run(resume=True)


@pytest.mark.parametrize("has_previous", [True, False])
def test_copy_of_the_best_weights_is_refused_on_resume(tmp_path, has_previous):
    make_trainer(tmp_path, settings={"epochs": 2}, validate=scripted([0.1, 0.2])).run()
    (tmp_path / LAST).write_bytes((tmp_path / BEST).read_bytes())
    resumed = make_trainer(tmp_path, settings={"epochs": 3}, validate=scripted([0.3, 0.4]))
    if has_previous:
        with pytest.warns(RuntimeWarning, match=f"{LAST} holds weights only.*continues from"):
            assert resumed.run(resume=True).epoch == 3
    else:
        (tmp_path / PREVIOUS).unlink()
        with pytest.raises(ArtifactError, match=f"{LAST} holds weights only.*restore it from a"):
            resumed.run(resume=True)


@pytest.mark.parametrize("damage", ["missing", "flipped", "of another run"])
def test_best_checkpoint_is_checked_before_training_continues(tmp_path, damage):
    first = make_trainer(tmp_path, settings={"epochs": 2}, validate=scripted([0.2, 0.1]))
    first.meta["run"] = "a"
    first.run()
    before = (tmp_path / LAST).read_bytes()
    if damage == "missing":
        (tmp_path / BEST).unlink()
    elif damage == "flipped":
        flip_last_bit(tmp_path / BEST)
    else:
        best = read_checkpoint(tmp_path / BEST)
        write_checkpoint(tmp_path / BEST, Checkpoint(best.tensors, {**best.meta, "run": "b"}))
    resumed = make_trainer(tmp_path, settings={"epochs": 3}, validate=scripted([0.3]))
    resumed.meta["run"] = first.meta["run"]
    with pytest.raises(ArtifactError, match=rf"{BEST} (is missing|differs|is not of).*: restore"):
        resumed.run(resume=True)
    assert (tmp_path / LAST).read_bytes() == before


def test_checkpoint_before_the_last_is_kept_without_links(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    make_trainer(tmp_path, settings={"epochs": 3}).run()
    states = [read_checkpoint(tmp_path / name).meta["state"] for name in (PREVIOUS, LAST)]
    assert [state["epoch"] for state in states] == [2, 3]


def test_time_limit_stops_after_the_current_step(tmp_path):
    trainer = make_trainer(tmp_path, settings={"max_seconds": 1e-9}, validate=scripted([0.5]))
    state = trainer.run()
    assert (state.step, state.epoch, state.best) == (1, 0, 0.5)
    assert read_checkpoint(tmp_path / LAST).meta["position"] == {"epoch": 0, "step": 1}


@pytest.mark.parametrize("clip_norm", [1e-3, None])
def test_gradient_is_clipped_to_clip_norm(tmp_path, clip_norm):
    trainer = make_trainer(tmp_path, settings={"clip_norm": clip_norm})
    _, _, norm = trainer.step(trainer.loader.batch(0, 0))
    clipped = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm()
    assert norm > 0.01
    assert clipped.item() == pytest.approx(norm.item() if clip_norm is None else 1e-3, rel=1e-3)
    assert clipped_norm(norm, clip_norm).item() == pytest.approx(clipped.item(), rel=1e-5)


def test_mean_of_the_weights_is_validated_and_stored(tmp_path):
    seen = []

    def validate(model):
        seen.append(model.item_tower.embedding.weight.detach().clone())
        return {"ndcg@10": float(len(seen))}

    trainer = make_trainer(tmp_path, settings={"average": 0.9}, validate=validate)
    trainer.run()
    assert not torch.allclose(seen[-1], trainer.model.item_tower.embedding.weight)
    best, last = (read_checkpoint(tmp_path / name) for name in (BEST, LAST))
    name = "query_tower.items.weight"  # the shared table, under its first name
    assert torch.equal(best.part("model")[name], seen[-1])
    assert torch.equal(last.part("average")[name], seen[-1])
    fresh = make_trainer(tmp_path)
    load_model(fresh.model, last, tmp_path / LAST, averaged=True)
    assert torch.equal(fresh.model.item_tower.embedding.weight, seen[-1])


def test_early_stopping_survives_a_resume(tmp_path):
    settings = {"epochs": 50, "patience": 2}
    cut = make_trainer(
        tmp_path, settings=settings | {"epochs": 3}, validate=scripted([0.1, 0.3, 0.2])
    )
    cut.run()
    resumed = make_trainer(tmp_path, settings=settings, validate=scripted([0.25, 0.9]))
    state = resumed.run(resume=True)
    assert (state.best, state.epoch) == (0.3, 4)


@pytest.mark.parametrize("log_every", [1, 1000])
def test_loss_that_is_nan_stops_with_a_remedy(tmp_path, log_every):
    validate = scripted([])  # not called: the loss is checked first
    trainer = make_trainer(tmp_path, settings={"log_every": log_every}, validate=validate)
    with torch.no_grad():
        trainer.model.item_tower.embedding.weight[3] = float("nan")
    with pytest.raises(DivergedError, match=r"lower training\.lr"):
        trainer.run()


def test_row_weights_weigh_the_mean(tmp_path):
    loss = torch.tensor([1.0, 3.0])
    from candid.training.step_values import weighted_mean

    assert weighted_mean(loss, None) == 2.0
    assert weighted_mean(loss, torch.tensor([3.0, 1.0])) == 1.5
    assert weighted_mean(loss, torch.zeros(2)) == 0.0


def test_loss_with_candidates_needs_a_sampler(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ConfigError, match=r"\[sampler\]"):
        Trainer(
            model=trainer.model,
            loader=trainer.loader,
            loss=LOSSES["sampled_softmax"].Config().build(NUM_ITEMS),
            sampler=None,
            config=trainer.config,
            folder=tmp_path,
        )


def test_validation_needs_a_metric_for_early_stopping(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ConfigError, match="the name of the metric for early stopping"):
        Trainer(
            model=trainer.model,
            loader=trainer.loader,
            loss=trainer.loss,
            sampler=None,
            config=trainer.config,
            folder=tmp_path,
            validate=scripted([0.1]),
        )


def test_resume_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=rf"{LAST} does not exist"):
        make_trainer(tmp_path).run(resume=True)


def with_every_item_as_negative(dataset):
    """Every interaction has the whole catalog as negatives, in random order."""
    rng = np.random.default_rng(3)
    num = len(dataset.item_ids)
    shown = np.concatenate([rng.permutation(NUM_ITEMS) for _ in range(num)]).astype(np.int32)
    return replace(
        dataset, negative_ids=shown, negative_offsets=offsets_of(np.full(num, NUM_ITEMS))
    )


@pytest.mark.parametrize("unit", ["sequence", "interaction"])
def test_every_item_as_negative_gives_the_exact_softmax(tmp_path, unit):
    trainer = make_trainer(
        tmp_path, loss="sampled_softmax", dataset=with_every_item_as_negative(cycles()), unit=unit
    )
    with torch.no_grad():  # With the small initial vectors every estimate is nearly exact.
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    batch = trainer.loader.batch(0, 0)
    assert batch.negative_ids.shape == (len(batch), NUM_ITEMS)
    trainer.model.eval()
    expected = torch.nn.functional.cross_entropy(
        trainer.model.encode_queries(batch) @ trainer.model.encode_catalog().T,
        batch.positive_ids,
        reduction="none",
    )
    # Not an estimate: every item is an exact candidate.
    _, output, _ = trainer.step(batch)
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    cut = replace(batch, negative_ids=batch.negative_ids[:, :3])
    _, output, _ = trainer.step(cut)
    assert not torch.allclose(output.loss, expected, rtol=1e-2)


def test_trainer_limits_the_kernel_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    make_trainer(tmp_path)
    assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" in os.environ


def test_log_is_flushed_before_each_checkpoint_to_resume_from(tmp_path, monkeypatch):
    """A power cut after the checkpoint must not lose lines that a resume does not write again."""
    calls, write = [], run_checkpoints.write_checkpoint
    monkeypatch.setattr(JsonlTracker, "flush", lambda self: calls.append("flush"))

    def recorded(path, *arguments, **options):
        calls.append(Path(path).name)
        write(path, *arguments, **options)

    monkeypatch.setattr(run_checkpoints, "write_checkpoint", recorded)
    make_trainer(tmp_path).run()
    places = [place for place, call in enumerate(calls) if call == LAST]
    assert places
    assert all(calls[place - 1] == "flush" for place in places)
