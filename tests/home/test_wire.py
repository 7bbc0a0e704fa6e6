"""Real sockets on loopback: datagrams, probes, both clouds over TCP, a real MQTT broker, a plug."""

import asyncio
import logging
import socket
from contextlib import asynccontextmanager, suppress

import pytest

from kexue.home import (
    BemfaMqtt,
    BemfaTcp,
    Bridge,
    BridgeState,
    FakeBemfa,
    FakePlug,
    FakeProjector,
    HttpHook,
    LocalMqtt,
    PlugCycle,
    XgimiUdp,
    bemfa,
    network,
    plug,
)

UID = "0123456789abcdef0123456789abcdef"
TOPIC = "projector006"
PATIENCE = 30  # far more than is needed: only a hang reaches it


def device_of(fake, **options):
    return XgimiUdp(fake.host, port=fake.port, probe_port=fake.probe_port, **{"gap": 0.002} | options)


def soon(coroutine):
    return asyncio.wait_for(coroutine, PATIENCE)


def play(scene):
    asyncio.run(soon(scene()))


@asynccontextmanager
async def bridged(cloud, projector, **options):
    """A bridge at work; yields a queue of outcomes."""
    outcomes = asyncio.Queue()
    settings = {"debounce": 0, "opposite_delay": 0, "probe_interval": 0.02, "rate_limit": 10**6} | options
    bridge = Bridge(
        cloud, device_of(projector), wake=projector, notify=lambda outcome, _: outcomes.put_nowait(outcome), **settings
    )
    running = asyncio.create_task(bridge.run())
    try:
        yield outcomes
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running  # what broke it comes out here


# --- the projector ---------------------------------------------------------------------------------------------------


def test_a_key_is_the_datagram_the_projector_knows():
    async def scene():
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("127.0.0.1", 0))
            receiver.setblocking(False)
            device = XgimiUdp("127.0.0.1", port=receiver.getsockname()[1], gap=0)
            await device.send("poweroff", repeat=3)
            await device.send("volumeup")
            received = [await loop.sock_recv(receiver, 100) for _ in range(4)]
        assert received == [b"KEYPRESSES:30"] * 3 + [b"KEYPRESSES:115"]

    play(scene)


def test_datagrams_of_one_key_are_a_fifth_of_a_second_apart(monkeypatch):
    pauses = []
    sleep = asyncio.sleep

    async def note(seconds):
        pauses.append(seconds)
        await sleep(0)

    async def scene():
        monkeypatch.setattr(asyncio, "sleep", note)
        await XgimiUdp("127.0.0.1", port=9).send("poweroff", repeat=3)

    play(scene)
    assert pauses == [0.2, 0.2]


def test_the_probe_follows_the_projector():
    async def scene():
        async with FakeProjector() as fake:
            device = device_of(fake)
            assert not await device.is_on()
            await fake.wake()
            assert await device.is_on()
            await device.send("volumeup")
            await device.send("poweroff")
            while fake.on:
                await asyncio.sleep(0.01)
            assert not await device.is_on()
            assert [press.code for press in fake.pressed] == [115, 30]

    play(scene)


