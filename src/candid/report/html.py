"""Report pages: one self-contained HTML file without scripts and external resources.

A page is a list of blocks that render themselves. All text is escaped; only the SVG figures of
``candid.report.figures`` are inserted unchanged. Pages fit wide and narrow screens: on narrow ones
each row of a table becomes a card, and figures scroll in their own box (``page.css``).
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
    """A paragraph of text, or with ``code`` a block of commands."""

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
        caption: content and units of the table.
        emphasis: indices of highlighted rows.
        text_columns: indices of columns with words, which are aligned to the left.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    emphasis: Sequence[int] = field(default=())
    text_columns: Sequence[int] = field(default=())

    def render(self) -> str:
        """Return a table in a box that scrolls sideways, with its caption above the box."""
        head = "".join(
            f'<th scope="col"{self._class_of(index)}>{escape(name)}</th>'
            for index, name in enumerate(self.columns)
        )
        body = "".join(
            self._render_row(row, is_emphasized=index in self.emphasis)
            for index, row in enumerate(self.rows)
        )
        caption = f'<p class="caption">{escape(self.caption)}</p>' if self.caption else ""
        return (
            f'{caption}<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
            f"<tbody>{body}</tbody></table></div>"
        )

    def _render_row(self, row: Sequence[str], *, is_emphasized: bool) -> str:
        name, *values = row
        opening = '<tr class="emphasis">' if is_emphasized else "<tr>"
        cells = "".join(
            f'<td{self._class_of(index)} data-label="{escape(self.columns[index])}">'
            f"{escape(value)}</td>"
            for index, value in enumerate(values, start=1)
        )
        return f'{opening}<th scope="row">{escape(name)}</th>{cells}</tr>\n'

    def _class_of(self, column: int) -> str:
        return ' class="text"' if column in self.text_columns else ""


@dataclass(frozen=True)
class Figure:
    """A figure with its caption.

    Attributes:
        svg: from ``candid.report.figures``; inserted unchanged.
        caption: content of the figure and how to read it.
        alt: the result in words, for screen readers.
    """

    svg: str
    caption: str
    alt: str

    def render(self) -> str:
        """Return a ``figure``."""
        return (
            f'<figure><div class="scroll" role="img" tabindex="0" aria-label="{escape(self.alt)}">'
            f"{self.svg}</div><figcaption>{escape(self.caption)}</figcaption></figure>"
        )


def render_page(title: str, summary: str, blocks: Sequence[Block]) -> str:
    """Return the whole page.

    Args:
        title: heading of the page and of the browser tab.
        summary: the result, in a sentence or two.
        blocks: the content, in order.
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


def write_report(path: Path | str, title: str, summary: str, blocks: Sequence[Block]) -> None:
    """Write a page, atomically.

    Args:
        path: of the HTML file.
        title: heading of the page and of the browser tab.
        summary: the result, in a sentence or two.
        blocks: the content, in order.

    Raises:
        ArtifactError: the file cannot be written.

    Example:
        >>> blocks = [Heading("Quality"), Table(["run", "ndcg@10"], [["default", "0.18"]])]
        >>> write_report("report.html", "Films", "One run.", blocks)  # doctest: +SKIP
    """
    page = render_page(title, summary, blocks)
    with replacing(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8")
