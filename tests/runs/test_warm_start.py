"""Training that starts from an earlier run: exact continuation, and rows mapped by source id."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
import torch

import candid.runs.training
from candid.checksums import write_sealed_json
from candid.config import parse_config
from candid.data import DataConfig, PreparedDataset, Role, prepare_folder
from candid.errors import ArtifactError, ConfigError, DataError
from candid.runs import MANIFEST, build_model, load_run, train, train_run
from candid.runs.earlier_run import open_earlier_run
from candid.runs.features import extend_features, read_features
from candid.runs.new_rows import neighbour_means
from candid.runs.trained_ids import ITEMS, TrainedIds, find_new_targets
from candid.runs.warm_start import warm_start
from candid.training import BEST, LAST, PREVIOUS, read_checkpoint


def dataset(users, items, *, seed=0, length=6, times=True, genres=()):
    """Random interactions of given users (source ids) with given items; the last two held out."""
    rng = np.random.default_rng(seed)
    users, items = sorted(users), sorted(items)
    rows = range(len(items))
    item_ids = np.concatenate([rng.permutation(len(items))[:length] for _ in users])
    roles = [Role.TRAIN] * (length - 2) + [Role.VALIDATION, Role.TEST]
    return PreparedDataset(
        item_ids=item_ids.astype(np.int32),
        user_offsets=np.arange(0, len(item_ids) + 1, length).astype(np.int64),
        roles=np.tile(np.array(roles, np.uint8), len(users)),
        users=pl.DataFrame({"source_id": users, "age": [len(str(user)) for user in users]}),
        items=pl.DataFrame(
            {
                "source_id": items,
                "year": [1990 + n % 7 for n in range(len(items))],
                "genre": [["drama", "comedy", None, *genres][n % (3 + len(genres))] for n in rows],
                "tags": [["a"] if n % 2 else ["b", *genres] for n in rows],
            },
        ),
        timestamps=np.tile(np.arange(length) * 1_000_000, len(users)) if times else None,
        manifest={"config": {"order": None}},
    )


USERS, ITEMS_A = range(10, 40), range(100, 125)
HISTORY = {
    "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1, "dropout": 0.1},
    "item_tower": {"type": "item_embedding", "dim": 8},
}
FACTORS = {
    "query_tower": {"type": "user_embedding", "dim": 8},
    "item_tower": {"type": "item_embedding", "dim": 8},
}
UNTIED = {**HISTORY, "query_tower": {**HISTORY["query_tower"], "input_items": "separate"}}
FEATURES = {
    "query_tower": {"type": "user_features", "dim": 8, "id_mode": "residual"},
    "item_tower": {"type": "item_features", "dim": 8, "id_mode": "field"},
}


def recipe(model, *, sampled=True, features=False, values=False, **training):
    table = {
        "name": "toy",
        "threads": 1,
        "batches": {"unit": "sequence", "batch_size": 8},
        "model": model,
        "loss": {"type": "sampled_softmax"} if sampled else {"type": "full_softmax"},
        "training": {"epochs": 2, "warmup_steps": 3, "trackers": [], "patience": None, **training},
        "evaluation": {"ks": [1, 5], "metric": "ndcg@5", "metrics": ["ndcg"]},
    }
    if sampled:
        table["sampler"] = {"type": "uniform", "num_candidates": 8}
    if model is FACTORS or model is FEATURES:
        table["batches"] = {"unit": "interaction", "batch_size": 16}
    if features:
        table["features"] = {
            "item": {"year": {"type": "number"}},
            "user": {"age": {"type": "number"}},
        }
    if values:
        table["features"] = {
            "item": {"genre": {"type": "categorical"}, "tags": {"type": "bag", "min_count": 1}},
            "user": {"age": {"type": "categorical"}},
        }
    return parse_config(table, "test")


CASES = {
    "history, full softmax": (HISTORY, {"sampled": False}),
    "history, mean of the weights": (HISTORY, {"average": 0.9}),
    "history, rows by Adam": (UNTIED, {"tables": "row_adam"}),
    "factors, rows by Adagrad": (FACTORS, {"tables": "row_adagrad"}),
    "factors, mean of rows": (FACTORS, {"tables": "row_adam", "average": 0.9}),
    "features": (FEATURES, {"features": True}),
    "values of features": (FEATURES, {"values": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_continued_run_is_equal_where_nothing_is_new(name, tmp_path):
    model, settings = CASES[name]
    data = dataset(USERS, ITEMS_A)
    train_run(recipe(model, **{**settings, "epochs": 4}), data, tmp_path / "whole")
    train_run(recipe(model, **settings), data, tmp_path / "half")
    config = recipe(model, **settings, init_optimizer="keep")
    result = train_run(config, data, tmp_path / "rest", init=tmp_path / "half")
    whole, rest = (read_checkpoint(tmp_path / n / LAST) for n in ("whole", "rest"))
    assert whole.tensors.keys() == rest.tensors.keys()
    for key, tensor in whole.tensors.items():
        assert torch.equal(tensor, rest.tensors[key]), key
    assert result.state.epoch == 4
    assert result.state.step == whole.meta["state"]["step"]
    assert result.state.total_steps == whole.meta["state"]["total_steps"]


def test_optimizer_is_not_kept_from_a_copy_of_the_best_weights(tmp_path):
    data, first = dataset(USERS, ITEMS_A), tmp_path / "first"
    train_run(recipe(HISTORY, epochs=1), data, first)
    (first / LAST).write_bytes((first / BEST).read_bytes())
    with pytest.raises(ArtifactError, match=f"{LAST} holds weights only.*init_optimizer = 'reset'"):
        train_run(recipe(HISTORY), data, tmp_path / "next", init=first)
    train_run(recipe(HISTORY, init_optimizer="reset"), data, tmp_path / "next", init=first)


@pytest.mark.parametrize("damage", ["flipped", "missing", "weights only"])
def test_optimizer_is_not_kept_from_a_damaged_checkpoint(tmp_path, damage):
    data, first = dataset(USERS, ITEMS_A), tmp_path / "first"
    train_run(recipe(HISTORY), data, first)
    assert (first / PREVIOUS).exists()
    if damage == "missing":
        (first / LAST).unlink()
    elif damage == "flipped":
        content = bytearray((first / LAST).read_bytes())
        content[-1] ^= 1
        (first / LAST).write_bytes(content)
    else:
        (first / LAST).write_bytes((first / BEST).read_bytes())
    with pytest.raises(ArtifactError, match=f"{LAST} .*restore it .*init_optimizer = 'reset'"):
        train_run(recipe(HISTORY, init_optimizer="keep"), data, tmp_path / "next", init=first)
    train_run(recipe(HISTORY, init_optimizer="reset"), data, tmp_path / "next", init=first)


def test_interrupted_warm_start_resumes_to_the_same_weights(tmp_path):
    data, config = dataset(USERS, ITEMS_A), recipe(HISTORY, init_optimizer="keep")
    train_run(recipe(HISTORY), data, tmp_path / "first")
    now = dataset(range(12, 44), range(98, 130), seed=1)
    whole = train_run(config, now, tmp_path / "whole", init=tmp_path / "first")
    cut = recipe(HISTORY, init_optimizer="keep", max_steps=3)
    train_run(cut, now, tmp_path / "cut", init=tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    resumed = train_run(config, now, tmp_path / "cut", resume=True)
    assert resumed.state.total_steps == whole.state.total_steps
    one, two = (read_checkpoint(r.folder / LAST) for r in (whole, resumed))
    for key, tensor in one.tensors.items():
        assert torch.equal(tensor, two.tensors[key]), key


@pytest.mark.parametrize("refit", [False, True])
def test_resume_refuses_another_earlier_run(tmp_path, monkeypatch, refit):
    monkeypatch.chdir(tmp_path)
    data, config = dataset(USERS, ITEMS_A), recipe(HISTORY)
    for name in ("first", "other"):
        train_run(config, data, tmp_path / name)
    train_run(config, data, "warm", init="first", refit=refit)
    train_run(config, data, "cold", refit=refit)
    with pytest.raises(ConfigError, match=r"warm was started from .*first.*, not from .*other"):
        train_run(config, data, "warm", init="other", resume=True, refit=refit)
    with pytest.raises(ConfigError, match="cold was not started from an earlier run: leave out"):
        train_run(config, data, "cold", init="other", resume=True, refit=refit)
    same = train_run(config, data, "warm", init="first", resume=True, refit=refit)
    assert same.manifest["init"]["run"] == str(tmp_path / "first")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("change", range(4))
def test_rows_follow_their_source_ids(name, change, tmp_path):
    """Random removal, addition and, through text ids, another order; a dict is the oracle."""
    model, settings = CASES[name]
    rng = np.random.default_rng(change)

    def some(low, high, keep):
        ids = rng.permutation(np.arange(low, high))[: int(keep * (high - low))]
        # Without leading zeros the order of text is another one as soon as lengths differ.
        return [f"n{n}" for n in ids]

    before = dataset(some(1, 60, 0.5), some(80, 120, 0.7), seed=change)
    now = dataset(some(1, 60, 0.6), some(80, 130, 0.7), seed=change + 10)
    train_run(recipe(model, **settings), before, tmp_path / "run")
    config = recipe(model, **settings, init_optimizer="keep")
    earlier = open_earlier_run(tmp_path / "run")
    features = read_features(config.features, now, earlier.folder, earlier.manifest.get("features"))
    torch.manual_seed(5)
    new_model = build_model(config, now, features, is_read=True)
    start = warm_start(earlier, config, now, new_model).checkpoint
    stored = read_checkpoint(tmp_path / "run" / LAST)
    trained = TrainedIds.of(before, config.batches)
    # The mean of a row that was not visited for some steps is brought up to the last one.
    finished = {f"average/{key}": mean for key, mean in stored.average().items()}
    targets = TrainedIds.of(now, config.batches)
    num_tables = 0
    for key, old in stored.tensors.items():
        if key.startswith(("random", "loss", "average_step")):
            continue
        old = finished.get(key, old)
        new = start.tensors[key]
        side = None
        for kind in ("items", "users"):
            num_old, num_new = getattr(before, f"num_{kind}"), getattr(now, f"num_{kind}")
            for first in (0, 1):
                if old.ndim and (len(old), len(new)) == (num_old + first, num_new + first):
                    side, offset = kind, first
        if side is None:
            assert torch.equal(old, new), key
            continue
        num_tables += 1
        old_table, table = getattr(trained, side), getattr(targets, side)
        row = {s: n for n, s in enumerate(old_table["source_id"])}
        assert torch.equal(old[:offset], new[:offset])
        num_copied = 0
        for n, (source_id, is_target) in enumerate(table.select("source_id", "is_trained").rows()):
            if source_id not in row:
                continue
            if is_target and not old_table["is_trained"][row[source_id]]:
                continue
            assert torch.equal(new[n + offset], old[row[source_id] + offset]), key
            num_copied += 1
        assert num_copied > 3
    assert num_tables >= 2


@pytest.mark.parametrize("init_rows", ["neighbours", "random"])
@pytest.mark.parametrize("init_optimizer", ["keep", "reset"])
def test_new_values_of_features_have_new_rows(tmp_path, init_rows, init_optimizer):
    settings = {"values": True, "init_rows": init_rows, "init_optimizer": init_optimizer}
    before = dataset(USERS, ITEMS_A)
    now = dataset(USERS, range(100, 130), seed=3, genres=["western", "anime"])
    train_run(recipe(FEATURES, **settings), before, tmp_path / "run")
    earlier, config = open_earlier_run(tmp_path / "run"), recipe(FEATURES, **settings)
    old_features = read_features(config.features, now, earlier.folder, earlier.manifest["features"])
    features = extend_features(old_features, config.features, now)
    assert features.item.features["genre"].vocabulary.values == [
        *old_features.item.features["genre"].vocabulary.values, "anime", "western",
    ]  # fmt: skip
    torch.manual_seed(5)
    model = build_model(config, now, features, is_read=True)
    random = {f"model/{name}": value.clone() for name, value in model.state_dict().items()}
    start = warm_start(earlier, config, now, model)
    stored = read_checkpoint(tmp_path / "run" / LAST)
    names = [name for name in stored.tensors if "fields" in name and name.endswith("table.weight")]
    tables = [name for name in names if name.startswith("model/")]
    assert len(tables) == 3
    num_new = {}
    for name in tables:
        old, new = stored.tensors[name], start.checkpoint.tensors[name]
        num_new[name] = len(new) - len(old)
        assert torch.equal(new[: len(old)], old), name
        # The earlier run read the row of unknown values.
        expected = random[name][len(old) :]
        expected = expected if init_rows == "random" else expected + old[0]
        torch.testing.assert_close(new[len(old) :], expected)
    assert sorted(num_new.values()) == [0, 2, 2]
    assert start.facts["new_values"] == 4
    assert "; 4 new feature values" in start.sentence
    if init_optimizer == "keep":
        for name in stored.tensors:
            parameter, _, moment = name.removeprefix("optimizer/").rpartition("/")
            if f"model/{parameter}" not in tables or moment not in ("exp_avg", "exp_avg_sq"):
                continue
            old, new = stored.tensors[name], start.checkpoint.tensors[name]
            fill = old.mean(0) if moment == "exp_avg_sq" else torch.zeros_like(old[0])
            assert torch.equal(new[: len(old)], old)
            torch.testing.assert_close(new[len(old) :], fill.expand_as(new[len(old) :]))
    result = train_run(config, now, tmp_path / "next", init=tmp_path / "run")
    assert result.manifest["init"]["new_values"] == 4
    run = load_run(tmp_path / "next")
    assert run.features.state() == features.state()
    assert run.recommend(users=[12], k=3).height == 3


def test_new_rows_are_the_mean_of_their_neighbours(tmp_path):
    before = dataset(USERS, ITEMS_A)
    now = dataset(range(20, 50), range(110, 135), seed=3)
    config = recipe(FACTORS, init_rows="neighbours")
    train_run(config, before, tmp_path / "run")
    torch.manual_seed(5)
    model = build_model(config, now, is_read=True)
    random = {name: value.clone() for name, value in model.state_dict().items()}
    start = warm_start(open_earlier_run(tmp_path / "run"), config, now, model).checkpoint
    items = start.tensors["model/item_tower.embedding.weight"].double().numpy()
    users = start.tensors["model/query_tower.embedding.weight"].double().numpy()
    old_items, old_users = set(ITEMS_A), set(USERS)
    source = now.items["source_id"].to_list()
    rows = [
        [source[i] for i, role in zip(ids, roles, strict=True) if role == Role.TRAIN]
        for ids, roles in zip(now.item_ids.reshape(-1, 6), now.roles.reshape(-1, 6), strict=True)
    ]
    checked = 0
    for n, item in enumerate(source):
        if item in old_items:
            continue
        total, weight = np.zeros(8), 0.0
        for row in rows:
            for a, one in enumerate(row):
                for b, other in enumerate(row):
                    if one == item and a != b and abs(a - b) <= 5 and other in old_items:
                        total += 0.8 ** (abs(a - b) - 1) * items[source.index(other)]
                        weight += 0.8 ** (abs(a - b) - 1)
        noise = random["item_tower.embedding.weight"][n].double().numpy()
        expected = noise + (total / weight if weight else 0.0)
        assert items[n] == pytest.approx(expected, abs=1e-5)
        checked += weight > 0
    for n, user in enumerate(now.users["source_id"]):
        if user in old_users:
            continue
        means = []
        for item in set(rows[n]):
            same = [
                users[m]
                for m, other in enumerate(now.users["source_id"])
                if other in old_users and item in rows[m]
            ]
            if same:
                means.append(np.mean(same, axis=0))
        noise = random["query_tower.embedding.weight"][n].double().numpy()
        expected = noise + (np.mean(means, axis=0) if means else 0.0)
        assert users[n] == pytest.approx(expected, abs=1e-5)
        checked += bool(means)
    assert checked > 10


def test_random_rows_are_those_of_a_new_model(tmp_path):
    config = recipe(FACTORS, init_rows="random")
    now = dataset(range(20, 50), range(110, 135), seed=3)
    train_run(config, dataset(USERS, ITEMS_A), tmp_path / "run")
    torch.manual_seed(5)
    model = build_model(config, now, is_read=True)
    start = warm_start(open_earlier_run(tmp_path / "run"), config, now, model).checkpoint
    rows = start.tensors["model/item_tower.embedding.weight"]
    assert torch.equal(rows[15:], model.state_dict()["item_tower.embedding.weight"][15:])


def test_item_that_was_never_a_target_has_a_new_row(tmp_path):
    """Training pushed such rows away as negatives, and did nothing else to them."""
    config, before = recipe(FACTORS, init_rows="random"), dataset(USERS, ITEMS_A)
    before.item_ids[before.item_ids == 3] = 4
    now = dataset(USERS, ITEMS_A, seed=1)
    assert now.train_counts[3]
    train_run(config, before, tmp_path / "run")
    torch.manual_seed(5)
    model = build_model(config, now, is_read=True)
    start = warm_start(open_earlier_run(tmp_path / "run"), config, now, model).checkpoint
    name = "item_tower.embedding.weight"
    rows, initial = start.tensors[f"model/{name}"], model.state_dict()[name]
    assert (rows == initial).all(dim=1).nonzero()[:, 0].tolist() == [3]


def test_row_without_a_known_neighbour_has_no_mean():
    data = dataset([1, 2], range(6), length=3)
    means, has_any = neighbour_means(data, "item", torch.ones(6, 2), np.zeros(6, bool))
    assert not has_any.any()
    assert not means.any()


def test_second_moments_of_new_rows_are_the_mean(tmp_path):
    config = recipe(HISTORY, sampled=False, init_optimizer="keep")
    now = dataset(USERS, range(100, 130), seed=3)
    train_run(config, dataset(USERS, ITEMS_A), tmp_path / "run")
    start = warm_start(
        open_earlier_run(tmp_path / "run"), config, now, build_model(config, now, is_read=True)
    ).checkpoint
    moments_of = {k: t for k, t in start.tensors.items() if k.endswith("exp_avg_sq")}
    [(key, moments)] = [(k, t) for k, t in moments_of.items() if len(t) == 30]
    old = read_checkpoint(tmp_path / "run" / LAST).tensors[key]
    assert torch.allclose(moments[25:], old.mean(0).expand(5, -1))
    assert not start.tensors[key.replace("exp_avg_sq", "exp_avg")][25:].any()


def test_reset_starts_from_the_weights_that_are_served(tmp_path):
    data = dataset(USERS, ITEMS_A)
    config = recipe(HISTORY, average=0.9, init_optimizer="reset")
    train_run(config, data, tmp_path / "run")
    served = load_run(tmp_path / "run", data).model.state_dict()
    start = warm_start(
        open_earlier_run(tmp_path / "run"), config, data, build_model(config, data, is_read=True)
    ).checkpoint
    assert {key.split("/")[0] for key in start.tensors} == {"model"}
    for name, value in start.part("model").items():
        assert torch.equal(value, served[name])
    result = train_run(config, data, tmp_path / "next", init=tmp_path / "run")
    assert result.state.epoch == 2
    assert result.state.start_step == 0
    facts = json.loads((tmp_path / "next" / "run.json").read_text())["init"]
    assert facts["items"] == {"total": 25, "mapped": 25}
    assert facts["optimizer"] == "reset"


def test_schedule_of_a_continued_run_has_no_warm_up_and_its_own_decay(tmp_path):
    data = dataset(USERS, ITEMS_A)
    settings = {"schedule": "linear", "log_every": 1, "trackers": ["jsonl"], "lr": 0.01}
    train_run(recipe(HISTORY, **settings), data, tmp_path / "run")
    config = recipe(HISTORY, **settings, init_optimizer="keep")
    train_run(config, data, tmp_path / "next", init=tmp_path / "run")
    lines = [
        json.loads(line)
        for line in (tmp_path / "next/metrics.jsonl").read_text().split("\n")
        if line
    ]
    rates = [line["lr"] for line in lines if "lr" in line]
    assert len(rates) == 8
    assert rates == pytest.approx([0.01 * (1 - n / 8) for n in range(8)])


def test_frequencies_follow_the_new_data(tmp_path, monkeypatch):
    """The expected counts of in-batch candidates are those of the targets dealt today."""
    built = []
    original = candid.runs.training.build_objective

    def record(*arguments):
        built.append(original(*arguments))
        return built[-1]

    monkeypatch.setattr(candid.runs.training, "build_objective", record)
    now = dataset(range(20, 50), range(110, 135), seed=3)
    config = recipe(HISTORY, softmax_over="trained")
    config = parse_config({**config.model_dump(mode="json"), "sampler": {"type": "in_batch"}}, "x")
    train_run(config, dataset(USERS, ITEMS_A), tmp_path / "run")
    train_run(config, now, tmp_path / "next", init=tmp_path / "run")
    targets = np.concatenate([row[1:4] for row in now.item_ids.reshape(-1, 6)])
    share = np.bincount(targets, minlength=25) / len(targets)
    sampler = built[-1][1]
    log_q = sampler.frequency.log_q(torch.arange(25)).double().numpy()
    assert np.exp(log_q) == pytest.approx(share, abs=1e-6)


def test_ids_survive_the_replacement_of_the_dataset(tmp_path):
    """A nightly job replaces its dataset: yesterday's run has its ids stored."""
    rows = [
        (u, i, t)
        for u in range(20)
        for t, i in enumerate(np.random.default_rng(u).permutation(30)[:6])
    ]
    log = tmp_path / "log.parquet"

    def prepared(rows):
        pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row").write_parquet(log)
        return prepare_folder(
            DataConfig(interactions=str(log), time="t"), tmp_path / "data"
        ).dataset

    before = prepared(rows)
    expected = TrainedIds.of(before, recipe(HISTORY).batches)
    train_run(recipe(HISTORY), before, tmp_path / "run")
    now = prepared([(u - 5, i - 3, t) for u, i, t in rows])
    earlier = open_earlier_run(tmp_path / "run")
    assert earlier.ids.items.equals(expected.items)
    assert earlier.ids.users.equals(expected.users)
    train_run(recipe(HISTORY), now, tmp_path / "next", init=tmp_path / "run")
    (tmp_path / "run" / ITEMS).unlink()
    with pytest.raises(ArtifactError, match=f"{ITEMS} is missing"):
        open_earlier_run(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / MANIFEST).read_text())
    write_sealed_json(tmp_path / "run" / MANIFEST, {**manifest, "files": {}})
    with pytest.raises(ArtifactError, match="another version of the dataset"):
        open_earlier_run(tmp_path / "run")