FOREIGN = {
    "public": ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8",
               "172.15.255.255", "172.32.0.1", "11.0.0.1", "192.167.9.9"],
    "shared by providers": ["100.64.1.1", "::ffff:100.64.1.1"],
    "documentation and benchmarks": ["192.0.2.1", "198.51.100.7", "203.0.113.9", "198.18.0.1", "2001:db8::1"],
    "Teredo": ["2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "6to4": ["2002:808:808::1", "2002:c0a8:101::1", "2002:7f00:1::"],
    "NAT64": ["64:ff9b::8.8.8.8", "64:ff9b::192.168.1.1", "64:ff9b:1::127.0.0.1"],
    "compatible": ["::8.8.8.8", "::192.168.1.1"],
    "site local": ["fec0::1"],
    "multicast": ["224.0.0.1", "239.255.255.250", "ff02::1", "ff05::c%eth0", "::ffff:224.0.0.1"],
    "unspecified": ["0.0.0.0", "0.0.0.1", "::", "::ffff:0.0.0.0"],
    "link-local and metadata": ["169.254.169.254", "169.254.0.1", "::ffff:169.254.169.254"],
    "reserved and broadcast": ["240.0.0.1", "255.255.255.255"],
    "other ways to write a number": ["2130706433", "134744072", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "1.2.3",
                                     "192.168.1.0x32", "192.168.001.050", "192.168.1.256", "8.8.8.8.",
                                     "1.2.3.4.5", "0x", "１２７.0.0.1"],
    "no name": ["", " ", "a b", "a..b", ".a", "-a", "a-", "a" * 64 + ".lan", "a.lan\0", "a/b",
                "a@b", "a:b", "a.lan\r\n", "." * 9,
                ".".join(["abcdefgh"] * 40)],
}  # fmt: skip
ADDRESS_ARGUMENTS = {
    "XgimiUdp": XgimiUdp,
    "HttpHook": lambda host: HttpHook(f"http://[{host}]/" if ":" in host else f"http://{host}/"),
}


@pytest.mark.parametrize("argument", ADDRESS_ARGUMENTS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_only_addresses_at_home(kind, argument):
    for host in FOREIGN[kind]:
        if argument == "HttpHook" and ("%" in host or kind == "no name"):
            continue  # another grammar
        with pytest.raises(ValueError, match=r"address|host"):
            ADDRESS_ARGUMENTS[argument](host)


@pytest.mark.parametrize("kind", [kind for kind in FOREIGN if kind not in ("other ways to write a number", "no name")])
def test_a_name_that_leads_to_such_an_address_is_refused_when_it_is_resolved(kind, monkeypatch):
    async def scene():
        answers = [address for address in FOREIGN[kind] for _ in range(2)]

        async def lookup(host, port, **_):
            return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (answers.pop(), port))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        while answers:
            with pytest.raises(ConnectionError, match=r"projector\.lan: .* address"):
                await XgimiUdp("projector.lan").send("ok")
            with pytest.raises(ConnectionError, match=r"plug\.lan: .* address"):
                await HttpHook("http://plug.lan/on")()

    play(scene)


async def _connect(cloud):
    async with cloud.connect():
        pass


CALLS = {
    "send": lambda host: XgimiUdp(host).send("ok"),
    "probe": lambda host: XgimiUdp(host).is_on(),
    "hook": lambda host: HttpHook(f"http://{host}/on?password=hidden")(),
    "tcp cloud": lambda host: _connect(BemfaTcp(UID, TOPIC, host=host)),
}


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize(
    "error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long"), None]
)
def test_a_name_that_leads_nowhere_is_told_in_words(what, error, monkeypatch):
    async def scene():
        async def lookup(*_, **__):
            if error is not None:
                raise error
            return []

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        said = r"nowhere\.lan has no address .*; check it|getaddrinfo\(.* returned empty"
        with pytest.raises(OSError, match=said) as caught:
            await CALLS[what]("nowhere.lan")
        assert "hidden" not in str(caught.value)

    play(scene)


@pytest.mark.parametrize("make", [lambda host: BemfaTcp(UID, TOPIC, host=host),
                                  lambda host: BemfaMqtt(UID, TOPIC, host=host),
                                  lambda host: LocalMqtt(host, "home/projector")])  # fmt: skip
def test_hosts_of_services_may_be_anywhere_but_must_be_hosts(make):
    pytest.importorskip("aiomqtt")
    for host in ("broker.lan", "8.8.8.8", "192.168.1.2", "localhost"):
        assert make(host).host == host
    for host in (" ", "a..b", "a" * 64, "0x7f000001", "224.0.0.1", "a\0b"):
        with pytest.raises(ValueError, match="address"):
            make(host)


