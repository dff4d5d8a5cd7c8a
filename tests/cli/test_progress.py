"""The progress bar of training on terminals of several widths."""

import io

import pytest
from rich.console import Console as RichConsole

from candid.cli.console import Console
from candid.cli.progress import TrainProgress, stage_progress, training_bar
from candid.training import TrainState

METRICS = {
    "loss": 8.1536,
    "sample_weight": 0.98765,
    "rows_per_second": 52_975.2,
    "effective_sample_size": 1234.5,
}


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    """Use a terminal type on which bars can redraw."""
    monkeypatch.setenv("TERM", "xterm")


def shown(width, state=None):
    """The last state of the bar, as text."""
    screen = RichConsole(file=io.StringIO(), width=width, force_terminal=True)
    bar = training_bar(screen)
    progress = TrainProgress(Console(json=False, quiet=False), bar)
    if state is not None:
        progress.on_step(state, METRICS)
    with screen.capture() as captured:
        screen.print(bar.get_renderable())
    return captured.get()


@pytest.mark.parametrize(
    ("width", "there", "absent"),
    [
        (80, ["1,234/10,000 steps", "loss 8.1536"], ["sample weight"]),
        (100, ["loss 8.1536  52,975 rows/s"], ["effective"]),
        (
            160,
            ["8.1536  52,975 rows/s  sample weight 0.988  effective sample size 1,234"],
            [],
        ),
    ],
)
def test_bar_fits_the_terminal_without_truncation(width, there, absent):
    text = shown(width, TrainState(step=1234, total_steps=10_000))
    assert "…" not in text
    assert "━" in text
    assert text.count("\n") == 1
    for words in there:
        assert words in text
    for words in absent:
        assert words not in text


def test_bar_before_the_first_step():
    text = shown(80)
    assert "starting" in text
    assert "None" not in text


def test_start_prints_what_an_epoch_trains_on(capsys):
    TrainProgress(Console(json=False, quiet=False), None).on_start("an epoch trains on 8 of 12")
    assert capsys.readouterr().err == "an epoch trains on 8 of 12\n"


def test_validation_prints_a_line_with_the_metric(capsys):
    progress = TrainProgress(Console(json=False, quiet=False), None)
    state = TrainState(epoch=3, seconds=12.0, metric="ndcg@10", best=0.25, best_epoch=3)
    progress.on_validation(state, {"popularity@1": 70.0, "ndcg@10": 0.25})
    line = capsys.readouterr().err.split()
    assert line == ["epoch", "3", "validation", "ndcg@10", "0.2500", "(best)", "12", "s"]


def test_validation_within_an_epoch_prints_its_step(capsys):
    progress = TrainProgress(Console(json=False, quiet=False), None, by_steps=True)
    state = TrainState(step=1200, epoch=3, metric="ndcg@10", best=0.25)
    progress.on_validation(state, {"ndcg@10": 0.25})
    assert capsys.readouterr().err.startswith("epoch 3, step 1,200  validation ndcg@10 0.2500")


def test_validation_of_a_sample_prints_its_standard_error(capsys):
    progress = TrainProgress(Console(json=False, quiet=False), None)
    state = TrainState(epoch=3, seconds=12.0, metric="ndcg@10", best=0.25, stale=1)
    progress.on_validation(state, {"ndcg@10": 0.24, "standard_error": 0.00312})
    line = capsys.readouterr().err
    assert line.split("  ")[1] == "validation ndcg@10 0.2400 ± 0.0031"


def test_stage_progress_is_shown_on_a_terminal_only(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    with stage_progress(Console(json=False, quiet=False)) as report:
        report("encoding items", 5, 10)
        report("encoding items", 10, 10)
        report("scoring users", 1, 3)
    assert "encoding items" in screen.getvalue()
    assert "10/10" in screen.getvalue()
    assert "1/3" in screen.getvalue()
    for silent in (Console(json=True, quiet=False), Console(json=False, quiet=True)):
        with stage_progress(silent) as report:
            assert report is None
