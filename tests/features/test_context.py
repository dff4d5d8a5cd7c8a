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
    """Three users: interactions at hours 1, 3, 7; without any; at hours 2, 2."""
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
    """A feature that returns its column."""

    def encode(self, column):
        return column.to_list()


def seen(call):
    from candid.features import FeatureTable

    names = ("since", "time", "event_type", "last_event_type")
    table = FeatureTable({n: Spy() for n in names}, {n: n for n in names}, {"since": []})
    return call(Context(dataset(), table))


def test_context_has_the_time_of_the_interaction_and_the_gap_before_it():
    has_last = np.array([True, False, False, True, True])
    columns = seen(lambda context: context.at(np.array([2, 0, 3, 4, 1]), has_last))
    assert columns["since"] == [4 * 3600.0, None, None, 0.0, 2 * 3600.0]
    start = datetime.datetime(1970, 1, 1)
    assert columns["event_type"] == ["view", "buy", "buy", "buy", "view"]
    assert columns["last_event_type"] == ["view", None, None, "buy", "buy"]
    assert columns["time"] == [start + datetime.timedelta(hours=h) for h in (7, 1, 2, 2, 3)]


def test_negative_gap_is_null():
    # With an order column or roles, a later time may come first.
    frame = context_frame(np.array([HOUR]), np.array([2 * HOUR]), np.array([True]))
    assert frame["since"].to_list() == [None]


def test_context_features_are_fitted_on_training_targets():
    state = fit_context(CONFIGS, dataset()).state()
    assert state["gap"]["mean"] == pytest.approx(
        3600.0
    )  # of 2 hours and 0; the 4 hours of the test target do not count


def test_dataset_without_times_is_refused():
    with pytest.raises(ConfigError, match=r"name its column with data\.time"):
        fit_context(CONFIGS, dataset(timestamps=False))


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        (
            {"hour": "clock"},
            ConfigError,
            r"features\.context\.hour: .* no column 'hour'; its columns",
        ),
        (
            {"time": "number"},
            DataError,
            r"features\.context\.time, column 'time'",
        ),
    ],
)
def test_feature_that_cannot_be_fitted_is_named(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        fit_context(FeaturesConfig(context=settings).context, dataset())
