"""Training with sharded tables against training with whole tables in one process."""

import errno
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from candid.batches import History, Queries
from candid.distributed import current_group
from candid.errors import ArtifactError, ConfigError
from candid.losses import sampled_softmax
from candid.samplers import SAMPLERS, Uniform
from candid.towers import (
    CausalTransformer,
    ItemEmbedding,
    ModelConfig,
    RowTable,
    TowerContext,
    UserEmbedding,
    num_parameters,
    row_table,
    row_tables,
    sharded_from_start,
    sharded_tables,
)
from candid.training import TrainingConfig, load_model, read_checkpoint, trainer
from candid.training.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
)
from candid.training.last_checkpoint import read_last_shards
from candid.training.optimizer import make_optimizer
from candid.training.shard_checkpoint import read_shards, shard_checkpoints, write_shards
from candid.training.shard_export import export_shards
from candid.training.shard_files import MANIFEST

V, U, D, B, L = 13, 7, 4, 6, 3
QUERY_TOWERS = {
    "user": UserEmbedding.Config(dim=D),
    "tied": CausalTransformer.Config(dim=D, num_blocks=1, num_heads=1, dropout=0.0),
    "separate": CausalTransformer.Config(
        dim=D, num_blocks=1, num_heads=1, dropout=0.0, input_items="separate"
    ),
}
RULES = {
    "row_adagrad": {"table_lr": 0.3},
    "row_adam": {"table_lr": 0.1, "weight_decay": 0.1},
}


def build(tower, rule, *, sharded, seed=0):
    torch.manual_seed(seed)
    config = ModelConfig(query_tower=QUERY_TOWERS[tower], item_tower=ItemEmbedding.Config(dim=D))
    model = config.build(TowerContext(U, V, L)).double()
    with torch.no_grad():
        for _, table in row_tables(model):
            table.weight.mul_(20)  # so that gradients differ clearly between rows
    tables = f"sharded_{rule}" if sharded else rule
    return model, make_optimizer(model, TrainingConfig(tables=tables, **RULES[rule]))


def batch_of(step, rows):
    """Return the queries, positives and candidates of some rows of a global batch of B."""
    generator = torch.Generator().manual_seed(step)
    users = torch.randint(0, U, (B,), generator=generator)
    histories = torch.randint(0, V, (B, L), generator=generator)
    positives = torch.randint(0, V, (B,), generator=generator)
    candidates = Uniform(V, num_candidates=5).sample(positives, generator=generator)
    num_rows = len(rows)
    history = History(
        item_ids=histories[rows].reshape(-1),
        offsets=torch.arange(num_rows + 1) * L,
        query_positions=torch.arange(num_rows) * L + L - 1,
    )
    queries = Queries(user_ids=users[rows], history=history)
    of_rows = candidates.log_expected_count_positive[rows]
    return queries, positives[rows], replace(candidates, log_expected_count_positive=of_rows)


def rows_of(rank, num_ranks):
    """Unequal parts of the batch; with three ranks or more the last one has no row."""
    stops = {1: [6], 2: [2, 6], 3: [1, 6, 6], 4: [1, 2, 6, 6]}[num_ranks]
    return torch.arange(stops[rank - 1] if rank else 0, stops[rank])


def train_step(model, optimizer, step, rows):
    """Take the step of some rows of the global batch; return the norm of the gradient."""
    optimizer.zero_grad()
    queries, positives, candidates = batch_of(step, rows)
    query = model.encode_queries(queries)
    output = sampled_softmax(query, model.encode_items, positives, candidates)
    (output.loss.sum() / B).backward()
    if dist.is_initialized():
        sharded = sharded_tables(model)
        for name, parameter in model.named_parameters():
            if name not in sharded:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
    return float(optimizer.step(0.05, clip_norm=0.5))


def weights_and_state(model, optimizer):
    """Return all tensors; of sharded tables the rows of this rank."""
    tensors = model_tensors(model) | optimizer_tensors(model, optimizer)
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def owner_of(name, model):
    """Return the sharded table that a tensor has rows of, or None."""
    tables = sharded_tables(model)
    part, _, rest = name.partition("/")
    return tables.get(rest if part == "model" else rest.rpartition("/")[0])


