"""From "turn the projector on" to a projector that is on, and back to a report of what was measured.

    OFF --on--> TURNING_ON --probe--> ON          OFF, ON and UNKNOWN are measured, never assumed;
    ON --off--> TURNING_OFF --probe--> OFF        UNKNOWN: this machine has no network to ask over

On: wake over Bluetooth, probe; then, if there is a plug, power off and on, probe. Off: the key three times, since
datagrams get lost and none is acknowledged, then probe and repeat. Asking for the state there is does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from kexue.home.cloud import Cloud, Message, Session, parse_command
from kexue.home.plug import PlugCycle
from kexue.home.projector import KEYS

_LOG = logging.getLogger(__name__)
_RANDOM = random.SystemRandom()  # jitter: not the global generator
_MINUTE = 60.0
ECHO = 2.0  # seconds in which the own report may come back as a message
_COOLING = 60.0  # seconds after it went off in which the plug leaves a projector's fan alone
_STEADY = 30.0  # seconds after which a connection counts as good, and the pauses start small again
_SENDS = 3  # of one datagram: 0.3^3 = 2.7 % when 30 % get lost
_PROBES = 5  # between two rounds of sending


class BridgeState(StrEnum):
    """What the projector is doing, as far as can be told."""

    OFF = "off"
    TURNING_ON = "turning_on"
    ON = "on"
    TURNING_OFF = "turning_off"
    UNKNOWN = "unknown"


class Outcome(NamedTuple):
    """What came of a command.

    Attributes:
        action: the last thing done: ``"wake"``, ``"plug"``, ``"poweroff"``, the name of a key, or ``"none"``.
        state: measured afterwards.
        reason: one phrase for people.
    """

    action: str
    state: BridgeState
    reason: str


class Device(Protocol):
    """What is switched."""

    async def send(self, key: str, *, repeat: int = 1) -> None:
        """Press a key."""
        ...

    async def is_on(self) -> bool:
        """Probe; OSError when nothing can be said."""
        ...


class Wake(Protocol):
    """What starts a projector that is off."""

    async def wake(self) -> None:
        """Try it; OSError when that cannot work now."""
        ...


class Bridge:
    """Carry commands from a message service to a projector, and its measured state back.

    The last command wins. A message counts only if its topic is exactly the service's and its text exactly one of
    `allow`; it is dropped when it repeats the previous one within `debounce`, is older than `max_age` or retained, or
    is one too many for this minute.

    Args:
        cloud: `BemfaTcp`, `BemfaMqtt`, `LocalMqtt`; None to use `handle` alone.
        device: `XgimiUdp`.
        wake: `BleWake` or an `HttpHook`; None: not this way. plug: a `PlugCycle`, used when waking fails.
        allow: ``"on"``, ``"off"`` and keys of `KEYS` that may be asked for.
        debounce: seconds. opposite_delay: seconds to wait between switching on and off, either way.
        rate_limit: commands a minute. max_age: seconds.
        on_timeout, off_timeout: seconds to wait for the projector to follow.
        probe_interval: seconds between two looks; report_interval: between two reports while nothing happens.
        notify: called as ``notify(outcome, seconds)`` after every command, for a log.
        clock: monotonic seconds.

    Raises:
        ValueError: a name in `allow` that is no command, or a duration out of range.
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
        self._session: Session | None = None
        self._busy = asyncio.Lock()
        self._serial = 0  # of the newest on or off; an older one gives way
        self._taken: deque[float] = deque(maxlen=rate_limit)  # when the last commands came
        self._last: tuple[str, float] = ("", -math.inf)  # the last on or off, and when
        self._switched: tuple[str, float] = ("", -math.inf)  # the last transition, and when it ended
        self._reported: tuple[str, float] = ("", -math.inf)

    # --- commands ----------------------------------------------------------------------------------------------------

    async def handle(self, command: str, *, at: float | None = None) -> Outcome:
        """Carry out one command and say what came of it; returns when the projector has followed, or has not.

        Args:
            command: one of `allow`. Others are refused, not raised: text from outside is data.
            at: when it was given, on the bridge's clock; None means now.
        """
        start = self._clock()
        refusal = self._refusal(command, start if at is None else at, start)
        if refusal is not None:
            outcome = Outcome("none", self.state, refusal)
        elif command in ("on", "off"):
            outcome = await self._reach(command)
        else:
            outcome = await self._press(command)
        _LOG.info("%s: %s (%s)", outcome.action, outcome.state, outcome.reason)
        if self._notify is not None:
            self._notify(outcome, self._clock() - start)
        return outcome

    def _refusal(self, command: str, at: float, now: float) -> str | None:
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

    async def _press(self, key: str) -> Outcome:
        try:
            await self._device.send(key)
        except OSError as error:
            return Outcome("none", self.state, f"not sent: {error}")
        return Outcome(key, self.state, "sent")

    async def _reach(self, command: str) -> Outcome:
        """Bring about on or off, after whatever is under way."""
        self._serial += 1
        serial = self._serial
        async with self._busy:
            outcome = await self._switch(command, serial)
        await self._report()
        return outcome

    async def _switch(self, command: str, serial: int) -> Outcome:
        wanted = BridgeState(command)
        if serial == self._serial and await self.measure() is wanted:
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
        self.state = BridgeState.TURNING_OFF
        start = self._clock()
        try:
            async with asyncio.timeout(self._off_timeout):
                while True:
                    await self._device.send("poweroff", repeat=_SENDS)
                    if await self._seen(False, _PROBES):
                        break
        except TimeoutError:
            return Outcome("poweroff", await self.measure(), f"still on after {self._off_timeout:g} s")
        except OSError as error:
            return Outcome("poweroff", await self.measure(), f"cannot be reached: {error}")
        self.state = BridgeState.OFF
        return Outcome("poweroff", self.state, f"off after {self._clock() - start:.1f} s")

    async def _turn_on(self, serial: int) -> Outcome:
        start = self._clock()
        went, since = self._switched
        if self._wake is None and self._plug is None:
            return Outcome("none", self.state, "no way to switch on: configure wake or plug")
        self.state = BridgeState.TURNING_ON
        action, reason = "none", ""
        if self._wake is not None:
            action = "wake"
            try:
                await self._wake.wake()
                if await self._comes_on():
                    return Outcome(action, self.state, f"on after {self._clock() - start:.1f} s")
                reason = f"still off {self._on_timeout:g} s after waking"
            except Exception as error:  # of whatever was plugged in: it must not end the bridge
                reason = _failed("waking", error)
        if self._plug is not None:
            cooling = since + _COOLING - self._clock()
            if went == "off" and cooling > 0:
                await asyncio.sleep(cooling)
            if serial != self._serial:
                return Outcome(action, await self.measure(), "a later command came")
            # Power is cut only where a probe says off, never on doubt.
            if await self.measure() is BridgeState.ON:
                return Outcome(action, self.state, f"on after {self._clock() - start:.1f} s")
            if self.state is BridgeState.UNKNOWN:
                return Outcome(action, self.state, "nothing can be measured, so the plug is left alone")
            self.state, action = BridgeState.TURNING_ON, "plug"
            try:
                await self._plug.cycle()
                if await self._comes_on():
                    return Outcome(action, self.state, f"on after {self._clock() - start:.1f} s")
                reason = f"still off {self._on_timeout:g} s after the plug"
            except Exception as error:
                reason = _failed("the plug", error)
        return Outcome(action, await self.measure(), reason)

    # --- measuring ---------------------------------------------------------------------------------------------------

    async def measure(self) -> BridgeState:
        """Probe now: ON, OFF, or UNKNOWN when this machine cannot tell."""
        try:
            self.state = BridgeState.ON if await self._device.is_on() else BridgeState.OFF
        except OSError as error:
            _LOG.warning("cannot probe: %s", error)
            self.state = BridgeState.UNKNOWN
        return self.state

    async def _comes_on(self) -> bool:
        try:
            async with asyncio.timeout(self._on_timeout):
                await self._seen(True, None)
        except TimeoutError:
            return False
        self.state = BridgeState.ON
        return True

    async def _seen(self, on: bool, probes: int | None) -> bool:
        """Probe until the answer is `on`; off must be seen twice running, so that one lost packet does not pass for it.

        Returns False after `probes` looks in vain; None looks for ever.
        """
        needed, streak, looks = (1 if on else 2), 0, 0
        while probes is None or looks < probes:
            if looks:
                await asyncio.sleep(self._probe_interval)
            looks += 1
            streak = streak + 1 if await self._device.is_on() == on else 0
            if streak == needed:
                return True
        return False

    # --- the service -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled, connecting again whenever the service is lost: after 1, 2, 4 ... 60 s, with jitter."""
        if self._cloud is None:
            raise ValueError("a bridge without a cloud has nothing to listen to: use handle")
        failures = 0
        async with asyncio.TaskGroup() as commands:
            while True:
                start, why = self._clock(), "closed"
                try:
                    async with self._cloud.session() as session, asyncio.TaskGroup() as group:
                        _LOG.info("connected to %r", self._cloud)
                        self._session = session
                        group.create_task(self._keep_reporting(session))
                        group.create_task(self._listen(session, commands))
                except* OSError as errors:
                    why = _first(errors)
                finally:
                    self._session = None
                failures = 1 if self._clock() - start >= _STEADY else failures + 1
                pause = min(2.0 ** (failures - 1), self._cloud.retry_cap) * _RANDOM.uniform(0.75, 1.0)
                _LOG.warning("lost %r (%s); again in %.1f s", self._cloud, why, pause)
                await asyncio.sleep(pause)

    async def _listen(self, session: Session, commands: asyncio.TaskGroup) -> None:
        async for message in session.messages():
            command = self.accept(message)
            if command is not None:
                commands.create_task(self.handle(command))
        raise ConnectionError("the service closed the connection")

    def accept(self, message: Message) -> str | None:
        """The command a message carries, or None: another topic, retained, not in the allow-list, or our own echo."""
        if self._cloud is not None and message.topic != self._cloud.topic:
            return None
        command = parse_command(message.payload, self.allow)
        if command is None:
            _LOG.info("ignored %d bytes that are no command", len(message.payload))
            return None
        if message.retained:
            _LOG.info("ignored a retained command: nobody knows how old it is")
            return None
        said, when = self._reported
        if command == said and self._clock() - when < ECHO:
            return None
        return command

    async def _keep_reporting(self, session: Session) -> None:
        """Measure and report while nothing happens; a report that is not taken ends the session."""
        while True:
            if not self._busy.locked():
                async with self._busy:
                    await self.measure()
                await self._send_report(session)
            await asyncio.sleep(self._report_interval)

    async def _report(self) -> None:
        if self._session is not None:
            try:
                await self._send_report(self._session)
            except OSError as error:
                _LOG.warning("not reported: %s", error)

    async def _send_report(self, session: Session) -> None:
        if self.state in (BridgeState.ON, BridgeState.OFF):
            self._reported = (self.state.value, self._clock())
            await session.report(self.state.value)


def _failed(what: str, error: Exception) -> str:
    if not isinstance(error, OSError):
        _LOG.warning("%s failed", what, exc_info=error)
    return f"{what} failed: {str(error) or type(error).__name__}"


def _first(errors: BaseExceptionGroup[OSError]) -> str:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else str(error) or type(error).__name__
