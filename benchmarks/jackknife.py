"""Bias of in-batch estimators on real batches of histories, and of the jackknife over users.

    python benchmarks/jackknife.py            # train, measure; write the results and the page
    python benchmarks/jackknife.py --tables   # write the tables of docs/benchmarks/estimators.md

A small transformer is trained for a few epochs on MovieLens-1M (``CANDID_DATA``) with the full
softmax. Then its loss is estimated for fixed rows of different users from batches of 16, 64 and
256 windows, sampled without replacement as the loader deals them, and compared with the full
softmax: bias of the loss, bias and RMSE of the gradient with respect to all logits relative to the
length of the full gradient, standard deviation of Z' relative to Z', and drift (as in
``candid.audit.drift``).

The noise of an estimated loss is reduced by a regression on two sums over the batch whose means are
known from all windows. The bias of the gradient is a product of different blocks of batches, so
that noise adds nothing on average. Errors are standard errors over batches; the rows and the model
are fixed. A training that is complete in the work folder is not repeated.

``refined + jackknife over rows`` gives each candidate an owner of its own. The other estimators
that candid does not have are ways to use the clusters. Their expected counts come from all windows:

- each user once: the rows of a window share the weight 1;
- square root: a window of m rows has the weight √m;
- one row: a random row of each window; at most 8: random rows of longer windows;
- inclusion: an item counts once for each window that has it, and e(d) counts windows, not rows;
- distinct by windows: distinct items of the batch, e(d) = 1 - (1 - share of windows with d)^W.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from candid import __version__
from candid.batches import Loader, target_counts
from candid.config import load_recipe, parse_config
from candid.data import open_dataset, prepare_folder
from candid.losses import corrected_log_softmax
from candid.runs import Run, load_run, train_run
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "jackknife.json"
DOCS = ROOT / "docs" / "benchmarks" / "estimators.md"
SETTINGS: dict[str, Any] = {
    "name": "jackknife",
    "device": "cpu",
    "threads": 1,
    "batches": {"batch_size": 64, "max_length": 50, "windows": "all"},
    "model": {
        "query_tower": {
            "type": "causal_transformer",
            "dim": 64,
            "num_heads": 2,
            "dropout": 0.2,
            "positions": "rotary",
        },
        "item_tower": {"type": "item_embedding", "dim": 64},
    },
    "loss": {"type": "full_softmax", "precision": "bfloat16"},
    "training": {"lr": 2e-3, "schedule": "linear", "epochs": 4, "trackers": ["jsonl"]},
}
REPEATS = {16: 1280, 64: 320, 256: 96}
"""Number of batches for each number of windows."""
ROWS, BLOCKS, CAP = 32, 8, 8
JACKKNIFES = (
    "refined, independent rows",
    "refined",
    "refined + jackknife over rows",
    "refined + jackknife over users",
)
"""Estimators that are measured with the largest batches too."""
DRIFTS = (
    *JACKKNIFES,
    "logq",
    "logq + jackknife over users",
    "each user once",
    "distinct by windows",
    "distinct by windows, logq",
)
"""Estimators whose drift is measured, with the smallest batches."""


@dataclass(frozen=True)
class Windows:
    """Targets of all windows of an epoch.

    Attributes:
        ids: [T], the targets, window by window.
        offsets: [W + 1].
        users: [W].
    """

    ids: Tensor
    offsets: Tensor
    users: Tensor

    def positions(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the targets of some windows, as positions in ``ids``, and the window of each."""
        sizes = (self.offsets[1:] - self.offsets[:-1])[windows]
        of_window = torch.repeat_interleave(torch.arange(len(windows)), sizes)
        start = sizes.cumsum(0) - sizes
        return (self.offsets[windows] - start)[of_window] + torch.arange(len(of_window)), of_window


@dataclass(frozen=True)
class Rows:
    """The rows whose loss is estimated.

    Attributes:
        scores: [R, V] float64, all logits.
        positive_ids: [R].
        users: [R].
    """

    scores: Tensor
    positive_ids: Tensor
    users: Tensor


@dataclass
class Sums:
    """Sums over the batches of one estimator."""

    losses: Tensor
    relative_z: Tensor
    blocks: Tensor
    squared: float = 0.0
    drift: Tensor | None = None


