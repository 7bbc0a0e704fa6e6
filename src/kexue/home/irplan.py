"""The article's infrared plan, and a simulator of it: infrared, a USB keyboard and a smart plug, without a network.

The projector is an Android computer and accepts a second keyboard. A module that turns infrared into key presses of a
USB keyboard learns the codes of a remote from the speaker's library; the speaker then sends infrared to the module.
A keyboard cannot start a computer that is off, so a smart plug does that: mains off for 10 seconds, then on, with the
projector set to start when power appears.

Source: kexue.fm/archives/9365. The usage codes of the keys are those of the USB HID tables, added here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Wire(NamedTuple):
    """One connection of the chain."""

    source: str
    target: str
    medium: str


class IRKey(NamedTuple):
    """A key of the infrared remote, the key press it becomes, and what the projector does.

    `usage` is ``page:code`` of the HID tables; empty where the key cannot be learnt.
    """

    remote: str
    keyboard: str
    usage: str
    effect: str


class Scene(NamedTuple):
    """A phrase spoken to the speaker, and the actions that follow."""

    phrase: str
    steps: tuple[str, ...]


class IRStep(NamedTuple):
    """One step of a simulation; `warning` is empty where nothing goes wrong."""

    said: str
    on: bool
    warning: str


_KEYS = (
    IRKey("power", "Power", "07:66", "shuts the projector down; cannot start it"),
    IRKey("ok", "Enter", "07:28", "confirms, pauses and plays"),
    IRKey("up", "Up", "07:52", "moves up"),
    IRKey("down", "Down", "07:51", "moves down"),
    IRKey("left", "Left", "07:50", "moves left"),
    IRKey("right", "Right", "07:4F", "moves right"),
    IRKey("back", "Escape", "07:29", "goes back"),
    IRKey("menu", "Application", "07:65", "opens the menu"),
    IRKey("volumeup", "Volume Increment", "0C:E9", "louder"),
    IRKey("volumedown", "Volume Decrement", "0C:EA", "softer"),
    IRKey("mute", "Mute", "0C:E2", "mutes"),
    IRKey("pause", "Play/Pause", "0C:CD", "pauses and plays"),
    IRKey("voice", "", "", "cannot be learnt: the remote sends sound, not a key"),
)
_WIRING = (  # section "The article's way"
    Wire("you", "speaker with infrared", "voice"),
    Wire("speaker with infrared", "infrared-to-USB keyboard module", "infrared, in the line of sight"),
    Wire("infrared-to-USB keyboard module", "projector", "USB, as a second keyboard"),
    Wire("speaker with infrared", "smart plug", "the speaker's cloud"),
    Wire("smart plug", "projector", "mains, with the projector set to start when power appears"),
)
_SCENES = (  # section "The article's way"
    Scene("turn the projector on", ("plug off", "wait 10 s", "plug on", "the projector starts by itself")),
    Scene("turn the projector off", ("infrared power", "the module presses Power", "the projector shuts down")),
)


@dataclass(frozen=True)
class IRPlan:
    """Wiring, keys to learn, and scenes to set up in the speaker's app.

    Attributes:
        wiring: tuple of ``Wire(source, target, medium)``.
        keys: tuple of ``IRKey(remote, keyboard, usage, effect)``.
        scenes: tuple of ``Scene(phrase, steps)``.
    """

    wiring: tuple[Wire, ...]
    keys: tuple[IRKey, ...]
    scenes: tuple[Scene, ...]

    def simulate(self, said: Iterable[str], *, on: bool = False) -> list[IRStep]:
        """Simulate commands on the chain, which has no feedback from the projector.

        Args:
            said: ``"on"``, ``"off"`` or names of keys of this plan.
            on: initial state of the projector.

        Raises:
            ValueError: a word that is neither a scene nor a key.

        >>> [step.on for step in ir_plan().simulate(["on", "volumeup", "off", "power"])]
        [True, True, False, False]
        >>> ir_plan().simulate(["on"], on=True)[0].warning
        'was already on: the plug cut the power of a running projector'
        """
        usable = {key.remote: key.usage for key in self.keys}
        steps = []
        for word in said:
            warning = ""
            if word == "on":
                if on:
                    warning = "was already on: the plug cut the power of a running projector"
                on = True
            elif word == "off" or word in usable:
                key = "power" if word == "off" else word
                if not usable.get(key):
                    warning = f"{key} cannot be learnt"
                elif not on:
                    warning = "the projector is off: a keyboard cannot start it"
                elif key == "power":
                    on = False
            else:
                raise ValueError(f"{word!r} is neither on, off nor one of the keys {', '.join(usable)}")
            steps.append(IRStep(word, on, warning))
        return steps


def ir_plan(remote: Iterable[str] | None = None) -> IRPlan:
    """Return the article's infrared plan for a remote.

    Args:
        remote: names of the keys on the infrared remote chosen from the speaker's library; None takes all keys of
            this plan.

    Raises:
        ValueError: an unknown key, or a remote without power, which could not switch anything off.

    >>> [key.keyboard for key in ir_plan(["power", "mute"]).keys]
    ['Power', 'Mute']
    """
    known = {key.remote: key for key in _KEYS}
    wanted = list(known) if remote is None else list(remote)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"unknown keys {unknown}; known are {', '.join(known)}")
    if "power" not in wanted:
        raise ValueError(f"the remote needs a power key to switch off, got {wanted}")
    return IRPlan(_WIRING, tuple(known[name] for name in wanted), _SCENES)
