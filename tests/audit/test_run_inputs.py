import numpy as np
import pytest
import torch

from candid.audit import DriftSampling, Estimator, SamplingBudget, audit, estimators_for
from candid.audit.run_inputs import recipe_case, run_inputs, untrained_input
from candid.batches import Loader
from candid.config import parse_config
from candid.data import DataConfig, prepare_folder
from candid.runs import load_run, train_run
from candid.samplers import SAMPLERS, Uniform
from candid.samplers.config import SamplerConfig

TABLE = {
    "name": "toy",
    "threads": 1,
    "batches": {"batch_size": 16},
    "model": {
        "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
    "sampler": {"type": "uniform", "num_candidates": 12},
    "loss": {"type": "sampled_softmax", "correction": "refined"},
    "training": {"epochs": 1, "trackers": ["jsonl"]},
    "evaluation": {"ks": [1, 10], "intervals": False},
}
REST = {"type": "popularity", "num_candidates": 5}


def config_of(**changes):
    return parse_config(TABLE | changes, "test")


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        f"u{user},i{item},{step}"
        for user in range(40)
        for step, item in enumerate(rng.permutation(30)[:8])
    ]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,at", *rows]) + "\n")
    settings = DataConfig(interactions=str(tmp_path / "log.csv"), time="at")
    return prepare_folder(settings, tmp_path / "data").dataset


def test_run_inputs_are_the_model_before_and_after_training(dataset, tmp_path):
    train_run(config_of(), dataset, tmp_path / "run")
    run = load_run(tmp_path / "run", dataset)
    untrained, trained = run_inputs(run, 25)
    assert (untrained.name, trained.name) == ("at initialisation", "trained")
    torch.testing.assert_close(untrained.positive_ids, trained.positive_ids, rtol=0, atol=0)
    assert len(set(trained.user_ids.tolist())) == len(trained.query) == 25
    assert not torch.equal(untrained.item_vectors, trained.item_vectors)
    with torch.no_grad():
        torch.testing.assert_close(trained.item_vectors, run.model.encode_catalog())
    # The recipe's seed gives the model with which training began.
    torch.manual_seed(5)
    again = untrained_input(run.config, dataset, 25)
    torch.testing.assert_close(again.item_vectors, untrained.item_vectors, rtol=0, atol=0)
    pairs = set(
        zip(trained.training_user_ids.tolist(), trained.training_positive_ids.tolist(), strict=True)
    )
    # 6 training interactions each, of which the first has no history: 5 targets.
    assert len(trained.training_positive_ids) == int(trained.counts.sum()) == 40 * 5
    loader = Loader(dataset, run.config.batches, seed=0)
    dealt = torch.cat([batch.positive_ids for batch in loader.epoch()])
    assert torch.equal(trained.counts, dealt.bincount(minlength=dataset.num_items).double())
    assert torch.equal(trained.training_positive_ids.sort().values, dealt.sort().values)
    audited = zip(trained.user_ids.tolist(), trained.positive_ids.tolist(), strict=True)
    assert all(pair in pairs for pair in audited)


def test_untrained_input_with_too_few_users_has_all_of_them(dataset):
    assert len(untrained_input(config_of(), dataset, 1000).query) == 40


def test_recipe_case_has_the_recipe_estimator_first(dataset):
    loss = {"type": "sampled_softmax", "correction": "logq"}
    case = recipe_case(config_of(loss=loss), dataset)
    assert case.is_recipe
    assert case.num_candidates == 12
    assert case.estimators[0] == Estimator("logq")
    assert len(set(case.estimators)) == len(case.estimators)
    assert set(case.estimators) == set(estimators_for(case.sampler))


def test_recipe_case_of_a_learnt_partition_function_has_its_own_cap_first(dataset):
    case = recipe_case(config_of(loss={"type": "learnt_partition", "cap": 2.0}), dataset)
    assert case.estimators[0] == Estimator(cap=2.0)
    assert set(case.estimators) == {Estimator(cap=2.0), *estimators_for(case.sampler)}


@pytest.mark.parametrize(
    ("sampler", "num_candidates"),
    [
        ({"type": "exact_popular", "num_exact": 4, "rest": REST}, 9),
        ({"type": "exact_nearest", "shared": False, "k": 3, "rest": REST}, 8),
        # Batches have 16 users with five training targets after the first interaction each.
        ({"type": "mixture", "components": [REST, {"type": "in_batch"}]}, 5 + 80),
        ({"type": "cross_batch_memory", "size": 100}, 100 + 80),
    ],
)
def test_recipe_case_counts_all_candidates(dataset, sampler, num_candidates):
    case = recipe_case(config_of(sampler=sampler), dataset)
    assert case.num_candidates == num_candidates
    assert case.batch_rows == 80
    assert set(case.estimators) == set(estimators_for(case.sampler))


def test_recipe_case_needs_a_sampled_softmax(dataset):
    table = {key: value for key, value in TABLE.items() if key != "sampler"}
    config = parse_config(table | {"loss": {"type": "full_softmax"}}, "test")
    assert recipe_case(config, dataset) is None


class UniformPool(Uniform):
    """A sampler of another package, whose size is called ``pool``."""

    class Config(SamplerConfig):
        """Settings of ``UniformPool``."""

        pool: int = 6

        def build(self, counts):
            return UniformPool(len(counts), num_candidates=self.pool)

        def candidates_per_row(self, batch_rows):
            return self.pool


def test_audit_of_a_recipe_with_a_registered_sampler(dataset, monkeypatch):
    monkeypatch.setitem(SAMPLERS, "uniform_pool", UniformPool)
    config = config_of(sampler={"type": "uniform_pool", "pool": 7})
    case = recipe_case(config, dataset)
    assert case.num_candidates == 7
    assert len(case.estimators) == len(estimators_for(config.sampler))
    report = audit(
        [untrained_input(config, dataset, 10)],
        [case],
        sampling=SamplingBudget(repeats=16),
        cost_rows=8,
    )
    assert {entry.num_scores for entry in report.entries} == {7}
    assert report.entries[0].sampler == {"type": "uniform_pool", "pool": 7}


def test_audit_of_a_run_separates_the_parts_of_the_error_of_in_batch_candidates(dataset):
    config = config_of(sampler={"type": "in_batch"})
    report = audit(
        [untrained_input(config, dataset, 10)],
        [recipe_case(config, dataset)],
        sampling=SamplingBudget(repeats=16),
        drift=DriftSampling(users=4, repeats=16),
        cost_rows=8,
    )
    row = report.to_json()["estimators"][0]
    parts = row["inputs"]["at initialisation"]["in_batch"]
    assert parts["real"]["z_sd"] > 0
    assert parts["independent"]["z_sd"] > 0
    assert parts["frequency"]["total_variation"] < 1e-6
    # 16 of 40 windows with five rows each; the last batch of an epoch has eight windows.
    assert parts["mean_rows"] == pytest.approx(5 * (0.8 * 15 + 0.2 * 7))
    (note,) = report.notes
    assert note.startswith(
        "candidates from batches (recipe, refined, n = 80): real batches have 67 "
    )