def trained(work: Path) -> Run:
    """Train the model, unless that is done."""
    recipe = load_recipe(ROOT / "recipes" / "ml1m-loo.toml")
    assert recipe.data is not None
    prepare_folder(recipe.data, work / "ml1m")
    data = open_dataset(work / "ml1m")
    if not (work / "run" / "run.json").exists():
        train_run(parse_config(SETTINGS, "jackknife"), data, work / "run")
    return load_run(work / "run", data)


def windows_and_rows(run: Run) -> tuple[Windows, Rows]:
    """Return all windows of an epoch, and one random row of some of them."""
    batches = run.config.batches.model_copy(update={"batch_size": 1})
    loader = Loader(run.dataset, batches, seed=0, context=run.context)
    windows = [loader.batch(0, step) for step in range(loader.num_batches)]
    sizes = torch.tensor([len(batch) for batch in windows])
    all_windows = Windows(
        torch.cat([batch.positive_ids for batch in windows]),
        torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]),
        torch.stack([batch.user_ids[0] for batch in windows]),
    )
    generator = torch.Generator().manual_seed(1)
    queries, positives, users = [], [], []
    run.model.eval()
    with torch.no_grad():
        items = run.model.encode_catalog().double()
        for batch in windows:
            if int(batch.user_ids[0]) in users:
                continue
            row = int(torch.randint(len(batch), (1,), generator=generator))
            queries.append(run.model.encode_queries(batch)[row].double())
            positives.append(int(batch.positive_ids[row]))
            users.append(int(batch.user_ids[0]))
            if len(users) == ROWS:
                break
    scores = torch.stack(queries) @ items.T
    return all_windows, Rows(scores, torch.tensor(positives), torch.tensor(users))


class Counts:
    """Expected counts of the items in one window, for each way to use the rows of windows."""

    def __init__(self, windows: Windows, num_items: int) -> None:
        self.windows = windows
        self.log_q = (torch.bincount(windows.ids, minlength=num_items) / len(windows.ids)).log()
        self.sizes = (windows.offsets[1:] - windows.offsets[:-1]).double()
        size_of_row = self.sizes.repeat_interleave(self.sizes.long())

        def per_window(values: Tensor) -> Tensor:
            total = torch.zeros(num_items, dtype=torch.float64)
            return (total.index_add_(0, windows.ids, values) / len(self.sizes)).log()

        self.once = per_window(1.0 / size_of_row)
        self.root = per_window(size_of_row.rsqrt())
        self.capped = per_window((CAP / size_of_row).clamp(max=1.0))
        window = torch.arange(len(self.sizes)).repeat_interleave(self.sizes.long())
        pairs = torch.unique(torch.stack([window, windows.ids]), dim=1)[1]
        self.inclusion = (
            torch.bincount(pairs, minlength=num_items).double() / len(self.sizes)
        ).log()

    def sample(self, kind: str, chosen: Tensor, generator: torch.Generator) -> Sample:
        """Return the candidates of a batch of windows, for a kind of ``ESTIMATORS``."""
        position, window = self.windows.positions(chosen)
        ids, log_size = self.windows.ids[position], self.sizes[chosen][window].log()
        log_w = math.log(len(chosen))
        if kind == "independent rows":
            ids = self.windows.ids[
                torch.randint(len(self.windows.ids), ids.shape, generator=generator)
            ]
            window = None
        if kind in ("rows", "independent rows"):
            return Sample(ids, math.log(len(ids)) + self.log_q, window)
        if kind == "once":
            return Sample(ids, log_w + self.once, window, log_size)
        if kind == "root":
            return Sample(ids, log_w + self.root, window, log_size / 2)
        if kind in ("one", "capped"):
            shuffled = torch.randperm(len(ids), generator=generator)
            order = shuffled[window[shuffled].sort(stable=True).indices]
            rank = torch.arange(len(ids)) - torch.searchsorted(window, window)
            kept = order[rank < (1 if kind == "one" else CAP)]
            log_count = self.once if kind == "one" else self.capped
            return Sample(ids[kept], log_w + log_count, window[kept])
        if kind == "inclusion":
            window, ids = torch.unique(torch.stack([window, ids]), dim=1)
            return Sample(ids, log_w + self.inclusion, window)
        if kind == "distinct by windows":
            log_miss = len(chosen) * torch.log1p(-self.inclusion.exp())
        else:
            log_miss = len(ids) * torch.log1p(-self.log_q.exp())
        return Sample(ids.unique(), torch.log(-torch.expm1(log_miss)), None)


