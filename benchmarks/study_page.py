"""Tables and verdicts in docs/study.md, from the summaries of studies.

    python benchmarks/study_page.py                        # write the page from the results
    python benchmarks/study_page.py build/study/NAME ...   # take over these studies first

A study is the folder of ``candid study``; its ``summary.json`` is copied to
``benchmarks/results/study/NAME.json`` with its study file, commits and versions. The page has the
predictions and tests of ``candid.study.CLAIMS``, and states where nothing is measured yet.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from candid.atomic import write_json
from candid.study import CLAIMS, ArmRow, StudySummary
from candid.study.drift_cells import FULL
from drift_figure import KEPT, NAMES, correlations
from page_blocks import with_block
from study_figures import captions, draw
from study_tables import NOT_MEASURED, Study, differences, drifts, rates, ratio_text, row

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STUDIES = RESULTS / "study"
PAGE = ROOT / "docs" / "study.md"
MECHANISM = {"drift_known_truth": "known truth", "drift_training": "held-out interactions"}
"""Results of benchmarks -> their data in words."""
MAX_LINES = 12
"""Lines of a claim in the list of the grid points that are not decided."""
MAX_LABELS = 3
"""Grid points that are named in one line."""


def read_studies(folder: Path = STUDIES) -> dict[str, Study]:
    """Return the results of all studies by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def read_mechanism() -> dict[str, list[dict[str, Any]]]:
    """Return the cells of the benchmarks of drift, by name."""
    return {name: json.loads((RESULTS / f"{name}.json").read_text())["cells"] for name in MECHANISM}


