"""The public surface is what ``__all__`` says: sorted, importable, and nothing by accident."""

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
def test_all_is_sorted_complete_and_real(name):
    package = importlib.import_module(name)
    exported = getattr(package, "__all__", [])
    by_habit = sorted(exported, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert list(exported) == by_habit
    assert len(set(exported)) == len(exported)
    for member in exported:
        assert getattr(package, member) is not None


@pytest.mark.parametrize("name", PACKAGES[1:])
def test_a_package_defines_no_public_name_that_it_does_not_export(name):
    package = importlib.import_module(name)
    if not hasattr(package, "__all__"):
        return
    public = {
        member
        for member, value in vars(package).items()
        if not member.startswith("_")
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", name).startswith("candid")
        and not isinstance(value, type(importlib.import_module("__future__").annotations))
    }
    assert public <= set(package.__all__), f"{name}.__all__ lacks {public - set(package.__all__)}"


def test_names_of_the_root_are_those_of_their_homes():
    from candid.data import PreparedDataset
    from candid.losses import full_softmax, sampled_softmax

    assert candid.full_softmax is full_softmax
    assert candid.sampled_softmax is sampled_softmax
    assert candid.PreparedDataset is PreparedDataset
    assert set(candid.__all__) <= set(dir(candid))


def test_the_parts_need_nothing_but_import_candid():
    # In the order of the flow, so that no part has been loaded by a later one.
    names = ["towers.TOWERS", "index.INDEXES", "samplers.SAMPLERS", "samplers.Candidates"]
    names += ["losses.LOSSES", "losses.LossOutput", "sampled_softmax"]
    check = f"import candid; {'; '.join(f'candid.{name}' for name in names)}"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_signatures_begin_as_promised():
    """What scripts and docs rest on: positional order, keywords and defaults."""
    promised = {
        "sampled_softmax": "query, item_embeddings, positive_ids, candidates, *, "
        "correction='refined', jackknife=False, temperature=1.0",
        "full_softmax": "query, item_embeddings, positive_ids, *, temperature=1.0",
        "in_batch_softmax": "query, positive_vectors, positive_ids, *, frequency, user_ids=None, "
        "negative_vectors=None, negative_ids=None, correction='refined', jackknife=False, "
        "temperature=1.0",
        "with_negatives": "candidates, negative_ids, sampler, batch",
        "SampledSoftmaxLoss": "catalog, sampler=None, *, correction='refined', jackknife=False, "
        "temperature=1.0, reduction='mean'",
        "InBatchSoftmaxLoss": "frequency, *, correction='refined', jackknife=False, "
        "temperature=1.0, reduction='mean'",
        "losses.corrected_log_softmax": "*, positive, candidates, log_expected_count, "
        "log_expected_count_positive=None, accidental_hits=None, correction='refined', jackknife=False",
        "samplers.Uniform": "num_items, num_candidates, distinct=False",
        "samplers.Popularity": "counts, num_candidates, exponent=1.0, distinct=False",
        "samplers.InBatch": "frequency, exclude_same_user=True, distinct=False",
        "samplers.Mixture": "components",
    }
    for name, expected in promised.items():
        signature = inspect.signature(operator.attrgetter(name)(candid))
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        found = str(inspect.Signature(bare)).strip("()")
        assert found == expected or found.startswith(f"{expected}, "), name


def test_an_unknown_name_of_the_root_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = candid.no_such_name


def test_importing_candid_and_its_command_line_does_not_import_torch():
    check = "import sys, candid.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
