"""Fixtures of the tests of docs, and the marker ``docs`` on each of these tests."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_configure(config):
    config.addinivalue_line("markers", "docs: compares docs with results, or runs their code")


def pytest_collection_modifyitems(items):
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.docs)
