"""`kexue projector`: switch a projector on and off, or run the bridge for a voice assistant."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue.cli import _options as opt
from kexue.cli._verb import EXIT_FAILED, Output, verb

if TYPE_CHECKING:
    from kexue.home import Bridge, BridgeSettings, Outcome

app = typer.Typer(help="Switch a projector on and off over the network, also by voice assistant.", no_args_is_help=True)

_Config = Annotated[
    Path | None, typer.Option("--config", help="Configuration file of the bridge (TOML).", exists=True, dir_okay=False)
]
_Host = Annotated[str | None, typer.Option("--host", help="Address of the projector, instead of --config.")]


@verb(app, "bridge", examples=("kexue projector bridge --config bridge.toml",))
def bridge(
    out: Output,
    config: Annotated[
        Path, typer.Option("--config", help="Configuration file of the bridge (TOML).", exists=True, dir_okay=False)
    ],
) -> None:
    """Listen to the message service and execute its commands, until stopped (Ctrl-C, SIGTERM).

    The key of the cloud comes from BEMFA_UID, or from the file named by BEMFA_UID_FILE.
    """
    from kexue.home import BridgeSettings

    runner = BridgeSettings.load(config).make_bridge(
        notify=lambda outcome, seconds: _print_outcome(out, outcome, seconds)
    )
    out.remark("listening; stop with Ctrl-C")
    asyncio.run(_serve(runner))


@verb(app, "send", examples=("kexue projector send volumeup --host 192.168.1.50",))
def send(
    out: Output,
    key: Annotated[str, typer.Argument(help="Name of a key: ok, home, volumeup, mute, poweroff, ...")],
    host: _Host = None,
    config: _Config = None,
) -> None:
    """Press one key; the projector does not acknowledge it."""
    from kexue.home import Bridge, Outcome

    device = _settings(host, config).device()

    async def press() -> Outcome:
        await device.send(key)
        return Outcome(key, await Bridge(None, device).measure(), "sent")

    _run(out, press())


@verb(app, "status", examples=("kexue projector status --host 192.168.1.50",))
def status(out: Output, host: _Host = None, config: _Config = None) -> None:
    """Probe whether the projector is on."""
    from kexue.home import Bridge, Outcome

    device = _settings(host, config).device()

    async def probe() -> Outcome:
        return Outcome("none", await Bridge(None, device).measure(), "measured")

    _run(out, probe())


@verb(app, "on", examples=("kexue projector on --config bridge.toml",))
def on(
    out: Output,
    config: Annotated[Path, typer.Option("--config", help="Configuration file of the bridge (TOML).", exists=True)],
) -> None:
    """Switch on with the methods in the file (Bluetooth, helper, plug), and wait until the projector is on."""
    _switch(out, "on", _settings(None, config))


@verb(app, "off", examples=("kexue projector off --host 192.168.1.50",))
def off(out: Output, host: _Host = None, config: _Config = None) -> None:
    """Switch off and wait until the projector is off."""
    _switch(out, "off", _settings(host, config))


@verb(app, "simulate", examples=("kexue projector simulate --loss 0.3",), seeded=True)
def simulate(
    out: Output,
    loss: Annotated[float, typer.Option(help="Probability that a datagram gets lost.", min=0, max=1)] = 0.0,
) -> None:
    """Simulate cloud and projector on this machine, and send: on, on again, an invalid command, off."""
    from kexue.home import rehearse

    rehearsal = asyncio.run(rehearse(loss=loss, seed=out.seed))
    for step in rehearsal.steps:
        _print_outcome(out, step.outcome, step.seconds, said=step.said)
    out.remark(f"{len(rehearsal.datagrams)} datagrams arrived, {rehearsal.lost} were lost")


@verb(
    app, "ir-plan", examples=("kexue projector ir-plan", "kexue projector ir-plan --keys power,ok,volumeup,volumedown")
)
def ir_plan(
    out: Output,
    keys: Annotated[
        list[str] | None,
        typer.Option(help="Keys of the infrared remote, separated by commas, or repeated; default: all."),
    ] = None,
) -> None:
    """Print the article's infrared plan, which needs no network: wiring, keys to learn, scenes to set up."""
    from kexue.home import ir_plan

    plan = ir_plan(opt.split_names(keys) or None)
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
    mac: Annotated[str, typer.Option(help="Bluetooth address of the projector.")],
    counter: Annotated[int, typer.Option(help="Counter of presses, 0 to 255.", min=0, max=255)] = 0,
) -> None:
    """Print the 16 bytes that wake the projector over Bluetooth.

    Keep them secret: anyone who knows them can start it.
    """
    from kexue.home import wake_payload

    payload = wake_payload(mac, counter).hex()
    out.emit({"payload": payload}, lambda: payload)


def _settings(host: str | None, config: Path | None) -> BridgeSettings:
    """Return the settings of the file, or of the host alone."""
    from kexue.home import BridgeSettings

    if (host is None) == (config is None):
        raise typer.BadParameter("give either --host or --config")
    return BridgeSettings({"host": host}) if config is None else BridgeSettings.load(config)


def _switch(out: Output, command: str, settings: BridgeSettings) -> None:
    """Switch on or off without the cloud; exit code 1 if the projector does not reach that state."""
    outcome = _run(out, settings.make_bridge(connected=False).handle(command))
    if outcome.state != command:
        raise typer.Exit(EXIT_FAILED)


def _run(out: Output, work: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Run one coroutine and print its outcome with the time it took."""
    start = time.perf_counter()
    outcome = asyncio.run(work)
    _print_outcome(out, outcome, time.perf_counter() - start)
    return outcome


def _print_outcome(out: Output, outcome: Outcome, seconds: float, *, said: str | None = None) -> None:
    """Print one outcome, with the text of the command in a simulation."""
    record = {"state": outcome.state.value, "action": outcome.action, "reason": outcome.reason, "seconds": seconds}
    prefix = f"{said!r}: " if said is not None else ""
    out.emit(
        record if said is None else {"said": said} | record,
        lambda: f"{prefix}{outcome.state.value}; {outcome.action} ({outcome.reason}), {seconds:.1f} s",
    )


async def _serve(runner: Bridge) -> None:
    """Run until SIGTERM, which ends without a traceback, as Ctrl-C does."""
    task = asyncio.create_task(runner.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if asyncio.current_task().cancelling():  # type: ignore[union-attr]
            raise
