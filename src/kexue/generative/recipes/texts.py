"""Recipe of the UniVAE, which makes texts."""

from __future__ import annotations

from torch import nn

from kexue.generative.recipes.recipe import Course, Facts, Recipe, Sizes
from kexue.generative.run.texts import Texts
from kexue.generative.univae.characters import CharacterVocabulary
from kexue.generative.univae.model import UniVAE
from kexue.nn import Transformer, TransformerConfig


def _univae_sizes(facts: Facts) -> Sizes:
    latent = {"n_latent_layers": 3, "latent_dim": 32, "kappa": 200.0}
    return {"hidden_size": 128, "num_layers": 4, "num_heads": 4, **latent}


def _build_univae(facts: Facts, sizes: Sizes) -> UniVAE:
    latent = {name: sizes[name] for name in ("n_latent_layers", "latent_dim", "kappa")}
    network = {name: value for name, value in sizes.items() if name not in latent}
    backbone = Transformer(TransformerConfig(len(CharacterVocabulary(facts["characters"])), **network))
    for part in backbone.blocks.modules():  # weights of the size of BERT's are too small for this width
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
    return UniVAE(backbone, max_length=facts["max_length"], **latent)


def _univae_course(facts: Facts) -> Course:
    return Course(10_000, batch_size=64, lr=3e-3, ema=0.99, eval_every=250)


TEXT_MODELS = {
    "univae": Recipe(
        medium=Texts,
        choose_sizes=_univae_sizes,
        build=_build_univae,
        choose_course=_univae_course,
        start=UniVAE.initialize,
        tempered={"method": "sample"},
    ),
}
