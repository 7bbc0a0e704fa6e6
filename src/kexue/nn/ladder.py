"""Ladder side-tuning: a small network that is trained next to a frozen one and reads its hidden states.

The cost of a backward pass depends on how near to the input the nearest trained parameter lies. Adapters and prompts
sit near the input, so the gradient still runs through the whole backbone. With a ladder the backbone runs forward only,
and none of its activations are stored for a backward pass.

    gated:     s_0 = D_0 h_0,  s_i = Block_i(g_i s_{i-1} + (1 - g_i) D_i h_i),  g_i = sigmoid(a_i / T)
    additive:  s_0 = D_0 h_0,  s_i = Block_i(s_{i-1}) + D_i h_i

Source: kexue.fm/archives/9138, section "Main idea", which describes the structure by a figure; Sung, Cho, Bansal 2022,
arXiv:2206.06522 (gated); the author's code for CLUE (additive).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kexue._tensors import outside_inference_mode
from kexue.errors import CheckpointError
from kexue.nn.attention import attend, urpe_attention
from kexue.nn.cached_states import MASK, CachedStates, write_states
from kexue.nn.taps import declares_causal, find_mask, measure_causality, read_states, resolve_tap


class LadderBlock(nn.Module):
    """A block of a ladder: attention and feed-forward, each behind its layer normalisation; no dropout, no positions.

    The states carry the positions of the backbone.

    Args:
        width: of the states, a multiple of `num_heads`.
        num_heads: of the attention. None: width // 32, or the nearest smaller number that divides the width.
        causal: each position attends to itself and earlier ones only, as beside a left-to-right backbone.
    """

    def __init__(self, width: int, *, num_heads: int | None = None, causal: bool = False) -> None:
        super().__init__()
        heads = (
            num_heads if num_heads is not None else next(h for h in range(max(1, width // 32), 0, -1) if width % h == 0)
        )
        if width < 1 or heads < 1 or width % heads:
            raise ValueError(f"expected a width that is a multiple of num_heads, got {width} and {heads}")
        self.heads, self.causal = heads, causal
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, s: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map states (B, T, width) to states of the same shape.

        Args:
            s: the states.
            mask: bool, True = may be attended to, (B, T) or for every query (B, T, T). A query without any key, like
                padding on the left of a causal block, attends to nothing.

        Raises:
            TypeError: a mask that is not bool. ValueError: one of another shape.
        """
        q, k, v = self.qkv(self.norm_attention(s)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if mask is None:
            mixed = attend(q, k, v, None, is_causal=self.causal)
        else:
            length = s.shape[1]
            if mask.dtype != torch.bool:
                raise TypeError(f"mask must be bool, True = may be attended to, got {mask.dtype}; use mask.bool()")
            if mask.shape not in {(len(s), length), (len(s), length, length)}:
                raise ValueError(
                    f"mask must be {(len(s), length)} or {(len(s), length, length)}, got {tuple(mask.shape)}"
                )
            allowed = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
            if self.causal:
                allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=s.device).tril()
            mixed = urpe_attention(q, k, v, mask=allowed)
        s = s + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = s + self.feed(self.norm_feed(s))
        return out


