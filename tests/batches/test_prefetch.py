"""Prefetching: order, errors at their step, no thread left running."""

import threading

import pytest

from candid.batches import prefetch


def test_prefetch_raises_the_error_of_a_step_at_that_step():
    def make(step):
        if step == 3:
            raise ValueError("step 3 is broken")
        return step

    stream = prefetch(make, range(9), num_workers=2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="step 3"):
        next(stream)


def test_leaving_early_stops_the_workers():
    stream = prefetch(lambda step: step, range(1000), num_workers=3)
    next(stream)
    stream.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("candid-loader")]
