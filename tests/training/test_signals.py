import os
import signal

import pytest

from eqcohvit.training.signals import StopRequested, StopSignals


def test_next_batches_gives_batches_and_ends_when_asked(capfd):
    batches = iter(range(100))
    with StopSignals() as stop:
        assert stop.next_batches(batches, 2) == [0, 1]
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.name == "SIGUSR1" and stop.next_batches(batches, 2) is None
    assert "SIGUSR1: finishing the step and saving" in capfd.readouterr().err


def test_interruptible_raises_inside_only_and_former_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        with pytest.raises(StopRequested), stop.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("not reached")
        with pytest.raises(StopRequested), stop.interruptible():  # also when the signal has come before
            raise AssertionError("not reached")
    assert signal.getsignal(signal.SIGTERM) is before
    assert not issubclass(StopRequested, Exception)  # which the decoding of broken images survives