def train_all(expected):
    """Return a function that trains every case on a rank and compares it with ``expected``."""

    def on_rank(rank, num_ranks):
        for case, (norms, whole) in expected.items():
            tower, rule = case
            model, optimizer = build(tower, rule, sharded=True)
            assert len(sharded_tables(model)) == {"tied": 1}.get(tower, 2)
            for step, norm in enumerate(norms):
                found = train_step(model, optimizer, step, rows_of(rank, num_ranks))
                # Row-wise Adam divides by the gradients of rare rows, and so amplifies rounding.
                assert found == pytest.approx(norm, rel=1e-9 if step else 1e-13), (case, step)
            for name, tensor in weights_and_state(model, optimizer).items():
                table = owner_of(name, model)
                part = whole[name] if table is None else table.own_part(whole[name])
                difference = (tensor - part).abs().max() if part.numel() else 0
                assert difference <= 1e-9, (case, name)
        return True

    return on_rank


@pytest.fixture(scope="module")
def expected():
    """Norms and tensors of every case after four steps of one process with whole tables."""
    cases = {}
    for tower in QUERY_TOWERS:
        for rule in RULES:
            model, optimizer = build(tower, rule, sharded=False)
            norms = [train_step(model, optimizer, step, torch.arange(B)) for step in range(4)]
            assert max(norms) > 0.5  # so that clipping counts
            cases[tower, rule] = norms, weights_and_state(model, optimizer)
    return cases


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_steps_with_sharded_tables_equal_those_with_whole_ones(on_ranks, expected, num_ranks):
    assert all(on_ranks(train_all(expected), num_ranks))


def checkpoint_of(model, optimizer):
    tensors = model_tensors(model) | optimizer_tensors(model, optimizer)
    return Checkpoint(tensors, {"run": "a run", "state": {"step": 1}, "position": {"epoch": 0}})


def train_and_write(folder, steps):
    def on_rank(rank, num_ranks):
        model, optimizer = build("separate", "row_adam", sharded=True)
        for step in steps:
            train_step(model, optimizer, step, rows_of(rank, num_ranks))
            checkpoint = checkpoint_of(model, optimizer)
            write_shards(folder, step + 1, checkpoint, model, current_group())
        return as_lists(weights_and_state(model, optimizer))

    return on_rank


def read_and_write(folder, step):
    """Return a function that opens the last checkpoint and writes it again as another step."""

    def on_rank(rank, num_ranks):
        model, optimizer = build("separate", "row_adam", sharded=True, seed=1)
        found = read_last_shards(folder, model, current_group(), run="a run")
        assert found.damage is None
        checkpoint, path = found.checkpoint, found.path
        load_model(model, checkpoint, path)
        load_optimizer(model, optimizer, checkpoint)
        write_shards(folder, step, checkpoint_of(model, optimizer), model, current_group())
        return as_lists(weights_and_state(model, optimizer))

    return on_rank


def as_lists(tensors):
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def joined(results):
    """Concatenate the rows of the ranks where they differ in length or content."""
    parts = {name: [result[name] for result in results] for name in results[0]}
    return {
        name: every[0] if all(part == every[0] for part in every) else list(chain(*every))
        for name, every in parts.items()
    }


def test_any_number_of_ranks_opens_a_checkpoint_and_it_exports_to_one_file(on_ranks, tmp_path):
    two = joined(on_ranks(train_and_write(tmp_path, range(3)), 2))
    assert [path.name for path in shard_checkpoints(tmp_path)] == ["step-3", "step-2"]
    assert joined(on_ranks(read_and_write(tmp_path, 4), 1)) == two
    three = joined(on_ranks(read_and_write(tmp_path, 5), 3))
    assert three == two
    files = {path.name for path in (tmp_path / "step-5").iterdir()}
    assert files == {MANIFEST, "shared.safetensors", *(f"rank-{k}.safetensors" for k in range(3))}
    for name, weights_only in (("best", True), ("last", False)):
        # Blocks of one row, over the ends of the files.
        out = tmp_path / f"{name}.safetensors"
        export_shards(tmp_path / "step-5", out, weights_only=weights_only, block_bytes=1)
        checkpoint = read_checkpoint(out, run="a run")
        model, optimizer = build("separate", "row_adam", sharded=False, seed=2)
        load_model(model, checkpoint, out)
        assert ("position" in checkpoint.meta) is not weights_only
        if not weights_only:
            load_optimizer(model, optimizer, checkpoint)
            assert as_lists(weights_and_state(model, optimizer)) == two
            continue
        weights = as_lists(model_tensors(model))
        assert weights == {name: two[name] for name in weights}


