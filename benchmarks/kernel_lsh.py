"""Recall of kernelized hashing by number of bits: the method of 2009 and that of candid, of 2014.

    python benchmarks/kernel_lsh.py --out benchmarks/results/kernel_lsh.json
    python benchmarks/kernel_lsh.py --docs                    only write the table of the docs

The items are the 1,797 images of digits of scikit-learn (8 × 8 counts, each divided by its sum, so
that an image is a histogram of ink), 500 of them queries. For each kernel the true neighbours are
the 10 items of largest kernel value. Codes alone rank the items, by Hamming distance, ties by item
id; there is no exact ranking after it. Recall@R is the share of the true neighbours among the
first R. scikit-learn comes with the extra ``examples``.

"2009" is Kulis & Grauman, "Kernelized locality-sensitive hashing for scalable image search" (ICCV
2009): a direction is the sum of t of the p anchors, approximately normal by the central limit
theorem, whitened by the inverse root of the centred kernel matrix. "2014" is Jiang, Que & Kulis,
"Revisiting kernelized locality-sensitive hashing for improved large-scale image retrieval" (CVPR
2015, arXiv 1411.4199), as ``candid.index.KernelLsh`` has it: normal directions in the span of the r
leading components of kernel PCA. Both use the same anchors, the same scale γ and the same seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path

import numpy as np
import sklearn
from sklearn.datasets import load_digits

from candid import __version__
from candid.index.kernel_hash import KernelHash, sample_landmarks
from candid.index.kernels import build_kernel, scale_of
from page_blocks import with_block

RESULT = Path(__file__).parent / "results" / "kernel_lsh.json"
DOCS = Path(__file__).parents[1] / "docs" / "benchmarks" / "index_search.md"
KERNELS = ("chi2", "intersection", "rbf")
METHODS = ("2009", "2014")
BITS = (32, 64, 128, 256, 512)
CUTS = (10, 100)
QUERIES, NEIGHBOURS = 500, 10
ANCHORS, SUBSET, COMPONENTS = 300, 30, 64
"""p and t of the paper of 2009 (its values), and r of the paper of 2014."""


def histograms() -> tuple[np.ndarray, np.ndarray]:
    """Return items [1297, 64] and queries [500, 64], rows of sum 1."""
    images = load_digits().data.astype(np.float32)
    images /= images.sum(axis=1, keepdims=True)
    order = np.random.default_rng(0).permutation(len(images))
    return images[order[QUERIES:]], images[order[:QUERIES]]


class SubsetHash:
    """The hash functions of 2009."""

    def __init__(self, items, kernel, *, num_bits, seed):
        rng = np.random.default_rng(seed)
        self.kernel, self.anchors = kernel, sample_landmarks(items, ANCHORS, rng)
        values = kernel(self.anchors, self.anchors).astype(np.float64)
        self.means = values.mean(axis=0)
        centred = values - self.means - self.means[:, None] + values.mean()
        eigenvalues, vectors = np.linalg.eigh(centred)
        is_kept = eigenvalues > 1e-6 * eigenvalues[-1]
        root = vectors[:, is_kept] / np.sqrt(eigenvalues[is_kept]) @ vectors[:, is_kept].T
        subsets = np.zeros((len(self.anchors), num_bits))
        for bit in range(num_bits):
            subsets[rng.choice(len(self.anchors), SUBSET, replace=False), bit] = 1
        self.weights = root @ subsets
        self.mean = values.mean()

    def bits(self, vectors):
        """Return the bits of vectors [n, D]: [n, b] bool."""
        values = self.kernel(vectors, self.anchors).astype(np.float64)
        centred = values - values.mean(axis=1, keepdims=True) - self.means + self.mean
        return centred @ self.weights > 0


def bits_of(method, kernel, items, queries, num_bits, seed, components):
    """Return the bits of items and queries."""
    if method == "2009":
        hashed = SubsetHash(items, kernel, num_bits=num_bits, seed=seed)
        return hashed.bits(items), hashed.bits(queries)
    hashed = KernelHash.fit(
        items,
        kernel,
        num_bits=num_bits,
        num_landmarks=ANCHORS,
        num_components=components,
        seed=seed,
    )
    return tuple(np.unpackbits(hashed.codes(v), axis=1) > 0 for v in (items, queries))


def recall(bits, query_bits, neighbours) -> dict[int, float]:
    """Return the share of the true neighbours [Q, 10] among the first R items, by R."""
    items, queries = (2.0 * one - 1 for one in (bits, query_bits))
    ranking = np.argsort(-(queries @ items.T), axis=1, kind="stable")
    pairs = list(zip(neighbours, ranking, strict=True))
    return {cut: float(np.mean([np.isin(t, r[:cut]).mean() for t, r in pairs])) for cut in CUTS}


def measure(seeds: int, components: int) -> list[dict]:
    """Return the mean recall and its standard deviation over seeds."""
    items, queries = histograms()
    results = []
    for name in KERNELS:
        gamma = scale_of(name, items)
        kernel = build_kernel(name, gamma)
        values = kernel(queries, items)
        neighbours = np.argsort(-values, axis=1, kind="stable")[:, :NEIGHBOURS]
        for num_bits in BITS:
            for method in METHODS:
                figures = [
                    recall(
                        *bits_of(method, kernel, items, queries, num_bits, seed, components),
                        neighbours,
                    )
                    for seed in range(seeds)
                ]
                line = {"kernel": name, "bits": num_bits, "method": method}
                for cut in CUTS:
                    values_of_cut = [figure[cut] for figure in figures]
                    line[f"recall@{cut}"] = round(statistics.mean(values_of_cut), 4)
                    line[f"recall@{cut} sd"] = round(statistics.stdev(values_of_cut), 4)
                results.append(line)
                print(line, flush=True)
    return results


def table(results: list[dict]) -> str:
    """Return the table of the docs."""
    head = ["kernel", "bits", *(f"recall@{cut}, {m}" for cut in CUTS for m in METHODS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    by_cell = {(one["kernel"], one["bits"], one["method"]): one for one in results}
    for name in KERNELS:
        for num_bits in BITS:
            cells = [name, str(num_bits)]
            for cut in CUTS:
                for method in METHODS:
                    one = by_cell[name, num_bits, method]
                    mean, deviation = one[f"recall@{cut}"], one[f"recall@{cut} sd"]
                    cells.append(f"{mean:.3f} ± {deviation:.3f}".replace("0.", "."))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def with_table(content: str, results: list[dict]) -> str:
    """Return the page with its generated block filled from the results."""
    return with_block(content, "kernel_lsh", table(results))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--components", type=int, default=COMPONENTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--docs", action="store_true", help="only write the table of the docs")
    options = parser.parse_args()
    if options.docs:
        results = json.loads(RESULT.read_text())["results"]
        DOCS.write_text(with_table(DOCS.read_text(), results))
        return
    results = measure(options.seeds, options.components)
    if options.out:
        content = {
            "command": "python benchmarks/kernel_lsh.py " + " ".join(sys.argv[1:]),
            "candid": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
            "seeds": options.seeds,
            "anchors": ANCHORS,
            "subset": SUBSET,
            "components": options.components,
            "results": results,
        }
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
