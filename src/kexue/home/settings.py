"""Configuration file of the bridge: TOML, without secrets."""

from __future__ import annotations

import functools
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kexue.errors import DataError
from kexue.home import bluez
from kexue.home.bemfa import BemfaMqtt, BemfaTcp
from kexue.home.ble import BleWake
from kexue.home.bridge import Bridge, Outcome, Wake
from kexue.home.cloud import Cloud
from kexue.home.mqtt import LocalMqtt
from kexue.home.network import HttpHook
from kexue.home.plug import PlugCycle
from kexue.home.projector import XgimiUdp
from kexue.home.secret import secret_from_environment, secret_from_file

_KNOWN: dict[str, dict[str, type | tuple[type, ...]]] = {
    "projector": {"host": str, "port": int, "probe_port": int, "allow_public": bool},
    "cloud": {
        "kind": str, "topic": str, "host": str, "port": int, "tls": bool, "version": int,
        "username": str, "password_file": str,
    },
    "wake": {"mac": str, "payload_file": str, "adapter": str, "url": str},
    "plug": {"on": str, "off": str, "seconds": (int, float)},
    "bridge": {
        "allow": list, "rate_limit": int, "debounce": (int, float), "opposite_delay": (int, float),
        "max_age": (int, float), "on_timeout": (int, float), "off_timeout": (int, float),
        "probe_interval": (int, float), "report_interval": (int, float),
    },
}  # fmt: skip

_CLOUDS = {  # kind -> its options besides the topic
    "bemfa-tcp": ("host", "port", "version"),
    "bemfa-mqtt": ("host", "port", "tls"),
    "mqtt": ("host", "port", "tls", "username", "password_file"),
}


@dataclass(frozen=True)
class BridgeSettings:
    """A checked configuration file of the bridge.

    Attributes:
        projector: `host`; optional `port`, `probe_port`, `allow_public`.
        cloud: `kind` (``"bemfa-tcp"``, ``"bemfa-mqtt"`` or ``"mqtt"``), `topic`; optional `host`, `port`, `tls`,
            `version`, `username`, `password_file`. The key of Bemfa comes from BEMFA_UID or BEMFA_UID_FILE.
        wake: `mac` or `payload_file` (hexadecimal) for Bluetooth with `adapter`, or the `url` of a helper.
        plug: `on` and `off`, URLs to call; optional `seconds` without power.
        bridge: arguments of `Bridge`.
    """

    projector: Mapping[str, Any]
    cloud: Mapping[str, Any] = field(default_factory=dict)
    wake: Mapping[str, Any] = field(default_factory=dict, repr=False)
    plug: Mapping[str, Any] = field(default_factory=dict, repr=False)
    bridge: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BridgeSettings:
        """Read a TOML file.

        Raises:
            DataError: not TOML, an unknown table or name, a value of the wrong type, or no projector.
        """
        try:
            tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"not a TOML file: {error}.", path=path) from None
        _check(tables, path)
        return cls(**tables)

    def device(self) -> XgimiUdp:
        """Return the projector that the file describes."""
        return XgimiUdp(**self.projector)

    def make_bridge(self, *, connected: bool = True, notify: Callable[[Outcome, float], None] | None = None) -> Bridge:
        """Return the bridge that the file describes; `connected` False leaves out the cloud, for commands by hand.

        Raises:
            ValueError, DataError: a value out of range, or a secret that is missing or readable by others.
        """
        cloud = self._make_cloud() if connected else None
        plug = None
        if self.plug:
            plug = PlugCycle(
                HttpHook(self.plug["on"]), HttpHook(self.plug["off"]), seconds=self.plug.get("seconds", 10.0)
            )
        return Bridge(cloud, self.device(), wake=self._make_wake(), plug=plug, notify=notify, **self.bridge)

    def _make_cloud(self) -> Cloud:
        """Return the message service that the file describes."""
        options = dict(self.cloud)
        kind, topic = options.pop("kind", None), options.pop("topic", "")
        if kind not in _CLOUDS:
            raise DataError(
                f"[cloud] kind must be {', '.join(_CLOUDS)}, got {kind!r}.",
                remedy='Write for example: kind = "bemfa-tcp" and topic = "projector006".',
            )
        unknown = [name for name in options if name not in _CLOUDS[kind]]
        if unknown:
            raise DataError(
                f"[cloud] {', '.join(unknown)} is not an option of {kind}; options are {', '.join(_CLOUDS[kind])}."
            )
        if kind == "mqtt":
            if "password_file" in options:
                options["password"] = secret_from_file(options.pop("password_file"))
            return LocalMqtt(options.pop("host", "127.0.0.1"), topic, **options)
        make = BemfaTcp if kind == "bemfa-tcp" else BemfaMqtt
        return make(secret_from_environment("BEMFA_UID"), topic, **options)

    def _make_wake(self) -> Wake | None:
        """Return the method to wake the projector; None where the file has none."""
        if not self.wake:
            return None
        if "url" in self.wake:
            return HttpHook(self.wake["url"])
        payload = None
        if "payload_file" in self.wake:
            text = secret_from_file(self.wake["payload_file"]).reveal()
            try:
                payload = bytes.fromhex(text)
            except ValueError:
                raise DataError("expected hexadecimal bytes.", path=self.wake["payload_file"]) from None
        advertise = None
        if "adapter" in self.wake:
            advertise = functools.partial(bluez.advertise, adapter=self.wake["adapter"])
        return BleWake(self.wake.get("mac", ""), payload=payload, advertise=advertise)


def _check(tables: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Raise a DataError for an unknown table or name, a secret, a value of the wrong type, or a missing name."""
    for table, values in tables.items():
        if table not in _KNOWN or not isinstance(values, dict):
            raise DataError(f"unknown table {table!r}; known are {', '.join(_KNOWN)}.", path=path)
        for name, value in values.items():
            if name in ("uid", "password", "payload", "token"):
                raise DataError(
                    f"[{table}] {name} is a secret and does not belong in this file.",
                    path=path,
                    remedy="Use BEMFA_UID_FILE, password_file or payload_file with a file of mode 0600.",
                )
            if name not in _KNOWN[table]:
                near = get_close_matches(name, _KNOWN[table], 1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise DataError(f"[{table}] has no {name!r}.{hint}", path=path)
            kind = _KNOWN[table][name]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise DataError(f"[{table}] {name} has a value of the wrong type: {type(value).__name__}.", path=path)
    missing = [
        f"[{table}] {name}"
        for table, names in {"projector": ("host",), "plug": ("on", "off")}.items()
        for name in names
        if (table in tables or table == "projector") and name not in tables.get(table, {})
    ]
    if missing:
        raise DataError(f"{' and '.join(missing)} is missing.", path=path, remedy="Write it in the file.")
