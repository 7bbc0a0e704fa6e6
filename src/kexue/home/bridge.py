"""The bridge: sends commands to a projector, and reports its measured state.

    OFF --on--> TURNING_ON --probe--> ON          OFF, ON and UNKNOWN are measured, never assumed;
    ON --off--> TURNING_OFF --probe--> OFF        UNKNOWN: this machine has no network to probe over

To switch on, the bridge sends the wake-up signal and probes; if that fails and there is a plug, it cuts the power for a
while and probes again. To switch off, it sends the key three times, since datagrams get lost and none is acknowledged,
probes, and repeats both. A command for the current state does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from kexue.home.cloud import Cloud, Connection, Message, parse_command
from kexue.home.plug import PlugCycle
from kexue.home.projector import KEYS

_LOG = logging.getLogger(__name__)
_RANDOM = random.SystemRandom()  # jitter: not the global generator
_MINUTE = 60.0
ECHO = 2.0  # seconds within which the service may echo a report as a message
_COOLING = 60.0  # seconds after switching off in which the plug stays on, for the projector's fan
_STEADY = 30.0  # seconds after which a connection counts as good, and the pauses start from 1 s
_SENDS = 3  # copies of a datagram: all are lost with 0.3^3 = 2.7 % where 30 % get lost
_PROBES = 5  # probes between two rounds of sending


class BridgeState(StrEnum):
    """State of the projector as measured, or the transition under way."""

    OFF = "off"
    TURNING_ON = "turning_on"
    ON = "on"
    TURNING_OFF = "turning_off"
    UNKNOWN = "unknown"


class Outcome(NamedTuple):
    """Result of a command.

    Attributes:
        action: the last action: ``"wake"``, ``"plug"``, ``"poweroff"``, the name of a key, or ``"none"``.
        state: measured afterwards.
        reason: one phrase in words.
    """

    action: str
    state: BridgeState
    reason: str


class Device(Protocol):
    """A device that takes keys and can be probed."""

    async def send(self, key: str, *, repeat: int = 1) -> None:
        """Press a key by `repeat` datagrams."""
        ...

    async def is_on(self) -> bool:
        """Probe; OSError where the state cannot be determined."""
        ...


class Wake(Protocol):
    """A method to start a projector that is off."""

    async def wake(self) -> None:
        """Send the wake-up signal; OSError where it cannot be sent."""
        ...


class Bridge:
    """Sends the commands of a message service to a projector, and reports the measured state.

    The last command wins. A message counts only if its topic is exactly the service's and its text exactly one of
    `allow`; it is dropped when it repeats the previous one within `debounce`, is older than `max_age` or retained, or
    exceeds `rate_limit`.

    Args:
        cloud: `BemfaTcp`, `BemfaMqtt`, `LocalMqtt`; None to use `handle` alone.
        device: `XgimiUdp`.
        wake: `BleWake`, `HttpHook` or None. plug: a `PlugCycle` for when waking fails, or None.
        allow: permitted commands: ``"on"``, ``"off"`` and keys of `KEYS`.
        debounce: seconds, >= 0. opposite_delay: seconds between opposite transitions, >= 0.
        rate_limit: commands per minute, >= 1. max_age: seconds, > 0.
        on_timeout, off_timeout: seconds to wait for the projector to change its state, > 0.
        probe_interval: seconds between two probes, > 0. report_interval: seconds between two reports while idle, > 0.
        notify: called as ``notify(outcome, seconds)`` after every command, for a log.
        clock: monotonic seconds.

    Raises:
        ValueError: a name in `allow` that is not a command, or a duration out of range.
    """

    def __init__(
        self,
        cloud: Cloud | None,
        device: Device,
        *,
        wake: Wake | None = None,
        plug: PlugCycle | None = None,
        allow: Sequence[str] = ("on", "off"),
        debounce: float = 1.0,
        opposite_delay: float = 20.0,
        rate_limit: int = 10,
        max_age: float = 30.0,
        on_timeout: float = 60.0,
        off_timeout: float = 30.0,
        probe_interval: float = 1.0,
        report_interval: float = 60.0,
        notify: Callable[[Outcome, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        unknown = [name for name in allow if name not in ("on", "off") and name not in KEYS]
        if isinstance(allow, str) or unknown:
            raise ValueError(f"allow must list on, off or keys ({', '.join(KEYS)}), got {allow!r}")
        if debounce < 0 or opposite_delay < 0 or rate_limit < 1:
            got = f"{debounce=}, {opposite_delay=}, {rate_limit=}"
            raise ValueError(f"expected debounce >= 0, opposite_delay >= 0, rate_limit >= 1; got {got}")
        durations = (max_age, on_timeout, off_timeout, probe_interval, report_interval)
        if not min(durations) > 0:
            raise ValueError(f"max_age, timeouts and intervals must be > 0 seconds, got {durations}")
        self.state = BridgeState.UNKNOWN
        self.allow = tuple(allow)
        self._cloud, self._device, self._wake, self._plug = cloud, device, wake, plug
        self._debounce, self._opposite_delay = debounce, opposite_delay
        self._rate_limit, self._max_age = rate_limit, max_age
        self._on_timeout, self._off_timeout = on_timeout, off_timeout
        self._probe_interval, self._report_interval = probe_interval, report_interval
        self._notify, self._clock = notify, clock
        self._connection: Connection | None = None
        self._busy = asyncio.Lock()
        self._serial = 0  # number of the newest on or off; older ones are abandoned
        self._taken: deque[float] = deque(maxlen=rate_limit)  # times of the last commands
        self._last: tuple[str, float] = ("", -math.inf)  # the last on or off, and its time
        self._switched: tuple[str, float] = ("", -math.inf)  # the last transition, and the time of its end
        self._reported: tuple[str, float] = ("", -math.inf)

    # --- commands ----------------------------------------------------------------------------------------------------

    async def handle(self, command: str, *, at: float | None = None) -> Outcome:
        """Execute one command; returns once the projector has changed its state, or the timeout has passed.

        Args:
            command: one of `allow`; others are refused in the outcome, without an exception.
            at: time of the command on the bridge's clock; None means now.
        """
        start = self._clock()
        refusal = self._accept_or_refuse(command, start if at is None else at, start)
        if refusal is not None:
            outcome = Outcome("none", self.state, refusal)
        elif command in ("on", "off"):
            outcome = await self._switch_and_report(command)
        else:
            outcome = await self._press_key(command)
        _LOG.info("%s: %s (%s)", outcome.action, outcome.state, outcome.reason)
        if self._notify is not None:
            self._notify(outcome, self._clock() - start)
        return outcome

    def _accept_or_refuse(self, command: str, at: float, now: float) -> str | None:
        """Return why a command is refused; None for an accepted one, which is recorded as the last."""
        if command not in self.allow:
            return "not in the allow-list"
        if now - at > self._max_age:
            return f"older than {self._max_age:g} s"
        if command in ("on", "off"):
            previous, when = self._last
            if command == previous and now - when < self._debounce:
                return f"repeated within {self._debounce:g} s"
        if len(self._taken) == self._rate_limit and now - self._taken[0] < _MINUTE:
            return f"more than {self._rate_limit} commands a minute"
        self._taken.append(now)
        if command in ("on", "off"):
            self._last = (command, now)
        return None

    async def _press_key(self, key: str) -> Outcome:
        """Press one key."""
        try:
            await self._device.send(key)
        except OSError as error:
            return Outcome("none", self.state, f"not sent: {error}")
        return Outcome(key, self.state, "sent")

    async def _switch_and_report(self, command: str) -> Outcome:
        """Switch on or off, after any transition under way, and report."""
        self._serial += 1
        serial = self._serial
        async with self._busy:
            outcome = await self._switch(command, serial)
        await self._report()
        return outcome

    async def _switch(self, command: str, serial: int) -> Outcome:
        """Switch on or off, unless that is the state already or a later command has come."""
        if serial == self._serial and await self.measure() is BridgeState(command):
            return Outcome("none", self.state, f"already {command}")
        before, when = self._switched
        rest = when + self._opposite_delay - self._clock()
        if before not in ("", command) and rest > 0 and serial == self._serial:
            await asyncio.sleep(rest)
        if serial != self._serial:
            return Outcome("none", self.state, "a later command came")
        try:
            return await (self._turn_on(serial) if command == "on" else self._turn_off())
        finally:
            self._switched = (command, self._clock())
            if self.state in (BridgeState.TURNING_ON, BridgeState.TURNING_OFF):
                self.state = BridgeState.UNKNOWN

    async def _turn_off(self) -> Outcome:
        """Send the key and probe, in turn, until the projector is off."""
        self.state = BridgeState.TURNING_OFF
        start = self._clock()
        try:
            async with asyncio.timeout(self._off_timeout):
                while True:
                    await self._device.send("poweroff", repeat=_SENDS)  # eq. 1 of the page
                    if await self._wait_until(False, _PROBES):
                        break
        except TimeoutError:
            return Outcome("poweroff", await self.measure(), f"still on after {self._off_timeout:g} s")
        except OSError as error:
            return Outcome("poweroff", await self.measure(), f"cannot be reached: {error}")
        self.state = BridgeState.OFF
        return Outcome("poweroff", self.state, f"off after {self._clock() - start:.1f} s")

    async def _turn_on(self, serial: int) -> Outcome:
        """Wake the projector; then, where that fails, use the plug."""
        start = self._clock()
        if self._wake is None and self._plug is None:
            return Outcome("none", self.state, "no way to switch on: configure wake or plug")
        last = self._switched
        self.state = BridgeState.TURNING_ON
        action, reason = "none", ""
        if self._wake is not None:
            action, reason = "wake", await self._start_by("waking", self._wake.wake)
        if self.state is not BridgeState.ON and self._plug is not None:
            await self._wait_for_cooling(last)
            if serial != self._serial:
                return Outcome(action, await self.measure(), "a later command came")
            # Power is cut only where a probe has found the projector off.
            if await self.measure() is BridgeState.UNKNOWN:
                return Outcome(action, self.state, "the state cannot be measured, so the plug is not used")
            if self.state is BridgeState.OFF:
                self.state = BridgeState.TURNING_ON
                action, reason = "plug", await self._start_by("the plug", self._plug.cycle)
        if self.state is BridgeState.ON:
            return Outcome(action, self.state, f"on after {self._clock() - start:.1f} s")
        return Outcome(action, await self.measure(), reason)

    async def _start_by(self, what: str, start: Callable[[], Awaitable[object]]) -> str:
        """Start the projector by one method and wait; return the reason of a failure, or "" with the state ON."""
        try:
            await start()
            if await self._wait_until_on():
                return ""
        except Exception as error:  # of an object from the caller: it must not end the bridge
            return _failure_reason(what, error)
        return f"still off {self._on_timeout:g} s after {what}"

    async def _wait_for_cooling(self, last: tuple[str, float]) -> None:
        """Wait until the projector's fan has had its time after the last transition, if that was off."""
        command, when = last
        rest = when + _COOLING - self._clock()
        if command == "off" and rest > 0:
            await asyncio.sleep(rest)

    # --- measuring ---------------------------------------------------------------------------------------------------

    async def measure(self) -> BridgeState:
        """Probe now; return ON, OFF, or UNKNOWN where this machine has no network."""
        try:
            self.state = BridgeState.ON if await self._device.is_on() else BridgeState.OFF
        except OSError as error:
            _LOG.warning("cannot probe: %s", error)
            self.state = BridgeState.UNKNOWN
        return self.state

    async def _wait_until_on(self) -> bool:
        """Return whether the projector is on within `on_timeout`."""
        try:
            async with asyncio.timeout(self._on_timeout):
                await self._wait_until(True, None)
        except TimeoutError:
            return False
        self.state = BridgeState.ON
        return True

    async def _wait_until(self, on: bool, probes: int | None) -> bool:
        """Probe until the state is `on`; off needs two probes in a row, so that one lost packet does not count as off.

        Returns False after `probes` probes without success; None has no limit.
        """
        needed, streak, count = (1 if on else 2), 0, 0
        while probes is None or count < probes:
            if count:
                await asyncio.sleep(self._probe_interval)
            count += 1
            streak = streak + 1 if await self._device.is_on() == on else 0
            if streak == needed:
                return True
        return False

    # --- the service -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled; reconnect to a lost service after 1, 2, 4 ... 60 s, with jitter."""
        if self._cloud is None:
            raise ValueError("no message service is configured: give the bridge a cloud, or call handle")
        failures = 0
        async with asyncio.TaskGroup() as commands:
            while True:
                start, why = self._clock(), "closed"
                try:
                    async with self._cloud.connect() as connection, asyncio.TaskGroup() as group:
                        _LOG.info("connected to %r", self._cloud)
                        self._connection = connection
                        group.create_task(self._keep_reporting(connection))
                        group.create_task(self._listen(connection, commands))
                except* OSError as errors:
                    why = _first_message(errors)
                finally:
                    self._connection = None
                failures = 1 if self._clock() - start >= _STEADY else failures + 1
                pause = min(2.0 ** (failures - 1), self._cloud.retry_cap) * _RANDOM.uniform(0.75, 1.0)
                _LOG.warning("lost %r (%s); again in %.1f s", self._cloud, why, pause)
                await asyncio.sleep(pause)

    async def _listen(self, connection: Connection, commands: asyncio.TaskGroup) -> None:
        """Start a task for every command that arrives."""
        async for message in connection.messages():
            command = self.accept(message)
            if command is not None:
                commands.create_task(self.handle(command))
        raise ConnectionError("the service closed the connection")

    def accept(self, message: Message) -> str | None:
        """Return the command in a message; None for another topic, a retained or refused message, or an echo."""
        if self._cloud is not None and message.topic != self._cloud.topic:
            return None
        command = parse_command(message.payload, self.allow)
        if command is None:
            _LOG.info("ignored %d bytes that are not a command", len(message.payload))
            return None
        if message.retained:
            _LOG.info("ignored a retained command: its age is unknown")
            return None
        state, when = self._reported
        if command == state and self._clock() - when < ECHO:
            return None
        return command

    async def _keep_reporting(self, connection: Connection) -> None:
        """Measure and report while idle; a report that is not accepted ends the connection."""
        while True:
            if not self._busy.locked():
                async with self._busy:
                    await self.measure()
                await self._send_report(connection)
            await asyncio.sleep(self._report_interval)

    async def _report(self) -> None:
        """Report to the connected service, if any; a failure is logged."""
        if self._connection is not None:
            try:
                await self._send_report(self._connection)
            except OSError as error:
                _LOG.warning("not reported: %s", error)

    async def _send_report(self, connection: Connection) -> None:
        """Report a state that is measured, not a transition."""
        if self.state in (BridgeState.ON, BridgeState.OFF):
            self._reported = (self.state.value, self._clock())
            await connection.report(self.state.value)


def _failure_reason(what: str, error: Exception) -> str:
    """Return the reason of an outcome; errors other than OSError are logged with their traceback."""
    if not isinstance(error, OSError):
        _LOG.warning("%s failed", what, exc_info=error)
    return f"{what} failed: {str(error) or type(error).__name__}"


def _first_message(errors: BaseExceptionGroup[OSError]) -> str:
    """Return the message of the first error in a group."""
    error = errors.exceptions[0]
    return _first_message(error) if isinstance(error, BaseExceptionGroup) else str(error) or type(error).__name__