def read_damaged(folder, expected_path, message):
    """Return a function that reads what another rank may find damaged."""

    def on_rank(rank, num_ranks):
        model, _ = build("separate", "row_adam", sharded=True, seed=1)
        group = current_group()
        if expected_path is None:
            with pytest.raises(DamagedCheckpointError, match=message) as caught:
                read_last_shards(folder, model, group, run="a run")
            return caught.value.exit_code
        found = read_last_shards(folder, model, group, run="a run")
        assert found.path == expected_path
        return found.damage

    return on_rank


def test_damaged_shards_fall_back_to_the_previous_checkpoint_on_all_ranks(on_ranks, tmp_path):
    on_ranks(train_and_write(tmp_path, range(2)), 2)
    last, previous = shard_checkpoints(tmp_path)
    # A kill left a folder without its manifest.
    (tmp_path / "step-9").mkdir()
    part = last / "rank-1.safetensors"
    content = part.read_bytes()
    part.write_bytes(content[:-1])
    notes = on_ranks(read_damaged(tmp_path, previous, None), 2)
    assert all("rank-1.safetensors has" in note for note in notes)
    assert not any("train again" in note for note in notes)
    flipped = bytearray(content)
    flipped[-1] ^= 1
    part.write_bytes(flipped)
    (previous / "rank-0.safetensors").unlink()
    message = f"{last} and {previous} are damaged: restore one of them"
    assert on_ranks(read_damaged(tmp_path, None, message), 2) == [4, 4]
    (previous / MANIFEST).unlink()
    assert on_ranks(read_damaged(tmp_path, None, "differs from its checksum|process 1 could"), 2)


def test_checkpoints_of_another_run_or_model_are_refused(tmp_path):
    model, optimizer = build("separate", "row_adam", sharded=True)
    group = current_group()
    with pytest.raises(DamagedCheckpointError, match="has no complete checkpoint"):
        read_last_shards(tmp_path, model, group)
    train_step(model, optimizer, 0, torch.arange(B))
    path = write_shards(tmp_path, 1, checkpoint_of(model, optimizer), model, group)
    with pytest.raises(DamagedCheckpointError, match="is not of the run"):
        read_shards(path, model, group, run="another")
    other, _ = build("user", "row_adam", sharded=True)
    with pytest.raises(
        ArtifactError, match=r"has rows of 'model/query_tower\.items\.weight', which"
    ):
        read_shards(path, other, group)
    (path / MANIFEST).write_text((path / MANIFEST).read_text().replace('"step": 1', '"step": 2'))
    with pytest.raises(DamagedCheckpointError, match=r"manifest\.json differs from its checksum"):
        read_shards(path, model, group)
    for content in (b"{", b"\xff", b"[" * 100_000):
        (path / MANIFEST).write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=r"manifest\.json is damaged"):
            read_shards(path, model, group)


def test_checkpoint_stays_with_the_one_before_it_and_no_other(tmp_path):
    model, optimizer = build("separate", "row_adam", sharded=True)
    checkpoint, group = checkpoint_of(model, optimizer), current_group()
    for step in (7, 8, 900, 1000):  # the last two are of an earlier start
        write_shards(tmp_path, step, checkpoint, model, group)
    (tmp_path / "step-950").mkdir()  # of a process that was killed while it wrote
    for step in (10, 12, 13):
        write_shards(tmp_path, step, checkpoint, model, group)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-12", "step-13"]


def test_file_without_permission_is_not_taken_for_damaged(tmp_path, monkeypatch):
    model, optimizer = build("separate", "row_adam", sharded=True)
    checkpoint, group = checkpoint_of(model, optimizer), current_group()
    for step in (1, 2):
        last = write_shards(tmp_path, step, checkpoint, model, group)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("candid.checksums.checksum", refuse)
    with pytest.raises(ArtifactError, match=r"give this user read permission$") as caught:
        read_shards(last, model, group)
    assert not isinstance(caught.value, DamagedCheckpointError)


@pytest.mark.parametrize("num_items", [V - 3, V + 3])
def test_weights_of_another_catalog_are_refused(num_items):
    model, _ = build("user", "row_adam", sharded=True)
    config = ModelConfig(query_tower=QUERY_TOWERS["user"], item_tower=ItemEmbedding.Config(dim=D))
    other = config.build(TowerContext(U, num_items, L))
    with pytest.raises(ArtifactError, match=rf"of shape \({num_items}, {D}\), this model"):
        load_model(model, Checkpoint(model_tensors(other), {}), "last.safetensors")


