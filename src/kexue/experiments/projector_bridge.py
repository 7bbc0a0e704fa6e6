"""kexue.fm/archives/9365: a voice assistant that controls a projector, by infrared and plug as in the article, or over
the network.

Measures: states of the article's chain, simulated; then, on loopback, the delay from a command of the network bridge to
a datagram and to a report, the share of commands "off" that succeed when datagrams get lost, the time to reconnect to a
restarted service, and actions outside the allow-list caused by invalid messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue.errors import MissingDependencyError
from kexue.experiments._broker import Broker, run_mosquitto
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report
from kexue.home import (
    BemfaTcp,
    Bridge,
    BridgeState,
    FakeBemfa,
    FakeProjector,
    LocalMqtt,
    Message,
    Outcome,
    Rehearsal,
    XgimiUdp,
    ir_plan,
    rehearse,
)
from kexue.home.irplan import IRStep

_UID, _TOPIC = "0" * 32, "projector006"
_LOSS = 0.3
_OF_THREE = 1 - _LOSS**3  # probability that one of three datagrams arrives
_SENDS = (1, 2, 3, 4, 5)
_OUTAGES = (0.0, 0.5, 1.0, 2.0, 3.0)
_PAUSE = 0.06  # between two commands; closer together, TCP itself holds small packets back for 40 ms
_EAGER: dict[str, Any] = {"debounce": 0.0, "opposite_delay": 0.0, "rate_limit": 10**6, "probe_interval": 0.005}


@experiment(
    "projector-bridge",
    claim="A speaker can switch a projector it does not know: off by infrared and a USB keyboard, on by a plug; and "
    "over the network with nothing but a small program.",
    effect=(
        "share of off commands that switch the projector off at 30 % packet loss {off_with_repeats}; "
        "actions not on the allow-list {actions_outside_the_list}"
    ),
    minutes=0.7,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Simulate the article's chain, then measure the bridge on loopback."""
    scale = {"smoke": 1, "small": 20, "full": 100}[budget]
    outages = _OUTAGES[:2] if budget == "smoke" else _OUTAGES
    notes = [
        "Network figures are of loopback: a home network adds its own delay and its own losses. Times are of this "
        "machine and decide nothing."
    ]
    measured = asyncio.run(_measure(scale, outages, seed, notes))
    figures = _figures(measured, scale, outages)
    return Report(
        _claims(measured, figures, outages), figures, notes=tuple(notes), draw=lambda figure: _draw(figure, measured)
    )


class _Measured(NamedTuple):
    """What the experiment measures.

    Attributes:
        blind: steps of the article's chain, simulated.
        latency: by service, seconds from "off" to the first datagram and from "on" to its report, for each command.
        reconnections: by service, seconds after a restart until a command was executed, for each outage.
        heard: by number of datagrams, share of `trials` presses of which at least one arrived.
        off: share of `off_trials` commands off after which the projector was off.
        fuzz: actions outside the allow-list, and payloads that are commands, of `payloads`.
        rehearsal: one played on loopback.
    """

    blind: list[IRStep]
    latency: dict[str, list[tuple[float, float]]]
    reconnections: dict[str, list[float]]
    heard: dict[int, float]
    trials: int
    off: float
    off_trials: int
    fuzz: tuple[int, int]
    payloads: int
    rehearsal: Rehearsal


async def _measure(scale: int, outages: Sequence[float], seed: int, notes: list[str]) -> _Measured:
    """Measure everything; `scale` times the smallest number of trials."""
    latency = {"Bemfa, TCP": await _latency_bemfa(3 * scale)}
    reconnections = {"Bemfa, TCP": list(await asyncio.gather(*(_reconnect_bemfa(outage) for outage in outages)))}
    try:
        async with run_mosquitto() as broker:
            latency["MQTT, mosquitto"] = await _latency_mqtt(broker, 3 * scale)
        reconnections["MQTT, mosquitto"] = list(await asyncio.gather(*(_reconnect_mqtt(o) for o in outages)))
    except (FileNotFoundError, MissingDependencyError) as missing:
        notes.append(f"MQTT was left out: {missing}")
    return _Measured(
        blind=ir_plan().simulate(["power", "on", "volumeup", "off", "on", "on"]),
        latency=latency,
        reconnections=reconnections,
        heard={sends: await _share_heard(sends, 200 * scale, seed + sends) for sends in _SENDS},
        trials=200 * scale,
        off=await _share_off(10 * scale, seed),
        off_trials=10 * scale,
        fuzz=await _fuzz(5_000 * scale, seed),
        payloads=5_000 * scale,
        rehearsal=await rehearse(loss=_LOSS, seed=seed + 1),
    )


