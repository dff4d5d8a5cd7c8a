"""The demo: models trained with each correction on synthetic data, compared with the oracle."""

from candid.demo.regimes import Regime
from candid.demo.report import DemoReport, ModelResult, RegimeReport
from candid.demo.run import DemoResult, run_demo

__all__ = ["DemoReport", "DemoResult", "ModelResult", "Regime", "RegimeReport", "run_demo"]
