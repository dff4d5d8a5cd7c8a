"""Sentences about drift and gradient bias in the study, against its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from candid.audit.drift_sampling import MAX_USERS, MIN_USERS, SUMS
from candid.study import StudySummary
from candid.study.statistics import rank_correlation

ROOT = Path(__file__).parents[2]
CATALOGS = ROOT / "benchmarks" / "results" / "study_data.json"
SESSIONS = "retailrocket"
SYNTHETIC = "synthetic-80k"
BEAUTY = "amazon-beauty"


def words(path):
    return " ".join((ROOT / path).read_text().split())


@pytest.fixture(scope="module")
def page():
    return words("docs/study.md")


def claim(study, name):
    """The verdict on a claim."""
    (found,) = (one for one in study["summary"]["claims"] if one["name"] == name)
    return found


@pytest.fixture(scope="module")
def drifts(published_study):
    """The cells with a drift, by dataset, n and arm."""
    rows = StudySummary.from_json(published_study["summary"]).drifts
    return {(one.point.dataset, one.point.num_candidates, one.arm): one for one in rows}


@pytest.fixture(scope="module")
def measured(published_study, drifts):
    """The mean drift of these cells, also where it is below twice its error."""
    rows = StudySummary.from_json(published_study["summary"]).rows
    means = {(row.point.dataset, row.point.num_candidates, row.arm): row.drift for row in rows}
    return {key: means[key] for key in drifts}


def correlation(drifts, values):
    return rank_correlation(
        [values[key] for key in drifts],
        [one.excess for one in drifts.values()],
        groups=[key[0] for key in drifts],
    )


def predicted(study, place):
    """The difference of refined and logq_kept in words: "NLL +3.940, predicted +0.053 ± 0.057"."""
    dataset, n = place
    (found,) = (
        one["detail"]
        for one in claim(study, "C2")["findings"]
        if one["label"].startswith(f"{dataset}, ")
        and one["label"].endswith(f"n = {n}, against logq_kept")
    )
    return found


def test_drift_and_gradient_bias_are_correlated_with_the_excess(
    page, drifts, measured, published_study, short
):
    zeros = correlation(drifts, {key: one.drift for key, one in drifts.items()})
    bias = correlation(drifts, {key: one.gradient_bias for key, one in drifts.items()})
    means = correlation(drifts, measured)
    assert (
        f"rank correlation with the excess NLL {zeros} of drift"
        in claim(published_study, "C5")["reason"]
    )

    def interval(one):
        return f"{short(one.value, 2)} ({short(one.low, 2)} to {short(one.high, 2)})"

    assert f"The verdict on C5 takes the zeros: {interval(zeros)} for the drift" in page
    assert f"{interval(bias)} for the gradient bias" in page
    assert f"measured means it is {interval(means)} for the drift" in page
    sources = [key[0].removesuffix("-positives") for key in drifts]
    excess = [one.excess for one in drifts.values()]
    one_source = rank_correlation(list(measured.values()), excess, groups=sources)
    low, high = short(one_source.low, 2), short(one_source.high, 2)
    assert f"and ({low} to {high}) if the two MovieLens catalogs count as one" in page
    assert one_source.high < 0.9
    start = f"over 72 cells is {short(zeros.value, 2)}, or {short(means.value, 2)} if drifts"
    assert len(drifts) == 72
    assert start in page
    assert f"given the positive is {short(bias.value, 2)}" in page
    assert max(zeros.high, bias.high, means.high) < 0.9
    assert means.low < bias.value < means.high
    within = []
    for place in dict.fromkeys(key[:2] for key in drifts):
        of_place = {key: one for key, one in drifts.items() if key[:2] == place}
        excess = [one.excess for one in of_place.values()]
        within.append(rank_correlation([measured[key] for key in of_place], excess).value)
        assert len(of_place) == 6
    low, high = short(min(within), 2), short(max(within), 2)
    assert f"rank correlation of the six arms is {low} to {high} with the measured" in page


def test_zeros_of_the_drift_are_described(page, drifts, measured, short):
    zeros = [key for key, one in drifts.items() if one.drift == 0]
    of_logq = [key for key in zeros if key[2] in ("logq_kept", "logq_distinct")]
    others = [key for key in zeros if key[2] in ("refined", "published_code")]
    assert f"{len(zeros)} of the 72 drifts are written as 0. {len(of_logq)} of them are" in page
    assert f"{len(others)} are of `refined` and `published_code`" in page
    shown = [
        (BEAUTY, 16, "refined", "is .38 (excess .57)"),
        (BEAUTY, 16, "published_code", "2.43 (excess .79)"),
        (SESSIONS, 16, "published_code", "is .45 (excess 7.4)"),
    ]
    for *key, text in shown:
        one, drift = drifts[tuple(key)], measured[tuple(key)]
        assert text in page
        assert one.drift == 0
        digits = 1 if one.excess > 1 else 2
        expected = f"{short(drift, 2)} (excess {short(one.excess, digits)})"
        assert text.endswith(expected)
    high = [drifts[SYNTHETIC, n, "none"] for n in (16, 256)]
    assert "{:.0f} and {:.0f} nats on `synthetic-80k`".format(*(one.drift for one in high)) in page
    (excess,) = {f"{one.excess:.1f}" for one in high}
    assert f"on `synthetic-80k`, where the excess is {excess}." in page
    kept = max(one.excess for key, one in drifts.items() if key[2] == "logq_kept")
    assert f"whose drift is 0 in theory, is up to {short(kept, 1)} nats" in page


def test_predicted_differences_are_those_of_the_tests(page, published_study):
    assert predicted(published_study, (BEAUTY, 16)) == "NLL +0.423, predicted +0.373 ± 0.226"
    assert "is +.373 ± .226 nats, the measured one +.423" in page
    assert predicted(published_study, (SESSIONS, 16)) == "NLL +3.940, predicted +0.053 ± 0.057"
    assert predicted(published_study, (SESSIONS, 256)) == "NLL +1.035, predicted +0.162 ± 0.063"
    assert ".05 ± .06 nats at n = 16 and .16 ± .06 at n = 256, the measured one 3.9 and 1.0" in page


def test_few_users_of_the_drift_are_stated(page):
    catalogs = json.loads(CATALOGS.read_text())["datasets"]
    users = {
        name: max(MIN_USERS, min(MAX_USERS, SUMS // one["softmax_items"]))
        for name, one in catalogs.items()
    }
    few = [name for name, number in users.items() if number == MIN_USERS]
    assert few == [BEAUTY, SESSIONS, SYNTHETIC]
    assert set(users.values()) == {MIN_USERS, MAX_USERS}
    start = "Drift, chi2 and gradient bias of `amazon-beauty`, `retailrocket` and `synthetic-80k`"
    end = f"come from {MIN_USERS} users, those of the other catalogs from {MAX_USERS}"
    assert f"{start} {end}" in page
    assert f"(#drift-and-excess-nll) come from {MIN_USERS} users" in page
    assert SUMS // 30_000 == MIN_USERS
    guide = words("docs/guides/audit.md")
    assert f"30,000 items or more has {MIN_USERS} users by default" in guide
