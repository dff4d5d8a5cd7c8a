"""Checks before a version serves, each with one number that is not finite."""

import shutil

import pytest
import torch

import candid
from candid.errors import ArtifactError
from candid.serve.bundle import open_bundle
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.model_files import ModelFiles
from candid.serve.model_version import ModelVersion
from candid.serve.version_check import check_version, identity_of


def by_user_version(runs):
    bundle = open_bundle(runs.by_user)
    return ModelVersion(bundle, name="by-user", number=1, config=ServeConfig())


def set_nan(parameter, row):
    with torch.no_grad():
        parameter[row] = torch.nan


def parameter_of(version, *words):
    [found] = [
        value
        for name, value in version.bundle.model.named_parameters()
        if all(word in name for word in words)
    ]
    return found


def test_sound_versions_pass(fresh, runs):
    for version in (fresh, by_user_version(runs)):
        check_version(version, thorough=True)
        check_version(version, thorough=False)


def test_weight_that_is_not_finite_is_refused(runs):
    version = by_user_version(runs)
    # A user whom no sample of queries contains.
    table = parameter_of(version, "query_tower")
    set_nan(table, 13)
    with pytest.raises(ArtifactError, match=r"the weights '.*' hold NaN or infinite values: the"):
        check_version(version, thorough=True)


def test_item_vector_that_is_not_finite_is_refused(fresh):
    with torch.inference_mode():
        fresh.bundle.snapshot.index.item_vectors[17, 3] = torch.inf
    with pytest.raises(ArtifactError, match="item vectors of the index hold NaN or infinite"):
        check_version(fresh, thorough=True)


@pytest.mark.parametrize(
    ("matches", "kind"),
    [
        (lambda query: query.user_id >= 0 and len(query.item_ids) > 0, "a user with a history"),
        (lambda query: query.user_id >= 0 and not len(query.item_ids), "a user without a history"),
        (lambda query: query.user_id < 0 and not len(query.item_ids), "an empty history"),
        (lambda query: query.user_id < 0 and len(query.item_ids) > 3, "a random history"),
    ],
)
def test_query_vector_that_is_not_finite_is_refused(fresh, monkeypatch, matches, kind):
    monkeypatch.setattr(type(fresh.bundle.model), "needs_history", False)

    def encode_wrong(queries):
        vectors = torch.ones(len(queries), fresh.bundle.dim)
        for row, query in enumerate(queries):
            if matches(query):
                vectors[row, 0] = torch.nan
        return vectors

    monkeypatch.setitem(fresh.bundle.__dict__, "encode", encode_wrong)
    with pytest.raises(ArtifactError, match=f"not finite for {kind}: the model has diverged"):
        check_version(fresh, thorough=False)


@pytest.mark.parametrize("scores", [float("nan"), float("inf")])
def test_score_that_is_not_finite_is_refused(fresh, monkeypatch, scores):
    nearest = fresh.search.nearest_with_log_partition

    def wrong(*arguments):
        results, log_z = nearest(*arguments)
        return [(ids, values * 0 + scores) for ids, values in results], log_z

    monkeypatch.setattr(fresh.search, "nearest_with_log_partition", wrong)
    with pytest.raises(ArtifactError, match="scores that are not finite"):
        check_version(fresh, thorough=False)


def test_query_that_fails_is_refused_with_its_reason(fresh, monkeypatch):
    error = RequestError("invalid", "this query fails")
    monkeypatch.setattr(fresh, "answer", lambda queries: [error] * len(queries))
    with pytest.raises(ArtifactError, match="the model cannot answer: this query fails"):
        check_version(fresh, thorough=False)


def test_identity_is_that_of_the_loaded_content(runs, tmp_path):
    folder = tmp_path / "films"
    shutil.copytree(runs.films, folder)
    files = ModelFiles(folder, data=runs.films.parent / "data")
    first = identity_of(files(), files)
    assert identity_of(files(), files) == first
    (folder / "metrics.jsonl").write_text("{}\n")  # A run that is still trained.
    assert identity_of(files(), files) == first
    bundle = files()
    with torch.no_grad():
        next(bundle.model.parameters()).add_(1.0)
    by_user = ModelFiles(runs.by_user)
    assert identity_of(by_user(), by_user) != first


@pytest.mark.parametrize("kind", ["run", "baseline"])
def test_identity_does_not_depend_on_permissions_and_links(runs, tmp_path, kind):
    data = tmp_path / "data"
    shutil.copytree(runs.films.parent / "data", data)
    folder = tmp_path / "model"
    if kind == "run":
        shutil.copytree(runs.films, folder)
    else:
        candid.fit_baseline(data, "popularity", settings={}).save(folder)
    files = ModelFiles(folder, data=data)
    first = identity_of(files(), files)
    for path in (folder, data, *folder.rglob("*"), *data.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o400)
        if path.is_file():
            path.with_name(f".{path.name}.backup").hardlink_to(path)
    assert identity_of(files(), files) == first
    changed = data / "roles.npy"
    content = changed.read_bytes()
    changed.chmod(0o600)
    changed.write_bytes(content)  # in place: the time differs
    assert identity_of(files(), files) != first
