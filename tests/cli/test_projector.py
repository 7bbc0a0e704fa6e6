"""`kexue projector` through its own door, against projectors on loopback."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from kexue.cli import main
from kexue.home import FakeBemfa, FakeProjector

UID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def run(capsys):
    def run(*arguments):
        capsys.readouterr()
        code = main(["projector", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def background():
    """A loop in a thread, for fakes that must answer while a command runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    yield call
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def projector(background, tmp_path):
    fake = background(FakeProjector(on=True).__aenter__())
    config = tmp_path / "bridge.toml"
    config.write_text(
        f'[projector]\nhost = "127.0.0.1"\nport = {fake.port}\nprobe_port = {fake.probe_port}\n'
        "[bridge]\nprobe_interval = 0.05\nopposite_delay = 0\n"
    )
    fake.config = config
    yield fake
    background(fake.__aexit__())


def test_status_send_off(run, projector):
    code, out, _ = run("status", "--config", projector.config, "--json")
    assert code == 0
    record = json.loads(out)
    assert set(record) == {"state", "action", "reason", "seconds"}
    assert (record["state"], record["action"]) == ("on", "none")

    code, out, _ = run("send", "volumeup", "--config", projector.config, "--json")
    assert (code, json.loads(out)["action"]) == (0, "volumeup")

    code, out, _ = run("off", "--config", projector.config, "--json")
    record = json.loads(out)
    assert (code, record["state"], record["action"]) == (0, "off", "poweroff")
    assert {press.code for press in projector.pressed} == {115, 30}

    code, out, _ = run("off", "--config", projector.config)
    assert (code, out.split(";")[0]) == (0, "off")
    code, out, _ = run("on", "--config", projector.config, "--json")
    assert (code, json.loads(out)["state"]) == (1, "off")  # no wake and no plug in the file


def test_mistakes(run, tmp_path):
    assert run("status")[0] == 2
    assert run("status", "--host", "127.0.0.1", "--config", tmp_path / "none.toml")[0] == 2
    code, out, _ = run("off", "--host", "8.8.8.8", "--json")
    assert code == 1
    assert "public address" in json.loads(out)["error"]["message"]
    code, out, _ = run("send", "reboot", "--host", "127.0.0.1", "--json")
    assert (code, json.loads(out)["error"]["type"]) == (1, "ValueError")
    assert run("token", "--mac", "AA:BB", "--json")[0] == 1


def test_plan_and_token(run):
    code, out, _ = run("ir-plan", "--json")
    plan = json.loads(out)
    assert (code, set(plan)) == (0, {"wiring", "keys", "scenes"})
    code, out, _ = run("ir-plan", "--keys", "power, mute")
    assert "Mute" in out
    assert "Enter" not in out
    assert run("ir-plan", "--keys", "power", "--keys", "mute") == (0, out, "")
    code, out, _ = run("token", "--mac", "AA:BB:CC:DD:EE:FF", "--counter", 7, "--json")
    assert json.loads(out) == {"payload": "07ffeeddccbbaaffffff3043524b544d"}


def test_simulate(run):
    code, out, err = run("simulate", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    told = [(record["said"], record["action"], record["state"]) for record in records]
    assert told == [
        ("on", "wake", "on"),
        ("on", "none", "on"),
        ("on; reboot", "none", "on"),
        ("off", "poweroff", "off"),
    ]
    assert {"state", "action", "reason", "seconds"} <= set(records[0])
    assert "3 datagrams arrived, 0 were lost" in err


def test_the_bridge_serves_until_sigterm_and_hides_its_key(projector, background, tmp_path):
    cloud = background(FakeBemfa().__aenter__())
    with projector.config.open("a") as file:
        file.write(f'[cloud]\nkind = "bemfa-tcp"\ntopic = "projector006"\nhost = "127.0.0.1"\nport = {cloud.port}\n')
    key = tmp_path / "uid"
    key.write_text(UID)
    key.chmod(0o600)
    command = "import sys; from kexue.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "projector", "bridge", "--config", projector.config, "--json", "-v"],
        env=os.environ | {"BEMFA_UID_FILE": str(key)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        background(asyncio.wait_for(cloud.wait_for_subscriber(), 30))
        assert background(asyncio.wait_for(cloud.reports.get(), 30)) == ("projector006", "on")
        background(cloud.say("projector006", "off"))
        record = json.loads(process.stdout.readline())
        assert (record["state"], record["action"]) == ("off", "poweroff")
        assert background(asyncio.wait_for(cloud.reports.get(), 30)) == ("projector006", "off")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        background(cloud.stop())
    assert process.returncode == 0
    assert UID not in out + err
    assert "Traceback" not in err
