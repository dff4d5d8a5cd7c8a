"""Check the plain English of docs, docstrings, comments, messages and test names.

The rules are regular expressions with a piece of advice each. ``make check`` runs this script over
the whole tree, so that a pattern that was removed does not come back.

    python docs/check_language.py [PATH ...]
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SUFFIXES = {".py", ".md", ".toml", ".js", ".html", ".c", ".h", ".ipynb"}
SKIPPED = {
    "CHANGELOG.md",
    "docs/changelog.md",
    "docs/check_language.py",
    # The names of earlier recipes, which are refused with their replacement.
    "src/candid/config/renamed.py",
    "tests/config/test_renamed.py",
}


class Rule(NamedTuple):
    """A pattern that plain text must not contain, and the advice that is printed for it."""

    pattern: re.Pattern[str]
    advice: str


def _rule(pattern: str, advice: str) -> Rule:
    return Rule(re.compile(pattern, re.IGNORECASE), advice)


RULES = [
    _rule(r"\b(nobody|somebody|whoever|whatever)\b", "name the person or thing"),
    Rule(re.compile(r"\b(is|are|was|were) none\b"), "write 'does not exist' or 'is None'"),
    _rule(
        r"(?<!there )\b(?:is|are) no (?!longer|more\b|less\b|fewer\b|worse\b|better\b|slower\b)",
        "write 'is not a ...', or say what it is",
    ),
    _rule(r"\bof nothing\b", "say what is empty or missing"),
    _rule(r"\b(says|tells|told|knows)\b", "write 'states', 'returns', 'reports' or 'stores'"),
    _rule(r"\bgo(es)? on\b", "write 'continues'"),
    _rule(r"\bsee there\b", "repeat the sentence or link it"),
    _rule(r"\bof one's own\b", "write 'your own' or 'custom'"),
    _rule(r"\bas it were\b", "leave it out"),
    _rule(r"\b(?:is|are|be) to be had\b|\bcan be had\b", "write 'is available'"),
    _rule(r"\bis worth\b", "state the figure or the effect"),
    _rule(r"\bwhat is asked\b", "write 'the query' or 'the request'"),
    _rule(r"\bmend(s|ed|ing)?\b", "write 'fix'"),
    _rule(r"\bmachine code\b", "write 'native kernel'"),
    _rule(r"\bshort codes\b", "write 'PQ'"),
    _rule(r"\brounded at random\b", "write 'stochastic rounding'"),
    _rule(r"\bwithin reach\b", "write 'in the support' or 'can be sampled'"),
    _rule(r"\bproposals?\b(?! distribution)", "write 'sampler', or 'proposal distribution Q'"),
    _rule(r"\bmisclassification\b(?! prob)", "write 'sample weight'"),
    _rule(r"\b(num_)?draws\b", "write 'samples'"),
]
"""Patterns for prose: comments, docstrings, string literals, Markdown."""

OPENING = _rule(
    r"^(what|how|which|where|who|whose|when)\b", "begin with a noun phrase that names the module"
)
TEST_NAME = re.compile(
    r"^test_(what|where|who|how|which|of|whose)_|_(nobody|somebody|whoever|whatever|says|tells|told|"
    r"knows|goes_on|is_none|are_none|of_nothing|is_no|are_no)(_|$)"
)
FENCE = re.compile(r"^\s*(```|~~~)")


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) for each line of a file that a person reads as English."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from _python_prose(text)
    elif path.suffix == ".md":
        in_code = False
        for number, line in enumerate(text.splitlines(), 1):
            if FENCE.match(line):
                in_code = not in_code
            elif not in_code:
                yield number, re.sub(r"`[^`]*`", "", line)
    elif path.suffix == ".toml":
        for number, line in enumerate(text.splitlines(), 1):
            yield number, line.partition("#")[2]
    else:
        yield from enumerate(text.splitlines(), 1)


def _python_prose(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, re.sub(r"``[^`]*``", "", line)


def findings(path: Path) -> Iterator[str]:
    """Yield one message for each violation in a file."""
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    for number, line in prose(path):
        for rule in RULES:
            if match := rule.pattern.search(line):
                yield f"{name}:{number}: {match.group()!r}: {rule.advice}"
    if path.suffix != ".py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if OPENING.pattern.search(ast.get_docstring(tree) or ""):
        yield f"{name}:1: module docstring: {OPENING.advice}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and TEST_NAME.search(node.name):
            yield f"{name}:{node.lineno}: {node.name}: name it test_<what>_<condition>"


def files(paths: list[Path]) -> Iterator[Path]:
    """Yield the files to check: those given, or all that git tracks."""
    if paths:
        for path in paths:
            yield from (p for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())
        return
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    yield from (ROOT / name for name in listed if (ROOT / name).is_file())


def main() -> int:
    """Check the tree and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path)
    arguments = parser.parse_args()
    found = [
        message
        for path in files([path.resolve() for path in arguments.paths])
        if path.suffix in SUFFIXES
        and str(path).removeprefix(f"{ROOT}/") not in SKIPPED
        and "results" not in path.parts
        for message in findings(path)
    ]
    print("\n".join(found))
    print(f"{len(found)} findings")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