def build_sharded(rank, num_ranks):
    """Build parts from the start, and compare them with the whole tables of the same seed."""
    for tower in QUERY_TOWERS:
        config = ModelConfig(
            query_tower=QUERY_TOWERS[tower], item_tower=ItemEmbedding.Config(dim=D)
        )
        whole, parts = [], []
        for group, models in ((None, whole), (current_group(), parts)):
            torch.manual_seed(3)
            with sharded_from_start(group):
                models.append(config.build(TowerContext(U, V, L)))
            models.append(torch.rand(1))
        assert torch.equal(whole[1], parts[1])
        for (name, weight), part in zip(
            whole[0].named_parameters(), parts[0].parameters(), strict=True
        ):
            table = sharded_tables(parts[0]).get(name)
            assert torch.equal(part, weight if table is None else table.own_part(weight))
        assert num_parameters(parts[0]) == num_parameters(whole[0])
    return True


def test_parts_that_are_built_alone_have_the_initial_rows_of_whole_tables(on_ranks):
    assert all(on_ranks(build_sharded, 3))


@pytest.mark.parametrize(("num_rows", "dim"), [(1, 1), (5, 3), (16, 1), (70, 3), (95, 1), (96, 8)])
def test_rows_sampled_in_chunks_are_those_of_a_whole_table(monkeypatch, num_rows, dim):
    monkeypatch.setattr(row_table, "CHUNK_ROWS", 16)
    torch.manual_seed(0)
    whole = torch.nn.init.normal_(torch.empty(num_rows, dim), std=0.5)
    after = torch.rand(1)
    for rows in (range(num_rows), range(num_rows // 3, num_rows // 2)):
        torch.manual_seed(0)
        part = row_table._normal_rows(num_rows, dim, rows, std=0.5)
        assert torch.equal(part, whole[rows.start : rows.stop])
        assert torch.equal(torch.rand(1), after)


def test_models_without_a_table_of_ids_cannot_be_sharded():
    with pytest.raises(ConfigError, match="no table of users or items"):
        make_optimizer(torch.nn.Linear(2, 2), TrainingConfig(tables="sharded_row_adam"))
    with pytest.raises(ConfigError, match="cannot be combined"):
        TrainingConfig(tables="sharded_row_adam", average=0.9)


FOLLOWERS = {
    "random_fourier": {"num_candidates": 4},
    "quadratic": {"num_candidates": 4},
    "exact_nearest": {"k": 3, "num_exact": 5},
    "mixture": {"components": ["uniform", {"type": "quadratic", "num_candidates": 4}]},
    "exact_popular": {"num_exact": 4, "rest": {"type": "random_fourier", "num_candidates": 4}},
}


@pytest.mark.parametrize("name", FOLLOWERS)
def test_samplers_that_need_all_rows_are_refused_in_several_processes(name):
    follower = SAMPLERS[name].Config(**FOLLOWERS[name]).build(torch.ones(V))
    with pytest.raises(ConfigError, match="this sampler needs the vectors of all items"):
        trainer._check_reads_by_id(follower)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - set(FOLLOWERS)))
def test_samplers_that_read_ids_are_accepted_in_several_processes(name):
    settings = {"size": 12} if name == "cross_batch_memory" else {}
    trainer._check_reads_by_id(SAMPLERS[name].Config(**settings).build(torch.ones(V)))


def test_part_of_a_table_with_another_number_of_rows_is_not_cut():
    table = RowTable(V, D, "item")
    process = SimpleNamespace(rank=1, world_size=2, is_single=False)
    assert table.shard(process).rows == range(6, 13)
    whole = torch.arange(V)
    assert torch.equal(table.own_part(whole), whole[6:])
    # Those of another catalog must not pass for a part of this one.
    for other in (torch.arange(V + 5), whole[6:]):
        assert table.own_part(other) is other
    with pytest.raises(ConfigError, match="no process holds all of them"):
        table.every_row()


def test_sharded_table_of_one_process_has_every_row():
    model, _ = build("user", "row_adam", sharded=True)
    assert model.encode_catalog().shape == (V, D)
