"""Results of a search: the best recipe with its evidence, and a table of the best trials."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from candid.component import toml_value
from candid.config import RunConfig, recipe_text
from candid.data import PreparedDataset
from candid.tuning.space import Space, value_at
from candid.tuning.trials import History, Trial, TrialStatus
from candid.version import __version__

USEFUL: Final = 20
"""Trials that a search needs, 8 of which have random values."""

SHOWN: Final = 5
"""Trials in the table and in the range of the best ones."""


def best_recipe(
    history: History,
    config: RunConfig,
    space: Space,
    dataset: PreparedDataset,
    out: Path,
    chosen: Mapping[str, str],
) -> str:
    """Return the recipe of the best trial as TOML text.

    Comments state the evidence: numbers of trials, CPU time, the metric of the best trial and of
    the base recipe, and why the first of the two is too high.

    Args:
        history: with at least one trial that has a value.
        config: recipe of the best trial.
        space: of the search.
        dataset: of the search.
        out: folder of the search.
        chosen: settings that rules chose from the data, by key, with the reason.
    """
    lines = list(_evidence(history, config, dataset, out))
    return recipe_text(config, {**chosen, **_reasons(history, space)}, lines)


def settings_text(trial: Trial) -> str:
    """Return the values of a trial in one line, with the last part of each key."""
    if trial.number == 0:
        return "base recipe"
    names = {key: key.rpartition(".")[2] for key in trial.values}
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    return ", ".join(
        f"{key if names[key] in twice else names[key]} {toml_value(value)}"
        for key, value in trial.values.items()
    )


def score_text(trial: Trial) -> str:
    """Return the best value of a trial with its standard error."""
    if trial.best is None:
        return "–"
    error = trial.standard_error
    return f"{trial.best:.4f}" + ("" if error is None else f" ± {error:.4f}")


def minutes_text(history: History) -> str:
    """Return the CPU minutes of all trials."""
    minutes = history.cpu_seconds / 60
    return f"{minutes:,.1f}" if minutes >= 10 else f"{minutes:.2f}"


def table(history: History) -> Table:
    """Return one line for each of the best trials, and one for the base recipe."""
    ranking = history.ranking()
    shown = ranking[:SHOWN] + [trial for trial in ranking[SHOWN:] if trial.number == 0]
    result = Table(
        title=f"best trials by validation {history.metric}",
        caption=f"{_counts(history)}; {minutes_text(history)} CPU minutes",
    )
    result.add_column("trial", justify="right")
    result.add_column(history.metric, justify="right", no_wrap=True)
    result.add_column("epoch", justify="right")
    result.add_column("CPU s", justify="right")
    result.add_column("settings")
    for trial in shown:
        result.add_row(
            str(trial.number),
            score_text(trial),
            str(trial.best_epoch),
            f"{trial.cpu_seconds:,.0f}",
            settings_text(trial),
        )
    return result


def sentences(history: History, budget: float | None = None) -> list[str]:
    """Return how the best trial compares with the base recipe, and how far to trust it.

    Args:
        history: with at least one trial that has a value.
        budget: CPU minutes of the search; None: unknown.
    """
    return [*_comparison(history), *_advice(history, budget)]


def _advice(history: History, budget: float | None) -> list[str]:
    """Return a larger budget, where it ended a search of few trials."""
    done = [trial for trial in history.trials if trial.status is TrialStatus.COMPLETE]
    if budget is None or len(history.trials) >= USEFUL or history.cpu_seconds < 60 * budget:
        return []
    costs = [trial.cpu_seconds for trial in done] or [60 * budget]
    minutes = max(round(USEFUL * sum(costs) / len(costs) / 60), 1)
    return [
        f"the budget ended after {len(done)} complete trials, and a search needs about {USEFUL}: "
        f"continue with --resume and --minutes {max(minutes, 2 * round(budget))}"
    ]


def _comparison(history: History) -> list[str]:
    best, base = history.ranking()[0], history.base
    if base is None or base.best is None or best.best is None:
        return [f"the base recipe has no validation to compare with ({_base_reason(base)})"]
    if best.number == 0:
        return ["no trial is better than the base recipe"]
    lines = [
        f"trial {best.number} has {best.best - base.best:+.4f} {history.metric} on validation "
        "against the base recipe; the best of several trials is too high by chance: compare both "
        "on the test split, over several seeds"
    ]
    if best.standard_error is not None and best.best - base.best < 2 * best.standard_error:
        lines.append("the difference is below two standard errors of one measurement")
    return lines


def to_json(history: History) -> dict[str, Any]:
    """Return the result as plain JSON values.

    Keys: ``metric``, ``cpu_seconds``, ``counts`` by status, ``best`` and ``base`` (a trial each, or
    null) and ``trials``, as in ``trials.json``.
    """
    content = history.to_json()
    ranking = history.ranking()
    best = ranking[0].number if ranking else None
    return {
        "metric": history.metric,
        "cpu_seconds": content["cpu_seconds"],
        "counts": history.counts,
        "best": None if best is None else content["trials"][best],
        "base": content["trials"][0] if content["trials"] else None,
        "trials": content["trials"],
    }


def _evidence(
    history: History, config: RunConfig, dataset: PreparedDataset, out: Path
) -> Iterator[str]:
    ranking, base = history.ranking(), history.base
    best = ranking[0]
    data = "DATASET" if dataset.path is None else shlex.quote(str(dataset.path))
    recipe = shlex.quote(str(out / "best.toml"))
    number = len(history.trials)
    trials = "1 trial" if number == 1 else f"{number} trials"
    yield f"The best recipe of {trials} on {data}, candid {__version__}."
    yield ""
    yield f"trials: {_counts(history)}; {minutes_text(history)} CPU minutes"
    yield f"validation {history.metric} of this recipe: {_result(best)}"
    if base is not None and base.best is not None:
        yield f"validation {history.metric} of the base recipe: {_result(base)}"
    else:
        yield f"the base recipe has no validation: {_base_reason(base)}"
    values = [trial.best for trial in ranking[:SHOWN] if trial.best is not None]
    if len(values) > 1:
        yield f"the best {len(values)} trials: {values[-1]:.4f} to {values[0]:.4f}"
    if best.standard_error is not None:
        yield "(± is the standard error of one measurement, which covers a sample of the users)"
    yield ""
    if number > 1:
        yield f"The figure of this recipe is too high: it is the best of {number} on the same"
        yield "validation targets."
    yield "The test split was not read: train with other seeds, compare there:"
    yield ""
    for seed in (config.seed + 1, config.seed + 2):
        run = f"runs/{config.name}-seed-{seed}"
        yield f"    candid train {recipe} --data {data} --out {run} --set seed={seed}"


def _counts(history: History) -> str:
    parts = [f"{count} {status}" for status, count in history.counts.items()]
    return f"{len(history.trials)} ({', '.join(parts)})"


def _result(trial: Trial) -> str:
    return f"{score_text(trial)} (trial {trial.number}, epoch {trial.best_epoch})"


def _base_reason(base: Trial | None) -> str:
    if base is None:
        return "it was not trained"
    return base.reason or f"it was {base.status.value}"


def _reasons(history: History, space: Space) -> dict[str, str]:
    """Return a comment for each searched key: where it was searched, and the value of the base."""
    base = history.search.get("base recipe", {}).get("recipe", {})
    reasons: dict[str, str] = {}
    for key, dimension in space.dimensions.items():
        # A comment stands above a key of a section; deeper keys share the line of their parent.
        parent = ".".join(key.split(".")[:2])
        declared = dimension.values.to_json()
        words = (
            f"one of {toml_value(declared['choices'])}"
            if "choices" in declared
            else f"from {toml_value(declared['low'])} to {toml_value(declared['high'])}"
        )
        name = key.rpartition(".")[2] if key != parent else "searched"
        text = f"{name} {words}, base {toml_value(value_at(base, key))}"
        reasons[parent] = f"{reasons[parent]}; {text}" if parent in reasons else text
    return reasons