def take_over(folder: Path, target: Path = STUDIES, *, changes: str = "") -> Path:
    """Copy the summary of a study to the results; return the new file.

    Args:
        folder: of the study.
        target: folder of the results.
        changes: one sentence on what differed from the commits of the code, for the page.

    Raises:
        SystemExit: the folder has no summary, its study is not complete, the summary is older than
            the records or than a claim, or the code had changes that nothing explains.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text())
        study = json.loads((folder / "study.json").read_text())
        age = (folder / "records.jsonl").stat().st_mtime - (folder / "summary.json").stat().st_mtime
    except OSError as error:
        raise SystemExit(
            f"{folder} has no study with a summary ({error}); run candid study"
        ) from None
    again = "run candid study --report and take the study over again"
    if age > 0:
        raise SystemExit(f"{folder}: summary.json is older than records.jsonl; {again}")
    _, _, missing = _counts(StudySummary.from_json(summary).rows)
    if missing:
        raise SystemExit(f"{folder}: {missing} cells missing; run candid study to its end")
    command = summary.pop("command", None)
    if command is None or "records" not in summary:
        raise SystemExit(f"{folder}: summary.json has no command or records; {again}")
    _claims(study["name"], summary)
    records = summary.pop("records")
    _check_code(folder, records, changes)
    path = target / f"{study['name']}.json"
    path.parent.mkdir(exist_ok=True)
    content = {
        "command": command,
        "study": study["study"],
        "records": records,
        **({"changes": changes} if changes else {}),
        "summary": summary,
    }
    write_json(path, content)
    return path


def _check_code(folder: Path, records: Mapping[str, Any], changes: str) -> None:
    """Refuse records of code that no commit identifies, unless a sentence explains it.

    Raises:
        SystemExit: there are some.
    """
    changed = [one for one in records["code_commits"] if one.endswith("-dirty")]
    if changed and not changes:
        raise SystemExit(
            f"{folder}: cells were run by code with changes after a commit ({', '.join(changed)}); "
            "run them again from a commit, or state with --changes what differed"
        )


def with_blocks(
    page: str, studies: Mapping[str, Study], mechanism: Mapping[str, Sequence[dict[str, Any]]]
) -> str:
    """Return the page with all its generated blocks filled from the results."""
    blocks = {
        "study predictions": predictions(),
        "study verdicts": verdicts(studies),
        "study differences": differences(studies),
        "study drifts": drifts(studies),
        "study figures": figures(studies),
        "study rates": rates(studies),
        "study cost": cost(studies),
        "study mechanism": mechanism_tables(mechanism),
    }
    for name, block in blocks.items():
        page = with_block(page, name, block + "\n")
    return page


def figures(studies: Mapping[str, Study]) -> str:
    """Return the figures of each study with their captions."""
    parts = [captions(name, _summary(study)) for name, study in studies.items()]
    return "\n\n".join(parts) or NOT_MEASURED


def predictions() -> str:
    """Return the claims with the cells and tests that decide them."""
    lines = []
    for claim in CLAIMS:
        lines += [
            f"- **{claim.name}. {claim.prediction}**",
            f"    - *Needs:* {claim.needs}",
            f"    - *Test:* {claim.test}",
            *([f"    - *Changed after the first run:* {claim.change}"] if claim.change else []),
        ]
    return "\n".join(lines)


def verdicts(studies: Mapping[str, Study]) -> str:
    """Return the verdict of each study on each claim, with the grid points that do not support it.

    These are the grid points against a claim, and those that are not decided of a claim that is not
    decided.
    """
    if not studies:
        return NOT_MEASURED
    lines = [row(["claim", *studies]), "|---|" + "---|" * len(studies)]
    against, undecided = [], []
    judged = {
        name: _claims(name, study["summary"], allows_earlier_test=True)
        for name, study in studies.items()
    }
    for claim in CLAIMS:
        cells = [f"{claim.name}: {claim.prediction}"]
        for name, claims in judged.items():
            one = claims[claim.name]
            is_earlier = one.get("change", "") != claim.change
            earlier = " (by the test before its change)" if is_earlier else ""
            cells.append(f"**{one['verdict']}**: {one['reason']}{earlier}")
            against += [
                f"- {claim.name}, {name}, {finding['label']}: {finding['detail']}."
                for finding in one["findings"]
                if finding["verdict"] == "against"
            ]
            if one["verdict"] == "not decided":
                undecided += _undecided_lines(f"{claim.name}, {name}", one["findings"])
        lines.append(row(cells))
    if against:
        lines += ["", "Grid points against a claim:", "", *against]
    if undecided:
        lines += [
            "",
            "Grid points that are not decided, of the claims that are not decided, with their "
            f"values or why they have no test; at most {MAX_LINES} lines for a claim:",
            "",
            *undecided,
        ]
    return "\n".join(lines)


def _undecided_lines(claim: str, findings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a line for each reason why grid points are not decided."""
    by_reason: dict[str, list[str]] = {}
    for finding in findings:
        if finding["verdict"] == "not decided":
            by_reason.setdefault(finding["detail"], []).append(finding["label"])
    groups = list(by_reason.items())
    # One line is for the number of those that are left out.
    shown = groups if len(groups) <= MAX_LINES else groups[: MAX_LINES - 1]
    lines = []
    for reason, labels in shown:
        named = "; ".join(labels[:MAX_LABELS])
        rest = len(labels) - MAX_LABELS
        more = f" and {rest} other{'s' if rest > 1 else ''}" if rest > 0 else ""
        lines.append(f"- {claim}, {named}{more}: {reason}.")
    left_out = sum(len(labels) for _, labels in groups[len(shown) :])
    return [*lines, f"- {claim}: {left_out} other grid points."] if left_out else lines


