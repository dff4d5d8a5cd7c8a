"""The drawings of the docs as SVG: the concepts page, and the three paths of the architecture page.

    python docs/drawings.py

The files go to ``docs/figures``. They have a white ground, so that both colour schemes show them.
"""

from __future__ import annotations

import math
import textwrap
from html import escape
from pathlib import Path

FIGURES = Path(__file__).resolve().parent / "figures"
INK, GREY, BLUE, PALE, RED, LINE = "#1b1f24", "#57606a", "#3949ab", "#e8eaf6", "#b3261e", "#9fa8da"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
WIDTH = 480


def text(
    x: float, y: float, content: str, size: int = 16, color: str = INK, anchor: str = "start",
    weight: str = "normal",
) -> str:  # fmt: skip
    """Return one line of text."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(content)}</text>'
    )


def box(x: float, y: float, width: float, height: float, fill: str = PALE) -> str:
    """Return a box with round corners."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{fill}" '
        f'stroke="{LINE}"/>'
    )


def arrow(x: float, start: float, end: float) -> str:
    """Return an arrow downwards."""
    return (
        f'<path d="M{x:g} {start:g}V{end - 7:g}" stroke="{BLUE}" stroke-width="2"/>'
        f'<path d="M{x - 6:g} {end - 9:g}L{x:g} {end:g}L{x + 6:g} {end - 9:g}z" fill="{BLUE}"/>'
    )