def test_addresses_at_home_and_the_permission():
    for host in (
        "192.168.1.50",
        "10.0.0.2",
        "172.16.3.4",
        "127.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fd00::5",
        "projector.lan",
    ):
        assert XgimiUdp(host).host == host
    assert XgimiUdp("8.8.8.8", allow_public=True).host == "8.8.8.8"


def test_a_name_is_resolved_once_and_must_lead_home(monkeypatch):
    async def scene():
        loop = asyncio.get_running_loop()
        asked = []

        async def lookup(host, port, **_):
            asked.append(host)
            address = "8.8.8.8" if host == "evil.lan" else "127.0.0.1"
            return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, port))]

        monkeypatch.setattr(loop, "getaddrinfo", lookup)
        good = XgimiUdp("good.lan", port=9)
        await good.send("ok", repeat=2)
        await good.is_on()
        assert asked.count("good.lan") == 1
        with pytest.raises(OSError, match=r"8\.8\.8\.8 is a public address"):
            await XgimiUdp("evil.lan").send("ok")
        # For a bridge that is no crash: nothing is known and nothing is sent.
        assert await Bridge(None, XgimiUdp("evil.lan")).measure() is BridgeState.UNKNOWN

    play(scene)


def test_unknown_keys_and_ports():
    with pytest.raises(ValueError, match="unknown key 'reboot'"):
        asyncio.run(XgimiUdp("127.0.0.1").send("reboot"))
    with pytest.raises(ValueError, match="port must be"):
        XgimiUdp("127.0.0.1", port=0)


def test_off_gets_through_where_a_third_of_the_datagrams_do_not():
    async def scene():
        async def once(seed):
            async with FakeProjector(0.3, on=True, seed=seed) as fake:
                bridge = Bridge(None, device_of(fake), probe_interval=0.01)
                return (await bridge.handle("off")).state is BridgeState.OFF and not fake.on

        assert all(await asyncio.gather(*(once(seed) for seed in range(60))))

    play(scene)


# --- the clouds over TCP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_from_the_cloud_to_the_projector_and_back(version):
    async def scene():
        async with FakeBemfa() as cloud, FakeProjector() as projector:
            service = BemfaTcp(UID, TOPIC, version=version, host=cloud.host, port=cloud.port)
            async with bridged(service, projector) as outcomes:
                reported = TOPIC + "/set" if version == 1 else TOPIC
                assert await soon(cloud.reports.get()) == (reported, "off")
                await cloud.say(TOPIC, "on")
                assert (await soon(outcomes.get())).action == "wake"
                assert await soon(cloud.reports.get()) == (reported, "on")
                await cloud.say(TOPIC, "off")
                assert (await soon(outcomes.get())).action == "poweroff"
                assert await soon(cloud.reports.get()) == (reported, "off")

    play(scene)


@pytest.mark.parametrize("version", [1, 2])
def test_lines_may_come_in_pieces_or_glued(version):
    line = {1: b"cmd=2&uid=x&topic=projector006&msg=on\r\n", 2: b'{"cmd":2,"topics":["projector006"],"msg":"on"}\n'}
    junk = {
        1: b"cmd=9&uid=x&topic=projector006&msg=on\r\ncmd=1&res=1\r\ncmd=0&res=1\r\n\xff\xfe\r\n&&==\r\n\r\n",
        2: b'{"cmd":1}\nnull\n[1]\n{"msg":1,"topics":["projector006"]}\n\xff\n{"msg":"on","topics":"x"}\n',
    }

    async def scene():
        async with FakeBemfa() as cloud:
            service = BemfaTcp(UID, TOPIC, version=version, host=cloud.host, port=cloud.port)
            async with service.connect() as session:
                messages = session.messages()
                await cloud.wait_for_subscriber()
                await cloud.send(junk[version] + line[version] * 2 + line[version][:7])
                got = [await soon(anext(messages)) for _ in range(2)]
                await cloud.send(line[version][7:])
                got.append(await soon(anext(messages)))
                assert got == [(TOPIC, b"on", False)] * 3

    play(scene)


