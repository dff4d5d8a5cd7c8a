from __future__ import annotations

from html.parser import HTMLParser

import pytest

from candid.report import Figure, Heading, Paragraph, Table, render_page, write_report

HOSTILE = "<script>alert(\"1\")</script> & 'more'"
VOID = {"meta", "br", "link", "img"}


class Reader(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not match."""

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


def test_every_text_is_escaped_and_comes_back_whole():
    reader = read(render_page(HOSTILE, HOSTILE, everything()))
    assert "script" not in reader.tags
    places = [tag for tag, text in reader.texts if text == HOSTILE]
    expected = "title h1 p h2 p code caption th th td figcaption".split()  # noqa: SIM905
    assert places == expected
    assert ("aria-label", HOSTILE) in reader.attributes


def test_the_page_stands_alone():
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


def test_a_table_keeps_its_shape():
    table = Table(["run", "x", "y"], [["a", "1", "2"], ["b", "3", "4"]], emphasis=[1])
    reader = read(table.render())
    assert reader.tags.count("tr") == 3
    assert [text for tag, text in reader.texts if tag == "td"] == ["1", "2", "3", "4"]
    assert [value for name, value in reader.attributes if name == "class"] == ["scroll", "emphasis"]


def test_writing_is_atomic(tmp_path):
    path = tmp_path / "new" / "report.html"
    write_report(path, "A", "B", everything())
    assert path.read_text(encoding="utf-8") == render_page("A", "B", everything())
    with pytest.raises(AttributeError):
        write_report(path, "C", "D", [None])
    assert "<h1>A</h1>" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
