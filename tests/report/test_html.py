"""Report pages as HTML: escaped, self-contained, and written atomically."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from candid.report import Figure, Heading, Paragraph, Table, render_page, write_report

HOSTILE = "<script>alert(\"1\")</script> & 'more'"
VOID = {"meta", "br", "link", "img"}


class Reader(HTMLParser):
    """A parser that collects tags, attributes and text and fails on unmatched tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def everything() -> list:
    return [
        Heading(HOSTILE),
        Paragraph(HOSTILE),
        Paragraph(HOSTILE, code=True),
        Table(["run", HOSTILE], [["none", "0.1"], [HOSTILE, HOSTILE]], HOSTILE, [1]),
        Figure("<svg><g></g></svg>", HOSTILE, HOSTILE),
    ]


def test_every_text_is_escaped():
    reader = read(render_page(HOSTILE, HOSTILE, everything()))
    assert "script" not in reader.tags
    tags = [tag for tag, text in reader.texts if text == HOSTILE]
    expected = "title h1 p h2 p code p th th td figcaption".split()  # noqa: SIM905
    assert tags == expected
    assert ("data-label", HOSTILE) in reader.attributes
    assert ("aria-label", HOSTILE) in reader.attributes


def test_page_has_no_external_resources():
    page = render_page("A", "B", everything())
    reader = read(page)
    assert not {"link", "img", "iframe", "script"} & set(reader.tags)
    assert not {"src", "href"} & {name for name, _ in reader.attributes}
    style = "".join(text for tag, text in reader.texts if tag == "style")
    assert "prefers-color-scheme: dark" in style
    assert "url(" not in style
    assert "@import" not in style
    assert ("name", "viewport") in reader.attributes
    assert ("lang", "en") in reader.attributes


def test_table_has_its_rows_cells_and_classes():
    table = Table(
        ["run", "x", "y"], [["a", "1", "2"], ["b", "3", "4"]], emphasis=[1], text_columns=[2]
    )
    reader = read(table.render())
    assert reader.tags.count("tr") == 3
    assert [text for tag, text in reader.texts if tag == "td"] == ["1", "2", "3", "4"]
    classes = [value for name, value in reader.attributes if name == "class"]
    assert classes == ["scroll", "text", "text", "emphasis", "text"]
    labels = [value for name, value in reader.attributes if name == "data-label"]
    assert labels == ["x", "y", "x", "y"]


def test_write_report_is_atomic(tmp_path):
    path = tmp_path / "new" / "report.html"
    write_report(path, "A", "B", everything())
    assert path.read_text(encoding="utf-8") == render_page("A", "B", everything())
    with pytest.raises(AttributeError):
        write_report(path, "C", "D", [None])
    assert "<h1>A</h1>" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
