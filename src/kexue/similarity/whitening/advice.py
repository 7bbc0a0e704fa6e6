"""The result of a tuning in words."""

from __future__ import annotations

from kexue.similarity.whitening.grid import Setting
from kexue.similarity.whitening.trial import HeldOutScores


def advise(setting: Setting, d: int, m: int, result: HeldOutScores, doubt: str) -> str:
    """Describe the choice of `setting` for vectors of d dimensions on m pairs."""
    chosen = f"beta={setting.beta:g}, gamma={setting.gamma:g}, k={setting.k} of {d}"
    held_out = (
        f"held out {result.score:.3f} (95 % {result.low:.3f} to {result.high:.3f}, {m} pairs), "
        f"raw vectors {result.raw:.3f}"
    )
    if doubt:
        return (
            f"Cannot tell which setting is best. {doubt}, so the safe setting is kept, which is no recommendation: "
            f"{chosen}, with {setting.kept:.1%} of the mean square length; {held_out}. To decide, use more pairs, "
            "harder pairs, or graded labels."
        )
    if result.raw > result.high:
        return f"Leave the vectors as they are: the best setting, {chosen}, is worse than raw: {held_out}."
    if result.raw >= result.low:
        saves = f" It saves {1 - setting.k / d:.0%} of the memory." if setting.k < d else ""
        return f"No gain that these pairs can show: {chosen}, {held_out}; raw lies within the interval.{saves}"
    return f"Use {chosen}: {held_out}."


def advise_without_labels(k: int, d: int, kept: float, mean_share: float) -> str:
    """Describe the safe setting, and what it cannot take into account without labels."""
    return (
        "No labels, so this is the safe setting, not the best: beta=0, gamma=0 changes cosines by truncation only; "
        f"{k} of {d} dimensions keep {kept:.1%} of the mean square length. It is not known "
        f"whether your task gains from centring (the mean has {mean_share:.0%} of the mean square length) or isotropy; "
        "vectors of a plain language model often do, of a trained sentence encoder rarely. "
        "A few hundred labelled pairs settle it."
    )
