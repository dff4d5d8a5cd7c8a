"""Public names: ``__all__`` is sorted, complete and importable, and signatures are stable."""

import importlib
import inspect
import operator
import pkgutil
import subprocess
import sys
import types

import pytest

import candid

PACKAGES = ["candid"] + [
    f"candid.{module.name}" for module in pkgutil.iter_modules(candid.__path__) if module.ispkg
]


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_sorted_and_importable(name):
    package = importlib.import_module(name)
    exported = getattr(package, "__all__", [])
    expected = sorted(exported, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert list(exported) == expected
    assert len(set(exported)) == len(exported)
    for member in exported:
        assert getattr(package, member) is not None


@pytest.mark.parametrize("name", PACKAGES[1:])
def test_public_names_of_a_package_are_exported(name):
    package = importlib.import_module(name)
    if not hasattr(package, "__all__"):
        return
    public = {
        member
        for member, value in vars(package).items()
        if not member.startswith("_")
        and member != "TYPE_CHECKING"
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", name).startswith("candid")
        and not isinstance(value, type(importlib.import_module("__future__").annotations))
    }
    assert public <= set(package.__all__), f"{name}.__all__ lacks {public - set(package.__all__)}"


def test_names_of_the_root_are_those_of_the_packages():
    from candid.data import PreparedDataset
    from candid.losses import full_softmax, sampled_softmax

    assert candid.full_softmax is full_softmax
    assert candid.sampled_softmax is sampled_softmax
    assert candid.PreparedDataset is PreparedDataset
    assert set(candid.__all__) <= set(dir(candid))


def test_packages_work_after_import_candid():
    # In the order of imports, so that a later package has not imported an earlier one.
    names = ["towers.TOWERS", "index.INDEXES", "samplers.SAMPLERS", "samplers.Candidates"]
    names += ["losses.LOSSES", "losses.LossOutput", "sampled_softmax"]
    check = f"import candid; {'; '.join(f'candid.{name}' for name in names)}"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_signatures_begin_as_documented():
    """Positional order, keywords and defaults of the functions that users call."""
    documented = {
        "sampled_softmax": "query, item_embeddings, positive_ids, candidates, *, "
        "correction='logq', jackknife=False, temperature=1.0",
        "full_softmax": "query, item_embeddings, positive_ids, *, temperature=1.0",
        "in_batch_softmax": "query, positive_vectors, positive_ids, *, frequency, user_ids=None, "
        "negative_vectors=None, negative_ids=None, correction='logq', jackknife=False, "
        "temperature=1.0",
        "with_negatives": "candidates, negative_ids, sampler, positive_ids, user_ids=None, "
        "query=None",
        "SampledSoftmaxLoss": "sampler, *, correction='logq', jackknife=False, "
        "temperature=1.0, reduction='mean'",
        "InBatchSoftmaxLoss": "frequency, *, correction='logq', jackknife=False, "
        "temperature=1.0, reduction='mean'",
        "losses.corrected_log_softmax": "*, positive, candidates, log_expected_count, "
        "log_expected_count_positive=None, accidental_hits=None, correction='logq', "
        "jackknife=False",
        "samplers.Uniform": "num_items, *, num_candidates, distinct=False",
        "samplers.Popularity": "counts, *, num_candidates, exponent=1.0, distinct=False",
        "samplers.InBatch": "frequency, *, exclude_same_user=True, distinct=False",
        "samplers.Mixture": "components",
        "prepare": "data, *, user='user_id', item='item_id', time=None, order=None, items=None, "
        "users=None, split='leave-one-out', out=None",
        "train": "data, recipe=None, *, out, init=None, resume=False, refit=False, measure=True, "
        "quiet=False, **overrides",
        "load": "folder, data=None",
        "load_run": "folder, data=None",
        "evaluate_recommendations": "recommendations, dataset, split='test', ks=(10, 20, 100), *",
        "write_recommendations": "model, out, *, users=None, k=None",
        "write_similar": "model, out, *, items=None, k=None",
        "fit_baseline": "data, name, *, settings=None, tuning=True",
        "Run.recommend": "self, users=None, *, histories=None, times=None, features=None, "
        "k=None, filter_seen=None, allow=None, deny=None",
        "Run.similar": "self, items, k=None",
        "Run.item_vectors": "self",
        "Run.query_vectors": "self, users=None, *, histories=None, times=None",
        "Run.evaluate": "self, split='test', config=None, *",
    }
    for name, expected in documented.items():
        signature = inspect.signature(operator.attrgetter(name)(candid))
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        text = str(inspect.Signature(bare)).strip("()")
        assert text == expected or text.startswith(f"{expected}, "), name


def test_unknown_name_of_the_root_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = candid.no_such_name


def test_import_of_candid_and_its_command_line_does_not_import_torch():
    check = "import sys, candid.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
