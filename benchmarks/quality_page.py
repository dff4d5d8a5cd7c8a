"""The page of ``quality.py``: tables and sentences from its results."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from page_blocks import with_block
from quality_sets import BEST_RECIPE, DEFAULT, METRIC, PUBLISHED, SEEDS, SETS
from quality_tasks import canonical

SIGNIFICANT = 0.05
GAIN = 0.1
"""Wanted lead over the best baseline on sets with order, as a share of its figure."""
LEVELS = {"ml-1m": (0.185, 20)}
"""Wanted NDCG@10 of the default recipe, and the CPU minutes of training for it."""
NOT_MEASURED = "not measured"
SHOWN_REASON = 90
"""Longest reason in a table, in characters."""
Results = Mapping[str, Any]


def with_blocks(page: str, results: Results) -> str:
    """Return the page with all its generated blocks filled from the results."""
    blocks = {
        "quality summary": summary(results),
        "quality goal": goal_table(results),
        "quality baselines": baseline_table(results),
        "quality published": published_table(results),
        "quality settings": settings_table(results),
        "quality cost": cost_table(results),
        "quality data": data_table(results),
    }
    for name, block in blocks.items():
        page = with_block(page, name, block + "\n")
    return page


def runs_of(results: Results, set_name: str, recipe: str) -> list[dict[str, Any]]:
    """Return the finished runs of a recipe on a set, by seed."""
    runs = [
        one for one in results["runs"].values() if one["set"] == set_name and one["name"] == recipe
    ]
    return sorted(runs, key=lambda one: one["seed"])


def comparison_of(results: Results, set_name: str, recipe: str) -> dict[str, Any] | None:
    """Return the comparison of a recipe with the baselines if it has all finished seeds."""
    found: dict[str, Any] | None = results["comparisons"].get(f"{set_name}/{recipe}")
    seeds = [one["seed"] for one in runs_of(results, set_name, recipe)]
    return found if found is not None and found["seeds"] == seeds else None


def judgement(comparison: Mapping[str, Any]) -> str:
    """Return "above", "below" or "within chance", against the best baseline on both splits.

    The baseline that is best on the test targets was chosen with them, which favours the
    baselines: a model counts as above only if it is above both.
    """
    against = [comparison[key] for key in ("best_on_validation", "best_on_test")]
    signs = [
        0 if one["p_value"] >= SIGNIFICANT else 1 if one["difference"] > 0 else -1
        for one in against
    ]
    if min(signs) > 0:
        return "above"
    return "below" if min(signs) < 0 else "within chance"


def summary(results: Results) -> str:
    """Return sentences on which sets the default recipe is above the best baseline."""
    groups: dict[str, list[str]] = {"above": [], "below": [], "within chance": [], "": []}
    sentences = []
    for name in SETS:
        comparison = comparison_of(results, name, DEFAULT)
        if comparison is None:
            groups[""].append(name)
            continue
        word = judgement(comparison)
        groups[word].append(name)
        sentences.append(f"- {_sentence(name, comparison, word)}")
    measured = len(SETS) - len(groups[""])
    if not measured:
        return "No set has been compared with its baselines yet."
    words = {
        "above": "above the best baseline",
        "below": "below it" if groups["above"] else "below the best baseline",
        "within chance": "not different from the best baseline by more than chance",
    }
    parts = [
        f"{text} on {len(groups[word])} ({_listed(groups[word])})"
        for word, text in words.items()
        if groups[word]
    ]
    text = (
        f"Of {_count(measured, 'set')} compared with the baselines below, the default recipe is "
        f"{_listed(parts)}: paired test by user, p < .05."
    )
    if groups[""]:
        text += f" Not compared yet: {_listed(groups[''])}."
    return text + "\n\n" + "\n".join([*sentences, *_levels(results)])


def _levels(results: Results) -> Iterator[str]:
    """State the figures and the time of sets with a wanted level."""
    for name, (level, minutes) in LEVELS.items():
        runs = runs_of(results, name, DEFAULT)
        if runs:
            spent = _range(round(one["train_cpu_seconds"] / 60, 1) for one in runs)
            yield (
                f"- {name}: {_mean(runs, METRIC)} after {spent} CPU minutes of training; wanted: "
                f"at least {level} within {minutes}."
            )


def _sentence(name: str, comparison: Mapping[str, Any], word: str) -> str:
    """State the result on one set."""
    strict = _strictest(comparison)
    value, other = comparison["value"], strict["value"]
    verb = {
        "above": "the model is above the best baseline",
        "below": "the model loses: it is below the best baseline",
        "within chance": "no difference by more than chance to the best baseline",
    }[word]
    parts = [
        f"{name}: {verb}, `{strict['baseline']}` ({_f(value)} against {_f(other)}, "
        f"{_p(strict['p_value'])}, {strict['users']:,} users, "
        f"{_count(len(comparison['seeds']), 'seed')})"
    ]
    if word == "above" and SETS[name].has_order and other:
        gain = value / other - 1
        reached = "at least" if gain >= GAIN else "less than"
        parts.append(f"{100 * gain:.1f} % in the mean, {reached} the wanted {100 * GAIN:.0f} %")
    return "; ".join(parts) + "."


def _strictest(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return the comparison with the baseline that has the larger test figure."""
    pair = [comparison[key] for key in ("best_on_validation", "best_on_test")]
    return max(pair, key=lambda one: (one["value"], one["baseline"]))


