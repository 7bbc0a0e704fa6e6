"""Device and threads of torch, and whether a device has bfloat16."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def set_threads() -> None:
    """Set torch's number of threads to the environment variable `KEXUE_THREADS`, if there is one.

    Raises:
        ValueError: it is not a positive whole number.
    """
    threads = os.environ.get("KEXUE_THREADS")
    if threads is not None:
        if not threads.isdecimal() or int(threads) < 1:
            raise ValueError(f"KEXUE_THREADS must be a positive whole number, got {threads!r}.")
        torch.set_num_threads(int(threads))


def choose_device(device: str) -> torch.device:
    """Return the named device; for ``"auto"`` that of `KEXUE_DEVICE`, else the first of cuda, mps, cpu that works.

    Raises:
        ValueError: the device is unknown or does not work on this machine.
    """
    if device == "auto":
        device = os.environ.get("KEXUE_DEVICE") or "auto"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.empty(0, device=device).device.type in ("cpu", "cuda", "mps"):
            return torch.device(device)
        reason = "tensors cannot be computed on it"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
    raise ValueError(f"device {device!r} cannot be used here ({reason}); expected auto, cpu, cuda or mps.")


def has_native_bfloat16(device: torch.device) -> bool:
    """True if `device` multiplies bfloat16 in hardware; elsewhere bfloat16 is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if device.type == "cpu" else ""
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
