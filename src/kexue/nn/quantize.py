"""Vector quantisation: a row becomes its nearest code; the codes may be the image of a linear map (SimVQ).

SimVQ computes the codes e_i = q_i W from a fixed random q and a learnt W: every step moves every code, also those that
no row has chosen, and at inference W disappears into the table (`VectorQuantizer.fold_`).

Source: kexue.fm/archives/10519; Zhu et al. 2024, arXiv:2411.02038. Equation numbers are those of 10519.
Difference: W begins as the identity, so that plain, diagonal and linear begin with the same codes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue._tensors import (
    as_floats,
    at_least_float32,
    check_mask,
    direction_and_length,
    may_read,
    reduce,
    without_autocast,
)
from kexue.nn.rotation_trick import rotate_to, straight_through

Distance = Literal["l2", "cosine"]
Gradient = Literal["straight_through", "rotation", "none"]
Parametrization = Literal["plain", "linear", "diagonal"]

_CELLS = {"cpu": 2**19}  # scores at a time: what fits in a core's cache
_CELLS_ELSEWHERE = 2**27
_KMEANS_ROUNDS = 10
_SAMPLE = 16  # number of codes whose median is subtracted


class VQOutput(NamedTuple):
    """Result of a `VectorQuantizer`.

    Attributes:
        quantized: shape and dtype of the input; 0 where the mask is False.
        indices: the shape without the axis of `dim`, int64; -1 where the mask is False.
        loss: scalar, codebook_weight * codebook_loss + commitment_weight * commitment_loss.
        codebook_loss: mean of (code - sg[z])^2, which moves the codes; sg stops the gradient.
        commitment_loss: mean of (z - sg[code])^2, which moves the encoder. The same number.
        perplexity: exp of the entropy of the codes in this batch, in [1, num_codes]; carries no gradient.
        usage: share of the codes that this batch used, in [0, 1]; carries no gradient.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    perplexity: Tensor
    usage: Tensor