def goal_table(results: Results) -> str:
    """Return the table of the default recipe beside the best baselines, a row for each set."""
    lines = [
        "| set | split | default recipe | best baseline on validation | difference | "
        "best baseline on test | difference | result |",
        "|---|---|---:|---|---|---|---|---|",
    ]
    for name, one in SETS.items():
        runs = runs_of(results, name, DEFAULT)
        cells = [name, one.split, _mean(runs, METRIC)]
        comparison = comparison_of(results, name, DEFAULT)
        if comparison is None:
            reason = NOT_MEASURED if not runs else "not compared"
            cells += ["", "", "", "", reason]
        else:
            first, second = (comparison[key] for key in ("best_on_validation", "best_on_test"))
            cells += [_named(first), _difference(first)]
            same = first["baseline"] == second["baseline"]
            cells += ["the same", ""] if same else [_named(second), _difference(second)]
            cells.append(judgement(comparison))
        lines.append(_row(cells))
    return "\n".join(lines)


def baseline_table(results: Results) -> str:
    """Return the table of all baselines, a column for each."""
    names = list(dict.fromkeys(one["name"] for one in results["baselines"].values()))
    if not names:
        return "No baseline has been measured yet."
    lines = [
        _row(["set", *(f"`{name}`" for name in names)]),
        "|---|" + "---:|" * len(names),
    ]
    skipped: dict[str, list[str]] = {}
    for set_name in SETS:
        cells = [set_name]
        found = {name: results["baselines"].get(f"{set_name}/{name}") for name in names}
        if not any(found.values()):
            continue
        for name, one in found.items():
            if one is None:
                cells.append(NOT_MEASURED)
            elif "skipped" in one:
                cells.append("–")
                skipped.setdefault(f"`{name}`: {one['skipped']}", []).append(set_name)
            else:
                figure = one["metrics"][METRIC]
                cells.append(f"{_f(figure['value'])} ± {_f(figure['se'])}")
        lines.append(_row(cells))
    if skipped:
        lines.append("")
        lines += [f"- {_listed(where)}: {reason}." for reason, where in skipped.items()]
    return "\n".join(lines)