# ---- figures and claims --------------------------------------------------------------------------------------------


def _figures(m: _Measured, scale: int, outages: Sequence[float]) -> dict[str, Figure]:
    to_datagram = np.array([first for pairs in m.latency.values() for first, _ in pairs])
    to_report = np.array([last for pairs in m.latency.values() for _, last in pairs])
    resumed = [seconds for times in m.reconnections.values() for seconds in times]
    restarts, asked = len(m.reconnections) * len(outages), 3 * scale * len(m.latency)
    outside, commands = m.fuzz
    return {
        "started_by_keyboard": Figure(float(m.blind[0].on), expected=0, source="article"),
        "power_cut_while_on": Figure(float(bool(m.blind[-1].warning)), expected=1, source="computed"),
        "command_to_datagram_median": Figure(1e3 * float(np.median(to_datagram)), unit="ms", n=len(to_datagram)),
        "command_to_datagram_p99": Figure(1e3 * float(np.quantile(to_datagram, 0.99)), unit="ms", n=len(to_datagram)),
        "command_to_report_p99": Figure(1e3 * float(np.quantile(to_report, 0.99)), unit="ms", n=len(to_report)),
        "heard_of_three": Figure(m.heard[3], n=m.trials, expected=_OF_THREE, source="computed"),
        "off_with_repeats": Figure(m.off, n=m.off_trials),
        "commands": Figure(asked, unit="commands"),
        "commands_reported": Figure(len(to_report), unit="commands", expected=asked, source="computed"),
        "outages_survived": Figure(len(resumed), unit="outages", expected=restarts, source="computed"),
        "slowest_reconnection": Figure(max(resumed), unit="s", n=len(resumed)),
        "payloads": Figure(float(m.payloads)),
        "payloads_that_are_commands": Figure(float(commands), n=m.payloads),
        "actions_outside_the_list": Figure(float(outside), n=m.payloads, expected=0, source="computed"),
    }


def _claims(m: _Measured, figures: Mapping[str, Figure], outages: Sequence[float]) -> tuple[Claim, ...]:
    def value(name: str) -> float:
        return figures[name].value

    error = float(np.sqrt(_OF_THREE * (1 - _OF_THREE) / m.trials))
    return (
        Claim.check(
            "The article's chain switches off by a key press and on by the plug only; it hears nothing back, so "
            "switching on what is on cuts its power.",
            [step.on for step in m.blind] == [False, True, True, False, True, True] and bool(m.blind[-1].warning),
            rule="states of the simulated chain after power, on, volumeup, off, on, on as the article describes them",
            figures=["started_by_keyboard", "power_cut_while_on"],
        ),
        Claim.check(
            "Every command becomes a datagram, and then a report of the state that was measured.",
            value("commands_reported") == value("commands"),
            rule="commands off and on, one at a time over loopback: as many datagrams and reports as commands",
            figures=["commands", "commands_reported"],
        ),
        Claim.check(
            "With 30 % of the datagrams lost, one of three gets through in 97.3 % of the cases, and a bridge that "
            "looks and repeats switches off in more than 97 %.",
            abs(m.heard[3] - _OF_THREE) < 4 * error and m.off >= 0.97,
            rule="share heard within 4 standard errors of 1 - 0.3^3; share of commands off that end with off >= 0.97",
            figures=["heard_of_three", "off_with_repeats"],
        ),
        Claim.check(
            "After a restart of the service the bridge takes commands again.",
            value("outages_survived") == figures["outages_survived"].expected,
            rule="a command is carried out after each outage of "
            f"{', '.join(f'{outage:g}' for outage in outages)} s; a bridge that does not come back ends the run",
            figures=["outages_survived"],
        ),
        Claim.check(
            f"Of {m.payloads:,} payloads made to slip through, none causes an action outside the allow-list.",
            m.fuzz[0] == 0 and m.fuzz[1] > 0,
            rule="every action of the device is on, off or an allowed key, and is caused by a payload of the grammar",
            figures=["payloads", "payloads_that_are_commands", "actions_outside_the_list"],
        ),
    )