def test_trained_ids_record_where_the_training_rows_end():
    data = dataset([1, 2, 3], range(8))
    ids = read = TrainedIds.of(data, recipe(HISTORY).batches)
    assert ids.users["num_rows"].to_list() == [4, 4, 4]
    assert ids.users["last_time"].to_list() == [3_000_000] * 3
    assert ids.users["num_at_last_time"].to_list() == [1, 1, 1]
    assert read.items["is_trained"].to_list() == [
        bool((data.item_ids.reshape(3, 6)[:, 1:4] == n).any()) for n in range(8)
    ]


def test_another_model_is_refused_with_its_key(tmp_path):
    data = dataset(USERS, ITEMS_A)
    train_run(recipe(HISTORY), data, tmp_path / "run")
    wide = {
        "query_tower": {**HISTORY["query_tower"], "dim": 16},
        "item_tower": {"type": "item_embedding", "dim": 16},
    }
    with pytest.raises(
        ConfigError, match=r"model.query_tower.dim is 8 in .*run \(init\) and 16 here"
    ):
        train_run(recipe(wide), data, tmp_path / "next", init=tmp_path / "run")
    deep = {**HISTORY, "query_tower": {**HISTORY["query_tower"], "num_blocks": 2}}
    with pytest.raises(ConfigError, match=r"model.query_tower.num_blocks is 1 in .* and 2 here"):
        train_run(recipe(deep), data, tmp_path / "next", init=tmp_path / "run")
    config = recipe(HISTORY, tables="row_adam", init_optimizer="keep")
    with pytest.raises(ConfigError, match=r"training.tables is 'dense' in .* and 'row_adam' here"):
        train_run(config, data, tmp_path / "next", init=tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"features.item.year.type is None in .* and 'number' here"
    ):
        train_run(recipe(FEATURES, features=True), data, tmp_path / "next", init=tmp_path / "run")
    with pytest.raises(ArtifactError, match="is not a run"):
        train_run(config, data, tmp_path / "next", init=tmp_path)
    assert not (tmp_path / "next").exists()


