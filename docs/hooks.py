"""Pages of the site that are generated from other files, as a hook of MkDocs.

The changelog, the recipes, the keys of a recipe and the notebooks have one source each; the hook
turns them into Markdown when the site is built, so that no copy can go stale.
"""

from __future__ import annotations

import base64
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "docs" / "notebooks"
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and figures to the files of the site."""
    from mkdocs.structure.files import File

    for path, content in generated():
        files.append(File.generated(config, path, content=content))
    return files


def generated() -> Iterator[tuple[str, str | bytes]]:
    """Yield (path below docs, content) of each generated file."""
    yield "changelog.md", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    yield "reference/recipes.md", recipes_page()
    yield "reference/keys.md", keys_page()
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        page, figures = notebook_page(path)
        yield f"notebooks/{path.stem}.md", page
        yield from figures.items()


def recipes_page() -> str:
    """Return the page of the recipes: the comment at the top of each, its figures and its text."""
    parts = [
        "# Recipes",
        "The folder `recipes/` of the repository holds recipes that run as they are. They find "
        "their data below the folder that the environment variable `CANDID_DATA` names. Figures "
        "are means over seeds, measured with the command given beside them.",
    ]
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        body = next(i for i, line in enumerate(lines) if not line.startswith("#"))
        comment = [line[1:].strip() for line in lines[:body] if not line.startswith("#:")]
        figures = [line[2:].strip() for line in lines[:body] if line.startswith("#:")]
        command = f"candid train recipes/{path.name}"
        summary = " ".join(line for line in comment if line and line != command)
        parts += [f"## {tomllib.loads(text)['name']}", summary, f"```sh\n{command}\n```"]
        if figures:
            figures[0] = re.sub(r"Measured by (.*)$", r"Measured by `\1`:", figures[0])
            parts.append(figures[0] + "\n\n" + "\n".join(f"- {line}" for line in figures[1:]))
        recipe = "\n".join(lines[body:]).strip()
        parts.append(f"```toml\n{recipe}\n```")
    return "\n\n".join(parts) + "\n"


def keys_page() -> str:
    """Return the page of all keys of a recipe, from the descriptions in the config classes."""
    from candid.config import RunConfig, describe

    parts = [
        "# Recipe keys",
        "Every key of a recipe, with its type, default and meaning. `--set KEY=VALUE` overrides "
        "one on the command line. A section that holds a component (`sampler`, `loss`, `index`, a "
        "tower, a feature) takes `type` and the keys of that type. `NAME` stands for a name that "
        "the recipe chooses.",
    ]
    section = None
    for key in describe(RunConfig):
        head = key.key.split(".")[0] if "." in key.key else "name"
        if head != section:
            section = head
            parts.append(f"\n## {'Top level' if head == 'name' else f'[{head}]'}\n")
        owner = f" (only `{key.component}`)" if key.component else ""
        default = "required" if key.default == "required" else f"default `{key.default}`"
        meaning = key.meaning.replace("<", "&lt;").replace("*", r"\*")
        parts.append(f"- **`{key.key}`**{owner}: {meaning}. *{key.type}*; {default}.")
    return "\n".join(parts) + "\n"


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook with its outputs as Markdown, and its figures by path below docs."""
    parts: list[str] = []
    figures: dict[str, bytes] = {}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"notebooks/{path.stem}_{number}.png"
                figures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![figure of the cell above]({Path(name).name})")
                continue
            text = "".join(output.get("text", data.get("text/plain", "")))
            if text.strip():
                parts.append(f"```text\n{ESCAPES.sub('', text).rstrip()}\n```")
    parts.insert(1, f"*A notebook: `docs/notebooks/{path.name}` in the repository.*")
    return "\n\n".join(parts) + "\n", figures