def cost(studies: Mapping[str, Study]) -> str:
    """Return the cells and CPU hours of each study, and why cells failed."""
    if not studies:
        return NOT_MEASURED
    lines = [
        "| study | main cells | failed | missing | pilot cells | CPU hours: main, training | "
        "main, measurement | pilot | code | versions |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    notes: dict[str, None] = {}
    for name, study in studies.items():
        rows = _once(_summary(study).rows)
        finished, failed, missing = map(str, _counts(rows))
        if "records" in study:
            lines.append(row([name, finished, failed, missing, *_sums(study["records"])]))
        else:
            notes[
                f"- {name}: {finished} main cells, {failed} failed and {missing} missing. These "
                f"results do not have the sums of the records that count: all records of the "
                f"folder took {study['cpu_hours']:.1f} CPU hours, with the pilot and with cells of "
                f"earlier settings. Commit of the study file: {_short(study['commits'])}; "
                f"{', '.join(study['versions'])}."
            ] = None
        if "changes" in study:
            notes[f"- {name}, changes after the commit: {study['changes']}"] = None
        for one in rows:
            notes |= dict.fromkeys(
                f"- {name}, {one.point.label}, {one.arm}: {error}." for error in one.errors
            )
    if len(lines) == 2:
        lines = []
    return "\n".join([*lines, *([""] if lines and notes else []), *notes])


def _sums(records: Mapping[str, Any]) -> list[str]:
    """Return cells and hours of the pilot, hours of the main cells, commits and versions."""
    pilot, main = (records["phases"][phase] for phase in ("pilot", "main"))
    hours = [
        main["training_cpu_hours"],
        main["measurement_cpu_hours"],
        pilot["training_cpu_hours"] + pilot["measurement_cpu_hours"],
    ]
    cells = str(pilot["finished"])
    if pilot["failed"]:
        cells += f", {pilot['failed']} failed"
    return [
        cells,
        *(f"{value:.2f}" for value in hours),
        _short(records["code_commits"]),
        ", ".join(records["versions"]),
    ]


def _short(commits: Sequence[str]) -> str:
    """Return commits with 12 digits each; "-dirty" stays."""
    return ", ".join(commit.replace(commit[12:40], "") for commit in commits)


def mechanism_tables(cells: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Return the rank correlations of drift, and the excess of two corrections against n."""
    lines = [
        "| data | cells | rank correlation of drift | of the gradient bias given the positive |",
        "|---|---:|---:|---:|",
    ]
    for name, rows in cells.items():
        one = correlations(rows)["all"]
        values = [f"{one[measure]:.2f}" for measure in ("drift", "gradient_bias")]
        lines.append(row([f"{MECHANISM[name]}, over the full softmax", str(one["cells"]), *values]))
    over = correlations(cells["drift_training"], over_kept=True)["all"]
    values = [f"{over[measure]:.2f}" for measure in ("drift", "gradient_bias")]
    label = f"{MECHANISM['drift_training']}, over `logq` with kept hits"
    lines += [row([label, str(over["cells"]), *values]), ""]
    lines += [
        "| data | chi2 | n | n / chi2 | refined: predicted | refined: excess NLL | "
        "logq, hits kept: predicted | logq, hits kept: excess NLL |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    of_training = cells["drift_training"]
    by_place = {(one["data"], one["n"], one["label"]): one for one in of_training}
    for data, n in dict.fromkeys((one["data"], one["n"]) for one in of_training):
        refined, kept = (by_place[data, n, label] for label in ("refined", KEPT))
        numbers = [f"{one[key]:+.3f}" for one in (refined, kept) for key in ("drift", "excess")]
        chi2 = refined["chi2"]
        lines.append(row([NAMES[data], f"{chi2:.3g}", str(n), ratio_text(n / chi2), *numbers]))
    return "\n".join(lines)


def _summary(study: Study) -> StudySummary:
    return StudySummary.from_json(study["summary"])


def _once(rows: Sequence[ArmRow]) -> list[ArmRow]:
    """Return one row of an arm of the whole catalog, which has one at each of its grid points."""
    places = {
        (row.point.whole_catalog if row.arm == FULL else row.point, row.arm): row for row in rows
    }
    return list(places.values())


def _counts(rows: Sequence[ArmRow]) -> tuple[int, int, int]:
    """Return the number of finished, failed and missing cells."""
    once = _once(rows)
    finished, failed = sum(row.seeds for row in once), sum(len(row.errors) for row in once)
    return finished, failed, sum(row.planned for row in once) - finished - failed


def _claims(
    name: str, summary: Mapping[str, Any], *, allows_earlier_test: bool = False
) -> dict[str, dict[str, Any]]:
    """Return the verdicts of a study by the name of the claim.

    Raises:
        SystemExit: a verdict is missing, or is that of another prediction or test.
    """
    judged = {one["name"]: one for one in summary["claims"]}
    for claim in CLAIMS:
        texts = {key: getattr(claim, key) for key in ("prediction", "needs", "test", "change")}
        found = judged.get(claim.name, {})
        if allows_earlier_test and "change" not in found:
            texts["test"] = claim.earlier_test or claim.test
            del texts["change"]
        if not texts.items() <= found.items():
            raise SystemExit(
                f"study {name}: the verdict on {claim.name} is missing or has another prediction "
                "or test; run candid study --report and take the study over again"
            )
    return judged


def main() -> None:
    """Take over studies and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders of candid study")
    parser.add_argument(
        "--changes", default="", help="one sentence on what differed from the commits of the code"
    )
    options = parser.parse_args()
    for folder in options.folders:
        print(take_over(folder, changes=options.changes))
    studies = read_studies()
    for name, study in studies.items():
        for path in draw(name, _summary(study)):
            print(path)
    PAGE.write_text(with_blocks(PAGE.read_text(), studies, read_mechanism()))


if __name__ == "__main__":
    main()