def test_ids_of_another_type_are_refused(tmp_path):
    train_run(recipe(HISTORY), dataset(USERS, ITEMS_A), tmp_path / "run")
    text = dataset([f"u{n}" for n in USERS], ITEMS_A)
    with pytest.raises(
        DataError, match=r"user ids of the dataset are text and those of .* integers"
    ):
        train_run(recipe(HISTORY), text, tmp_path / "next", init=tmp_path / "run")


def test_train_takes_the_recipe_of_the_run(tmp_path):
    data = dataset(USERS, ITEMS_A)
    train_run(recipe(FACTORS), data, tmp_path / "run")
    run = train(
        data,
        out=tmp_path / "next",
        init=tmp_path / "run",
        measure=False,
        **{"training.epochs": 1},
    )
    assert run.config.name == "next"
    assert run.config.model == recipe(FACTORS).model
    assert run.config.training.epochs == 1
    assert run.manifest["init"]["run"] == str(tmp_path / "run")


def test_both_passes_of_a_refit_start_from_the_earlier_run(tmp_path):
    data = dataset(USERS, ITEMS_A)
    train_run(recipe(HISTORY), data, tmp_path / "run")
    config = recipe(HISTORY, init_optimizer="keep")
    result = train_run(config, data, tmp_path / "next", init=tmp_path / "run", refit=True)
    first = json.loads((tmp_path / "next" / "before-refit" / "run.json").read_text())
    for manifest in (first, result.manifest):
        assert manifest["init"]["run"] == str(tmp_path / "run")
    assert result.state.start_step == 8
    # The first pass had 4 steps an epoch, and so has the refit; it takes those that were best.
    best = first["result"]["best_epoch"] - 2
    assert result.state.step - 8 == 4 * best