def test_what_is_said_on_the_wire():
    one, two = BemfaTcp(UID, TOPIC, version=1), BemfaTcp(UID, TOPIC)
    assert one.line("subscribe") == f"cmd=1&uid={UID}&topic=projector006\r\n".encode()
    assert one.line("publish", "on") == f"cmd=2&uid={UID}&topic=projector006/set&msg=on\r\n".encode()
    assert one.line("heartbeat") == b"ping\r\n"
    assert two.line("subscribe") == f'{{"cmd":1,"uid":"{UID}","topics":["projector006"],"mode":0}}\n'.encode()
    assert two.line("publish", "off") == (
        f'{{"cmd":2,"uid":"{UID}","topics":["projector006"],"msg":"off","mode":3}}\n'.encode()
    )
    assert two.line("heartbeat") == f'{{"cmd":7,"uid":"{UID}"}}\n'.encode()
    assert (one.host, one.port, two.host, two.port) == ("bemfa.com", 8344, "tcp-cn-03.bemfa.com", 8342)


@pytest.mark.parametrize("version", [1, 2])
def test_heartbeats_go_out_and_a_hung_up_line_is_an_error(version, monkeypatch):
    monkeypatch.setattr(bemfa, "_HEARTBEAT", 0.02)
    monkeypatch.setattr(bemfa, "_RESUBSCRIBE", 0.01)

    async def scene():
        async with FakeBemfa() as cloud:
            service = BemfaTcp(UID, TOPIC, version=version, host=cloud.host, port=cloud.port)
            async with service.connect() as session:
                waiting = asyncio.create_task(anext(session.messages()))
                while cloud.heartbeats < 3:
                    await asyncio.sleep(0.01)
                await cloud.stop()
                with pytest.raises(OSError, match=r"closed|reset|Broken"):
                    await soon(waiting)

    play(scene)


def test_a_refused_key_and_an_endless_line_are_errors():
    async def scene():
        for answer, what in ((b"cmd=1&res=0\r\n", "refuses"), (b"x" * 10_000, "more than 4096")):
            async with FakeBemfa() as cloud:
                service = BemfaTcp(UID, TOPIC, version=1, host=cloud.host, port=cloud.port)
                async with service.connect() as session:
                    await cloud.wait_for_subscriber()
                    await cloud.send(answer)
                    with pytest.raises(ConnectionError, match=what):
                        await soon(anext(session.messages()))

    play(scene)


def test_a_cloud_that_restarts_is_found_again():
    async def scene():
        async with FakeBemfa() as cloud, FakeProjector() as projector:
            service = BemfaTcp(UID, TOPIC, host=cloud.host, port=cloud.port)
            async with bridged(service, projector) as outcomes:
                await soon(cloud.wait_for_subscriber())
                await cloud.stop()
                await cloud.start()
                await soon(cloud.wait_for_subscriber())
                await cloud.say(TOPIC, "on")
                assert (await soon(outcomes.get())).state is BridgeState.ON

    play(scene)


def test_keys_and_topics_that_cannot_be():
    with pytest.raises(ValueError, match="projector006"):
        BemfaTcp(UID, "a&b\r\ncmd=2")
    with pytest.raises(ValueError, match="version"):
        BemfaTcp(UID, TOPIC, version=3)
    with pytest.raises(ValueError, match="UID") as caught:
        BemfaTcp("secret&key", TOPIC)
    assert "secret" not in str(caught.value)


# --- MQTT ------------------------------------------------------------------------------------------------------------


