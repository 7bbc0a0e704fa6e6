"""Settings of the training of a generative model, and its result."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kexue.generative.run.captions import Captions
from kexue.train.config import TrainResult


@dataclass(frozen=True)
class ModelConfig:
    """Settings of the training of a generative model; None takes the value of the model's recipe.

    Args:
        model: name of the model, such as ``"vae"``; `kexue.generative.list_models` lists them.
        data: ``"digits"``, ``"mnist"``, ``"fashion-mnist"`` or a folder of images, as `load_images` takes them; for
            ``"univae"`` a text file with a sentence a line.
        out: folder of the run.
        steps: optimizer steps, >= 1.
        batch_size: items of a step, >= 2.
        lr: largest learning rate, > 0, reached after a twentieth of the steps; it falls linearly to 0.
        ema: decay of a moving average of the weights, which are then the ones kept, in (0, 1); 0: no average.
        image_size: height and width to which every image is resized; None: unchanged.
        captions: texts of the images of a folder, which ``"diffusion"`` and ``"flow-matching"`` learn; None: none.
        seed, device, limit, resume: as of `kexue.train.TrainConfig`.

    Raises:
        ValueError: a value outside its range, with the range.
    """

    model: str
    data: str | os.PathLike[str]
    out: str | os.PathLike[str]
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    ema: float | None = None
    image_size: int | None = None
    captions: Captions | None = None
    seed: int = 0
    device: str = "auto"
    limit: int | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 2), ("image_size", 1), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {self.seed!r}")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be > 0 and finite, got {self.lr}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema is a decay in (0, 1), or 0 for no average, got {self.ema}")


@dataclass(frozen=True)
class ModelResult(TrainResult):
    """Result of the training of a generative model.

    Attributes:
        samples: file of samples of the final model, a sheet of images or lines of text.
    """

    samples: str