@dataclass(frozen=True)
class Sample:
    """Candidates of one batch.

    Attributes:
        ids: [N].
        log_count: [V], log expected count of each item.
        window: [N], the window of each candidate; None where it has none.
        log_weight: [N] or 0, added to the log expected count of each candidate.
    """

    ids: Tensor
    log_count: Tensor
    window: Tensor | None
    log_weight: Tensor | float = 0.0


ESTIMATORS: dict[str, tuple[str, str, str | None]] = {
    "refined, independent rows": ("independent rows", "refined", None),
    "refined": ("rows", "refined", None),
    "refined + jackknife over rows": ("rows", "refined", "rows"),
    "refined + jackknife over users": ("rows", "refined", "users"),
    "logq": ("rows", "logq", None),
    "logq + jackknife over users": ("rows", "logq", "users"),
    "each user once": ("once", "refined", None),
    "each user once + jackknife over users": ("once", "refined", "users"),
    "square root": ("root", "refined", None),
    "one row of each user": ("one", "refined", None),
    f"at most {CAP} rows of each user": ("capped", "refined", None),
    "inclusion by user": ("inclusion", "refined", None),
    "distinct": ("distinct", "refined", None),
    "distinct, logq": ("distinct", "logq", None),
    "distinct by windows": ("distinct by windows", "refined", None),
    "distinct by windows, logq": ("distinct by windows", "logq", None),
}
"""Kind of sample, correction and jackknife by name."""


