import pytest

from kexue.errors import DataError
from kexue.home import BemfaMqtt, BemfaTcp, BleWake, Bridge, BridgeSettings, HttpHook, LocalMqtt
from kexue.home.secret import Secret, secret_from_environment

UID = "0123456789abcdef0123456789abcdef"
FULL = """
[projector]
host = "192.168.1.50"

[cloud]
kind = "bemfa-tcp"
topic = "projector006"

[wake]
mac = "AA:BB:CC:DD:EE:FF"

[plug]
on = "http://192.168.1.60/relay/0?turn=on"
off = "http://192.168.1.60/relay/0?turn=off"
seconds = 12

[bridge]
allow = ["on", "off", "volumeup"]
debounce = 2
"""


@pytest.fixture
def load(tmp_path):
    def load(text):
        (tmp_path / "bridge.toml").write_text(text)
        return BridgeSettings.load(tmp_path / "bridge.toml")

    return load


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("BEMFA_UID", raising=False)
    monkeypatch.delenv("BEMFA_UID_FILE", raising=False)


def test_a_full_file(load, monkeypatch):
    pytest.importorskip("dbus_fast")
    monkeypatch.setenv("BEMFA_UID", UID)
    settings = load(FULL)
    bridge = settings.make_bridge()
    assert isinstance(bridge, Bridge)
    assert bridge.allow == ("on", "off", "volumeup")
    assert isinstance(bridge._cloud, BemfaTcp)
    assert isinstance(bridge._wake, BleWake)
    assert bridge._plug.seconds == 12
    assert bridge._debounce == 2
    assert settings.device().host == "192.168.1.50"
    for shown in (repr(settings), repr(bridge._cloud), repr(bridge._wake)):
        assert UID not in shown
        assert "AA:BB" not in shown


def test_the_services(load, monkeypatch, tmp_path):
    pytest.importorskip("aiomqtt")
    monkeypatch.setenv("BEMFA_UID", UID)
    head = '[projector]\nhost = "10.0.0.2"\n[cloud]\ntopic = "projector006"\n'
    assert isinstance(load(head + 'kind = "bemfa-mqtt"').make_bridge()._cloud, BemfaMqtt)
    assert load(head + 'kind = "bemfa-tcp"\nversion = 1').make_bridge()._cloud.port == 8344
    (tmp_path / "password").write_text("hush\n")
    (tmp_path / "password").chmod(0o600)
    own = load(head + f'kind = "mqtt"\nhost = "10.0.0.3"\nusername = "u"\npassword_file = "{tmp_path}/password"')
    cloud = own.make_bridge()._cloud
    assert isinstance(cloud, LocalMqtt)
    assert cloud._password.reveal() == "hush"
    assert load(head).make_bridge(connected=False)._cloud is None
    hook = load(head + '[wake]\nurl = "POST http://10.0.0.4/button/wake/press"').make_bridge(connected=False)._wake
    assert isinstance(hook, HttpHook)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[projector", "not a TOML file"),
        ("", r"\[projector\] host is missing"),
        ('[projector]\nhost = "10.0.0.2"\nprot = 1', "Did you mean port"),
        ('[projector]\nhost = "10.0.0.2"\nport = "1"', "wrong type: str"),
        ('[projector]\nhost = "10.0.0.2"\nport = true', "wrong type: bool"),
        ('[projector]\nhost = "10.0.0.2"\n[extra]\n', "unknown table"),
        ('[projector]\nhost = "10.0.0.2"\n[cloud]\nuid = "x"', "secret"),
        ('[projector]\nhost = "10.0.0.2"\n[plug]\non = "http://10.0.0.3/"', r"\[plug\] off is missing"),
    ],
)
def test_mistakes_in_the_file(load, text, what):
    with pytest.raises(DataError, match=what):
        load(text)


def test_mistakes_that_only_a_bridge_notices(load, monkeypatch):
    head = '[projector]\nhost = "10.0.0.2"\n'
    with pytest.raises(DataError, match="kind must be"):
        load(head).make_bridge()
    with pytest.raises(DataError, match="version is not an option of mqtt"):
        load(head + '[cloud]\nkind = "mqtt"\ntopic = "t"\nversion = 1').make_bridge()
    with pytest.raises(DataError, match="BEMFA_UID is not set"):
        load(head + '[cloud]\nkind = "bemfa-tcp"\ntopic = "projector006"').make_bridge()
    with pytest.raises(ValueError, match="public address"):
        load('[projector]\nhost = "8.8.8.8"').make_bridge(connected=False)
    with pytest.raises(ValueError, match="allow must list"):
        load(head + '[bridge]\nallow = ["shell"]').make_bridge(connected=False)


def test_a_key_in_a_file_must_be_private(monkeypatch, tmp_path):
    file = tmp_path / "uid"
    file.write_text(f"{UID}\n")
    monkeypatch.setenv("BEMFA_UID_FILE", str(file))
    for mode in (0o644, 0o640, 0o604, 0o620):
        file.chmod(mode)
        with pytest.raises(DataError, match="chmod 600"):
            secret_from_environment("BEMFA_UID")
    file.chmod(0o600)
    assert secret_from_environment("BEMFA_UID").reveal() == UID
    file.write_text("\n")
    with pytest.raises(DataError, match="empty"):
        secret_from_environment("BEMFA_UID")


def test_captured_bytes_come_from_a_private_file(load, tmp_path):
    pytest.importorskip("dbus_fast")
    file = tmp_path / "payload"
    file.write_text("07 ff ee\n")
    file.chmod(0o600)
    text = f'[projector]\nhost = "10.0.0.2"\n[wake]\nadapter = "hci1"\npayload_file = "{file}"'
    wake = load(text).make_bridge(connected=False)._wake
    assert wake._payload == b"\x07\xff\xee"
    assert wake._advertise.keywords == {"adapter": "hci1"}
    file.write_text("not hex\n")
    with pytest.raises(DataError, match="hexadecimal"):
        load(text).make_bridge(connected=False)


def test_a_secret_shows_four_characters_at_most():
    secret = Secret(UID)
    assert (repr(secret), f"{secret}") == ("****cdef", "****cdef")
    assert repr(Secret("short")) == "****"
    assert secret.redact(f"user {UID} unknown, {UID}") == "user ****cdef unknown, ****cdef"
