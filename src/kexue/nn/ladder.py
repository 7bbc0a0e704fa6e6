"""Ladder side-tuning: a small network climbs beside a frozen one and reads its hidden states.

What a backward pass costs depends on how near to the input the nearest trained parameter lies. Adapters and prompts
sit near the input, so the gradient still runs through the whole backbone. A ladder leaves it out altogether: the
backbone runs forward only, and nothing of it is kept for a backward pass.

    gated:     s_0 = D_0 h_0,  s_i = Block_i(g_i s_{i-1} + (1 - g_i) D_i h_i),  g_i = sigmoid(a_i / T)
    additive:  s_0 = D_0 h_0,  s_i = Block_i(s_{i-1}) + D_i h_i

Source: kexue.fm/archives/9138; Sung, Cho, Bansal 2022, arXiv:2206.06522 (gated); the author's test on CLUE (additive).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from kexue._files import replacing
from kexue._tensors import outside_inference_mode
from kexue._text import parse_json
from kexue.errors import CheckpointError, DataError
from kexue.nn.attention import attend, urpe_attention

_FORMAT = 1
_MASK = "mask"


class LadderBlock(nn.Module):
    """A rung: attention and feed-forward with normalisation first, no dropout, no positions (states carry them).

    Args:
        width: of the states, a multiple of `num_heads`.
        num_heads: of the attention; None: one for every 32 of the width, or as many as divide it.
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
        """States (B, T, width); mask bool, True = may be attended to, (B, T) or for every query (B, T, T).

        A query without any key, like padding on the left of a causal rung, attends to nothing.
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
        fed: Tensor = s + self.feed(self.norm_feed(s))
        return fed


class LadderSideNetwork(nn.Module):
    """A frozen backbone with a trained ladder beside it.

    The first tap feeds the side network, each further one has a rung. The backbone runs without gradients, so 8-bit
    and 4-bit ones will do; at inference a ladder adds to its time. Train the ladder and your own head on its output:
    ``[p for p in side.parameters() if p.requires_grad]``. Keep `gates` out of weight decay. For torch.compile leave
    the backbone out: take `states(...)` from it, and compile what begins with ``side(states=...)``.

    Source: kexue.fm/archives/9138.

    Args:
        backbone: a Hugging Face model, or any module whose states are tensors (..., d), or tuples that begin with one.
        taps: two or more states to read, from bottom to top. A name is a module of the backbone, and its output is
            read. A number i is the output of layer i, counted from 1, of the longest ``ModuleList`` inside (or else
            ``Sequential``); 0 is what enters the first layer, and negative ones count from the top. A normalisation
            after the last layer is not in them: name its module to have it.
        width: of the side network, say an eighth of the backbone's.
        block_factory: makes a rung from the width. It is called with states (..., width), and with a bool mask (B, T)
            as second argument when there is one. None: `LadderBlock`. Beside a left-to-right backbone a rung of your
            own must not look ahead either.
        causal: whether a `LadderBlock` sees earlier tokens only; a bidirectional rung beside a left-to-right backbone
            would leak later ones. None finds out: from the attention of the tapped layers where it says so, or else by
            changing a token of the first batch and looking whether the states before it change.
        mode: ``"gated"`` or ``"additive"``, see above.
        gate_temperature: T > 0; small ones saturate fast.
        upsample: bring the last state back to the width of the last tap with a bias-free map, ready for the backbone's
            own head; False returns `width`.
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
            raise ValueError(f"taps: a first state and one a rung, two at least; got {taps!r}")
        if mode not in {"gated", "additive"}:
            raise ValueError(f"mode must be 'gated' or 'additive', got {mode!r}")
        if width < 1 or not gate_temperature > 0:
            raise ValueError(f"expected width >= 1 and gate_temperature > 0, got {width} and {gate_temperature}")
        self.backbone = backbone
        self.mode, self.gate_temperature, self.frozen_eval = mode, gate_temperature, frozen_eval
        self._places = [_place(backbone, tap) for tap in taps]
        self.taps = tuple(str(tap) for tap in taps)
        if len(set(self._places)) < len(taps):
            raise ValueError(f"every tap may be named once, got {list(taps)}")
        size = getattr(getattr(backbone, "config", None), "hidden_size", None)
        self.down = nn.ModuleList(
            nn.LazyLinear(width, bias=False) if size is None else nn.Linear(int(size), width, bias=False) for _ in taps
        )
        if block_factory is not None and causal is not None:
            raise ValueError(f"causal={causal} is for the rungs made here: let block_factory see to its own")
        if block_factory is None and causal is None and _is_known_causal(backbone, self._places):
            causal = True
        self._open = block_factory is None and causal is None  # whether the direction is still to be found
        make = block_factory or partial(LadderBlock, causal=bool(causal))
        self.blocks = nn.ModuleList(make(width) for _ in taps[1:])
        self.gates = nn.Parameter(torch.zeros(len(taps) - 1)) if mode == "gated" else None
        self.up: nn.Module | None = None
        if upsample:
            self.up = _LazyUp() if size is None else nn.Linear(width, int(size), bias=False)
        self.freeze_backbone()

    def freeze_backbone(self) -> None:
        """No gradients for the backbone, and eval mode."""
        self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LadderSideNetwork:
        """As any module's; the backbone stays in eval mode unless ``frozen_eval=False``."""
        super().train(mode)
        if self.frozen_eval:
            self.backbone.eval()
        return self

    def states(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Run the backbone on its own arguments, without gradients, and return the tapped states."""
        taken = self._run(args, kwargs)
        if self._open:
            self._find_direction(taken, args, kwargs)
        return taken

    def _find_direction(self, taken: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make the rungs causal if the states before a token do not depend on it; a batch without two says nothing."""
        changed = _change_a_token(args, kwargs)
        if changed is None:
            return
        args_after, kwargs_after, earlier, length = changed
        if self.backbone.training:  # dropout would look like a dependence
            self.backbone.eval()
            try:
                taken, after = self._run(args, kwargs), self._run(args_after, kwargs_after)
            finally:
                self.backbone.train()
        else:
            after = self._run(args_after, kwargs_after)
        states = [(a, b) for a, b in zip(taken, after, strict=True) if a.dim() > 2 and a.shape[1] == length]
        pairs = [(a[0, earlier], b[0, earlier]) for a, b in states]
        causal = bool(pairs) and all(bool((a - b).abs().max() <= 1e-5 * a.abs().max()) for a, b in pairs)
        for block in self.blocks:
            if isinstance(block, LadderBlock):
                block.causal = causal
        self._open = False

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        taken: dict[int, Tensor] = {}
        handles = []
        for number, (name, before) in enumerate(self._places):
            module = self.backbone.get_submodule(name)
            if before:
                handles.append(module.register_forward_pre_hook(_enters(taken, number), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_leaves(taken, number)))
        try:
            with torch.no_grad():
                self.backbone(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        missing = [tap for number, tap in enumerate(self.taps) if number not in taken]
        if missing:
            raise ValueError(f"the backbone's forward never ran the tapped modules {missing}: name others")
        return tuple(taken[number] for number in range(len(self.taps)))

    def forward(
        self, *args: Any, states: Mapping[str, Tensor] | Sequence[Tensor] | None = None, **kwargs: Any
    ) -> Tensor:
        """The top of the ladder, (..., d) or (..., width).

        Args:
            args, kwargs: what the backbone takes. A keyword `attention_mask` or `mask` of shape (B, T), nonzero = keep,
                goes to the rungs too; one for every query, bool of (B, T, T) or (B, 1, T, T), to a `LadderBlock`.
            states: instead of these, a batch of a `CachedStates`, or the tuple that `states` returns. A mask may stand
                under ``"mask"``.

        Raises:
            ValueError: both or neither, taps that are missing or that the backbone never ran.
        """
        mask = _mask_of(kwargs)
        if states is not None and self._open:
            raise ValueError(
                "states alone do not tell whether the backbone sees later tokens: say causal=True or causal=False, or "
                "run one batch of two tokens or more through it first"
            )
        if states is None:
            return self._climb(self.states(*args, **kwargs), mask)
        if args or any(name not in ("attention_mask", _MASK) for name in kwargs):
            raise ValueError("give either the backbone's arguments or states=, not both")
        if isinstance(states, Mapping):
            absent = [tap for tap in self.taps if tap not in states]
            if absent:
                raise ValueError(f"states of the taps {absent} are missing; there are {list(states)}")
            mask = states.get(_MASK, mask)
            states = [states[tap] for tap in self.taps]
        if len(states) != len(self.taps):
            raise ValueError(f"expected {len(self.taps)} states, one a tap, got {len(states)}")
        return self._climb(states, mask)

    def _climb(self, states: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        if mask is not None and mask.dim() > 2 and not all(isinstance(block, LadderBlock) for block in self.blocks):
            mask = None  # other rungs are promised (B, T)
        rest = () if mask is None else (mask,)
        for down, h in zip(self.down, states, strict=True):
            _settle(down, h)
        read = [down(_fitting(h, down)) for down, h in zip(self.down, states, strict=True)]
        s: Tensor = read[0]
        for number, (block, h) in enumerate(zip(self.blocks, read[1:], strict=True)):
            if self.gates is None:
                s = block(s, *rest) + h
            else:
                gate = torch.sigmoid(self.gates[number] / self.gate_temperature)
                s = block(gate * s + (1 - gate) * h, *rest)
        if isinstance(self.up, _LazyUp):
            self.up.settle(states[-1].shape[-1])
            _settle(self.up, s)
        return s if self.up is None else self.up(s)

    def side_state_dict(self) -> dict[str, Tensor]:
        """The weights of the ladder alone, as `state_dict` names them."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("backbone.")}

    def load_side_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Load what `side_state_dict` gave; CheckpointError names what is missing or left over."""
        own = self.side_state_dict().keys()
        missing, extra = sorted(own - weights.keys()), sorted(weights.keys() - own)
        if missing or extra:
            raise CheckpointError(f"weights of another ladder: missing {missing}, left over {extra}.")
        self.load_state_dict(dict(weights), strict=False)

    def cache_states(self, loader: Iterable[Any], path: str | os.PathLike[str]) -> CachedStates:
        """Run the backbone once over `loader` and keep the tapped states on disk: later epochs need no backbone.

        Takes taps x tokens x d numbers a sample. One safetensors file a batch, then an index; an interrupted run
        leaves no index, and a new one replaces what is there.

        Args:
            loader: batches in an order that stays: a mapping of the backbone's keyword arguments (also
                `attention_mask`), a sequence of positional ones, or one tensor; no labels, see `CachedStates`.
            path: a folder, made if need be.

        Raises:
            ValueError: no batches, or states that differ in their number of samples.
        """
        folder = Path(path)
        (folder / "index.json").unlink(missing_ok=True)
        rows: list[int] = []
        for batch in loader:
            kwargs = dict(batch) if isinstance(batch, Mapping) else {}
            args = () if kwargs else ((batch,) if isinstance(batch, Tensor) else tuple(batch))
            states = self.states(*args, **kwargs)
            tensors = {tap: h.contiguous().cpu() for tap, h in zip(self.taps, states, strict=True)}
            mask = _mask_of(kwargs)
            if mask is not None:
                tensors[_MASK] = mask.contiguous().cpu()
            counts = {len(tensor) for tensor in tensors.values()}
            if len(counts) > 1:
                raise ValueError(f"the first axis of every state must be the samples, got sizes {sorted(counts)}")
            with replacing(folder / _shard(len(rows))) as temporary:
                save_file(tensors, temporary)
            rows.append(counts.pop())
        if not rows:
            raise ValueError("the loader gave no batch")
        with replacing(folder / "index.json") as temporary:
            record = {"format": _FORMAT, "taps": self.taps, "rows": rows}
            temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
        return CachedStates(folder)


class CachedStates(Dataset[dict[str, Tensor]]):
    """The states that `LadderSideNetwork.cache_states` kept, a dict a sample: ``{tap: (T, d), ..., "mask": (T,)}``.

    Read from disk sample by sample, also from workers of a DataLoader; the mask is there if the backbone had one.
    Labels join by order: ``StackDataset(cached, labels)``. `collate` makes a batch of samples that differ in length.

    Args:
        path: the folder.

    Raises:
        DataError: no cache there, an unfinished one, or a damaged file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        index = self.path / "index.json"
        try:
            record = parse_json(index.read_bytes(), index, kind=dict)
            if record["format"] != _FORMAT:
                raise DataError(f"a cache of format {record['format']}, expected {_FORMAT}.", path=index)
            self.taps: tuple[str, ...] = tuple(record["taps"])
            self._rows: list[int] = [int(count) for count in record["rows"]]
        except FileNotFoundError as error:
            raise DataError("no cache of states here, or its making was interrupted.", path=index) from error
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"not an index of cached states ({error!r}).", path=index) from error
        self._place = [(shard, row) for shard, count in enumerate(self._rows) for row in range(count)]

    def __len__(self) -> int:
        return len(self._place)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
        """The samples of a batch, which a DataLoader asks for at once: each file is opened once."""
        samples: dict[int, dict[str, Tensor]] = {}
        for shard, group in groupby(sorted(set(numbers), key=lambda n: self._place[n]), lambda n: self._place[n][0]):
            file = self.path / _shard(shard)
            try:
                with safe_open(file, framework="pt") as tensors:
                    slices = {name: tensors.get_slice(name) for name in (*self.taps, *({_MASK} & set(tensors.keys())))}
                    for n in group:
                        samples[n] = {name: part[self._place[n][1]] for name, part in slices.items()}
            except (OSError, SafetensorError) as error:
                raise DataError(f"a file of the cache cannot be read ({error}).", path=file) from error
        return [samples[n] for n in numbers]

    @staticmethod
    def collate(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Stack samples (T, d) of any lengths, padded with zeros that the mask leaves out."""
        first = next(name for name in samples[0] if name != _MASK)
        full = [{_MASK: torch.ones(len(sample[first]), dtype=torch.bool), **sample} for sample in samples]
        pad = nn.utils.rnn.pad_sequence
        return {name: pad([sample[name] for sample in full], batch_first=True) for name in full[0]}


class _LazyUp(nn.LazyLinear):
    """Bias-free Linear whose output width is only known at the first call."""

    def __init__(self) -> None:
        super().__init__(0, bias=False)

    def settle(self, out_features: int) -> None:
        if self.has_uninitialized_params():
            self.out_features = out_features


def _shard(number: int) -> str:
    return f"states-{number:06d}.safetensors"


def _place(backbone: nn.Module, tap: str | int) -> tuple[str, bool]:
    """Name of the module to watch, and whether to take what enters it (else what leaves it)."""
    if isinstance(tap, str):
        if not tap or tap not in dict(backbone.named_modules()):
            near = [name for name, _ in backbone.named_modules() if name.count(".") <= 2 and name]
            raise ValueError(f"the backbone has no module {tap!r}; it has {', '.join(near[:30])} ...")
        return tap, False
    stacks = [(n, m) for n, m in backbone.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential))]
    if not stacks:
        raise ValueError(f"tap {tap}: the backbone holds no ModuleList or Sequential to count layers in; name modules")
    name, stack = max(stacks, key=lambda pair: (isinstance(pair[1], nn.ModuleList), len(pair[1])))
    index = tap if tap >= 0 else len(stack) + 1 + tap
    if not 0 <= index <= len(stack):
        raise ValueError(f"tap {tap}: {name or 'the backbone'} has {len(stack)} layers, states 0 to {len(stack)}")
    prefix = f"{name}." if name else ""
    return f"{prefix}{max(index - 1, 0)}", index == 0


def _enters(taken: dict[int, Tensor], number: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taken[number] = _tensor(args[0] if args else next(iter(kwargs.values())))

    return hook


def _leaves(taken: dict[int, Tensor], number: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        taken[number] = _tensor(output)

    return hook


def _tensor(value: Any) -> Tensor:
    """The state in what a layer gives, a tensor or the first of several; a copy, as later layers may overwrite it."""
    while not isinstance(value, Tensor):
        value = next(iter(value.values())) if isinstance(value, Mapping) else value[0]
    return value.detach().clone()


def _mask_of(kwargs: Mapping[str, Any]) -> Tensor | None:
    mask = kwargs.get("attention_mask", kwargs.get(_MASK))
    if not isinstance(mask, Tensor):
        return None
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    return mask.bool() if mask.ndim == 2 or (mask.ndim == 3 and mask.dtype == torch.bool) else None


def _is_known_causal(backbone: nn.Module, places: Sequence[tuple[str, bool]]) -> bool:
    """Whether the backbone, or an attention in a tapped layer, says of itself that it looks back only."""
    if getattr(getattr(backbone, "config", None), "is_decoder", False):
        return True
    tapped = [part for name, _ in places for part in backbone.get_submodule(name).modules()]
    return any(getattr(part, "is_causal", False) is True for part in tapped)


def _change_a_token(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], list[int], int] | None:
    """The arguments with the last kept token of the first sample changed, the kept places before, and the length.

    The first tensor (B, T) of integers or (B, T, d) of floats is taken to be the tokens; None where it is too short.
    """
    named: dict[int | str, Any] = {
        **dict(enumerate(args)),
        **{name: x for name, x in kwargs.items() if "mask" not in name},
    }
    tokens = [
        (name, x) for name, x in named.items()
        if isinstance(x, Tensor) and x.dim() == (3 if x.is_floating_point() else 2) and x.shape[1] > 1 and len(x)
    ]  # fmt: skip
    if not tokens:
        return None
    name, x = tokens[0]
    mask = _mask_of(kwargs)
    kept = torch.ones(x.shape[1], dtype=torch.bool) if mask is None or mask.dim() > 2 else mask[0].cpu()
    places = kept.nonzero().flatten().tolist()
    if len(places) < 2:
        return None
    place, x = places[-1], x.clone()
    if x.is_floating_point():
        x[0, place] += torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype, device=x.device)
    else:
        x[0, place] = torch.where(x[0, place] > 0, x[0, place] - 1, 1)
    if isinstance(name, int):
        return (*args[:name], x, *args[name + 1 :]), kwargs, places[:-1], x.shape[1]
    return args, {**kwargs, name: x}, places[:-1], x.shape[1]


def _settle(layer: nn.Module, x: Tensor) -> None:
    """Make the weights of a lazy layer, as parameters that can be trained also when that happens in inference mode."""
    if isinstance(layer, nn.LazyLinear) and layer.has_uninitialized_params():
        with outside_inference_mode():
            layer.initialize_parameters(x)


def _fitting(h: Tensor, down: nn.Module) -> Tensor:
    """A backbone in half precision feeds a ladder in its own dtype; under autocast that is seen to."""
    weight = down.weight
    assert isinstance(weight, Tensor)
    kind = h.device.type
    narrow = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return h if narrow else h.to(weight.dtype)
