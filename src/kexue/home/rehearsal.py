"""Simulation on this machine: a simulated cloud sends commands to a real bridge with a simulated projector."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from kexue.home.bemfa import BemfaTcp
from kexue.home.bridge import ECHO, Bridge, Outcome
from kexue.home.cloud import parse_command
from kexue.home.fakes import FakeBemfa, FakeProjector
from kexue.home.projector import XgimiUdp

_TOPIC = "projector006"
_UID = "0" * 32
_TIMEOUT = 60.0
_COMMANDS = ("on", "on", "on; reboot", "off")


class Rehearsed(NamedTuple):
    """One command of a simulation.

    Attributes:
        said: text from the cloud.
        at: seconds since the start.
        outcome: outcome of the bridge.
        seconds: time from the command to the outcome.
    """

    said: str
    at: float
    outcome: Outcome
    seconds: float


class Rehearsal(NamedTuple):
    """A finished simulation: commands, arrival times of datagrams (seconds since the start), number of lost ones."""

    steps: list[Rehearsed]
    datagrams: list[float]
    lost: int


async def rehearse(*, loss: float = 0.0, seed: int | None = None) -> Rehearsal:
    """Simulate on, on again, an invalid command, and off; takes about four seconds.

    Args:
        loss: probability that a datagram to the projector gets lost.
        seed: seed of the random losses; None: a random one.
    """
    outcomes: asyncio.Queue[tuple[Outcome, float]] = asyncio.Queue()
    steps: list[Rehearsed] = []
    async with FakeBemfa() as cloud, FakeProjector(loss, boot=0.4, shutdown=0.3, seed=seed) as projector:
        device = XgimiUdp(projector.host, port=projector.port, probe_port=projector.probe_port, gap=0.05)
        bridge = Bridge(
            BemfaTcp(_UID, _TOPIC, host=cloud.host, port=cloud.port),
            device,
            wake=projector,
            opposite_delay=0.5,
            probe_interval=0.1,
            notify=lambda outcome, seconds: outcomes.put_nowait((outcome, seconds)),
        )
        running = asyncio.create_task(bridge.run())
        try:
            async with asyncio.timeout(_TIMEOUT):
                await cloud.wait_for_subscriber()
                start = time.perf_counter()
                for text in _COMMANDS:
                    at = time.perf_counter() - start
                    await cloud.say(_TOPIC, text)
                    if parse_command(text.encode()) is None:
                        steps.append(Rehearsed(text, at, Outcome("none", bridge.state, "no command"), 0.0))
                        await asyncio.sleep(0.6)
                        continue
                    outcome, seconds = await outcomes.get()
                    steps.append(Rehearsed(text, at, outcome, seconds))
                    await asyncio.sleep(ECHO + 0.1 if outcome.action == "wake" else 0.6)
        finally:
            running.cancel()
            await asyncio.wait([running])
    return Rehearsal(steps, [press.at - start for press in projector.pressed], projector.lost)
