"""The state machine, in virtual time: every wait has its real length and takes none."""

import asyncio

import pytest

from kexue.home import Bridge, BridgeState, Message, PlugCycle


class Projector:
    """A device without a network: follows after a while, and remembers what it was told and when."""

    def __init__(self, clock, *, on=False, boot=20.0, shutdown=8.0, deaf=0):
        self.clock, self.on, self.boot, self.shutdown, self.deaf = clock, on, boot, shutdown, deaf
        self.sent = []
        self.woken = []
        self.offline = False

    async def send(self, key, *, repeat=1):
        self.sent.append((self.clock(), key, repeat))
        if self.deaf:
            self.deaf -= 1
        elif key == "poweroff" and self.on:
            asyncio.get_running_loop().call_later(self.shutdown, self.become, False)

    async def is_on(self):
        if self.offline:
            raise OSError("network is down")
        return self.on

    async def wake(self):
        self.woken.append(self.clock())
        asyncio.get_running_loop().call_later(self.boot, self.become, True)

    def become(self, on):
        self.on = on


class Script:
    """A message service in memory: hands out queued messages, keeps reports, and can be broken."""

    topic, retry_cap = "projector006", 60.0

    def __init__(self, clock):
        self.clock = clock
        self.queue = asyncio.Queue()
        self.reports = []
        self.tries = []
        self.down = False

    def connect(self):
        return self

    async def __aenter__(self):
        self.tries.append(self.clock())
        if self.down:
            raise ConnectionError("down")
        return self

    async def __aexit__(self, *_):
        return None

    async def messages(self):
        while (message := await self.queue.get()) is not None:
            yield message

    async def report(self, state):
        self.reports.append((self.clock(), state))

    def say(self, text, topic=topic, **more):
        self.queue.put_nowait(Message(topic, text.encode(), **more))


def times(entries):
    return [round(entry[0], 3) for entry in entries]


# --- switching -------------------------------------------------------------------------------------------------------


def test_on_wakes_and_waits_until_the_projector_is_there(virtually):
    async def scene(clock):
        device = Projector(clock, boot=20.0)
        outcome = await Bridge(None, device, wake=device, clock=clock).handle("on")
        assert (outcome.action, outcome.state) == ("wake", BridgeState.ON)
        assert len(device.woken) == 1
        assert 20 <= clock() <= 21.1  # seen at the first look after the boot
        assert device.sent == []

    virtually(scene)


def test_asking_for_the_state_there_is_does_nothing(virtually):
    async def scene(clock):
        for state in (True, False):
            device = Projector(clock, on=state)
            command = "on" if state else "off"
            outcome = await Bridge(None, device, wake=device, clock=clock).handle(command)
            assert outcome == ("none", BridgeState(command), f"already {command}")
            assert not device.sent
            assert not device.woken

    virtually(scene)


def test_off_sends_three_times_and_believes_only_the_probe(virtually):
    async def scene(clock):
        device = Projector(clock, on=True, shutdown=8.0)
        outcome = await Bridge(None, device, clock=clock).handle("off")
        assert (outcome.action, outcome.state) == ("poweroff", BridgeState.OFF)
        assert {(key, repeat) for _, key, repeat in device.sent} == {("poweroff", 3)}
        assert 8 <= clock() <= 11  # off is believed when seen twice

    virtually(scene)


def test_off_is_repeated_until_it_is_heard(virtually):
    async def scene(clock):
        device = Projector(clock, on=True, shutdown=0.5, deaf=2)  # the first two rounds get lost
        assert (await Bridge(None, device, clock=clock).handle("off")).state is BridgeState.OFF
        assert len(device.sent) == 3

    virtually(scene)


def test_a_projector_that_stays_on_is_reported_as_on(virtually):
    async def scene(clock):
        device = Projector(clock, on=True, deaf=10**6)
        outcome = await Bridge(None, device, clock=clock).handle("off")
        assert (outcome.action, outcome.state, outcome.reason) == ("poweroff", BridgeState.ON, "still on after 30 s")
        assert clock() == pytest.approx(30, abs=1)

    virtually(scene)


def test_one_lost_probe_does_not_pass_for_off(virtually):
    async def scene(clock):
        device = Projector(clock, on=True, deaf=1)
        looks = iter([True, False, True, True, True, True, True, True, False, False])
        device.is_on = lambda: asyncio.sleep(0, next(looks))
        assert (await Bridge(None, device, clock=clock).handle("off")).state is BridgeState.OFF
        assert next(looks, "used up") == "used up"

    virtually(scene)