def test_an_own_broker(broker):
    aiomqtt = pytest.importorskip("aiomqtt")

    async def scene():
        service = LocalMqtt("127.0.0.1", "home/projector", port=broker.port)
        async with aiomqtt.Client("127.0.0.1", broker.port) as app, FakeProjector() as projector:
            await app.publish("home/projector", "on", qos=1, retain=True)  # of unknown age: must not act
            async with bridged(service, projector) as outcomes:
                await app.subscribe("home/projector/state", qos=1)
                states = app.messages
                assert (await soon(anext(states))).payload == b"off"
                assert not projector.on
                await app.publish("home/projector", "on", qos=1)
                assert (await soon(outcomes.get())).action == "wake"
                assert (await soon(anext(states))).payload == b"on"
                await app.publish("home/projector", "off", qos=1)
                assert (await soon(outcomes.get())).state is BridgeState.OFF
                assert outcomes.empty()
            async with aiomqtt.Client("127.0.0.1", broker.port) as late:  # the state is kept for those who come later
                await late.subscribe("home/projector/state")
                kept = await soon(anext(late.messages))
                assert (kept.payload, kept.retain) == (b"off", True)

    play(scene)


def test_bemfa_over_mqtt_reports_to_set_and_never_shows_the_key(broker, caplog):
    aiomqtt = pytest.importorskip("aiomqtt")
    caplog.set_level(logging.DEBUG)

    async def scene():
        service = BemfaMqtt(UID, TOPIC, host="127.0.0.1", port=broker.port)
        async with aiomqtt.Client("127.0.0.1", broker.port) as app, FakeProjector() as projector:
            await app.subscribe(TOPIC + "/set", qos=1)
            async with bridged(service, projector) as outcomes:
                assert (await soon(anext(app.messages))).payload == b"off"
                await app.publish(TOPIC, "on#80", qos=1)
                assert (await soon(outcomes.get())).state is BridgeState.ON
                assert (await soon(anext(app.messages))).payload == b"on"
            broker.stop()
            with pytest.raises(ConnectionError):
                async with service.connect():
                    pass
        assert UID not in repr(service)
        assert UID not in str(service.failure(ValueError(f"client {UID} was refused")))

    play(scene)
    assert UID not in caplog.text


def test_a_broker_that_restarts_is_found_again(broker):
    aiomqtt = pytest.importorskip("aiomqtt")

    async def scene():
        async with FakeProjector() as projector:
            service = LocalMqtt("127.0.0.1", "home/projector", port=broker.port)
            async with bridged(service, projector) as outcomes:
                for command, state in (("on", BridgeState.ON), ("off", BridgeState.OFF)):
                    async with aiomqtt.Client("127.0.0.1", broker.port) as app:
                        await app.subscribe("home/projector/state", qos=1)
                        await soon(anext(app.messages))  # the bridge is there
                        await app.publish("home/projector", command, qos=1)
                        assert (await soon(outcomes.get())).state is state
                    await asyncio.to_thread(broker.stop)
                    await asyncio.to_thread(broker.start)

    play(scene)


@pytest.mark.parametrize("topic", ["", "a/#", "+/b", "a b", "a\0b"])
def test_topics_with_wildcards(topic):
    pytest.importorskip("aiomqtt")
    with pytest.raises(ValueError, match="topic"):
        LocalMqtt("127.0.0.1", topic)


# --- plug and helpers ------------------------------------------------------------------------------------------------


def test_the_plug_starts_the_projector_where_nothing_else_can():
    async def scene():
        async with FakeProjector() as projector, FakePlug(projector) as plug:
            cycle = PlugCycle(HttpHook(plug.on), HttpHook(plug.off), seconds=0.01)
            outcome = await Bridge(None, device_of(projector), plug=cycle, probe_interval=0.01).handle("on")
            assert (outcome.action, outcome.state) == ("plug", BridgeState.ON)
            assert plug.switched == ["off", "on"]
            with pytest.raises(OSError, match="404"):
                await HttpHook(plug.on.replace("/on", "/nothing?password=hidden"))()
            with pytest.raises(OSError) as caught:
                await HttpHook("http://127.0.0.1:1/?password=hidden")()
            assert "hidden" not in str(caught.value)
            assert "hidden" not in repr(HttpHook("http://127.0.0.1:1/?password=hidden"))

    play(scene)