def drawing(height: float, title: str, parts: list[str]) -> str:
    """Return a whole SVG document."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'font-family="{FONT}" role="img">\n<title>{escape(title)}</title>\n'
        f'<rect width="{WIDTH}" height="{height:g}" fill="#fff"/>\n{body}\n</svg>\n'
    )


def path(title: str, steps: list[tuple[str, str, str]]) -> str:
    """Return a flow from top to bottom: each step has a name, a place and a sentence."""
    parts, y = [], 8
    for number, (name, place, meaning) in enumerate(steps):
        if number:
            parts.append(arrow(48, y, y + 24))
            y += 24
        lines = textwrap.wrap(meaning, 54)
        height = 62 + 21 * len(lines)
        parts += [
            box(8, y, WIDTH - 16, height),
            text(24, y + 27, name, 18, weight="600"),
            text(24, y + 50, place, 15, BLUE),
        ]
        parts += [text(24, y + 73 + 21 * i, line, 15, GREY) for i, line in enumerate(lines)]
        y += height
    return drawing(y + 8, title, parts)


def concepts() -> str:
    """Return the drawing of expected count, correction and accidental hit.

    Five items, n = 4 samples with replacement by popularity, positive item B.
    """
    popularity = {"A": 0.4, "B": 0.3, "C": 0.2, "D": 0.08, "E": 0.02}
    positive, sample = "B", ["A", "B", "A", "D"]
    valid = [item for item in sample if item != positive]
    parts = [text(16, 30, "1  A catalog of five items, positive B", 18, weight="600")]
    for i, (item, q) in enumerate(popularity.items()):
        x = 24 + i * 90
        color = RED if item == positive else BLUE
        parts += [
            f'<rect x="{x}" y="{150 - 230 * q:g}" width="56" height="{230 * q:g}" fill="{color}"/>',
            text(x + 28, 171, item, 17, color, "middle", "600"),
            text(x + 28, 191, f"Q = {q:g}", 15, GREY, "middle"),
        ]
    parts.append(text(16, 234, "2  Four samples by popularity Q", 18, weight="600"))
    for i, item in enumerate(sample):
        x = 12 + i * 115
        is_hit = item == positive
        count = len(valid) * popularity[item] / (1 - popularity[positive])
        parts += [
            box(x, 250, 109, 84, "#fdecea" if is_hit else PALE),
            text(x + 54.5, 278, item, 18, RED if is_hit else BLUE, "middle", "600"),
        ]
        if is_hit:
            parts += [
                text(x + 54.5, 302, "accidental hit", 15, RED, "middle"),
                text(x + 54.5, 323, "masked", 15, RED, "middle"),
            ]
        else:
            parts += [
                text(x + 54.5, 302, "expected", 15, GREY, "middle"),
                text(x + 54.5, 323, f"e = {count:.2f}", 15, INK, "middle"),
            ]
    parts += [
        text(16, 362, "e(d) = n_valid · Q(d) / (1 - Q(B)), with n_valid = 3", 16, GREY),
        text(16, 408, "3  A sample of d stands for 1 / e(d) items", 18, weight="600"),
        text(16, 438, "log Z' = logsumexp of s(d) - log e(d) over A, A, D", 17),
        text(16, 466, "loss = logaddexp( s(B), log Z' ) - s(B)", 17),
    ]
    for i, item in enumerate(valid):
        shift = -math.log(len(valid) * popularity[item] / (1 - popularity[positive]))
        parts.append(
            text(
                16 + i * 150,
                500,
                f"{item}: s({item}) {'+' if shift > 0 else '-'} {abs(shift):.2f}",
                16,
                BLUE,
            )
        )
    parts.append(
        text(16, 530, "Popular A counts for less than 1 item, rare D for nearly 3.", 16, GREY)
    )
    return drawing(546, "Expected count, accidental hit and correction", parts)


POSITIVE = [
    ("Prepared dataset", "data/store.py", "The item of each interaction is a dense id, 0 to V - 1"),
    ("Batch", "batches/loader.py", "positive_ids [B] beside users and packed histories"),
    ("Query", "towers/model.py", "The query tower reads the history: vectors [B, D]"),
    ("Candidates", "samplers/sampler.py", "sample(positive_ids): ids, log e(d), log e(p)"),
    ("Scores", "losses/comparison.py", "Query times item vectors; accidental hits are masked"),
    ("Loss", "losses/correction.py", "The shifts of one correction; loss [B], sample_weight [B]"),
    ("Step", "training/trainer.py", "Mean of the losses, backward, clip, update"),
]
REQUEST = [
    (
        "POST /v1/recommend",
        "serve/http/middleware.py",
        "Key, rate limit, capacity, log, unexpected errors",
    ),
    ("Body", "serve/http/routes.py", "RecommendRequest, validated once; an error names the field"),
    (
        "Preparation",
        "serve/model_version.py",
        "Ids, filters and history are checked: a RecommendQuery",
    ),
    ("Queue", "serve/batching.py", "Queries that wait together become one batch"),
    ("Query vectors", "inference/", "Histories and attributes become vectors [B, D]"),
    ("Search", "serve/search.py", "Index, filters, seen items; probabilities where defined"),
    ("Answer", "serve/answers.py", "Source id, title, score and rank of each item as JSON"),
]
RECIPE_KEY = [
    (
        "sampler.num_candidates = 512",
        "recipe.toml or --set",
        "A line of TOML, or an override on the command line",
    ),
    ("Table", "config/recipe_file.py", "File and overrides merge into one nested table"),
    ("Type", "samplers/registry.py", "sampler.type names the class in the registry SAMPLERS"),
    ("Config", "samplers/popularity.py", "Popularity.Config: frozen, typed, unknown keys refused"),
    ("RunConfig", "config/run.py", "All sections together; rules between sections are checked"),
    ("Component", "Config.build(counts)", "The key is the constructor's argument of the same name"),
    ("run.json", "runs/folder.py", "The resolved config is stored; a resumed run must match it"),
]


def main() -> None:
    """Write the four files."""
    FIGURES.mkdir(exist_ok=True)
    for name, content in {
        "concepts": concepts(),
        "path_positive": path("The path of a positive id", POSITIVE),
        "path_request": path("The path of a request", REQUEST),
        "path_recipe_key": path("The path of a recipe key", RECIPE_KEY),
    }.items():
        (FIGURES / f"{name}.svg").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
