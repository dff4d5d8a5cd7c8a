"""Kills: every verb that writes, killed at random times and before random file operations.

After a kill: the output that is visible is the earlier one, the finished one, or refused in one
sentence; the same command (with ``--resume`` where the message names it) works and gives what an
uncut run gives, weights to the last bit; and no temporary file stays.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults_process import Command, Outcome, Stop, processes_in, run
from faults_scenarios import INPUTS, Scenario, order_of, scenarios
from faults_snapshot import difference, file_names, leaves, stable, temporary_files

MINUTES_AGO = 600.0
"""Seconds by which leftovers of a killed command are made older: the next command comes later."""


RANK_KILLED = "was killed by signal 9"
"""Words of the launcher about one of its processes."""
LEFT_SECONDS = 30.0
"""Seconds within which the processes of a killed launcher end."""


@dataclass
class Reference:
    """An uncut run of a scenario: its output, the file operations, and its duration."""

    expected: dict[str, dict[str, str]]
    earlier: dict[str, dict[str, str]]
    names: set[str]
    places: list[str]
    seconds: float


class UncutError(Exception):
    """A command of a scenario fails although it is not killed."""


class Kills:
    """The campaign of kills.

    Args:
        fixture: folder of the artifacts.
        work: folder for the cases.
        seed: of the campaign.
    """

    name = "kills"

    def __init__(self, fixture: Path, work: Path, seed: int) -> None:
        self._fixture, self._work, self._seed = fixture, work, seed
        self._scenarios = scenarios()
        self._order = order_of(self._scenarios, f"order:{seed}")
        self._references: dict[str, Reference] = {}

    def scenario_of(self, number: int) -> str:
        """Return the name of the scenario of a case."""
        return self._order[number % len(self._order)]

    def run_batch(self, numbers: list[int]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Run cases; yield the number of each with its failures."""
        for number in numbers:
            yield number, self.run_case(number)

    def run_case(self, number: int) -> list[dict[str, Any]]:
        """Run one case; return its failures."""
        name = self.scenario_of(number)
        scenario, rng = self._scenarios[name], random.Random(f"{self.name}:{self._seed}:{number}")
        common = {"scenario": name, "command": " ".join(scenario.arguments)}
        try:
            reference = self._reference(name)
        except UncutError as error:
            text = "the command fails without a kill"
            return [common | {"killed": "", "failure": text, "output": str(error)}]
        folder = self._folder(name, scenario)
        killed, place = self._kill(scenario, folder, reference, rng)
        found = list(left_processes(folder))
        found += self._judge(scenario, folder, reference, killed)
        shutil.rmtree(folder, ignore_errors=True)
        return [
            common | {"killed": place, "failure": text, "output": output[-600:]}
            for text, output in found
        ]

    def _kill(
        self, scenario: Scenario, folder: Path, reference: Reference, rng: random.Random
    ) -> tuple[Outcome, str]:
        if rng.random() < 0.6 and reference.places:
            number = rng.randrange(len(reference.places)) + 1
            place = f"before operation {number}: {reference.places[number - 1]}"
            arguments = self._arguments(scenario, folder)
            return run(arguments, folder, stop=Stop(number)), place
        seconds = rng.random() * reference.seconds * 1.05
        command = Command(self._arguments(scenario, folder), folder)
        command.wait(seconds)
        place = f"after {seconds:.3f} of {reference.seconds:.3f} s"
        running = processes_in(folder) if scenario.has_ranks else []
        victim = rng.choice([command.pid, *running])
        if victim == command.pid:
            command.kill()
        else:  # the launcher notices, and ends
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            place += ", one of its processes"
        return command.finish(), place

    def _problem(self, killed: Outcome) -> str | None:
        """Describe how the end of the command itself is wrong."""
        is_reported = killed.code == 1 and RANK_KILLED in killed.err
        is_kill = killed.code in (0, -9) or is_reported
        return None if is_kill else f"exit {killed.code} instead of a kill"

    def _judge(
        self, scenario: Scenario, folder: Path, reference: Reference, killed: Outcome
    ) -> Iterator[tuple[str, str]]:
        if problem := self._problem(killed):
            yield problem, killed.err
        expected = reference.expected
        if scenario.of_input and all(
            not difference(expected[output], leaves(folder / output)) for output in scenario.output
        ):
            expected = {
                output: _without(scenario.of_input, expected[output]) for output in expected
            }
        for output in scenario.output if scenario.is_atomic else ():
            found = leaves(folder / output)
            states = (reference.earlier[output], reference.expected[output])
            if found and not any(state and not difference(state, found) for state in states):
                yield f"{output} is neither the earlier nor the finished one", killed.err
            if reference.earlier[output] and not found:
                yield f"{output} existed before and is gone", killed.err
        if scenario.consume:
            yield from self._consume(scenario, folder, reference)
        _make_older(folder)
        again = self._finish(scenario, folder)
        if again.code or again.is_hung:
            yield f"the same command fails with exit {again.code}", again.err
            return
        for output in scenario.output:
            wrong = difference(expected[output], leaves(folder / output),
                               scenario.compare)  # fmt: skip
            if wrong:
                yield f"after the same command {output} differs from an uncut run: {wrong}", ""
        if left := temporary_files(folder):
            yield f"temporary files stay: {', '.join(left[:3])}", again.err
        missing = reference.names - file_names(folder)
        if missing:
            yield f"files are missing: {', '.join(sorted(missing)[:3])}", again.err
        more = file_names(folder) - reference.names - set(left)
        if more:
            yield f"files stay that an uncut run does not have: {', '.join(sorted(more)[:3])}", ""

    def _consume(
        self, scenario: Scenario, folder: Path, reference: Reference
    ) -> Iterator[tuple[str, str]]:
        outcome = run(scenario.consume, folder)
        (folder / "lists.jsonl").unlink(missing_ok=True)
        if problem := refusal_problem(outcome):
            yield f"reading what was left: {problem}", outcome.err

    def _finish(self, scenario: Scenario, folder: Path) -> Outcome:
        """Run the command again, as its messages advise."""
        outcome = run(self._arguments(scenario, folder), folder)
        if outcome.code and "--resume" in outcome.err:
            outcome = run([*self._arguments(scenario, folder), "--resume"], folder)
        elif outcome.code == 2 and re.search(r"not empty|already|exists; remove", outcome.err):
            # The killed command had finished: its output is compared as it is.
            return Outcome(0, outcome.out, outcome.err, outcome.seconds)
        return outcome

    def _arguments(self, scenario: Scenario, folder: Path) -> list[str]:
        resume = ["--resume"] if scenario.cut and (folder / "out").exists() else []
        return [*scenario.arguments, *resume, "--quiet"]

    def _reference(self, name: str) -> Reference:
        if name in self._references:
            return self._references[name]
        scenario, found, places, names, seconds = self._scenarios[name], [], [], set(), 1.0
        earlier: dict[str, dict[str, str]] = {}
        for number in range(2):
            folder = self._folder(name, scenario, cut=False)
            earlier = {output: leaves(folder / output) for output in scenario.output}
            record = folder.with_suffix(".places")
            record.unlink(missing_ok=True)
            stop = Stop(0, record) if number == 0 else None
            outcome = run([*scenario.arguments, "--quiet"], folder, stop=stop)
            if outcome.code:
                raise UncutError(f"exit {outcome.code}: {outcome.err[-500:]}")
            found.append({output: leaves(folder / output) for output in scenario.output})
            places, seconds = places or outcome.places, outcome.seconds
            names = file_names(folder)
            shutil.rmtree(folder)
        expected = {output: stable(found[0][output], found[1][output]) for output in found[0]}
        reference = Reference(expected, earlier, names, places, seconds)
        self._references[name] = reference
        return reference

    def _folder(self, name: str, scenario: Scenario, cut: bool = True) -> Path:
        """Make the working folder of a case, after a first kill where the scenario has one."""
        folder = self._work / f"{self.name}-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in INPUTS:
            shutil.copy(self._fixture / file, folder)
        for target, source in scenario.needs.items():
            shutil.copytree(self._fixture / source, folder / target)
        if scenario.cut and cut:
            places = self._references[name].places
            run([*scenario.arguments, "--quiet"], folder,
                stop=Stop(int(scenario.cut * len(places))))  # fmt: skip
        return folder


