"""The blocks of a docs page that a script generates, between two marks.

<!-- loader -->
the block
<!-- /loader -->
"""

from __future__ import annotations


def with_block(content: str, name: str, block: str) -> str:
    """Return the content of a page with the text between two marks replaced.

    Args:
        content: the page.
        name: of the marks ``<!-- name -->``, followed by a line break, and ``<!-- /name -->``.
        block: the new text, taken literally; it ends with a line break.

    Raises:
        ValueError: a mark is missing or repeated.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    for mark in (begin, end):
        if (count := content.count(mark)) != 1:
            raise ValueError(
                f"the page has the line {mark.strip()!r} {count} times; write it once, where the "
                f"generated block {name!r} {'begins' if mark == begin else 'ends'}"
            )
    before, rest = content.split(begin)
    if end not in rest:
        raise ValueError(f"the page has {end!r} before {begin.strip()!r}; swap them")
    return f"{before}{begin}{block}{end}{rest.split(end)[1]}"
