"""The main job on the embedded default: a comparison of corrections in a known world."""

from candid.demo.contest import DemoResult, run_demo
from candid.demo.page import Contestant, Demonstration

__all__ = ["Contestant", "DemoResult", "Demonstration", "run_demo"]
