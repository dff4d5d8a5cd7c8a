"""The blockwise softmax against plain operations in float64."""

import math
import weakref

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from candid.errors import ConfigError
from candid.losses.blockwise import tile_pass
from candid.losses.blockwise.accidental_hits import AccidentalHits, IdMatch
from candid.losses.blockwise.native import native_pass
from candid.losses.blockwise.softmax import blockwise_softmax
from candid.losses.blockwise.tiles import SIZES, Tiles, TileSizes

TILINGS = {
    "one tile": TileSizes(512, 2**20, 4096, 2**24, 64, 64),
    "cached": TileSizes(3, 2**4, 5, 2**24, 1, 1),
    "recomputed": TileSizes(3, 2**4, 5, 0, 64, 64),
}


@pytest.fixture(params=TILINGS)
def tiling(request, monkeypatch):
    monkeypatch.setitem(SIZES, "cpu", TILINGS[request.param])


@pytest.fixture(params=["torch", "native"])
def engine(request, monkeypatch):
    monkeypatch.setattr(tile_pass, "NATIVE_SCORES", 0)
    if request.param == "torch":
        monkeypatch.setattr(tile_pass, "native_pass", lambda: None)
    elif native_pass() is None:
        pytest.skip("no C compiler")
    return request.param


def made(num_rows, num_candidates, dtype=torch.float64, dim=4, scale=1.0):
    generator = torch.Generator().manual_seed(100 * num_rows + num_candidates)

    def normal(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.to(dtype)

    inputs = {
        "query": scale * normal(num_rows, dim),
        "vectors": normal(num_candidates, dim),
        "positive": normal(num_rows),
        "log_rest": normal(num_rows),
    }
    row_ids = torch.randint(4, (2, num_rows), generator=generator)
    ids = torch.randint(4, (2, num_candidates), generator=generator)
    shift = normal(num_candidates)
    shift[::7] = math.inf
    return {k: v.requires_grad_() for k, v in inputs.items()}, row_ids, ids, shift, normal(num_rows)


def plain_softmax(inputs, accidental_hits, shift, row_shift):
    """The equations of ``blockwise_softmax`` on float64 copies: loss, log_z, leaves."""
    leaves = {k: v.detach().double().requires_grad_() for k, v in inputs.items()}
    logits = leaves["query"] @ leaves["vectors"].T - shift.double() - row_shift.double()[:, None]
    logits = torch.where(accidental_hits | shift.isposinf(), -math.inf, logits)
    rest = leaves["log_rest"][:, None] if "log_rest" in leaves else logits[:, :0]
    everything = torch.cat([rest, logits], dim=1)
    silent = everything.isneginf().all(dim=1) if everything.shape[1] else torch.ones(len(logits))
    silent = silent.bool()
    safe = torch.where(silent[:, None], 0.0, everything)
    log_z = safe.logsumexp(dim=1) if everything.shape[1] else everything.sum(dim=1)
    log_z = torch.where(silent, -math.inf, log_z)
    gap = torch.where(silent, 0.0, log_z - leaves["positive"])
    return torch.where(silent, 0.0, torch.logaddexp(torch.zeros_like(gap), gap)), log_z, leaves


def both(sizes, dtype, precision="float32", *, rest=True, scale=1.0, mix=False):
    """Results and expected results by name: loss, log_z and gradients."""
    inputs, row_ids, ids, shift, row_shift = made(*sizes, dtype, scale=scale)
    if not rest:
        del inputs["log_rest"]
    accidental_hits = (row_ids[:, :, None] == ids[:, None, :]).any(dim=0)
    accidental = AccidentalHits(IdMatch(row_ids[0], ids[0]), IdMatch(row_ids[1], ids[1]))
    assert torch.equal(accidental.num_hits(), accidental_hits.sum(dim=1))
    loss, log_z = blockwise_softmax(
        accidental_hits=accidental,
        shift=shift,
        row_shift=row_shift,
        precision=precision,
        **inputs,
    )
    weights = torch.linspace(0.5, 1.5, sizes[0]).to(dtype) if mix else torch.ones(sizes[0])
    total = (loss * weights.to(dtype)).sum()
    expected, expected_log_z, leaves = plain_softmax(inputs, accidental_hits, shift, row_shift)
    expected_total = (expected * weights.double()).sum()
    if mix:
        total = total + log_z[~log_z.isneginf()].sum()
        expected_total = expected_total + expected_log_z[~expected_log_z.isneginf()].sum()
    grads = torch.autograd.grad(total, list(inputs.values()))
    expected_grads = torch.autograd.grad(expected_total, list(leaves.values()))
    results = {"loss": loss, "log_z": log_z, **dict(zip(inputs, grads, strict=True))}
    expected_results = {"loss": expected, "log_z": expected_log_z}
    return results, expected_results | dict(zip(leaves, expected_grads, strict=True))


def near(results, expected_results, relative):
    for name, values in expected_results.items():
        scale = max(values[values.isfinite()].abs().flatten().tolist(), default=0.0)
        torch.testing.assert_close(
            results[name].double(),
            values,
            rtol=relative,
            atol=relative * max(1.0, scale),
            msg=lambda text, name=name: f"{name}: {text}",
        )


TESTED_SIZES = [(1, 1), (1, 6), (9, 1), (7, 23), (11, 40), (0, 5), (4, 0)]


@pytest.mark.usefixtures("tiling")
class TestAgainstThePlainSoftmax:
    @pytest.mark.parametrize("mix", [False, True], ids=["loss", "loss and log_z"])
    @pytest.mark.parametrize("rest", [False, True], ids=["without rest", "with rest"])
    @pytest.mark.parametrize("sizes", TESTED_SIZES)
    def test_float64(self, sizes, rest, mix):
        near(*both(sizes, torch.float64, rest=rest, mix=mix), 1e-12)

    @pytest.mark.parametrize("mix", [False, True], ids=["loss", "loss and log_z"])
    @pytest.mark.parametrize("sizes", TESTED_SIZES)
    def test_float32(self, engine, sizes, mix):
        near(*both(sizes, torch.float32, mix=mix), 2e-6)

    @pytest.mark.parametrize("mix", [False, True], ids=["loss", "loss and log_z"])
    def test_bfloat16(self, engine, mix):
        # Query, vectors and scores are rounded to 2^-9 of themselves: of scores up to 10, 0.06
        # in all. That moves a log-sum as far, and a gradient by that share.
        near(*both((11, 40), torch.float32, "bfloat16", mix=mix), 0.06)

    @pytest.mark.parametrize("scale", [40.0, 1e4])
    def test_scores_far_apart(self, engine, scale):
        # A score of some times the scale is rounded to 2^-24 of itself, a few times over; a
        # gradient is moved by that share.
        near(*both((7, 23), torch.float32, scale=scale), 16 * 2**-24 * scale)

    def test_gradcheck(self):
        inputs, row_ids, ids, shift, row_shift = made(4, 9)
        shifts = {"shift": shift, "row_shift": row_shift}
        for positive in (inputs["positive"], torch.tensor([1, 2, 3, 8])):
            # A positive that is among the candidates must be masked.
            is_candidate = not positive.is_floating_point()
            match = IdMatch(positive) if is_candidate else IdMatch(row_ids[0], ids[0])
            settings = {} if is_candidate else shifts
            leaves = [v for v in inputs.values() if v is not inputs["positive"]]
            leaves += [] if is_candidate else [positive]

            def run(query, vectors, log_rest, positive=positive, match=match, settings=settings):
                return blockwise_softmax(
                    query, vectors, positive, AccidentalHits(match), log_rest=log_rest, **settings
                )

            assert torch.autograd.gradcheck(run, leaves)

    def test_gradients_of_single_inputs(self):
        inputs, row_ids, ids, shift, _ = made(7, 23)
        hits = AccidentalHits(IdMatch(row_ids[0], ids[0]))

        def total(leaves):
            return blockwise_softmax(accidental_hits=hits, shift=shift, **leaves)[0].sum()

        grads = torch.autograd.grad(total(inputs), list(inputs.values()))
        for name, expected in zip(inputs, grads, strict=True):
            leaves = {k: v if k == name else v.detach() for k, v in inputs.items()}
            grad = torch.autograd.grad(total(leaves), inputs[name])[0]
            torch.testing.assert_close(grad, expected)

    def test_nan_reaches_the_loss_of_its_row(self, engine):
        inputs, row_ids, ids, _, _ = made(7, 23, torch.float32)
        inputs["query"].data[2, 1] = math.nan
        hits = AccidentalHits(IdMatch(row_ids[0], ids[0]))
        loss, _ = blockwise_softmax(accidental_hits=hits, **inputs)
        assert loss.isnan().tolist() == [row == 2 for row in range(7)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    num_rows=st.integers(1, 20),
    num_candidates=st.integers(1, 60),
    rows=st.integers(1, 9),
    columns=st.integers(1, 17),
    caches=st.booleans(),
)
def test_any_tile_sizes_give_the_same(num_rows, num_candidates, rows, columns, caches):
    with pytest.MonkeyPatch.context() as patch:
        sizes = TileSizes(rows, rows * columns, columns, 2**24 if caches else 0, 1, 1)
        patch.setitem(SIZES, "cpu", sizes)
        patch.setattr(tile_pass, "NATIVE_SCORES", 0)
        near(*both((num_rows, num_candidates), torch.float64), 1e-12)
        near(*both((num_rows, num_candidates), torch.float32), 2e-6)


def test_second_derivative_is_refused():
    inputs, row_ids, ids, _, _ = made(7, 23)
    hits = AccidentalHits(IdMatch(row_ids[0], ids[0]))
    loss = blockwise_softmax(accidental_hits=hits, **inputs)[0].sum()
    (grad,) = torch.autograd.grad(loss, inputs["query"], create_graph=True)
    (plain,) = torch.autograd.grad(loss, inputs["query"])
    assert torch.equal(grad, plain)
    with pytest.raises(ConfigError, match="no second derivative: compute the scores"):
        torch.autograd.grad(grad.sum(), inputs["vectors"])


def test_autocast_does_not_change_the_products():
    inputs, row_ids, ids, _, _ = made(7, 23, torch.float32)
    hits = AccidentalHits(IdMatch(row_ids[0], ids[0]))
    plain, _ = blockwise_softmax(accidental_hits=hits, **inputs)
    grads = torch.autograd.grad(plain.sum(), list(inputs.values()))
    with torch.autocast("cpu", torch.bfloat16):
        within, _ = blockwise_softmax(accidental_hits=hits, **inputs)
        again = torch.autograd.grad((within * torch.linspace(1, 1, 7)).sum(), list(inputs.values()))
    assert torch.equal(within, plain)
    for one, other in zip(grads, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("caches", [False, True], ids=["recomputed", "cached"])
def test_scratch_memory_is_smaller_than_the_scores(monkeypatch, caches):
    sizes = []
    new_empty = torch.Tensor.new_empty

    def counting(self, size, **kwargs):
        sizes.append(math.prod(size) if isinstance(size, tuple) else size)
        return new_empty(self, size, **kwargs)

    monkeypatch.setattr(torch.Tensor, "new_empty", counting)
    if not caches:
        small = TileSizes(512, 2**20, 4096, 0, 64, 64)
        monkeypatch.setitem(SIZES, "cpu", small)
    num_rows, num_candidates = 4000, 12_000
    query = torch.zeros(num_rows, 2, requires_grad=True)
    vectors = torch.zeros(num_candidates, 2)
    positive = torch.arange(num_rows)
    loss, _ = blockwise_softmax(query, vectors, positive, AccidentalHits(IdMatch(positive)))
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(num_candidates)))
    assert sum(sizes) * 4 < 37 * 2**20 < num_rows * num_candidates * 4


def test_tiles_are_freed_before_the_backward_pass(monkeypatch):
    made_tiles = []
    init = Tiles.__init__

    def recording(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made_tiles.append(weakref.ref(self))

    monkeypatch.setattr(Tiles, "__init__", recording)
    inputs, row_ids, ids, _, _ = made(7, 23, torch.float32)
    hits = AccidentalHits(IdMatch(row_ids[0], ids[0]))
    loss, _ = blockwise_softmax(accidental_hits=hits, **inputs)
    assert [tiles() for tiles in made_tiles] == [None]
    loss.mean().backward()
    assert inputs["vectors"].grad is not None


def test_retained_graph_gives_the_same_gradients_twice():
    inputs, row_ids, ids, _, _ = made(7, 23, torch.float32)
    hits = AccidentalHits(IdMatch(row_ids[0], ids[0]))
    loss, _ = blockwise_softmax(accidental_hits=hits, **inputs)
    first, second = (
        torch.autograd.grad(loss.mean(), list(inputs.values()), retain_graph=True) for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)
