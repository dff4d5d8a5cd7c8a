"""The layout of report pages in Chromium: they fit wide and narrow screens."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from candid.audit import (
    AuditCase,
    AuditInput,
    Drift,
    DriftSampling,
    SamplingBudget,
    audit,
    estimators_for,
    sampler_config,
)
from candid.demo import DemoReport, ModelResult, RegimeReport
from candid.demo.page import write_page
from candid.demo.prediction import Prediction
from candid.demo.regimes import ESTIMATORS, REGIMES, objectives
from candid.evaluation import (
    Comparison,
    Difference,
    Estimate,
    EvaluationReport,
    ReportComparison,
    SliceDifferences,
)
from candid.index import BENCHMARKED_INDEXES, ExactIndex, IndexBenchmark, Measurement
from candid.report import Curve
from candid.report.audit_page import write_audit_page
from candid.report.compare_page import write_compare_page
from candid.report.index_page import write_index_page
from candid.report.study_page import write_study_page
from candid.study import StudyCells, summarize

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt-get install --no-install-recommends chromium"
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
WIDTHS = (1200, 400)


def write_audit(path):
    generator = torch.Generator().manual_seed(0)
    inputs = [
        AuditInput(
            name=name,
            query=torch.randn(4, 3, generator=generator),
            item_vectors=torch.randn(200, 3, generator=generator),
            positive_ids=torch.arange(4),
            user_ids=torch.arange(4),
            counts=torch.arange(1, 201),
            training_positive_ids=torch.arange(200),
            training_user_ids=torch.arange(200) // 3,
        )
        for name in ("untrained, same recipe", "films-with-a-long-name (trained)")
    ]
    rest = {"type": "uniform", "num_candidates": 4}
    samplers = {
        "popularity": {"type": "popularity", "num_candidates": 32},
        "in_batch": {"type": "in_batch"},
        "exact_popular + uniform": {"type": "exact_popular", "num_exact": 4, "rest": rest},
        "mixture of popularity, uniform": {"type": "mixture", "components": [rest, rest]},
    }
    cases = []
    for name, settings in samplers.items():
        config = sampler_config(settings)
        cases.append(
            AuditCase(
                name,
                config,
                num_candidates=1_024,
                estimators=estimators_for(config),
                is_recipe=name == "in_batch",
            )
        )
    report = audit(
        inputs,
        cases,
        sampling=SamplingBudget(repeats=8),
        drift=DriftSampling(repeats=16),
        cost_rows=8,
    )
    write_audit_page(path, report)


def write_index(path):
    benchmarks = [
        IndexBenchmark(
            name=name,
            config=config.model_copy(update={"oversample": 12.0, "num_probes": 1234}),
            index=ExactIndex(torch.ones(10, 4)),
            measurement=Measurement(0.9 + 0.001 * number, 0.01, 123_456.0 / (number + 1), 12.25),
            trials=[({"num_probes": 1234, "oversample": 12.0}, Measurement(0.5, 0.01, 9e5))],
            k=100,
            target_recall=0.905,
            num_queries=1000,
            build_seconds=1234.5,
            index_bytes=3_000_000_000,
            vector_bytes=160,
        )
        for number, (name, config) in enumerate(BENCHMARKED_INDEXES.items())
    ]
    note = "the index 'usearch' needs USearch, which is not installed; run pip install 'candid-re…'"
    write_index_page(path, benchmarks, [note])


def write_demo(path):
    estimate = Estimate(0.1234, 0.1200, 0.1268)
    names = ("ndcg@10", "recall@10", "nll", "excess_nll", "popularity@10", "coverage@10")
    metrics = dict.fromkeys(names, estimate)
    evaluation = EvaluationReport(metrics, "ndcg@10", {}, {}, {}, per_user=None)
    curve = Curve([1e-6, 1e-3], [1e-5, 1e-3])
    over_full = Estimate(0.25, 0.2, 0.3)
    models = [
        ModelResult(
            objective,
            evaluation,
            np.arange(100),
            over_full,
            curve,
            train_seconds=123.0,
        )
        for objective in objectives((16, 256))
    ]
    models.append(ModelResult(None, evaluation, np.arange(100)))
    drift = Drift(by_user=torch.tensor([0.1, 0.12]), by_user_error=torch.ones(2), block_error=0.01)
    drifts = {(n, one): drift for n in (16, 256) for one in ESTIMATORS}
    prediction = Prediction(0.3, (8.0, 18.0, 50.0), (1.0, 2.0, 3.0), drifts)
    regimes = [RegimeReport(regime, {}, prediction, models) for regime in REGIMES]
    report = DemoReport(regimes, (16, 256), epochs=12, seconds=90.0)
    write_page(path, report, path.parent / "a-folder-with-a-long-name" / "interactions.parquet")


def write_comparison(path):
    names = ("runs/default", "runs/a-folder-with-a-long-name", "runs/gated-residual", "runs/bce")
    estimate = Estimate(0.1234, 0.12, 0.1268)
    settings = {"role": "test", "confidence": 0.95}
    metrics = dict.fromkeys(("ndcg@10", "recall@10", "nll"), estimate)
    report = EvaluationReport(metrics, "ndcg@10", {}, {"users": 6040}, settings, per_user=None)
    difference = Comparison("ndcg@10", -0.0123, -0.0211, -0.0035, 0.001, 123_456)
    groups = tuple(
        SliceDifferences(
            f"{number}/10 (count {number} to 1234)",
            12_345,
            dict.fromkeys(names, estimate),
            dict.fromkeys(names[1:], difference),
        )
        for number in range(1, 11)
    )
    comparison = ReportComparison(
        dict.fromkeys(names, report),
        tuple(metrics),
        {metric: dict.fromkeys(names[1:], Difference(difference, 0.003)) for metric in metrics},
        {"target_popularity": groups, "history_length": groups},
    )
    differing = {"model.query_tower.feed_forward": dict.fromkeys(names, '"swiglu"')}
    write_compare_page(path, comparison, differing, ["runs/bce is measured on other users"])


def write_study(path, planted_studies):
    arm = planted_studies.PlantedArm
    arms = {
        "published_code": arm(ndcg=-0.25, nll=10.0, drift=None, cpu_seconds=12_345),
        "logq_kept": arm(drift=None),
        "refined_random_fourier": arm(failed=(0,)),
    }
    folder = path.parent / "study"
    folder.mkdir()
    name = "a-dataset-with-a-long-name"
    points = {("popularity", 1024): arms}
    planted_studies.PlantedStudy(points, users=20, seeds=2, dataset=name).write(folder)
    cells = StudyCells(folder)
    write_study_page(path, "corrections", cells, summarize(cells))


WRITERS = {
    "audit": write_audit,
    "compare": write_comparison,
    "demo": write_demo,
    "index": write_index,
    "study": write_study,
}


@pytest.fixture(scope="module", params=WRITERS)
def page_file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / f"{request.param}.html"
    more = [request.getfixturevalue("planted_studies")] if request.param == "study" else []
    WRITERS[request.param](path, *more)
    return path


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def page(request, browser, page_file):
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.goto(page_file.as_uri())
    yield page
    page.close()


def test_page_is_not_wider_than_the_screen(page):
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_tables_fit_without_scrolling(page):
    widths = page.eval_on_selector_all(
        ".scroll:has(table)", "boxes => boxes.map(box => [box.scrollWidth, box.clientWidth])"
    )
    assert widths
    assert all(content <= box for content, box in widths)


def test_text_is_at_least_twelve_pixels(page):
    sizes = page.eval_on_selector_all(
        "p, td, th, figcaption, code",
        "nodes => nodes.map(node => parseFloat(getComputedStyle(node).fontSize))",
    )
    assert min(sizes) >= 12


def test_cells_of_a_narrow_screen_have_labels(browser, page_file):
    page = browser.new_page(viewport={"width": 400, "height": 900})
    page.goto(page_file.as_uri())
    labels = page.eval_on_selector_all(
        "td", "cells => cells.map(cell => getComputedStyle(cell, '::before').content)"
    )
    page.close()
    assert labels
    assert "none" not in labels