def test_new_targets_are_those_after_the_training_rows_of_a_user():
    """Times with ties: of the interactions at the last time, as many are earlier as were."""
    ids = pl.DataFrame(
        {
            "source_id": [1, 2, 3],
            "num_rows": pl.Series([2, 3, 0], dtype=pl.UInt32),
            "last_time": [20, 20, None],
            "num_at_last_time": pl.Series([1, 2, 0], dtype=pl.UInt32),
        }
    )
    now = PreparedDataset(
        item_ids=np.zeros(14, np.int32),
        user_offsets=np.array([0, 4, 8, 10, 14]),
        roles=np.zeros(14, np.uint8),
        users=pl.DataFrame({"source_id": [1, 2, 3, 4]}),
        items=pl.DataFrame({"source_id": [7]}),
        timestamps=np.array([10, 20, 20, 30, 20, 20, 20, 40, 5, 6, 1, 2, 3, 4]),
    )
    assert find_new_targets(ids, now, "run").tolist() == [2, 6, 8, 10]
    untimed = dataclasses.replace(now, timestamps=None)
    assert find_new_targets(ids, untimed, "run").tolist() == [2, 7, 8, 10]
    # A target of a user is new; an interaction that is history only does not count.
    roles = np.zeros(14, np.uint8)
    roles[[2, 8, 9]] = Role.HISTORY
    history = dataclasses.replace(now, roles=roles)
    assert find_new_targets(ids, history, "run").tolist() == [3, 6, 10, 10]


