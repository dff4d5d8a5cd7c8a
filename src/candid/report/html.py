"""A report page: one self-contained HTML file, no script, nothing fetched.

A page is a list of blocks, each of which knows how to write itself. Every text is escaped;
the only markup that goes in as it is are the SVG figures that candid drew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from candid.atomic import replacing


class Block(Protocol):
    """A part of a page."""

    def render(self) -> str:
        """Return HTML."""
        ...


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str

    def render(self) -> str:
        """Return an ``h2``."""
        return f"<h2>{escape(self.text)}</h2>"


@dataclass(frozen=True)
class Paragraph:
    """Running text; ``code`` sets it as a command to copy."""

    text: str
    code: bool = False

    def render(self) -> str:
        """Return a ``p`` or a ``pre``."""
        text = escape(self.text)
        return f"<pre><code>{text}</code></pre>" if self.code else f"<p>{text}</p>"


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row.

    Attributes:
        columns: the head of each column.
        rows: cells as text, each row as long as ``columns``.
        caption: what the table shows, and in which units.
        emphasis: indices of rows to stress.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    emphasis: Sequence[int] = field(default=())

    def render(self) -> str:
        """Return a table in a box that scrolls sideways on narrow screens."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.columns)
        body = "".join(
            _row(row, is_stressed=index in self.emphasis) for index, row in enumerate(self.rows)
        )
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        return (
            f'<div class="scroll" tabindex="0"><table>{caption}<thead><tr>{head}</tr></thead>\n'
            f"<tbody>{body}</tbody></table></div>"
        )


def _row(row: Sequence[str], *, is_stressed: bool) -> str:
    name, *values = row
    opening = '<tr class="emphasis">' if is_stressed else "<tr>"
    cells = "".join(f"<td>{escape(value)}</td>" for value in values)
    return f'{opening}<th scope="row">{escape(name)}</th>{cells}</tr>\n'


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        svg: from ``candid.report.figures``; goes in as it is.
        caption: what it shows and how to read it.
        alt: the finding in words, for those who do not see the drawing.
    """

    svg: str
    caption: str
    alt: str

    def render(self) -> str:
        """Return a ``figure``."""
        return (
            f'<figure><div class="scroll" role="img" aria-label="{escape(self.alt)}">{self.svg}'
            f"</div><figcaption>{escape(self.caption)}</figcaption></figure>"
        )


def render_page(title: str, summary: str, blocks: Sequence[Block]) -> str:
    """Return the whole page.

    Args:
        title: heading of the page and of the browser's tab.
        summary: the finding, in a sentence or two.
        blocks: what follows, in order.
    """
    style = files("candid.report").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(block.render() for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="summary">{escape(summary)}</p>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def write_report(path: Path, title: str, summary: str, blocks: Sequence[Block]) -> None:
    """Write a page, atomically; see ``render_page``.

    Raises:
        ArtifactError: the file cannot be written.
    """
    page = render_page(title, summary, blocks)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