def estimate(
    name: str, rows: Rows, positive_ids: Tensor, counts: Counts, chosen: Tensor, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses [R], gradients [R, V] and log Z' [R] of an estimator with one batch."""
    kind, correction, jackknife = ESTIMATORS[name]
    sample = counts.sample(kind, chosen, torch.Generator().manual_seed(seed))
    ids, users = sample.ids, counts.windows.users[chosen]
    mask = ids == positive_ids[:, None]
    if correction == "logq" and sample.window is not None:
        mask = torch.zeros_like(mask)
    owner = None if sample.window is None else users[sample.window]
    if owner is not None:
        mask = mask | (owner == rows.users[:, None])
    renormalization = None
    if kind in ("rows", "independent rows") and correction == "refined":
        share = (~mask).double().mean(dim=1)
        renormalization = share.log() - torch.log1p(-counts.log_q[positive_ids].exp())
    elif owner is not None:
        renormalization = (users != rows.users[:, None]).double().mean(dim=1).log()
    scores = rows.scores.clone().requires_grad_()
    out = corrected_log_softmax(
        positive=scores.gather(1, positive_ids[:, None])[:, 0],
        candidates=scores[:, ids],
        log_expected_count=sample.log_count[ids] + sample.log_weight,
        log_expected_count_positive=sample.log_count[positive_ids],
        accidental_hits=mask,
        correction=correction,  # type: ignore[arg-type]
        jackknife=jackknife is not None,
        owner=owner if jackknife == "users" else None,
        log_renormalization=renormalization,
    )
    (grad,) = torch.autograd.grad(out.loss.sum(), scores)
    return out.loss.detach(), grad, out.log_z.detach()


class LinearNoise:
    """Noise of a batch with mean 0 over batches: the mean comes from all windows of other users.

    The first part is the sum over other users' rows of exp(score) / Q, relative to its mean, the
    second the number of these rows. To first order the noise of an estimate is a multiple of both.
    """

    def __init__(self, rows: Rows, counts: Counts) -> None:
        self.rows, self.counts = rows, counts
        weights = torch.exp(rows.scores - counts.log_q)
        weights = weights.scatter(1, rows.positive_ids[:, None], 0.0)
        # [2, R, V]: the part of one row in each of the two sums.
        self.parts = torch.stack([weights, (weights > 0).double()])
        is_other = counts.windows.users != rows.users[:, None]
        sizes = counts.sizes.long()
        self.mean = torch.stack(
            [
                self.parts[:, row, counts.windows.ids[is_other[row].repeat_interleave(sizes)]].sum(
                    1
                )
                / is_other[row].sum()
                for row in range(len(rows.users))
            ],
            dim=1,
        )

    def of(self, chosen: Tensor) -> Tensor:
        """Return [2, R] for a batch of windows."""
        windows = self.counts.windows
        position, of_window = windows.positions(chosen)
        is_other = windows.users[chosen] != self.rows.users[:, None]
        values = self.parts[:, :, windows.ids[position]] * is_other[:, of_window]
        return values.sum(dim=2) / is_other.sum(dim=1) / self.mean - 1.0


def measured(rows: Rows, counts: Counts, num_windows: int, repeats: int) -> list[dict[str, Any]]:
    """Measure every estimator with the same batches."""
    positive = rows.scores.gather(1, rows.positive_ids[:, None])
    probability = rows.scores.softmax(dim=1)
    exact_loss = rows.scores.logsumexp(dim=1) - positive[:, 0]
    others = rows.scores.scatter(1, rows.positive_ids[:, None], -math.inf).logsumexp(dim=1)
    exact = probability.scatter_add(1, rows.positive_ids[:, None], torch.full_like(positive, -1.0))
    names = list(JACKKNIFES) if num_windows == max(REPEATS) else list(ESTIMATORS)
    linear = LinearNoise(rows, counts)
    generator = torch.Generator().manual_seed(num_windows)
    sums = {
        name: Sums(
            torch.zeros(repeats, dtype=torch.float64),
            torch.zeros(repeats, len(others), dtype=torch.float64),
            torch.zeros(BLOCKS, *exact.shape, dtype=torch.float64),
        )
        for name in names
    }
    for name in set(names) & set(DRIFTS if num_windows == min(REPEATS) else ()):
        sums[name].drift = torch.zeros_like(sums[name].blocks)
    noise = torch.zeros(repeats, 2, dtype=torch.float64)
    for repeat in range(repeats):
        # The row's own window is in its batch too; it is masked.
        chosen = torch.randperm(len(counts.sizes), generator=generator)[: num_windows - 1]
        noise[repeat] = ((1.0 - exact_loss.neg().exp()) * linear.of(chosen)).mean(dim=1)
        drawn = torch.multinomial(probability, 1, generator=generator)
        for name, one in sums.items():
            if one.drift is not None:
                # The estimated softmax minus P, with a positive of the model's own distribution.
                _, grad, _ = estimate(name, rows, drawn[:, 0], counts, chosen, repeat)
                grad = grad.scatter_add(1, drawn, torch.ones_like(positive)) - probability
                one.drift[repeat * BLOCKS // repeats] += grad / repeats * BLOCKS
            loss, grad, log_z = estimate(name, rows, rows.positive_ids, counts, chosen, repeat)
            one.losses[repeat] = (loss - exact_loss).mean()
            one.relative_z[repeat] = torch.exp(log_z - others)
            error = grad - exact
            one.squared += float(error.square().sum()) / repeats
            one.blocks[repeat * BLOCKS // repeats] += error / repeats * BLOCKS
    length = float(exact.square().sum())
    return [
        {"estimator": name, "windows": num_windows, "rows": mean_rows(counts, num_windows)}
        | statistics(one, noise, length)
        | drift_of(one, probability)
        for name, one in sums.items()
    ]


def mean_rows(counts: Counts, num_windows: int) -> float:
    """Return the mean number of rows of a batch."""
    return num_windows * float(counts.sizes.mean())


def statistics(one: Sums, noise: Tensor, length: float) -> dict[str, float]:
    """Return bias and error of loss and gradient from the sums of one estimator."""
    losses, relative_z = one.losses, one.relative_z
    centred = noise - noise.mean(dim=0)
    slopes = torch.linalg.lstsq(centred, (losses - losses.mean())[:, None]).solution
    without_noise = losses - (noise @ slopes)[:, 0]
    squared, error = mean_product(one.blocks.flatten(1))
    return {
        "loss_bias": float(without_noise.mean()),
        "loss_bias_error": float(without_noise.std()) / len(losses) ** 0.5,
        "gradient_bias": math.copysign((abs(squared) / length) ** 0.5, squared),
        "gradient_bias_squared": squared / length,
        "gradient_bias_squared_error": error / length,
        "gradient_rmse": (one.squared / length) ** 0.5,
        "z_bias": float(relative_z.mean()) - 1.0,
        "z_deviation": float(relative_z.var(dim=0).mean().sqrt()),
    }


def drift_of(one: Sums, probability: Tensor) -> dict[str, float]:
    """Return the drift in nats, mean over the rows, and its standard error."""
    if one.drift is None:
        return {}
    squared, error = mean_product((one.drift / probability.sqrt()).flatten(1))
    return {"drift": squared / 2 / len(probability), "drift_error": error / 2 / len(probability)}


def mean_product(blocks: Tensor) -> tuple[float, float]:
    """Return the mean product of different blocks, and its standard error."""
    products = blocks @ blocks.T

    def mean(products: Tensor) -> float:
        size = len(products)
        return float(products.sum() - products.trace()) / (size * (size - 1))

    kept = [torch.arange(BLOCKS) != block for block in range(BLOCKS)]
    without_one = torch.tensor([mean(products[keep][:, keep]) for keep in kept])
    return mean(products), (BLOCKS - 1) / BLOCKS**0.5 * float(without_one.std(correction=0))


def tables(document: dict[str, Any]) -> dict[str, str]:
    """Return the tables of the page by name."""
    cells = {(one["estimator"], one["windows"]): one for one in document["results"]}
    sizes = sorted(REPEATS)
    head = " | ".join(f"{w} windows" for w in sizes)
    jackknife = [f"| estimator | {head} |", "|---|" + "---|" * len(sizes)]
    for name in JACKKNIFES:
        values = [cells[name, w] for w in sizes]
        jackknife.append(f"| {name} | {' | '.join(f'{loss(c)}; {gradient(c)}' for c in values)} |")
    clusters = [
        "| estimator | sd of Z' / Z' | loss bias | gradient bias | gradient RMSE | drift, nats |",
        "|---|---|---|---|---|---|",
    ]
    for name, (_, correction, _) in ESTIMATORS.items():
        few, more = (cells[name, w] for w in sizes[:2])
        is_nll = correction == "refined"
        columns = [
            f"{few['z_deviation']:.3f}; {more['z_deviation']:.3f}",
            f"{loss(few)}; {loss(more)}" if is_nll else "–",
            f"{gradient(few)}; {gradient(more)}",
            f"{few['gradient_rmse']:.3f}; {more['gradient_rmse']:.3f}",
            f"{few['drift']:.4f} ± {few['drift_error']:.4f}" if "drift" in few else "–",
        ]
        clusters.append(f"| {name} | {' | '.join(columns)} |")
    return {"jackknife": "\n".join(jackknife) + "\n", "clusters": "\n".join(clusters) + "\n"}


def loss(cell: dict[str, Any]) -> str:
    """Return the bias of a loss with its standard error."""
    return f"{cell['loss_bias']:+.4f} ± {cell['loss_bias_error']:.4f}"


def gradient(cell: dict[str, Any]) -> str:
    """Return the relative bias of a gradient, or a bound where it is not different from 0."""
    squared, error = (cell[f"gradient_bias_squared{part}"] for part in ("", "_error"))
    if squared < 2 * error:
        return f"< {(max(squared, 0.0) + 2 * error) ** 0.5:.4f}"
    return f"{squared**0.5:.4f}"


def with_tables(content: str, document: dict[str, Any]) -> str:
    """Return the page with its generated blocks replaced."""
    for name, block in tables(document).items():
        content = with_block(content, name, block)
    return content


def main() -> None:
    """Measure, write the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/jackknife"))
    parser.add_argument("--tables", action="store_true", help="write the tables of the page only")
    options = parser.parse_args()
    os.environ.setdefault("CANDID_DATA", "../shared/data")
    torch.set_num_threads(1)
    if not options.tables:
        start = time.process_time()
        run = trained(options.work)
        windows, rows = windows_and_rows(run)
        counts = Counts(windows, run.dataset.num_items)
        expected = torch.from_numpy(target_counts(run.dataset, run.config.batches))
        assert torch.equal(torch.bincount(windows.ids, minlength=len(expected)), expected)
        results = []
        for num_windows, repeats in REPEATS.items():
            results += measured(rows, counts, num_windows, repeats)
            print(f"{num_windows} windows: {time.process_time() - start:.0f} CPU s", flush=True)
        log_p = rows.scores.log_softmax(dim=1).gather(1, rows.positive_ids[:, None])
        document = {
            "command": "python benchmarks/jackknife.py",
            "versions": {"candid": __version__, "torch": torch.__version__},
            "settings": {
                "run": SETTINGS,
                "repeats": REPEATS,
                "rows": ROWS,
                "windows": len(windows.users),
                "rows_per_window": len(windows.ids) / len(windows.users),
                "nll": float(-log_p.mean()),
            },
            "cpu_seconds": round(time.process_time() - start),
            "results": results,
        }
        RESULT.write_text(json.dumps(document, indent=1) + "\n")
    document = json.loads(RESULT.read_text())
    DOCS.write_text(with_tables(DOCS.read_text(), document))


if __name__ == "__main__":
    main()
