"""`kexue projector`: switch a projector, or let a voice assistant do it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue.cli._verb import EXIT_FAILED, Output, verb

if TYPE_CHECKING:
    from kexue.home import Bridge, BridgeSettings, Outcome

app = typer.Typer(
    help="Switch a projector on and off over the network, by voice assistant if you like.", no_args_is_help=True
)

_Config = Annotated[Path | None, typer.Option("--config", help="The bridge's TOML file.", exists=True, dir_okay=False)]
_Host = Annotated[str | None, typer.Option("--host", help="The projector's address, where there is no file.")]


@verb(app, "bridge", examples=("kexue projector bridge --config bridge.toml",))
def bridge(
    out: Output, config: Annotated[Path, typer.Option("--config", help="TOML file.", exists=True, dir_okay=False)]
) -> None:
    """Listen to the message service and carry its commands out, until stopped (Ctrl-C, SIGTERM).

    The key of the cloud comes from BEMFA_UID, or from the file that BEMFA_UID_FILE names.
    """
    from kexue.home import BridgeSettings

    made = BridgeSettings.load(config).make_bridge(notify=lambda outcome, seconds: _say(out, outcome, seconds))
    out.remark("listening; stop with Ctrl-C")
    asyncio.run(_serve(made))


@verb(app, "send", examples=("kexue projector send volumeup --host 192.168.1.50",))
def send(
    out: Output,
    key: Annotated[str, typer.Argument(help="Name of a key: ok, home, volumeup, mute, poweroff, ...")],
    host: _Host = None,
    config: _Config = None,
) -> None:
    """Press one key. Nothing acknowledges it."""
    from kexue.home import Bridge, Outcome

    device = _settings(host, config).device()

    async def press() -> Outcome:
        await device.send(key)
        return Outcome(key, await Bridge(None, device).measure(), "sent")

    _once(out, press())


@verb(app, "status", examples=("kexue projector status --host 192.168.1.50",))
def status(out: Output, host: _Host = None, config: _Config = None) -> None:
    """Look whether the projector is on."""
    from kexue.home import Bridge, Outcome

    device = _settings(host, config).device()

    async def look() -> Outcome:
        return Outcome("none", await Bridge(None, device).measure(), "measured")

    _once(out, look())


@verb(app, "on", examples=("kexue projector on --config bridge.toml",))
def on(out: Output, config: Annotated[Path, typer.Option("--config", help="TOML file.", exists=True)]) -> None:
    """Switch on, as the file says (Bluetooth, helper, plug), and wait until the projector is there."""
    _switch(out, "on", _settings(None, config))


@verb(app, "off", examples=("kexue projector off --host 192.168.1.50",))
def off(out: Output, host: _Host = None, config: _Config = None) -> None:
    """Switch off and wait until the projector is gone."""
    _switch(out, "off", _settings(host, config))


@verb(app, "simulate", examples=("kexue projector simulate --loss 0.3",))
def simulate(
    out: Output,
    loss: Annotated[float, typer.Option(help="Share of datagrams that get lost.", min=0, max=1)] = 0.0,
) -> None:
    """Play an evening on loopback with a made-up cloud and projector: on, on again, nonsense, off."""
    from kexue.home import rehearse

    played = asyncio.run(rehearse(loss=loss, seed=out.seed))
    for step in played.steps:
        _say(out, step.outcome, step.seconds, said=step.said)
    out.remark(f"{len(played.datagrams)} datagrams arrived, {played.lost} were lost")


@verb(
    app, "ir-plan", examples=("kexue projector ir-plan", "kexue projector ir-plan --keys power,ok,volumeup,volumedown")
)
def ir_plan(
    out: Output,
    keys: Annotated[str | None, typer.Option(help="Keys of the infrared remote, by commas; default: all.")] = None,
) -> None:
    """Print the article's own scheme, without a network: what to wire, which keys to teach, which scenes to make."""
    from kexue.home import ir_plan

    plan = ir_plan([key.strip() for key in keys.split(",")] if keys else None)
    record = {
        "wiring": [wire._asdict() for wire in plan.wiring],
        "keys": [key._asdict() for key in plan.keys],
        "scenes": [scene._asdict() for scene in plan.scenes],
    }

    def text() -> str:
        lines = ["Wiring", *(f"  {w.source} -> {w.target}  ({w.medium})" for w in plan.wiring)]
        lines += [
            "Keys",
            *(f"  {k.remote:<11} {k.keyboard or '-':<17} {k.usage or '-':<6} {k.effect}" for k in plan.keys),
        ]
        return "\n".join([*lines, "Scenes", *(f"  {s.phrase}: {', '.join(s.steps)}" for s in plan.scenes)])

    out.emit(record, text)


@verb(app, "token", examples=("kexue projector token --mac AA:BB:CC:DD:EE:FF --counter 7",))
def token(
    out: Output,
    mac: Annotated[str, typer.Option(help="The projector's Bluetooth address.")],
    counter: Annotated[int, typer.Option(help="Counter of presses.", min=0, max=255)] = 0,
) -> None:
    """Print the 16 bytes that wake the projector over Bluetooth. Who knows them can start it."""
    from kexue.home import wake_payload

    payload = wake_payload(mac, counter).hex()
    out.emit({"payload": payload}, lambda: payload)


def _settings(host: str | None, config: Path | None) -> BridgeSettings:
    from kexue.home import BridgeSettings

    if (host is None) == (config is None):
        raise typer.BadParameter("give either --host or --config")
    return BridgeSettings({"host": host}) if config is None else BridgeSettings.load(config)


def _switch(out: Output, command: str, settings: BridgeSettings) -> None:
    made = settings.make_bridge(connected=False)
    outcome = _once(out, made.handle(command))
    if outcome.state != command:
        raise typer.Exit(EXIT_FAILED)


def _once(out: Output, work: Coroutine[Any, Any, Outcome]) -> Outcome:
    start = time.perf_counter()
    outcome = asyncio.run(work)
    _say(out, outcome, time.perf_counter() - start)
    return outcome


def _say(out: Output, outcome: Outcome, seconds: float, *, said: str | None = None) -> None:
    record = {"state": outcome.state.value, "action": outcome.action, "reason": outcome.reason, "seconds": seconds}
    heard = f"{said!r}: " if said is not None else ""
    out.emit(
        record if said is None else {"said": said} | record,
        lambda: f"{heard}{outcome.state.value}; {outcome.action} ({outcome.reason}), {seconds:.1f} s",
    )


async def _serve(made: Bridge) -> None:
    """Run until SIGTERM, which ends as quietly as Ctrl-C does."""
    task = asyncio.create_task(made.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if asyncio.current_task().cancelling():  # type: ignore[union-attr]
            raise
