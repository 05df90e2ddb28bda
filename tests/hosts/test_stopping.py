"""Signals, taken down as wishes."""

from __future__ import annotations

import os
import signal

import pytest

from fedbias_plugin.errors import Stopped
from fedbias_plugin.hosts.builtin import stopping
from fedbias_plugin.hosts.builtin.stopping import StopSignals


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """A test run in the background, or under nohup, is started with some of them ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_granted_at_the_next_check_that_nothing_holds(number):
    with StopSignals() as stop:
        stop.check()
        send(number)
        with stop.held():
            stop.check()
        with pytest.raises(Stopped) as stopped:
            stop.check()
    assert (stopped.value.signal_number, stopped.value.at_once) == (number, False)


def test_a_second_signal_stops_at_once_unless_it_is_the_echo_of_the_first(monkeypatch):
    with StopSignals():
        send(signal.SIGINT)
        send(signal.SIGINT)
        monkeypatch.setattr(stopping, "SAME_WISH", -1.0)
        with pytest.raises(Stopped) as stopped:
            send(signal.SIGTERM)
    assert (stopped.value.signal_number, stopped.value.at_once) == (signal.SIGTERM, True)


def test_outside_the_handlers_are_what_they_were_and_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        ctrl_c = signal.getsignal(signal.SIGINT)
        with StopSignals() as stop:
            assert signal.getsignal(signal.SIGINT) != ctrl_c
            send(signal.SIGTERM)
            stop.check()
        assert signal.getsignal(signal.SIGINT) == ctrl_c
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
