"""Language models by name: the one that is a part of kexue, folders of n-grams, neural ones."""

from __future__ import annotations

from pathlib import Path

from kexue.sampling.text.laws import LanguageModel
from kexue.sampling.text.ngram import NGramLM

PACKAGED = "ngram-zh"


def load_lm(name: str = PACKAGED, *, prompt: str = "", device: str = "cpu") -> LanguageModel:
    """Open a language model.

    Args:
        name: ``"ngram-zh"``, Chinese n-grams that are a part of kexue; ``"ngram:FOLDER"``, of `NGramLM.save`;
            ``"hf:NAME"``, a `CausalLM`.
        prompt: as of `CausalLM`; n-grams have none.
        device: of a neural model.

    Raises:
        ValueError: another name. CheckpointError, ModelNotFoundError: no such model.
    """
    kind, _, place = name.partition(":")
    if name == PACKAGED:
        return NGramLM.load(Path(__file__).resolve().with_name("zh_ngram"))
    if kind == "ngram" and place:
        return NGramLM.load(place)
    if kind == "hf" and place:
        from kexue.sampling.text.causal import CausalLM

        return CausalLM(place, prompt=prompt, device=device)
    raise ValueError(f"a language model is {PACKAGED}, ngram:FOLDER or hf:NAME, got {name!r}")
