"""A voice assistant that controls a projector: the infrared scheme of the article, and a bridge over the network.

Importing this package loads neither the MQTT nor the D-Bus library; they are loaded where they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.home.bemfa import (
        BemfaMqtt as BemfaMqtt,
        BemfaTcp as BemfaTcp,
    )
    from kexue.home.ble import BleWake as BleWake
    from kexue.home.bridge import (
        Bridge as Bridge,
        BridgeState as BridgeState,
        Outcome as Outcome,
    )
    from kexue.home.cloud import (
        Message as Message,
        parse_command as parse_command,
    )
    from kexue.home.fakes import (
        FakeBemfa as FakeBemfa,
        FakePlug as FakePlug,
        FakeProjector as FakeProjector,
    )
    from kexue.home.irplan import (
        IRPlan as IRPlan,
        ir_plan as ir_plan,
    )
    from kexue.home.mqtt import LocalMqtt as LocalMqtt
    from kexue.home.network import HttpHook as HttpHook
    from kexue.home.plug import PlugCycle as PlugCycle
    from kexue.home.projector import (
        KEYS as KEYS,
        XgimiUdp as XgimiUdp,
    )
    from kexue.home.rehearsal import (
        Rehearsal as Rehearsal,
        Rehearsed as Rehearsed,
        rehearse as rehearse,
    )
    from kexue.home.settings import BridgeSettings as BridgeSettings
    from kexue.home.wake import wake_payload as wake_payload

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "bemfa": ("BemfaMqtt", "BemfaTcp"),
        "ble": ("BleWake",),
        "bridge": ("Bridge", "BridgeState", "Outcome"),
        "cloud": ("Message", "parse_command"),
        "fakes": ("FakeBemfa", "FakePlug", "FakeProjector"),
        "irplan": ("IRPlan", "ir_plan"),
        "mqtt": ("LocalMqtt",),
        "network": ("HttpHook",),
        "plug": ("PlugCycle",),
        "projector": ("KEYS", "XgimiUdp"),
        "rehearsal": ("Rehearsal", "Rehearsed", "rehearse"),
        "settings": ("BridgeSettings",),
        "wake": ("wake_payload",),
    },
)
