"""The page of the demo where no prediction differs from 0."""

import numpy as np
import torch

from candid.audit import Drift
from candid.demo import DemoReport, ModelResult, RegimeReport
from candid.demo.page import write_page
from candid.demo.prediction import Prediction
from candid.demo.regimes import ESTIMATORS, REGIMES, objectives
from candid.evaluation import Estimate, EvaluationReport
from candid.report import Curve


def test_page_has_no_scatter_where_every_prediction_is_zero(tmp_path):
    metrics = dict.fromkeys(("ndcg@10", "excess_nll", "popularity@10"), Estimate(0.1, 0.05, 0.15))
    evaluation = EvaluationReport(metrics, "ndcg@10", {}, {}, {}, per_user=None)
    curve = Curve([1e-6, 1e-3], [1e-5, 1e-3])
    models = [
        ModelResult(one, evaluation, np.arange(20), Estimate(0.01, 0.0, 0.02), curve)
        for one in objectives((16,))
    ]
    models.append(ModelResult(None, evaluation, np.arange(20)))
    drift = Drift(by_user=torch.tensor([-0.1, 0.1]), by_user_error=torch.ones(2), block_error=0.1)
    prediction = Prediction(
        0.3, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0), {(16, e): drift for e in ESTIMATORS}
    )
    report = DemoReport([RegimeReport(REGIMES[0], {}, prediction, models)], (16,), 1, 1.0)
    write_page(tmp_path / "report.html", report, tmp_path / "interactions.parquet")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "Predicted and measured" in page
