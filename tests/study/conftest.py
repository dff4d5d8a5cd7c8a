"""Fixtures of the tests of studies."""

import pytest


@pytest.fixture(scope="session")
def planted_study(planted_studies):
    return planted_studies.PlantedStudy


@pytest.fixture(scope="session")
def planted_arm(planted_studies):
    return planted_studies.PlantedArm