ANSWERS = {
    "a line without end": (b"A" * 200_000, "more than 4096 bytes"),
    "headers without end": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000, None),
    "nothing": (b"", "answered nothing"),
    "a newline": (b"\n", "other than HTTP"),
    "an error": (b"HTTP/1.0 503 Busy\r\n\r\n", "answered 503"),
    "another protocol": (b"SSH-2.0-OpenSSH_9 2000\r\n", "other than HTTP"),
    "a long number": (b"HTTP/1.1 2000 OK\r\n\r\n", "other than HTTP"),
    "no text": (bytes(range(256)), "other than HTTP"),
    "a head cut off": (b"HTTP/1.1 20", "other than HTTP"),
    "an old device": (b"HTTP/1.0 204 No Content\n", None),
}


@asynccontextmanager
async def answering(answer, *, hold=False):
    """A device that answers every request with these bytes; the ports it was asked on."""
    asked, held = [], asyncio.Event()

    async def serve(reader, writer):
        asked.append((await reader.readline()).split()[1].decode())
        with suppress(OSError):
            writer.write(answer)
            await writer.drain()
            if hold:
                await held.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], asked
        held.set()


@pytest.mark.parametrize("kind", ANSWERS)
def test_whatever_a_plug_answers_it_is_a_success_or_an_error_of_the_network(kind):
    answer, said = ANSWERS[kind]

    async def scene():
        async with answering(answer) as (port, _):
            hook = HttpHook(f"http://127.0.0.1:{port}/on?password=hidden")
            if said is None:
                return await hook()
            with pytest.raises(ConnectionError, match=said) as caught:
                await hook()
            assert "hidden" not in str(caught.value)

    play(scene)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 2"])
def test_a_plug_that_never_ends_its_answer_is_given_up(answer, monkeypatch):
    monkeypatch.setattr(network, "_TIMEOUT", 0.05)

    async def scene():
        async with answering(answer, hold=True) as (port, _):
            with pytest.raises(TimeoutError):
                await HttpHook(f"http://127.0.0.1:{port}/on")()

    play(scene)


@pytest.mark.parametrize("kind", [kind for kind in ANSWERS if ANSWERS[kind][1]])
def test_no_answer_of_a_plug_ends_the_bridge_or_leaves_the_power_off_untried(kind, monkeypatch):
    real = plug.AsyncRetry
    monkeypatch.setattr(plug, "AsyncRetry", lambda *tries, **options: real(*tries, **options | {"delay": 0}))

    async def scene():
        async with FakeProjector() as projector, answering(ANSWERS[kind][0]) as (port, asked):
            hooks = [HttpHook(f"http://127.0.0.1:{port}/{which}") for which in ("on", "off")]
            outcome = await Bridge(None, device_of(projector), plug=PlugCycle(*hooks, seconds=0.01)).handle("on")
            assert outcome.reason.startswith("the plug failed: ")
            assert asked == ["/off", "/on", "/on", "/on"]

    play(scene)


@pytest.mark.parametrize("url", ["http://me:secret@192.168.1.9/", "http://192.168.1.9:0/", "http://192.168.1.9:99999/",
                                 "https://192.168.1.9/", "http:///x", "DELETE http://192.168.1.9/", "http://8.8.8.8/",
                                 "file:///etc/passwd", "http://192.168.1.9/a\r\nHost: b"])  # fmt: skip
def test_hooks_that_are_refused(url):
    with pytest.raises(ValueError, match=r"address|http|[Pp]ort"):
        HttpHook(url)