def _draw(figure: Any, m: _Measured) -> None:
    """A rehearsal over time, delays, and losses against datagrams."""
    grid = figure.add_gridspec(2, 2, height_ratios=[3, 4])
    _draw_rehearsal(figure.add_subplot(grid[0, :]), m.rehearsal)
    times = figure.add_subplot(grid[1, 0])
    for name, pairs in m.latency.items():
        for column, (style, what) in enumerate((("-", "first datagram"), ("--", "report of on"))):
            ordered = 1e3 * np.sort([pair[column] for pair in pairs])
            times.plot(ordered, np.arange(1, len(ordered) + 1) / len(ordered), style, label=f"{name}: {what}")
    times.set_xscale("log")
    times.set_xlim(0.4, 500)
    times.set_xlabel("time after the command, ms")
    times.set_ylabel("share of commands")
    times.legend(fontsize=7, loc="lower right")
    share = figure.add_subplot(grid[1, 1])
    share.semilogy(_SENDS, [_LOSS**n for n in _SENDS], color="0.6", label="$0.3^n$")
    share.semilogy(
        _SENDS, [1 - m.heard[n] for n in _SENDS], "o", color="tab:blue", label=f"measured, {m.trials:,} each"
    )
    share.axhline(0.03, color="tab:red", linewidth=1, linestyle=":", label="3 %")
    share.set_xticks(_SENDS)
    share.set_xlabel("datagrams for one command, 30 % lost")
    share.set_ylabel("share not heard")
    share.legend(fontsize=8)


def _draw_rehearsal(axes: Any, rehearsal: Rehearsal) -> None:
    """States and datagrams of a rehearsal."""
    end = max(step.at + step.seconds for step in rehearsal.steps) + 0.3
    level, since = 0.0, 0.0
    for step in rehearsal.steps:
        axes.annotate(f"“{step.said}”", (step.at, 1.2), fontsize=9, ha="left", va="bottom")
        axes.plot([step.at] * 2, [-0.5, 1.1], color="0.75", linewidth=1)
        if step.outcome.action in ("wake", "poweroff"):
            axes.plot([since, step.at], [level] * 2, color="tab:green", linewidth=3)
            since, after = step.at + step.seconds, float(step.outcome.state is BridgeState.ON)
            axes.plot([step.at, since], [level, after], color="tab:orange", linewidth=3)
            level = after
    axes.plot([since, end], [level] * 2, color="tab:green", linewidth=3)
    axes.plot(rehearsal.datagrams, [-0.35] * len(rehearsal.datagrams), "v", color="tab:blue", markersize=5)
    axes.set_yticks([-0.35, 0, 1], ["datagrams", "off", "on"])
    axes.set_ylim(-0.55, 1.6)
    axes.set_xlim(-0.1, end + 0.4)
    axes.set_ylabel("power")
    axes.set_xlabel(f"time, s; orange: switching, green: measured; datagrams lost: {rehearsal.lost}")
    axes.grid(visible=False)