def test_epochs_over_new_targets(tmp_path):
    before = dataset(range(10, 30), ITEMS_A)
    now = dataset(range(10, 40), ITEMS_A)
    config = recipe(HISTORY, softmax_over="trained", epochs_new=3, replay=0.25, epochs=50)
    train_run(recipe(HISTORY), before, tmp_path / "run")
    result = train_run(config, now, tmp_path / "next", init=tmp_path / "run")
    # 10 new users with 3 targets each; of the 20 earlier ones a quarter is replayed.
    assert result.manifest["targets"]["trained"] == 45
    assert result.manifest["targets"]["earlier"] == 45
    assert result.state.rows == 3 * 45
    assert result.state.epoch == 2 + 3
    cut = recipe(HISTORY, softmax_over="trained", epochs_new=3, replay=0.25, max_steps=2)
    train_run(cut, now, tmp_path / "cut", init=tmp_path / "run")
    resumed = train_run(config, now, tmp_path / "cut", resume=True)
    one, two = (read_checkpoint(r.folder / LAST) for r in (result, resumed))
    assert all(torch.equal(value, two.tensors[key]) for key, value in one.tensors.items())
    with pytest.raises(ConfigError, match="epochs_new needs the earlier run"):
        train_run(config, now, tmp_path / "no")
    with pytest.raises(DataError, match=r"no training interaction that .* did not train on"):
        train_run(config, before, tmp_path / "no", init=tmp_path / "run")
