"""The clean stop on a signal, alone and in nested blocks."""

import os
import signal

import pytest

from candid.training.stop_signal import stop_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_sets_the_event_and_the_handlers_return(number):
    before = signal.getsignal(number)
    with stop_signal() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
    assert signal.getsignal(number) is before


def test_second_interrupt_ends_the_block_at_once():
    with stop_signal():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signal_in_an_inner_block_is_not_lost():
    with stop_signal() as outer:
        with stop_signal() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.is_set()
        assert outer.is_set()
        with stop_signal() as later:
            assert later.is_set()
    with stop_signal() as fresh:
        assert not fresh.is_set()