@torch.no_grad()
def nearest_code(z: Tensor, codebook: Tensor, *, distance: Distance = "l2") -> Tensor:
    """Return the index of each row's nearest code, the lowest among equals: argmin_i ||z - e_i||, or argmax of cosine.

    Costs n K d multiplications; the (n, K) table is never whole in memory. Half precision is computed in float32.

    Args:
        z: (..., d) floats.
        codebook: (K, d) floats, K >= 1.
        distance: ``"l2"`` or ``"cosine"``.

    Returns:
        (...,) int64 in [0, K).

    Raises:
        ValueError: shapes that do not fit, an unknown distance. TypeError: not floats.

    Example:
        >>> nearest_code(torch.tensor([[0.9], [5.0]]), torch.tensor([[0.0], [1.0], [1.0]])).tolist()
        [1, 1]
    """
    if distance not in {"l2", "cosine"}:
        raise ValueError(f"distance must be 'l2' or 'cosine', got {distance!r}")
    if codebook.ndim != 2 or len(codebook) < 1 or z.ndim < 1 or z.shape[-1] != codebook.shape[1]:
        raise ValueError(f"expected z (..., d) and codebook (K, d), got {tuple(z.shape)} and {tuple(codebook.shape)}")
    with without_autocast(z):
        rows, codes = as_floats(z, "z").reshape(-1, z.shape[-1]), as_floats(codebook, "codebook")
        dtype = torch.promote_types(rows.dtype, codes.dtype)
        rows, codes = rows.to(dtype), codes.to(dtype)
        if distance == "cosine":
            codes, bias = direction_and_length(codes)[0], codes.new_zeros(len(codes))
        else:  # ||z - e||^2 / 2 = ||e||^2 / 2 - z'e + a term of z alone; relative to a middle code, to lose few digits
            some = codes[:: max(1, len(codes) // _SAMPLE)].sort(0).values
            centre = some[len(some) // 2]  # the median, which a distant code does not move as it does the mean
            rows, codes = rows - centre, codes - centre
            scale = _safe_scale(codes)
            codes = codes / scale  # ||e||^2 / 2 - z'e, divided by scale^2
            bias = codes.square().sum(1) / 2
            codes = codes / scale
        size = max(1, _CELLS.get(z.device.type, _CELLS_ELSEWHERE) // len(codes))
        parts = [torch.addmm(bias, part, codes.T, alpha=-1).argmin(1) for part in torch.split(rows, size)]  # eq. 2: q
    return torch.cat(parts).reshape(z.shape[:-1])


class VectorQuantizer(nn.Module):
    """Replace each row by the nearest of `num_codes` codes, with the losses that train codes and encoder.

    =============== ==================== ====================================================
    parametrization effective code e_i   learnt
    =============== ==================== ====================================================
    ``"plain"``     q_i                  q
    ``"linear"``    q_i W (SimVQ)        W (d, d); q too with ``train_codebook=True``
    ``"diagonal"``  q_i * w              w (d,); q too with ``train_codebook=True``
    a module        module(q)            the module; q too with ``train_codebook=True``
    =============== ==================== ====================================================

    A learnt W keeps all codes in use, but a plain codebook may still quantise with a smaller error: look at both.
    Leave W out of weight decay, which pulls all codes to 0. Data parallelism works as it is, because there are no
    running averages; only run k-means before wrapping the model.

    Source: kexue.fm/archives/10519, 10489.

    Args:
        dim: d, >= 1.
        num_codes: K, >= 1.
        parametrization: see the table; a module maps (K, d) to (K, d).
        train_codebook: whether q is learnt; None: plain yes, otherwise no.
        gradient: gradient of the quantised rows for the encoder: ``"straight_through"``, ``"rotation"``
            (`rotate_to`), or ``"none"``: the gradient goes to the codes and not to z.
        codebook_weight: >= 0, of the term that moves the codes (beta in the article). With 0 no code is trained, except
            under ``gradient="none"``.
        commitment_weight: >= 0, of the term that moves the encoder (gamma in the article). Other code calls this one
            beta.
        distance: ``"l2"``, or ``"cosine"``, which only changes which code is chosen: losses stay squared distances.
        init: q normal with deviation d^-1/2, or ``"kmeans"``: the first batch in training is clustered (`start_from`).
            The buffer ``started`` stores in the state dict whether that was done: a quantiser that loads no codes, or
            codes from before the first batch, still clusters.
        channel_first: z is (B, dim, ...) instead of (..., dim).

    Raises:
        ValueError: a size, weight or name outside what is said above; k-means with a module of your own.

    Example:
        >>> quantizer = VectorQuantizer(2, 8, parametrization="linear")
        >>> out = quantizer(torch.randn(5, 3, 2))
        >>> out.quantized.shape, out.indices.shape
        (torch.Size([5, 3, 2]), torch.Size([5, 3]))
        >>> torch.equal(quantizer.decode(out.indices), out.quantized)
        True
    """

    def __init__(
        self,
        dim: int,
        num_codes: int,
        *,
        parametrization: Parametrization | nn.Module = "plain",
        train_codebook: bool | None = None,
        gradient: Gradient = "straight_through",
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
        distance: Distance = "l2",
        init: Literal["normal", "kmeans"] = "normal",
        channel_first: bool = False,
    ) -> None:
        super().__init__()
        if dim < 1 or num_codes < 1:
            raise ValueError(f"expected dim >= 1 and num_codes >= 1, got {dim} and {num_codes}")
        if not (codebook_weight >= 0 and commitment_weight >= 0):
            raise ValueError(f"the weights of the losses are >= 0, got {codebook_weight} and {commitment_weight}")
        named = isinstance(parametrization, str)
        for name, value, legal in (
            ("parametrization", parametrization if named else "plain", ("plain", "linear", "diagonal")),
            ("gradient", gradient, ("straight_through", "rotation", "none")),
            ("distance", distance, ("l2", "cosine")),
            ("init", init, ("normal", "kmeans")),
        ):
            if value not in legal:
                raise ValueError(f"{name} must be one of {legal}, got {value!r}")
        if init == "kmeans" and not named:
            raise ValueError("k-means cannot initialise a module of your own: use init='normal', or initialise it")
        self.dim, self.num_codes, self.gradient, self.distance = dim, num_codes, gradient, distance
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        self.channel_first = channel_first
        self._is_started = init == "normal"  # the buffer's value, which is read without waiting for a device
        if init == "kmeans":
            self.register_buffer("started", torch.tensor(False))
        self.register_load_state_dict_pre_hook(_skip_kmeans_for_loaded_codes)  # type: ignore[no-untyped-call]

        codes = torch.randn(num_codes, dim) * dim**-0.5
        if train_codebook or (train_codebook is None and parametrization == "plain"):
            self.codes = nn.Parameter(codes)
        else:
            self.register_buffer("codes", codes)
        self.map: nn.Module = _make_map(parametrization, dim)
        if named:
            self._reset_map()

    @property
    def codebook(self) -> Tensor:
        """The effective codes (K, d), which rows are compared with; carries a graph."""
        codes: Tensor = self.map(self.codes)  # eq. 3: e W
        return codes

    def decode(self, indices: Tensor) -> Tensor:
        """Return the codes of `indices` (...,): (..., d), or (B, d, ...) with `channel_first`; -1 gives zeros."""
        if indices.dtype != torch.int64:
            raise TypeError(f"indices must be int64, got {indices.dtype}")
        if may_read(indices) and bool(((indices < -1) | (indices >= self.num_codes)).any()):
            raise ValueError(
                f"indices must lie in [0, {self.num_codes}) or be -1, got {int(indices.min())} to {int(indices.max())}"
            )
        with without_autocast(indices):
            codes = functional.embedding(indices.clamp(min=0), self.codebook)
        codes = codes.masked_fill((indices < 0).unsqueeze(-1), 0.0)
        return codes.movedim(-1, 1) if self.channel_first else codes

    def forward(self, z: Tensor, *, mask: Tensor | None = None) -> VQOutput:
        """Quantise.

        Args:
            z: (..., d), or (B, d, ...) with `channel_first`; floats. Half precision is computed in float32.
            mask: bool, True = keep, the shape of the indices. Masked rows add nothing to the losses, the perplexity or
                the usage, whatever they hold; with nothing kept the losses are 0 and carry a graph.

        Raises:
            ValueError: shapes that do not fit. TypeError: z not floats, mask not bool.
            RuntimeError: a first batch for k-means whose numbers cannot be read: under torch.compile, vmap, on meta.
        """
        rows = z.movedim(1, -1) if self.channel_first and z.ndim > 1 else z
        self._check(z, rows, mask)
        if self.training and not self._is_started:
            self.start_from(z, mask=mask)
        with without_autocast(z):
            rows = at_least_float32(rows)
            if mask is not None:
                rows = rows.masked_fill(~mask.unsqueeze(-1), 0.0)
            codebook = at_least_float32(self.codebook)
            indices = nearest_code(rows, codebook, distance=self.distance)
            codes = functional.embedding(indices, codebook).to(rows.dtype)
            codebook_loss = reduce((codes - rows.detach()).square().mean(-1), mask, "mean")  # eq. 2, 3: beta term
            commitment_loss = reduce((rows - codes.detach()).square().mean(-1), mask, "mean")  # eq. 2, 3: gamma term
            if self.gradient == "straight_through":
                quantized = straight_through(rows, codes)  # eq. 2, 3: z_q
            else:
                quantized = rotate_to(rows, codes) if self.gradient == "rotation" else codes
        perplexity, usage = self._measure_usage(indices, mask)
        if mask is not None:
            quantized = quantized.masked_fill(~mask.unsqueeze(-1), 0.0)
            indices = indices.masked_fill(~mask, -1)
        quantized = quantized.to(z.dtype)
        return VQOutput(
            quantized.movedim(-1, 1) if self.channel_first else quantized,
            indices,
            self.codebook_weight * codebook_loss + self.commitment_weight * commitment_loss,
            codebook_loss,
            commitment_loss,
            perplexity,
            usage,
        )

    @torch.no_grad()
    def start_from(self, z: Tensor, *, mask: Tensor | None = None) -> None:
        """Set the codes to the k-means centres of the rows of z: ten rounds of Lloyd from rows drawn at random.

        Args:
            z, mask: as in `forward`; at least K rows must be kept.

        Raises:
            ValueError: fewer rows than codes, NaN or infinity, or a map that is a module of your own.
            RuntimeError: the rows cannot be read: under torch.compile, vmap, on the meta device.
        """
        if not may_read(z):
            raise RuntimeError(
                "k-means needs a first batch in eager mode: call start_from(z) before torch.compile, vmap or the like"
            )
        if not isinstance(self.map, (nn.Identity, nn.Linear, _Diagonal)):
            raise ValueError("k-means cannot initialise codes that a module of your own maps")
        rows = as_floats(z.movedim(1, -1) if self.channel_first else z, "z")
        rows = rows.reshape(-1, self.dim) if mask is None else rows[mask]
        if not bool(rows.isfinite().all()):
            raise ValueError("k-means takes finite rows, got NaN or infinity, which would stay in the codes")
        if len(rows) < self.num_codes:
            raise ValueError(
                f"k-means needs at least num_codes = {self.num_codes} rows, got {len(rows)}: call start_from with more"
            )
        centres = rows[torch.randperm(len(rows), device=rows.device)[: self.num_codes]]
        for _ in range(_KMEANS_ROUNDS):
            nearest = nearest_code(rows, centres, distance=self.distance)
            sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
            counts = torch.bincount(nearest, minlength=self.num_codes).unsqueeze(1)
            centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        self.codes.copy_(centres)
        self._reset_map()
        self._is_started = True
        if "started" in self._buffers:
            self.get_buffer("started").fill_(True)

    @torch.no_grad()
    def fold_(self) -> VectorQuantizer:
        """Store the effective codes and drop the map: a plain quantiser with the same output; returns self."""
        self.codes.copy_(self.codebook)
        self.map = nn.Identity()
        return self

    def extra_repr(self) -> str:
        """Return the settings that `print` shows."""
        return f"dim={self.dim}, num_codes={self.num_codes}, gradient={self.gradient!r}, distance={self.distance!r}"

    @torch.no_grad()
    def _reset_map(self) -> None:
        """Set the map to the identity."""
        if isinstance(self.map, nn.Linear):
            nn.init.eye_(self.map.weight)
        elif isinstance(self.map, _Diagonal):
            nn.init.ones_(self.map.weight)

    @torch.no_grad()
    def _measure_usage(self, indices: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the perplexity of the codes in a batch, and the share of codes in use."""
        flat = indices.reshape(-1)
        ones = torch.ones_like(flat, dtype=torch.float32) if mask is None else mask.reshape(-1).float()
        counts = torch.zeros(self.num_codes, dtype=torch.float32, device=flat.device).index_add(0, flat, ones)
        share = counts / counts.sum().clamp(min=1)
        return torch.special.entr(share).sum().exp(), (counts > 0).float().mean()

    def _check(self, z: Tensor, rows: Tensor, mask: Tensor | None) -> None:
        """Raise TypeError or ValueError for inputs of `forward` that do not fit."""
        if not z.is_floating_point():
            raise TypeError(f"z must be a tensor of floats, got {z.dtype}")
        if z.ndim < (2 if self.channel_first else 1) or rows.shape[-1] != self.dim:
            expected = f"(B, {self.dim}, ...)" if self.channel_first else f"(..., {self.dim})"
            raise ValueError(f"expected z {expected}, got {tuple(z.shape)}")
        if mask is not None:
            check_mask(mask, rows.shape[:-1])


class _Diagonal(nn.Module):
    """The map x * w, with w (dim,)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return x * w."""
        return x * self.weight


def _make_map(parametrization: Parametrization | nn.Module, dim: int) -> nn.Module:
    """Return the map from q to the effective codes."""
    if not isinstance(parametrization, str):
        return parametrization
    if parametrization == "linear":
        return nn.Linear(dim, dim, bias=False)
    return _Diagonal(dim) if parametrization == "diagonal" else nn.Identity()


def _skip_kmeans_for_loaded_codes(module: VectorQuantizer, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Switch k-means off for codes from a state dict, unless it says that they were saved before the first batch."""
    key = f"{prefix}started"
    if f"{prefix}codes" in state:
        started = state.get(key)
        module._is_started = started is None or started.is_meta or bool(started)
        if "started" in module._buffers and started is None:
            state[key] = torch.tensor(True)  # written by a version without this buffer
    if "started" not in module._buffers or f"{prefix}codes" not in state:
        state.pop(key, None)


def _safe_scale(codes: Tensor) -> Tensor:
    """Return a divisor by which squares neither over- nor underflow: exactly 1 unless codes are very large or small."""
    limits = torch.finfo(codes.dtype)
    size: Tensor = torch.linalg.vector_norm(codes, torch.inf).clamp(min=limits.tiny)
    return size / size.clamp(limits.max**-0.4, limits.max**0.4)