class FullDisks(Kills):
    """The campaign of full disks: the same commands, where a write beyond a limit fails.

    The limit is on the size of a single file, as only root can make a small file system. The
    command fails in one sentence, and succeeds once there is space.
    """

    name = "disks"

    def _kill(
        self, scenario: Scenario, folder: Path, reference: Reference, rng: random.Random
    ) -> tuple[Outcome, str]:
        limit = int(2 ** (9 + 8 * rng.random()))  # stderr has room
        outcome = run(self._arguments(scenario, folder), folder, file_limit=limit)
        return outcome, f"files of at most {limit} bytes"

    def _problem(self, killed: Outcome) -> str | None:
        return refusal_problem(killed)


def left_processes(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield a failure if processes of an ended command still run, and kill them."""
    limit = time.monotonic() + LEFT_SECONDS
    while left := processes_in(folder):
        if time.monotonic() > limit:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            yield f"{len(left)} processes run on after the end of the command", ""
            return
        time.sleep(0.02)


def refusal_problem(outcome: Outcome) -> str | None:
    """Describe how an outcome breaks the rules of refusals; None: it worked or was refused well.

    A refusal has exit code 2, 3 or 4 and one sentence on stderr.
    """
    text = outcome.err + outcome.out[-2000:]
    if outcome.is_hung:
        return f"no end after {outcome.seconds:.0f} s"
    if outcome.code < 0:
        return f"ended by signal {-outcome.code}"
    if "Traceback (most recent call last)" in text:
        return "a traceback"
    if "panicked at" in text:
        return "a panic of a library"
    if outcome.code == 0:
        return None
    if outcome.code not in (2, 3, 4):
        return f"exit {outcome.code}"
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"{len(lines)} lines on stderr instead of one sentence"
    if "unexpected " in lines[0] and "CANDID_DEBUG" in lines[0]:
        return "an unexpected error"
    return None


def _without(pattern: str, values: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if not re.search(pattern, name)}


def _make_older(folder: Path) -> None:
    old = time.time() - MINUTES_AGO
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (old, old), follow_symlinks=False)