# --- run a bridge ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _run_bridge(cloud: Any, projector: FakeProjector) -> AsyncIterator[asyncio.Queue[Outcome]]:
    """A bridge that runs inside ``async with``; its outcomes."""
    outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
    device = XgimiUdp(projector.host, port=projector.port, probe_port=projector.probe_port, gap=0.001)
    bridge = Bridge(
        cloud, device, wake=projector, notify=lambda outcome, _seconds: outcomes.put_nowait(outcome), **_EAGER
    )
    running = asyncio.create_task(bridge.run())
    try:
        yield outcomes
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def _latency(
    say: Callable[[str], Awaitable[None]],
    wait_for_report: Callable[[str], Awaitable[None]],
    projector: FakeProjector,
    outcomes: asyncio.Queue[Outcome],
    n: int,
) -> list[tuple[float, float]]:
    """Seconds from "off" to the first datagram, and from "on" to its report, for n commands each."""
    pairs = []
    for _ in range(n):
        await asyncio.sleep(_PAUSE)
        start = time.perf_counter()
        await say("on")
        await wait_for_report("on")
        to_report = time.perf_counter() - start
        await outcomes.get()
        before = len(projector.pressed)
        await asyncio.sleep(_PAUSE)
        start = time.perf_counter()
        await say("off")
        await outcomes.get()
        await wait_for_report("off")
        pairs.append((projector.pressed[before].at - start, to_report))
    return pairs


async def _latency_bemfa(n: int) -> list[tuple[float, float]]:
    """`_latency` over the fake Bemfa cloud."""
    async with FakeBemfa() as cloud, FakeProjector() as projector:

        async def wait_for_report(state: str) -> None:
            while (await cloud.reports.get())[1] != state:
                pass

        async with _run_bridge(BemfaTcp(_UID, _TOPIC, host=cloud.host, port=cloud.port), projector) as outcomes:
            await wait_for_report("off")
            return await _latency(lambda text: cloud.say(_TOPIC, text), wait_for_report, projector, outcomes, n)


async def _latency_mqtt(broker: Broker, n: int) -> list[tuple[float, float]]:
    """`_latency` over a broker."""
    import aiomqtt

    service = LocalMqtt("127.0.0.1", "home/projector", port=broker.port)
    async with aiomqtt.Client("127.0.0.1", broker.port) as client, FakeProjector() as projector:
        await client.subscribe("home/projector/state", qos=1)

        async def wait_for_report(state: str) -> None:
            while (await anext(client.messages)).payload != state.encode():
                pass

        async def say(text: str) -> None:
            await client.publish("home/projector", text, qos=0)

        async with _run_bridge(service, projector) as outcomes:
            await wait_for_report("off")
            return await _latency(say, wait_for_report, projector, outcomes, n)


# --- restarts --------------------------------------------------------------------------------------------------------


async def _reconnect_bemfa(outage: float) -> float:
    """Seconds from the restart of the fake cloud to the first executed command."""
    async with FakeBemfa() as cloud, FakeProjector() as projector:
        service = BemfaTcp(_UID, _TOPIC, host=cloud.host, port=cloud.port)
        async with _run_bridge(service, projector) as outcomes:
            await cloud.wait_for_subscriber()
            await cloud.stop()
            await asyncio.sleep(outage)
            await cloud.start()
            start = time.perf_counter()
            await cloud.wait_for_subscriber()
            await cloud.say(_TOPIC, "on")
            await outcomes.get()
            return time.perf_counter() - start


async def _reconnect_mqtt(outage: float) -> float:
    """Seconds from the restart of a broker to the first executed command."""
    import aiomqtt

    async with run_mosquitto() as broker, FakeProjector() as projector:
        service = LocalMqtt("127.0.0.1", "home/projector", port=broker.port)
        async with _run_bridge(service, projector) as outcomes:
            for again in (False, True):
                if again:
                    await asyncio.to_thread(broker.stop)
                    await asyncio.sleep(outage)
                    await asyncio.to_thread(broker.start)
                start = time.perf_counter()
                async with aiomqtt.Client("127.0.0.1", broker.port) as client:
                    await client.subscribe("home/projector/state", qos=1)
                    await anext(client.messages)  # the bridge has wait_for_report: it is there
                    if again:
                        await client.publish("home/projector", "on", qos=1)
                        await outcomes.get()
            return time.perf_counter() - start


# --- losses and invalid payloads -------------------------------------------------------------------------------------