class LadderSideNetwork(nn.Module):
    """A frozen backbone with a trained ladder next to it.

    The first tap feeds the side network; each further tap has a block. The backbone runs without gradients, so 8-bit
    and 4-bit ones work; at inference the ladder's time comes on top of the backbone's. Train the ladder and your own
    head on its output: ``[p for p in side.parameters() if p.requires_grad]``. Keep `gates` out of weight decay. For
    torch.compile leave the backbone out: call ``states(...)`` in eager mode, and compile what begins with
    ``side(states=...)``.

    Source: kexue.fm/archives/9138.

    Args:
        backbone: a Hugging Face model, or any module whose states are tensors (..., d), or tuples that begin with one.
        taps: two or more states to read, from bottom to top. A name is a module of the backbone, and its output is
            read. A number i is the output of layer i, counted from 1, of the longest ``ModuleList`` inside (or else
            ``Sequential``); 0 is what enters the first layer, and negative ones count from the top. A normalisation
            after the last layer is not included: name its module to have it.
        width: of the side network, for example an eighth of the backbone's.
        block_factory: makes a block from the width. The block is called with states (..., width), and with a bool mask
            (B, T) as second argument when there is one. None: `LadderBlock`. Beside a left-to-right backbone a block of
            your own must not look ahead either.
        causal: whether a `LadderBlock` sees earlier tokens only; a bidirectional block beside a left-to-right backbone
            would leak later ones. None detects it: from the attention of the tapped layers where that declares it,
            otherwise by changing a token of the first batch and comparing the states before it.
        mode: ``"gated"`` or ``"additive"``, see the module's docstring.
        gate_temperature: T > 0; small ones saturate fast.
        upsample: map the last state back to the width of the last tap, without bias, ready for the backbone's own
            head; False returns `width`.
        frozen_eval: keep the backbone in eval mode (dropout off, batch statistics fixed) also after ``train()``.

    With a Hugging Face model the taps are as wide as ``config.hidden_size``. Elsewhere the maps are lazy modules: run
    one batch before you make the optimizer.

    Raises:
        ValueError: fewer than two taps, a tap that is not there, a width, temperature or mode out of range.

    Example:
        >>> backbone = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        >>> side = LadderSideNetwork(backbone, taps=[1, 2, 4], width=8, block_factory=lambda w: nn.Linear(w, w))
        >>> side(torch.randn(5, 8)).shape
        torch.Size([5, 64])
    """

    gates: nn.Parameter | None

    def __init__(
        self,
        backbone: nn.Module,
        *,
        taps: Sequence[str | int],
        width: int,
        block_factory: Callable[[int], nn.Module] | None = None,
        causal: bool | None = None,
        mode: Literal["gated", "additive"] = "gated",
        gate_temperature: float = 0.1,
        upsample: bool = True,
        frozen_eval: bool = True,
    ) -> None:
        super().__init__()
        if len(taps) < 2 or isinstance(taps, str):
            raise ValueError(f"taps must name two states at least, a first one and one per block; got {taps!r}")
        if mode not in {"gated", "additive"}:
            raise ValueError(f"mode must be 'gated' or 'additive', got {mode!r}")
        if width < 1 or not gate_temperature > 0:
            raise ValueError(f"expected width >= 1 and gate_temperature > 0, got {width} and {gate_temperature}")
        if block_factory is not None and causal is not None:
            raise ValueError(f"causal={causal} is for LadderBlock: let block_factory make causal blocks itself")
        self.backbone = backbone
        self.mode, self.gate_temperature, self.frozen_eval = mode, gate_temperature, frozen_eval
        self._taps = tuple(resolve_tap(backbone, tap) for tap in taps)
        if len({(tap.module, tap.is_input) for tap in self._taps}) < len(taps):
            raise ValueError(f"every tap may be named once, got {list(taps)}")
        size = getattr(getattr(backbone, "config", None), "hidden_size", None)
        self.down = nn.ModuleList(
            nn.LazyLinear(width, bias=False) if size is None else nn.Linear(int(size), width, bias=False) for _ in taps
        )
        if block_factory is None and causal is None and declares_causal(backbone, self._taps):
            causal = True
        self._causality_unknown = block_factory is None and causal is None
        make = block_factory or partial(LadderBlock, causal=bool(causal))
        self.blocks = nn.ModuleList(make(width) for _ in taps[1:])
        self.gates = nn.Parameter(torch.zeros(len(taps) - 1)) if mode == "gated" else None
        self.up: nn.Module | None = None
        if upsample:
            self.up = _LazyUpProjection() if size is None else nn.Linear(width, int(size), bias=False)
        self.freeze_backbone()

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps, as keys of cached states."""
        return tuple(tap.name for tap in self._taps)

    def freeze_backbone(self) -> None:
        """Switch off the backbone's gradients, and put it in eval mode."""
        self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LadderSideNetwork:
        """Set the training mode; the backbone stays in eval mode unless ``frozen_eval=False``."""
        super().train(mode)
        if self.frozen_eval:
            self.backbone.eval()
        return self

    def states(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Run the backbone on its own arguments, without gradients, and return the tapped states."""
        states = read_states(self.backbone, self._taps, args, kwargs)
        if self._causality_unknown:
            causal = measure_causality(self.backbone, self._taps, states, args, kwargs)
            if causal is not None:
                for block in self.blocks:
                    if isinstance(block, LadderBlock):
                        block.causal = causal
                self._causality_unknown = False
        return states

    def forward(
        self, *args: Any, states: Mapping[str, Tensor] | Sequence[Tensor] | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the top of the ladder, (..., d) or (..., width).

        Args:
            args, kwargs: the backbone's arguments. A keyword `attention_mask` or `mask` of shape (B, T), nonzero =
                keep, is passed to the blocks too; one for every query, bool of (B, T, T) or (B, 1, T, T), to each
                `LadderBlock`.
            states: instead of these, a batch of a `CachedStates`, or the tuple that `states` returns. A mask may be
                given under ``"mask"``.

        Raises:
            ValueError: both or neither, taps that are missing or that the backbone never ran.
        """
        mask = find_mask(kwargs)
        if states is not None and self._causality_unknown:
            raise ValueError(
                "states alone do not show whether the backbone sees later tokens: set causal=True or causal=False, or "
                "run one batch of two tokens or more through it first"
            )
        if states is None:
            return self._run_ladder(self.states(*args, **kwargs), mask)
        if args or any(name not in ("attention_mask", MASK) for name in kwargs):
            raise ValueError("give either the backbone's arguments or states=, not both")
        if isinstance(states, Mapping):
            missing = [tap for tap in self.taps if tap not in states]
            if missing:
                raise ValueError(f"states of the taps {missing} are missing; there are {list(states)}")
            mask = states.get(MASK, mask)
            states = [states[tap] for tap in self.taps]
        if len(states) != len(self.taps):
            raise ValueError(f"expected {len(self.taps)} states, one per tap, got {len(states)}")
        return self._run_ladder(states, mask)

    def _run_ladder(self, states: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        """Return the side network's output for the states h_0, h_1, ... of the taps."""
        if mask is not None and mask.dim() > 2 and not all(isinstance(block, LadderBlock) for block in self.blocks):
            mask = None  # other blocks expect (B, T)
        masks = () if mask is None else (mask,)
        for down, h in zip(self.down, states, strict=True):
            _initialize_lazy(down, h)
        # section "Main idea": the side network reads D_i h_i
        lowered = [down(_match_dtype(h, down)) for down, h in zip(self.down, states, strict=True)]
        s: Tensor = lowered[0]  # s_0
        for number, (block, h) in enumerate(zip(self.blocks, lowered[1:], strict=True)):
            if self.gates is None:
                s = block(s, *masks) + h  # additive s_i
            else:
                gate = torch.sigmoid(self.gates[number] / self.gate_temperature)  # g_i
                s = block(gate * s + (1 - gate) * h, *masks)  # gated s_i
        if isinstance(self.up, _LazyUpProjection):
            self.up.set_out_features(states[-1].shape[-1])
            _initialize_lazy(self.up, s)
        return s if self.up is None else self.up(s)

    def side_state_dict(self) -> dict[str, Tensor]:
        """Return the weights of the ladder alone, under the names of `state_dict`."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("backbone.")}

    def load_side_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights that `side_state_dict` returned.

        Raises:
            CheckpointError: weights that are missing or left over, which it names.
        """
        own = self.side_state_dict().keys()
        missing, extra = sorted(own - weights.keys()), sorted(weights.keys() - own)
        if missing or extra:
            raise CheckpointError(f"weights of another ladder: missing {missing}, left over {extra}.")
        self.load_state_dict(dict(weights), strict=False)

    def cache_states(self, loader: Iterable[Any], path: str | os.PathLike[str]) -> CachedStates:
        """Run the backbone once over `loader` and store the tapped states on disk: later epochs need no backbone.

        Takes taps x tokens x d numbers per sample. One safetensors file per batch, then an index; an interrupted run
        leaves no index, and a new one replaces what is there.

        Args:
            loader: batches in a fixed order: a mapping of the backbone's keyword arguments (also `attention_mask`), a
                sequence of positional ones, or one tensor; no labels, see `CachedStates`.
            path: the folder, created if missing.

        Raises:
            ValueError: no batches, or states that differ in their number of samples.
        """
        return write_states(self._read_batches(loader), self.taps, path)

    def _read_batches(self, loader: Iterable[Any]) -> Iterator[dict[str, Tensor]]:
        """Yield the tapped states of each batch, and its mask where it has one."""
        for batch in loader:
            kwargs = dict(batch) if isinstance(batch, Mapping) else {}
            args = () if kwargs else ((batch,) if isinstance(batch, Tensor) else tuple(batch))
            tensors = dict(zip(self.taps, self.states(*args, **kwargs), strict=True))
            mask = find_mask(kwargs)
            yield tensors if mask is None else {**tensors, MASK: mask}


class _LazyUpProjection(nn.LazyLinear):
    """Bias-free Linear whose output width is only known at the first call."""

    def __init__(self) -> None:
        super().__init__(0, bias=False)

    def set_out_features(self, out_features: int) -> None:
        """Set the output width, unless the weights exist already."""
        if self.has_uninitialized_params():
            self.out_features = out_features


def _initialize_lazy(layer: nn.Module, x: Tensor) -> None:
    """Create the weights of a lazy layer for input x, as trainable parameters also under inference mode."""
    if isinstance(layer, nn.LazyLinear) and layer.has_uninitialized_params():
        with outside_inference_mode():
            layer.initialize_parameters(x)


def _match_dtype(h: Tensor, down: nn.Module) -> Tensor:
    """Return h in the dtype of the ladder's weight, for a backbone in half precision; autocast does so by itself."""
    weight = down.weight
    assert isinstance(weight, Tensor)
    kind = h.device.type
    narrow = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return h if narrow else h.to(weight.dtype)
