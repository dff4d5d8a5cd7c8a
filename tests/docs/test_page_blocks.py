"""Replacement of the generated blocks of a page."""

import pytest

PAGE = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n<!-- x y -->\nkept\n<!-- /x y -->\n"


@pytest.fixture(scope="module")
def with_block(benchmark_script):
    return benchmark_script("page_blocks").with_block


def test_only_the_named_block_is_replaced(with_block):
    expected = "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n<!-- x y -->\nkept\n<!-- /x y -->\n"
    assert with_block(PAGE, "x", "new\n") == expected
    assert with_block(expected, "x", "new\n") == expected


def test_backslashes_and_braces_are_literal(with_block):
    block = r"\1 \g<0> \n {} {name}" + "\n"
    assert with_block(PAGE, "x", block) == PAGE.replace("old\n", block)


def test_empty_block_is_filled_and_emptied(with_block):
    empty = PAGE.replace("old\n", "")
    assert with_block(PAGE, "x", "") == empty
    assert with_block(empty, "x", "old\n") == PAGE


@pytest.mark.parametrize(
    ("page", "mark", "count"),
    [
        ("<!-- /x -->\n", "<!-- x -->", 0),
        ("<!-- x -->\n", "<!-- /x -->", 0),
        (2 * "<!-- x -->\n<!-- /x -->\n", "<!-- x -->", 2),
        ("<!-- x -->\n" + 2 * "<!-- /x -->\n", "<!-- /x -->", 2),
    ],
)
def test_missing_or_repeated_mark_is_named(with_block, page, mark, count):
    with pytest.raises(ValueError, match=f"the page has the line '{mark}' {count} times"):
        with_block(page, "x", "new\n")


def test_marks_in_the_wrong_order_are_named(with_block):
    with pytest.raises(ValueError, match="'<!-- /x -->' before '<!-- x -->'"):
        with_block("<!-- /x -->\n<!-- x -->\n", "x", "new\n")
