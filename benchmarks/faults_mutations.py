"""Mutations: damaged artifacts and hostile inputs, one changed file each.

A command that reads a damaged artifact either gives the very answer of the undamaged one or
refuses in one sentence with exit code 2, 3 or 4. A changed input of ``prepare`` may be other data:
there the answer may differ, and only crashes, tracebacks, hangs and other exit codes are failures.

Many mutations run in one forked child, one after the other; the parent watches the time and
notices when the child dies.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults_content import damaged
from faults_kills import refusal_problem
from faults_process import (
    HANG,
    Outcome,
    Skipped,
    candid_code,
    fork_lines,
    limit_resources,
    messages,
    redirect,
)
from faults_programs import PROGRAMS, program_code
from faults_snapshot import difference, leaves, stable
from faults_targets import SIBLINGS, Reader, Target, targets

UNCHECKED = re.compile(
    r"metrics\.jsonl|(evaluation|baselines)-\w+\.json|(timings|summary)\.json|study\.html"
    r"|records\.jsonl"
)
"""Logs and reports of a run or a study: they grow or are written again, and have no checksum. Lines
of records have one, but nothing counts them, and a last line without its end is taken for one that
a crash has cut."""

UNCHANGED = Skipped("the change left the values of the file as they were")
MISSING = "file missing"
FOREIGN = "content of another file"
HARMLESS = frozenset({
    ("previous.safetensors", MISSING), ("previous.safetensors", FOREIGN), ("settings.json", MISSING)
})  # fmt: skip
"""Changes that do no damage. A run has ``previous.safetensors`` only after its second checkpoint,
and any checkpoint of the run may be in its place (those of other runs are refused, and a test has
them); a study writes ``settings.json`` again with the files that it describes."""


@dataclass(frozen=True)
class Mutation:
    """One case: the target, the file of it, and the command that reads it."""

    target: Target
    file: str
    reader: Reader


class Mutations:
    """The campaign of mutations.

    Args:
        fixture: folder of the artifacts.
        work: folder for the cases.
        seed: of the campaign.
    """

    name = "mutations"

    def __init__(self, fixture: Path, work: Path, seed: int) -> None:
        self._fixture, self._folder, self._seed = fixture, work / "mutations", seed
        self._targets = targets()
        self._weights = [target.weight for target in self._targets]
        self._expected: dict[tuple[str, ...], dict[str, str]] = {}
        self._pool = [
            (fixture / name).read_bytes()
            for name in ("log.csv", "log.parquet", "log.csv.gz", "run/run.json", "ids.toml",
                         "run/best.safetensors", "data/item_ids.npy", "data/manifest.json",
                         "index_usearch/index.json", "baseline_ease/baseline.json")
        ]  # fmt: skip

    def case(self, number: int) -> tuple[Mutation, random.Random]:
        """Return a case and the source of its further choices."""
        rng = random.Random(f"mutations:{self._seed}:{number}")
        target = rng.choices(self._targets, self._weights)[0]
        base = self._fixture / target.path
        files = sorted(str(p.relative_to(base)) for p in base.rglob("*") if p.is_file())
        file = rng.choice([name for name in files if not name.endswith(".lock")]) if files else ""
        return Mutation(target, file, rng.choice(target.readers)), rng

    def scenario_of(self, number: int) -> str:
        """Return the path of the target of a case."""
        return self.case(number)[0].target.path

    def run_batch(self, numbers: list[int]) -> Iterator[tuple[int, list[dict[str, Any]] | Skipped]]:
        """Run cases; yield the number of each with its failures, or why it was skipped."""
        for number in numbers:
            self._expect(self.case(number)[0].reader)
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._fixture, self._folder)
        left = list(numbers)
        while left:
            done = 0
            for number, result in self._in_child(left):
                done += 1
                is_skipped = result.get("skipped")
                yield number, UNCHANGED if is_skipped else self._failures(number, result)
            left = left[done:]

    def _in_child(self, numbers: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Run cases in one child until it ends; the case at which it dies has a result too."""

        def work(send: Callable[[Any], None]) -> None:
            self._begin_child()
            for number in numbers:
                send({"begins": number})
                send(self._mutate_and_read(number))

        begun: dict[str, Any] = {}
        for message in messages(*fork_lines(work)):
            if "begins" in message:
                begun = message
            elif "died" in message:
                text = self._folder.with_name("mutations.err").read_text(errors="replace")
                result = {"code": message["died"], "is_hung": message["is_hung"], "err": text}
                self._restore_all()
                yield begun.get("begins", numbers[0]), result
            else:
                yield begun["begins"], message

    def _begin_child(self) -> None:
        redirect(self._folder.with_name("mutations.out"), self._folder.with_name("mutations.err"))
        limit_resources()
        os.chdir(self._folder)

    def _mutate_and_read(self, number: int) -> dict[str, Any]:
        mutation, rng = self.case(number)
        what = self._mutate(mutation, rng)
        if what is None:
            return {"code": 0, "what": "unchanged", "skipped": True}
        result = self._read(mutation.reader) | {"what": what}
        if mutation.reader.writes_target or (self._folder / mutation.target.path).is_dir():
            self._restore(mutation.target.path)
        else:
            _put(self._folder / mutation.target.path, self._fixture / mutation.target.path)
        return result

    def _read(self, reader: Reader) -> dict[str, Any]:
        """Run a command in this process; return its exit code, its output and its files."""
        targets = [output for output in reader.outputs if (self._fixture / output).exists()]
        for output in reader.outputs:
            if output not in targets:
                _remove(self._folder / output)
        for stream in (1, 2):
            os.ftruncate(stream, 0)
        if reader.arguments[0] in PROGRAMS:
            code = program_code(reader.arguments[0], self._folder, self._fixture)
        else:
            code = candid_code(_quiet(reader.arguments))
        sys.stdout.flush()
        sys.stderr.flush()
        out = Path(self._folder.with_name("mutations.out")).read_text(errors="replace")
        err = Path(self._folder.with_name("mutations.err")).read_text(errors="replace")
        found: dict[str, str] = {}
        if code == 0 and reader.compare is not None:
            for output in reader.outputs:
                found |= leaves(self._folder / output)
            found |= {f"stdout:{n}": line for n, line in enumerate(out.splitlines())}
        return {"code": code, "out": out[-3000:], "err": err[-3000:], "found": found}

    def _mutate(self, mutation: Mutation, rng: random.Random) -> str | None:
        """Change the file of a case; return what was changed, None for nothing."""
        path = self._folder / mutation.target.path / mutation.file
        original = self._fixture / mutation.target.path / mutation.file
        content, choice = original.read_bytes(), rng.random()
        sibling = SIBLINGS.get(mutation.target.path)
        if choice < 0.04:
            _remove(path)
            return MISSING
        if choice < 0.06:
            _remove(path)
            path.mkdir()
            return "folder in place of the file"
        if choice < 0.07:
            _remove(path)
            path.symlink_to(path.name)
            return "link to itself"
        if choice < 0.10 and sibling and (self._fixture / sibling / mutation.file).is_file():
            what, changed = f"file of {sibling}", (
                self._fixture / sibling / mutation.file
            ).read_bytes()  # fmt: skip
        else:
            what, changed = damaged(content, path.name, self._pool, rng)
        if changed == content or _is_same(path.suffix, content, changed):
            return None
        temporary = path.with_name(path.name + ".new")
        temporary.write_bytes(changed)
        os.replace(temporary, path)  # the earlier file may still be mapped
        return what

    def _expect(self, reader: Reader) -> None:
        """Store what a command gives for undamaged files: the values that two runs agree on."""
        if reader.compare is None or reader.arguments in self._expected:
            return
        results = []
        for _ in range(2):
            shutil.rmtree(self._folder, ignore_errors=True)
            shutil.copytree(self._fixture, self._folder)

            def work(send: Callable[[Any], None]) -> None:
                self._begin_child()
                send(self._read(reader))

            results += list(messages(*fork_lines(work)))
        if any(result.get("code") != 0 for result in results):
            raise RuntimeError(f"{reader.arguments}: {results[0].get('err')}")
        expected = stable(results[0]["found"], results[1]["found"])
        self._expected[reader.arguments] = expected

    def _failures(self, number: int, result: dict[str, Any]) -> list[dict[str, Any]]:
        mutation, _ = self.case(number)
        outcome = Outcome(
            result.get("died", result["code"]), result.get("out", ""), result.get("err", ""), HANG,
            result.get("is_hung", False),
        )  # fmt: skip
        found = refusal_problem(outcome)
        if mutation.target.is_input and outcome.code == 1 and "not enough memory" in outcome.err:
            found = None  # an input may ask for more than the machine has
        if found is None and outcome.code == 0 and mutation.reader.compare is not None:
            expected = self._expected[mutation.reader.arguments]
            if mutation.reader.must_refuse:
                name = Path(mutation.file).name
                is_checked = not UNCHECKED.fullmatch(name)
                is_checked &= (name, result.get("what")) not in HARMLESS
                found = "a changed file is not reported" if is_checked else None
            else:
                wrong = difference(expected, result["found"], mutation.reader.compare)
                found = wrong and f"another answer without an error: {wrong}"
        if found is None:
            return []
        return [{
            "failure": found, "file": f"{mutation.target.path}/{mutation.file}".rstrip("/"),
            "change": result.get("what", "?"), "command": " ".join(mutation.reader.arguments),
            "output": outcome.err[-600:],
        }]  # fmt: skip

    def _restore(self, name: str) -> None:
        _put(self._folder / name, self._fixture / name)

    def _restore_all(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._fixture, self._folder)


def _quiet(arguments: tuple[str, ...]) -> tuple[str, ...]:
    is_answer = "--json" in arguments or arguments[0] == "recipe"
    return arguments if is_answer else (*arguments, "-q")


def _is_same(suffix: str, content: bytes, changed: bytes) -> bool:
    """Return whether two files hold the same values, in another notation or another place."""
    try:
        if suffix == ".json":
            # Equal values of another type, such as 1 and true, are not the same.
            return json.dumps(json.loads(content)) == json.dumps(json.loads(changed))
        return suffix == ".safetensors" and _tensors(content) == _tensors(changed)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _tensors(content: bytes) -> dict[str, str]:
    """Return dtype, shape and bytes of each tensor of a safetensors file, and its metadata."""
    stop = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:stop])
    found = {"": json.dumps(header.pop("__metadata__"))}
    for name, entry in header.items():  # other keys of an entry are not read
        begin, end = entry["data_offsets"]
        data = content[stop + begin : stop + end].hex()
        found[name] = f"{entry['dtype']} {json.dumps(entry['shape'])} {data}"
    return found


def _put(path: Path, source: Path) -> None:
    _remove(path)
    shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
