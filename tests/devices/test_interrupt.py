"""Signals as exceptions."""

import asyncio
import os
import signal

import pytest

from cifar_jax.devices.interrupt import Interrupted, interruptible


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_raised_where_it_arrives(signum):
    with interruptible() as interrupt, pytest.raises(Interrupted) as raised:
        os.kill(os.getpid(), signum)
    assert raised.value.signum == interrupt.signum == signum


def test_an_event_loop_does_not_print_it_and_go_on():
    complaints = []

    async def work():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: complaints.append(context))
        loop.call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)

    with interruptible() as interrupt:
        asyncio.run(work())
        with pytest.raises(Interrupted):
            interrupt.check()
    assert not complaints
