"""The page on losses in other loops: its code runs, its excerpts are those of the examples."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "losses.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
EXCERPTS = {
    block.split("\n")[0].removeprefix("# "): block.split("\n", 1)[1]
    for block in BLOCKS
    if block.startswith("# examples/")
}


def test_excerpts_are_in_the_examples():
    assert len(EXCERPTS) == 4
    for path, excerpt in EXCERPTS.items():
        assert excerpt in (ROOT / path).read_text(), f"docs/losses.md differs from {path}"


def test_code_of_the_page_runs(capsys):
    torch.manual_seed(0)
    names = {"__name__": "drop_in"}
    for block in BLOCKS:
        if not block.startswith("# examples/"):
            exec(compile(block, "docs/losses.md", "exec"), names)
    assert names["losses"].shape == (32,)
    assert bool(torch.isfinite(names["losses"]).all())
    effective = float(re.search(r"tensor\(([\d.]+)", capsys.readouterr().out).group(1))
    assert 1 < effective <= 512