def published_table(results: Results) -> str:
    """Return the table of the best recipes beside published figures."""
    lines = [
        "| set | metric | default recipe | best recipe | published | source | at or above it |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for name, figures in PUBLISHED.items():
        for figure in figures:
            runs = {recipe: runs_of(results, name, recipe) for recipe in (DEFAULT, BEST_RECIPE)}
            values = [_values(runs[recipe], figure.metric) for recipe in runs]
            means = [statistics.mean(of_seeds) for of_seeds in values if of_seeds]
            published, reached = "not entered", ""
            if figure.value is not None:
                published = _f(figure.value)
                if means:
                    reached = "yes" if max(means) >= figure.value else "no"
            source = "; ".join(filter(None, (figure.model, figure.citation, figure.note)))
            cells = [name, figure.metric]
            cells += [_mean(runs[recipe], figure.metric) for recipe in (DEFAULT, BEST_RECIPE)]
            lines.append(_row([*cells, published, source, reached]))
    return "\n".join(lines)


def settings_table(results: Results) -> str:
    """Return the table of the settings that the default recipe chose for each set."""
    lines = ["| set | key | value | reason |", "|---|---|---|---|"]
    for name in SETS:
        runs = runs_of(results, name, DEFAULT)
        for place, one in enumerate(runs[0]["chosen"] if runs else ()):
            reason = one["reason"].replace("|", "\\|")
            first = "" if place else name
            lines.append(_row([first, f"`{one['key']}`", f"`{_toml(one['value'])}`", reason]))
    if len(lines) == 2:
        return "No set has been measured yet."
    mixed = [name for name in SETS if _has_mixed_settings(results, name)]
    if mixed:
        lines += ["", f"The seeds of {_listed(mixed)} have different settings; shown: the first."]
    return "\n".join(lines)


def _has_mixed_settings(results: Results, name: str) -> bool:
    runs, configs = runs_of(results, name, DEFAULT), results["configs"]
    return len({canonical(one["settings"], configs) for one in runs}) > 1


def cost_table(results: Results) -> str:
    """Return the table of CPU minutes and memory of the runs, and of all baselines together."""
    lines = [
        "| set | recipe | parameters | epochs | best after | CPU minutes of a run | allowed | "
        "peak memory | CPU minutes of all baselines |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in SETS:
        baselines = [one for one in results["baselines"].values() if one["set"] == name]
        spent = sum(one["cpu_seconds"] for one in baselines) / 60
        for recipe in (DEFAULT, BEST_RECIPE):
            runs = runs_of(results, name, recipe)
            if not runs:
                continue
            lines.append(
                _row(
                    [
                        name,
                        recipe,
                        f"{runs[0]['parameters']:,}",
                        _range(one["epochs"] for one in runs),
                        _range(one["best_epoch"] for one in runs),
                        _range(round(one["cpu_seconds"] / 60, 1) for one in runs),
                        f"{SETS[name].minutes:g}" if recipe == DEFAULT else "",
                        f"{max(one['peak_mib'] for one in runs):,} MiB",
                        f"{spent:.1f}" if recipe == DEFAULT and baselines else "",
                    ]
                )
            )
    notes = [
        f"{one['set']}, {one['name']} recipe, seed {one['seed']}: the training was stopped "
        f"{one['stopped']}, and its best validation so far was measured."
        for one in results["runs"].values()
        if one["stopped"]
    ]
    if len(lines) == 2:
        return "No set has been measured yet."
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)])


def data_table(results: Results) -> str:
    """Return the table of the sets: sizes, users of the test with and without a history."""
    lines = [
        "| set | users | items | training rows | test users | of these without a history | "
        "test targets |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    notes = []
    for name in SETS:
        one = results["sets"].get(name)
        if one is None:
            continue
        counts = one["counts"]
        cells = [name, *(f"{counts[key]:,}" for key in ("users", "items", "train", "test_users"))]
        cells += [f"{one['test_users_without_history']:,}", f"{counts['test']:,}"]
        lines.append(_row(cells))
        left = [f"{number:,} {reason}" for reason, number in one["left_out"].items() if number]
        if left:
            notes.append(f"- {name} leaves out {_listed(left)}.")
    if len(lines) == 2:
        return "No set has been prepared yet."
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _values(runs: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    return [one["metrics"][metric]["value"] for one in runs if metric in one["metrics"]]


def _mean(runs: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Return mean and standard deviation over the seeds, with their number if some are missing."""
    values = _values(runs, metric)
    if not values:
        return NOT_MEASURED
    shown = _f(statistics.mean(values))
    if len(values) > 1:
        shown += f" ± {_f(statistics.stdev(values))}"
    if len(values) < len(SEEDS):
        shown += f" ({_count(len(values), 'seed')})"
    return shown


def _named(one: Mapping[str, Any]) -> str:
    return f"`{one['baseline']}` {_f(one['value'])}"


def _difference(one: Mapping[str, Any]) -> str:
    interval = "" if one["low"] is None else f" ({one['low']:+.4f} to {one['high']:+.4f})"
    return f"{one['difference']:+.4f}{interval}; {_p(one['p_value'])}"


def _p(value: float) -> str:
    return f"p {value:.3f}"


def _f(value: float) -> str:
    return f"{value:.4f}"


def _range(values: Iterator[float]) -> str:
    listed = list(values)
    low, high = min(listed), max(listed)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + " }"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "none"
    if len(names) == 1:
        return names[0]
    return ", ".join(names[:-1]) + " and " + names[-1]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
