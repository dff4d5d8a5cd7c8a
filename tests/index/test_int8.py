"""Search in inverted lists with codes of 8 bits: recall, exclusions and files."""

import pytest
import torch
from safetensors.numpy import load_file, save_file

from candid.errors import ArtifactError, ConfigError
from candid.index import Exclusions, Int8Index
from candid.index.int8 import MIN_LISTED


def vectors_of(num, dim=16, seed=0):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_items", [900, 2000, 12_000])
def test_search_of_all_lists_finds_nearly_all_items(num_items):
    items, query = vectors_of(num_items), vectors_of(40, seed=1)
    result = Int8Index.Config(num_probes=num_items).build(items).search(query, 50)
    exact = query.double() @ items.double().T
    expected = exact.topk(50)
    found = (result.item_ids[:, :, None] == expected.indices[:, None]).any(2).double().mean()
    assert found >= 0.995
    torch.testing.assert_close(
        result.scores.double(), exact.gather(1, result.item_ids), rtol=1e-5, atol=1e-5
    )
    assert bool((result.scores.diff(dim=1) <= 0).all())


def test_codes_order_items_of_clusters_far_from_zero():
    centres = 100 * torch.nn.functional.normalize(vectors_of(8, seed=3))
    items = centres.repeat(300, 1) + 0.05 * vectors_of(2400, seed=4)
    query = vectors_of(32, seed=5)
    index = Int8Index.Config(num_lists=64, num_probes=64, oversample=1).build(items)
    expected = (query.double() @ items.double().T).topk(20).indices
    found = (index.search(query, 20).item_ids[:, :, None] == expected[:, None]).any(2)
    assert float(found.double().mean()) >= 0.9


def test_more_probes_and_candidates_never_lose_recall():
    items, query = vectors_of(5000), vectors_of(30, seed=1)
    expected = (query @ items.T).topk(20).indices
    index = Int8Index.Config().build(items)
    recalls = []
    for probes in index.tuning_axes(20)["num_probes"][::4]:
        ids = index.with_settings(num_probes=probes, oversample=2.0).search(query, 20).item_ids
        recalls.append(float((ids[:, :, None] == expected[:, None]).any(2).double().mean()))
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.9 < recalls[-1]


@pytest.mark.parametrize("num_items", [2000, 12_000])
def test_excluded_items_are_replaced_by_the_next(num_items):
    items, query = vectors_of(num_items), vectors_of(6, seed=1)
    index = Int8Index.Config(num_probes=num_items).build(items)
    order = (query @ items.T).argsort(1, descending=True)
    exclude = Exclusions(order[:, :200].flatten(), torch.arange(0, 1201, 200))
    ids = index.search(query, 10, exclude).item_ids
    found = (ids[:, :, None] == order[:, None, 200:210]).any(2).double().mean()
    assert found >= 0.95
    assert not bool((ids[:, :, None] == order[:, None, :200]).any())


def test_number_of_lists_follows_the_catalog():
    config = Int8Index.Config()
    assert config.build_choices(MIN_LISTED - 1) == [{}]
    assert config.build_choices(10**6) == [{"num_lists": n} for n in (250, 1000, 2000)]
    assert Int8Index.Config(num_lists=7).build_choices(10**6) == [{}]
    assert config.build(vectors_of(MIN_LISTED - 1)).tuning_axes(1)["num_probes"] == [1]
    assert config.build(vectors_of(2500)).tuning_axes(1)["num_probes"][-1] == 50


def test_impossible_settings_are_refused():
    items = vectors_of(5)
    with pytest.raises(ConfigError, match="num_lists must be between 1 and the number of items, 5"):
        Int8Index.Config(num_lists=6).build(items)
    with pytest.raises(ConfigError, match=r"at least 1, got 0 and 1\.1"):
        Int8Index(items, num_lists=None, num_probes=0, oversample=1.1)
    with pytest.raises(ConfigError, match=r"at least 1, got 16 and 0\.5"):
        Int8Index(items, num_lists=None, num_probes=16, oversample=0.5)


def test_opened_file_searches_like_the_index(tmp_path):
    items, query = vectors_of(12_000), vectors_of(9, seed=1)
    index = Int8Index.Config(num_probes=5).build(items)
    index.save(tmp_path / "index")
    other = Int8Index.Config(num_probes=5).open(items, tmp_path / "index")
    for one, two in zip(
        *(i.search(query, 30).item_ids.tolist() for i in (index, other)), strict=True
    ):
        assert one == two
    with pytest.raises(ArtifactError, match="index of 12000 items, not of these 11999"):
        Int8Index.Config().open(items[:-1], tmp_path / "index")


def damage(name, part):
    def change(content):
        content[name] = part(content[name])

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("codes"),
        damage("codes", lambda codes: codes[:, :-1].copy()),
        damage("codes", lambda codes: codes[:-1].copy()),
        damage("scales", lambda scales: scales.astype("float64")),
        damage("starts", lambda starts: starts[::-1].copy()),
        damage("starts", lambda starts: starts + 1),
        damage("starts", lambda starts: starts.clip(min=1)),
        damage("starts", lambda starts: starts.clip(max=starts[-2])),
        damage("item_ids", lambda ids: ids + (ids == 1999)),
        damage("centres", lambda centres: centres[:, :-1].copy()),
        damage("item_ids", lambda ids: ids[:, :8].copy()),
        lambda content: content.update(other=content["codes"]),
    ],
)
def test_damaged_file_is_refused(change, tmp_path):
    items, file = vectors_of(2000), tmp_path / "index"
    Int8Index.Config().build(items).save(file)
    content = load_file(file)
    change(content)
    save_file(content, file)
    with pytest.raises(ArtifactError, match="damaged; build it again with candid index"):
        Int8Index.Config().open(items, file)


def test_cut_file_is_refused(tmp_path):
    items, file = vectors_of(2000), tmp_path / "index"
    Int8Index.Config().build(items).save(file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="damaged"):
        Int8Index.Config().open(items, file)
