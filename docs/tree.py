"""The file tree in docs/architecture.md: one line for each module, the first line of its docstring.

python docs/tree.py
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BLOCK = re.compile(r"(?<=<!-- tree -->\n)```text\n.*?```(?=\n<!-- /tree -->)", re.DOTALL)


def tree(folder: Path, depth: int = 0) -> Iterator[str]:
    """Yield the lines of a package: its modules, then its packages."""
    indent = "  " * depth
    yield f"{indent}{folder.name}/"
    for path in sorted(folder.glob("*.py")):
        meaning = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        yield f"{indent}  {path.name:<{30 - 2 * depth}}{meaning.rstrip('.')}".rstrip()
    for path in sorted(p for p in folder.iterdir() if (p / "__init__.py").exists()):
        yield from tree(path, depth + 1)


def block() -> str:
    """Return the fenced block as the page should have it."""
    return "```text\n" + "\n".join(tree(ROOT / "src" / "candid")) + "\n```"


if __name__ == "__main__":
    content = PAGE.read_text()
    assert BLOCK.search(content), f"{PAGE} has no <!-- tree --> block"
    PAGE.write_text(BLOCK.sub(lambda _: block(), content))