async def _share_heard(sends: int, trials: int, seed: int) -> float:
    """The share of presses, `sends` datagrams each, of which at least one arrives."""
    async with FakeProjector(_LOSS, seed=seed) as projector:
        device = XgimiUdp(projector.host, port=projector.port, probe_port=projector.probe_port, gap=0.0)
        heard = 0
        for trial in range(1, trials + 1):
            before = len(projector.pressed)
            await device.send("ok", repeat=sends)
            while len(projector.pressed) + projector.lost < trial * sends:
                await asyncio.sleep(0)
            heard += len(projector.pressed) > before
        return heard / trials


async def _share_off(trials: int, seed: int) -> float:
    """The share of commands off, through the whole bridge, after which the projector is off and known to be."""

    async def once(number: int) -> bool:
        async with FakeProjector(_LOSS, on=True, seed=seed + number) as projector:
            device = XgimiUdp(projector.host, port=projector.port, probe_port=projector.probe_port, gap=0.001)
            outcome = await Bridge(None, device, **_EAGER).handle("off")
            return outcome.state is BridgeState.OFF and not projector.on

    return float(np.mean([await once(number) for number in range(trials)]))


class _Recorder:
    """A device that records its actions; also used as a cloud service that does nothing."""

    topic, retry_cap = _TOPIC, 1.0

    def __init__(self) -> None:
        self.actions: list[str] = []
        self.on = False

    async def send(self, key: str, *, repeat: int = 1) -> None:
        self.actions.append(key)
        self.on = self.on and key != "poweroff"

    async def is_on(self) -> bool:
        return self.on

    async def wake(self) -> None:
        self.actions.append("wake")
        self.on = True

    def connect(self) -> Any:
        raise NotImplementedError


async def _fuzz(n: int, seed: int) -> tuple[int, int]:
    """Actions outside the allow-list or without a command, and the number of payloads that are commands."""
    allow = ("on", "off", "volumeup")
    device = _Recorder()
    bridge = Bridge(device, device, wake=device, allow=allow, **_EAGER | {"probe_interval": 1e-6})
    outside = commands = 0
    for payload in _payloads(np.random.default_rng(seed), n):
        device.actions.clear()
        command = bridge.accept(Message(_TOPIC, payload))
        if command is not None:
            commands += 1
            await bridge.handle(command)
            # The grammar again, written differently: a name of the list, then only # and digits.
            name, *digits = payload.decode().strip(" \t\r\n").split("#")
            outside += name not in allow or not all(part.isascii() and part.isdigit() for part in digits)
        expected = {"on": {"wake"}, "off": {"poweroff"}, "volumeup": {"volumeup"}, None: set()}[command]
        outside += not set(device.actions) <= expected
    return outside, commands


def _payloads(generator: np.random.Generator, n: int) -> list[bytes]:
    """Random bytes, words that resemble commands, and commands, most of them with one byte changed."""
    whole = ["on", "off", "volumeup", "power", "poweroff", "home", "ON", "Off", "on\0", "on;", "KEYPRESSES:30"]
    shell = ["$(reboot)", "`id`", "|sh", "&&", "../../etc/passwd", "{0.__class__}", "%n", '"', "'", "{'action':20000}"]
    signs = [
        "#",
        "##",
        "#80",
        "#1#2",
        "#\u0661",
        "\u200bon",
        "\uff4fn",
        " ",
        "\r\n",
        "\t",
        "\xa0",
        "\u3000",
        "cmd=2&msg=on",
    ]
    words = whole + shell + signs
    payloads = []
    for kind in generator.integers(3, size=n):
        if kind == 0:
            payloads.append(generator.bytes(int(generator.integers(1, 80))))
        elif kind == 1:
            payloads.append("".join(generator.choice(words, size=generator.integers(1, 5))).encode())
        else:
            text = bytearray((b"on", b"off#100", b"volumeup")[int(generator.integers(3))])
            if generator.random() < 0.9:
                text[int(generator.integers(len(text)))] = int(generator.integers(256))
            payloads.append(bytes(text))
    return payloads
