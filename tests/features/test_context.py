import datetime

import numpy as np
import polars as pl
import pytest

from candid.batches import offsets_of
from candid.data import PreparedDataset, Role
from candid.errors import ConfigError, DataError
from candid.features import Context, FeaturesConfig, fit_context
from candid.features.context import context_frame

HOUR = 3_600_000_000
CONFIGS = FeaturesConfig(
    context={"gap": {"type": "number", "column": "since"}, "time": "clock"}
).context


def dataset(timestamps=True):
    """Three users: asked at hours 1, 3, 7; nobody; at hours 2, 2."""
    times = np.array([1, 3, 7, 2, 2]) * HOUR
    return PreparedDataset(
        item_ids=np.array([0, 1, 2, 0, 1], dtype=np.int32),
        user_offsets=offsets_of(np.array([3, 0, 2])),
        roles=np.array([Role.TRAIN, Role.TRAIN, Role.TEST, Role.TRAIN, Role.TRAIN], dtype=np.uint8),
        users=pl.DataFrame({"source_id": [0, 1, 2]}),
        items=pl.DataFrame({"source_id": [0, 1, 2]}),
        timestamps=times if timestamps else None,
        event_types=np.array([0, 1, 1, 0, 0], dtype=np.uint8),
        event_type_names=("buy", "view"),
    )


class Spy:
    """A feature that hands back the column it was given."""

    def encode(self, column):
        return column.to_list()


def seen(call):
    from candid.features import FeatureTable

    names = ("since", "time", "event_type", "last_event_type")
    table = FeatureTable({n: Spy() for n in names}, {n: n for n in names}, {"since": []})
    return call(Context(dataset(), table))


def test_the_moment_is_that_of_the_interaction_and_the_gap_that_to_the_one_before():
    found = seen(lambda context: context.at(np.array([2, 0, 3, 4, 1])))
    assert found["since"] == [4 * 3600.0, None, None, 0.0, 2 * 3600.0]
    start = datetime.datetime(1970, 1, 1)
    assert found["event_type"] == ["view", "buy", "buy", "buy", "view"]
    assert found["last_event_type"] == ["view", None, None, "buy", "buy"]
    assert found["time"] == [start + datetime.timedelta(hours=h) for h in (7, 1, 2, 2, 3)]


def test_time_that_runs_backwards_is_no_gap():
    # An order of its own (a column, roles) may put a later moment first.
    frame = context_frame(np.array([HOUR]), np.array([2 * HOUR]), np.array([True]))
    assert frame["since"].to_list() == [None]


def test_scales_are_learnt_from_what_is_trained_on():
    state = fit_context(CONFIGS, dataset()).state()
    assert state["gap"]["mean"] == pytest.approx(3600.0)  # of 2 hours and 0; the test's 4 not


def test_without_times_there_is_no_context():
    with pytest.raises(ConfigError, match=r"name their time with data\.time"):
        fit_context(CONFIGS, dataset(timestamps=False))


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"hour": "clock"}, ConfigError, r"features\.context\.hour: .* no column 'hour'; it has"),
        (
            {"time": "number"},
            DataError,
            r"features\.context\.time, column 'time'",
        ),
    ],
)
def test_a_feature_that_cannot_be_is_named(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        fit_context(FeaturesConfig(context=settings).context, dataset())
