"""The demo: models trained with each correction on synthetic data, compared with the oracle."""

from candid.demo.page import DemoReport, ModelResult
from candid.demo.run import DemoResult, run_demo

__all__ = ["DemoReport", "DemoResult", "ModelResult", "run_demo"]