def make_plug(clock, device, log, **options):
    def switch(on):
        log.append((clock(), on))
        if not on:
            device.become(False)
        else:
            asyncio.get_running_loop().call_later(device.boot, device.become, True)

    return PlugCycle(lambda: switch(True), lambda: switch(False), **options)


def test_the_plug_is_cycled_when_waking_fails(virtually):
    async def scene(clock):
        device, log = Projector(clock, boot=15.0), []
        sleeper = Projector(clock, boot=1e9)  # a wake-up that is never heard
        plug = make_plug(clock, device, log)
        outcome = await Bridge(None, device, wake=sleeper, plug=plug, clock=clock).handle("on")
        assert (outcome.action, outcome.state) == ("plug", BridgeState.ON)
        assert [on for _, on in log] == [False, True]
        assert times(log) == [60, 70]  # a minute for the wake-up, ten seconds without power

    virtually(scene)


def test_power_is_never_cut_on_doubt_or_under_a_running_projector(virtually):
    async def scene(clock):
        log = []
        device = Projector(clock, boot=1e9)

        async def late():  # answers just when the plug is about to be asked
            device.become(True)

        device.wake = late
        device_bridge = Bridge(None, device, wake=device, plug=make_plug(clock, device, log), clock=clock)
        assert (await device_bridge.handle("on")).action == "wake"

        offline = Projector(clock)
        offline.offline = True
        outcome = await Bridge(None, offline, plug=make_plug(clock, offline, log), clock=clock).handle("on")
        assert (outcome.action, outcome.state) == ("none", BridgeState.UNKNOWN)
        assert log == []

    virtually(scene)


def test_the_plug_waits_until_the_fan_has_stopped(virtually):
    async def scene(clock):
        device, log = Projector(clock, on=True, boot=5.0, shutdown=1.0), []
        bridge = Bridge(None, device, plug=make_plug(clock, device, log), clock=clock)
        await bridge.handle("off")
        went = clock()
        assert (await bridge.handle("on")).state is BridgeState.ON
        assert log[0][0] == pytest.approx(went + 60)

    virtually(scene)


