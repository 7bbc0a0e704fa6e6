"""Classifiers of digits that guide a diffusion model from outside: of noisy digits, and of clean ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._digit_diffusion import CLASSES, SHAPE, Digits
from kexue.experiments._training import fit, share_right, shuffled_rows, torch_seed

_BATCH, _HIDDEN, _BLOCKS = 256, 128, 2
_NOISY_TIME = 300  # of 1000, at which accuracy on noisy digits is told
_SIMILAR = 10  # a similarity is at most 1, a logarithm of a probability is not


@dataclass(frozen=True)
class Guides:
    """Two classifiers.

    Attributes:
        noisy: scores of noisy digits, ``noisy(x, t)``.
        clean: scores of clean digits, ``clean(x)``.
        means: mean scores by `clean` of the training digits of each class, (classes, classes).
        accuracies: on test digits: of both on clean ones, and on noisy ones.
    """

    noisy: Callable[[Any, Any], Any]
    clean: Callable[[Any], Any]
    means: Any
    accuracies: Mapping[str, float]

    def build(self, way: str, denoiser: Any, scale: float, labels: Any) -> Any:
        """The guided denoiser.

        Args:
            way: ``"noisy"``, ``"clean"``: by either classifier, on noisy digits; ``"denoised"``, ``"stopgrad"``: by
                that of clean digits on denoised ones; ``"similarity"``: by the cosine of its scores and a class's.
            denoiser: of the network, without class.
            scale: of the guidance; of a similarity 10 times as much.
            labels: classes asked for, (B,).
        """
        from kexue.generative.diffusion import ClassifierGuidance, SimilarityGuidance, cosine_similarity_score

        if way == "similarity":
            score = cosine_similarity_score(self.clean, self.means[labels])
            return SimilarityGuidance(denoiser, score, _SIMILAR * scale, on="denoised")
        scores = self.noisy if way == "noisy" else lambda x, _t: self.clean(x)
        on = "denoised" if way in ("denoised", "stopgrad") else "noisy"
        through = "stopgrad" if way == "stopgrad" else "denoiser"
        return ClassifierGuidance(
            denoiser,
            lambda x, t, y: scores(x, t).log_softmax(-1).gather(1, y[:, None])[:, 0],
            scale,
            on=on,  # type: ignore[arg-type]
            through=through,  # type: ignore[arg-type]
        )


def train_guides(digits: Digits, schedule: Any, steps: int, seed: int) -> Guides:
    """Two residual MLPs of width 128: one of noisy digits that knows the time, one of clean digits."""
    torch = import_optional("torch", extra="generative")
    from kexue.generative.networks.denoiser import TimeAndClass

    with torch_seed(seed):
        nets = [generative.ResidualMLP(SHAPE, CLASSES, hidden=_HIDDEN, blocks=_BLOCKS) for _ in range(2)]
        clock = TimeAndClass(_HIDDEN)
    generator = torch.Generator().manual_seed(seed)
    train, labels = digits.images.train, digits.images.train_labels

    def noisy(x: Any, t: Any) -> Any:
        return nets[0](x, clock(len(x), t, None))

    def loss(rows: Any) -> Any:
        t = torch.randint(schedule.num_steps, (len(rows),), generator=generator)
        x, _ = schedule.marginal(train[rows], t, generator=generator)
        entropy = torch.nn.functional.cross_entropy
        return entropy(noisy(x, t), labels[rows]) + entropy(nets[1](train[rows]), labels[rows])

    rows = shuffled_rows(len(train), _BATCH, -(-steps * _BATCH // len(train)) + 1, generator)[:steps]
    parts = torch.nn.ModuleList([*nets, clock])
    fit(parts, loss, rows, torch.optim.Adam(parts.parameters(), 1e-3))
    parts.eval().requires_grad_(False)
    test, truth = digits.images.test, digits.images.test_labels
    blurred, _ = schedule.marginal(test, torch.tensor(_NOISY_TIME), generator=0)
    accuracies = {
        "accuracy_noisy_on_noise": share_right(lambda x: noisy(x, torch.tensor(_NOISY_TIME)), blurred, truth),
        "accuracy_noisy": share_right(lambda x: noisy(x, torch.tensor(0)), test, truth),
        "accuracy_clean_on_noise": share_right(nets[1], blurred, truth),
        "accuracy_clean": share_right(nets[1], test, truth),
    }
    scores = nets[1](train)
    means = torch.stack([scores[labels == digit].mean(0) for digit in range(CLASSES)])
    return Guides(noisy, nets[1], means, accuracies)