def test_the_plug_gets_its_power_back_when_the_bridge_is_stopped(virtually):
    async def scene(clock):
        device, log = Projector(clock), []
        task = asyncio.create_task(make_plug(clock, device, log).cycle())
        await asyncio.sleep(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [(round(at), on) for at, on in log] == [(0, False), (3, True)]

    virtually(scene)


def test_a_plug_that_fails_to_switch_on_is_asked_three_times(virtually):
    async def scene(clock):
        asked = []

        async def on():
            asked.append(clock())
            raise ConnectionError("no answer")

        with pytest.raises(ConnectionError):
            await PlugCycle(on, lambda: None, seconds=2.0).cycle()
        assert asked == [2, 3, 4]

    virtually(scene)


def test_without_a_way_to_switch_on_it_says_so(virtually):
    async def scene(clock):
        outcome = await Bridge(None, Projector(clock), clock=clock).handle("on")
        assert (outcome.action, outcome.state) == ("none", BridgeState.OFF)
        assert "wake or plug" in outcome.reason

    virtually(scene)


def test_a_missing_adapter_is_a_reason_and_not_a_crash(virtually):
    async def scene(clock):
        device = Projector(clock)

        async def wake():
            raise ConnectionError("no adapter")

        device.wake = wake
        outcome = await Bridge(None, device, wake=device, clock=clock).handle("on")
        assert outcome == ("wake", BridgeState.OFF, "waking failed: no adapter")

    virtually(scene)


@pytest.mark.parametrize(
    "error", [OSError("no"), ValueError("no"), RuntimeError("no"), UnicodeError("no"), TypeError("no")]
)
@pytest.mark.parametrize("where", ["wake", "plug on", "plug off"])
def test_whatever_a_way_to_switch_on_raises_the_bridge_goes_on(where, error, virtually):
    async def scene(clock):
        device, log = Projector(clock), []

        async def fails():
            log.append(clock())
            raise error

        device.wake = fails if where == "wake" else device.wake
        plug = PlugCycle(fails if where == "plug on" else log.clear, fails if where == "plug off" else log.clear)
        bridge = Bridge(
            None, device, wake=device if where == "wake" else None, plug=None if where == "wake" else plug, clock=clock
        )
        outcome = await bridge.handle("on")
        assert outcome.state is BridgeState.OFF
        assert outcome.reason == ("waking failed: no" if where == "wake" else "the plug failed: no")
        if where == "plug on" and not isinstance(error, TypeError):
            assert len(log) == 3
        device.on = True
        assert (await bridge.handle("off")).state is BridgeState.OFF

    virtually(scene)


# --- order, repeats, limits ------------------------------------------------------------------------------------------


def test_the_last_command_wins(virtually):
    async def scene(clock):
        device = Projector(clock, boot=10.0, shutdown=5.0)
        bridge = Bridge(None, device, wake=device, clock=clock)
        first = asyncio.create_task(bridge.handle("on"))
        await asyncio.sleep(2)
        second = asyncio.create_task(bridge.handle("off"))
        await asyncio.sleep(2)
        assert bridge.state is BridgeState.TURNING_ON
        third = asyncio.create_task(bridge.handle("on"))
        outcomes = await asyncio.gather(first, second, third)
        assert [outcome.reason for outcome in outcomes[1:]] == ["a later command came", "already on"]
        assert device.sent == []
        assert device.on

    virtually(scene)


def test_opposite_transitions_keep_their_distance(virtually):
    async def scene(clock):
        device = Projector(clock, boot=3.0, shutdown=1.0)
        bridge = Bridge(None, device, wake=device, clock=clock)
        await bridge.handle("on")
        came_on = clock()
        assert (await bridge.handle("off")).state is BridgeState.OFF
        assert device.sent[0][0] == pytest.approx(came_on + 20)

    virtually(scene)


def test_repeats_are_dropped_for_a_second_and_others_are_not(virtually):
    async def scene(clock):
        device = Projector(clock, on=True)
        bridge = Bridge(None, device, clock=clock)
        assert (await bridge.handle("on")).reason == "already on"
        await asyncio.sleep(0.9)
        assert (await bridge.handle("on")).reason == "repeated within 1 s"
        await asyncio.sleep(0.2)
        assert (await bridge.handle("on")).reason == "already on"
        assert (await bridge.handle("off")).action == "poweroff"  # another command is no repeat

    virtually(scene)


def test_ten_commands_a_minute(virtually):
    async def scene(clock):
        bridge = Bridge(None, Projector(clock, on=True), allow=("on", "volumeup"), clock=clock)
        reasons = [(await bridge.handle("volumeup")).reason for _ in range(12)]
        assert reasons == ["sent"] * 10 + ["more than 10 commands a minute"] * 2
        await asyncio.sleep(59)
        assert (await bridge.handle("volumeup")).action == "none"
        await asyncio.sleep(1)
        assert (await bridge.handle("volumeup")).action == "volumeup"

    virtually(scene)


def test_old_commands_and_others_than_the_allowed_are_refused(virtually):
    async def scene(clock):
        device = Projector(clock, on=True)
        bridge = Bridge(None, device, clock=clock)
        await asyncio.sleep(100)
        assert (await bridge.handle("off", at=clock() - 31)).reason == "older than 30 s"
        assert (await bridge.handle("power")).reason == "not in the allow-list"
        assert device.sent == []
        assert (await bridge.handle("off", at=clock() - 29)).action == "poweroff"

    virtually(scene)


def test_a_key_is_one_datagram(virtually):
    async def scene(clock):
        device = Projector(clock, on=True)
        await Bridge(None, device, allow=("volumeup",), clock=clock).handle("volumeup")
        assert device.sent == [(0, "volumeup", 1)]

    virtually(scene)


@pytest.mark.parametrize(
    "options", [{"allow": ("reboot",)}, {"allow": "on"}, {"rate_limit": 0}, {"debounce": -1}, {"off_timeout": 0}]
)
def test_arguments_out_of_range(options):
    with pytest.raises(ValueError, match="got"):
        Bridge(None, Projector(lambda: 0.0), **options)


# --- the service -----------------------------------------------------------------------------------------------------


def serve(virtually, script, **options):
    """Run a bridge while ``script(clock, service, device)`` speaks."""

    async def scene(clock):
        service, device = Script(clock), Projector(clock, boot=5.0, shutdown=5.0)
        heard = []
        bridge = Bridge(
            service, device, wake=device, clock=clock, notify=lambda o, s: heard.append((o.action, s)), **options
        )
        running = asyncio.create_task(bridge.run())
        await script(service, device)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return service, device, heard

    return virtually(scene)


def test_commands_are_carried_out_and_the_measured_state_is_reported(virtually):
    async def script(service, device):
        await asyncio.sleep(1)
        service.say("on#80")
        await asyncio.sleep(10)
        service.say("on")
        await asyncio.sleep(30)
        service.say(" off\r\n")
        await asyncio.sleep(15)

    service, _, heard = serve(virtually, script)
    assert [action for action, _ in heard] == ["wake", "none", "poweroff"]
    assert heard[0][1] == pytest.approx(5, abs=1.1)
    assert [state for _, state in service.reports] == ["off", "on", "on", "off"]  # at the start, then after each


def test_what_is_no_command_does_nothing(virtually):
    async def script(service, device):
        await asyncio.sleep(3)
        for text in ("ON", "on ; reboot", "on#", "on#1#x", "", "powerfff", "poweroff", "on\0", "\uff4fn", "on" * 40):
            service.say(text)
        service.say("on", topic="other006")
        service.say("on", retained=True)
        await asyncio.sleep(5)

    _, device, heard = serve(virtually, script)
    assert (heard, device.woken, device.sent) == ([], [], [])


def test_the_own_report_coming_back_is_no_command(virtually):
    async def script(service, device):
        await asyncio.sleep(0.5)  # "off" was reported at 0
        service.say("off")
        await asyncio.sleep(5)
        service.say("off")
        await asyncio.sleep(0.1)

    service, _, heard = serve(virtually, script)
    assert len(heard) == 1
    assert len(service.reports) == 2


def test_the_state_is_reported_every_minute_and_a_remote_control_is_noticed(virtually):
    async def script(service, device):
        await asyncio.sleep(70)
        device.become(True)  # somebody used the real remote
        await asyncio.sleep(60)

    service, _, _ = serve(virtually, script)
    assert service.reports == [(0, "off"), (60, "off"), (120, "on")]


def test_without_a_network_nothing_is_reported(virtually):
    async def script(service, device):
        device.offline = True
        await asyncio.sleep(30)

    service, _, _ = serve(virtually, script)
    assert service.reports == []


def test_connecting_backs_off_from_one_to_sixty_seconds(virtually):
    async def script(service, device):
        service.down = True
        await asyncio.sleep(400)

    service, _, _ = serve(virtually, script)
    gaps = [b - a for a, b in zip(service.tries, service.tries[1:], strict=False)]
    for gap, full in zip(gaps, [1, 2, 4, 8, 16, 32, 60, 60, 60], strict=False):
        assert 0.75 * full <= gap <= full


def test_a_lost_service_is_back_soon_and_a_short_session_is_no_success(virtually):
    async def script(service, device):
        await asyncio.sleep(100)
        service.queue.put_nowait(None)  # the stream ends after a long session: the first pause is short
        await asyncio.sleep(1.01)
        assert len(service.tries) == 2
        service.queue.put_nowait(None)  # ends at once: the next pause is longer
        await asyncio.sleep(1.4)
        assert len(service.tries) == 2
        await asyncio.sleep(1)
        assert len(service.tries) == 3

    serve(virtually, script)


def test_a_report_that_is_not_taken_ends_the_session(virtually):
    async def script(service, device):
        async def report(state):
            raise ConnectionError("no acknowledgement")

        service.report = report
        await asyncio.sleep(30)

    service, _, _ = serve(virtually, script)
    assert len(service.tries) > 3


def test_a_transition_outlives_the_session(virtually):
    async def script(service, device):
        await asyncio.sleep(3)
        service.say("on")
        await asyncio.sleep(1)
        service.queue.put_nowait(None)
        await asyncio.sleep(20)

    service, device, heard = serve(virtually, script)
    assert device.on
    assert [action for action, _ in heard] == ["wake"]
    assert "on" in [state for _, state in service.reports]


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionError("answered 500"), ValueError()])
def test_a_failure_without_words_is_told_by_its_kind(error):
    from kexue.home.bridge import _failure_reason

    assert (
        _failure_reason("the plug", error)
        == f"the plug failed: {error.args[0] if error.args else type(error).__name__}"
    )
