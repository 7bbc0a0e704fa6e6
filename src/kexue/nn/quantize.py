"""Vector quantisation: a row becomes its nearest code; the codebook may sit behind a linear map (SimVQ).

Codes e_i = q_i W with a fixed random q and a learnt W: every step moves every code, also those no row has chosen, and
at inference W disappears into the table (`VectorQuantizer.fold_`).

Source: kexue.fm/archives/10519 (the linear map; Zhu et al. 2024, arXiv:2411.02038) and 10489 (the rotation; Fifty et
al. 2024, arXiv:2410.06424).
Differences: W begins as the identity, so that plain, diagonal and linear begin with the same codes. The rotation is
the product of two reflections, orthogonal also where z and q are nearly opposite. The article's rule for the gradient
lacks a transpose; it is G'g.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue._tensors import as_floats, at_least_float32, direction_and_length, may_read, without_autocast

Distance = Literal["l2", "cosine"]
Gradient = Literal["straight_through", "rotation", "none"]
Parametrization = Literal["plain", "linear", "diagonal"]

_CELLS = {"cpu": 2**19}  # scores at a time: what stays in the cache of a core
_CELLS_ELSEWHERE = 2**27
_KMEANS_ROUNDS = 10
_SAMPLE = 16  # codes behind the median that is subtracted


class VQOutput(NamedTuple):
    """What a `VectorQuantizer` returns.

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
    """The number of each row's nearest code, the lowest among equals: argmin_i ||z - e_i||, or argmax_i cos(z, e_i).

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
        else:  # ||z - e||^2 / 2 = ||e||^2 / 2 - z'e + a term of z alone; about a middle code, where little cancels
            some = codes[:: max(1, len(codes) // _SAMPLE)].sort(0).values
            centre = some[len(some) // 2]  # the median, which no far code draws away as it does the mean
            rows, codes = rows - centre, codes - centre
            scale = _scale(codes)
            codes = codes / scale  # ||e||^2 / 2 - z'e, divided by scale^2
            bias = codes.square().sum(1) / 2
            codes = codes / scale
        size = max(1, _CELLS.get(z.device.type, _CELLS_ELSEWHERE) // len(codes))
        parts = [torch.addmm(bias, part, codes.T, alpha=-1).argmin(1) for part in torch.split(rows, size)]
    return torch.cat(parts).reshape(z.shape[:-1])


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """The value q, exactly, with the gradient of z: z + sg[q - z]; q receives none. Shapes (..., d)."""
    _check_pair(z, q)
    return q.detach().to(z.dtype) + (z - z.detach())


def rotate_to(z: Tensor, q: Tensor) -> Tensor:
    """The value q, exactly, with the gradient of the scaled rotation that takes z there; q receives none.

    z_q = sg[G] z + sg[q - G z],  G = (||q|| / ||z||) H_w H_u,  H_v = I - 2 v v',
    with u along z and w along z/||z|| + q/||q||, so that G z = q to rounding, whatever the angle, and the gradient is
    G'g. No matrix is formed: two dot products a row. Where z or q is 0 there is no rotation, and the row is
    `straight_through`; where they are opposite up to rounding, G is a reflection. The scale passes on to the gradient:
    codes much shorter than z all but silence what comes after.

    Source: kexue.fm/archives/10489.

    Args:
        z, q: (..., d) floats of one shape. Half precision is computed in float32.

    Raises:
        ValueError: shapes that differ. TypeError: not floats.
    """
    _check_pair(z, q)
    row = as_floats(z, "z")
    start, goal = row.detach(), as_floats(q, "q").detach().to(row.dtype)
    (u, length), (v, wanted) = direction_and_length(start), direction_and_length(goal)
    movable = (length > 0) & (wanted > 0)
    # Two unit vectors have u + v across v - u. Where they are nearly opposite u + v is small, and rounding is taken out
    # of it along v - u; where it is nothing but rounding there is no second reflection.
    across = v - u
    w = u + v
    w = w - across * ((across * w).sum(-1, keepdim=True) / across.square().sum(-1, keepdim=True).clamp(min=1.0))
    size = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    rounding = 8 * torch.finfo(w.dtype).eps
    w = torch.where(size > rounding, w / size.clamp(min=rounding), 0.0)
    turned = row - 2 * u * (u * row).sum(-1, keepdim=True)
    turned = turned - 2 * w * (w * turned).sum(-1, keepdim=True)
    scale = wanted / length.masked_fill(~movable, 1.0)
    turned = torch.where(movable, scale * turned, row).to(z.dtype)
    return straight_through(turned, q)


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
    Leave W out of weight decay, which pulls all codes to 0. Gradients need no care under data parallelism, as there
    are no running averages; only start from k-means before wrapping the model.

    Source: kexue.fm/archives/10519, 10489.

    Args:
        dim: d, >= 1.
        num_codes: K, >= 1.
        parametrization: see the table; a module maps (K, d) to (K, d).
        train_codebook: whether q is learnt; None: plain yes, otherwise no.
        gradient: how the encoder hears what follows: ``"straight_through"``, ``"rotation"`` (`rotate_to`), or
            ``"none"``: the gradient goes to the codes and not to z.
        codebook_weight: >= 0, of the term that moves the codes (beta in the article). 0 trains no code, save with
            ``gradient="none"``.
        commitment_weight: >= 0, of the term that moves the encoder (gamma in the article). Other code calls this one
            beta.
        distance: ``"l2"``, or ``"cosine"``, which only changes which code is chosen: losses stay squared distances.
        init: q normal with deviation d^-1/2, or ``"kmeans"``: the first batch in training is clustered (`start_from`).
            Whether that was done is part of the state, as a buffer ``started``: a quantiser that loads no codes, or
            such as had seen no batch, still clusters.
        channel_first: z is (B, dim, ...) instead of (..., dim).

    Raises:
        ValueError: a size, weight or name outside what is said above; k-means behind a module of one's own.

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
            raise ValueError("k-means cannot see through a module of your own: use init='normal', or initialise it")
        self.dim, self.num_codes, self.gradient, self.distance = dim, num_codes, gradient, distance
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        self.channel_first = channel_first
        self._started = init == "normal"  # the buffer's twin, which is read without waiting for a device
        if init == "kmeans":
            self.register_buffer("started", torch.tensor(False))
        self.register_load_state_dict_pre_hook(_notice_codes)  # type: ignore[no-untyped-call]

        codes = torch.randn(num_codes, dim) * dim**-0.5
        if train_codebook or (train_codebook is None and parametrization == "plain"):
            self.codes = nn.Parameter(codes)
        else:
            self.register_buffer("codes", codes)
        self.map: nn.Module
        if not isinstance(parametrization, str):
            self.map = parametrization
        elif parametrization == "linear":
            self.map = nn.Linear(dim, dim, bias=False)
        elif parametrization == "diagonal":
            self.map = _Diagonal(dim)
        else:
            self.map = nn.Identity()
        if named:
            self._reset_map()

    @property
    def codebook(self) -> Tensor:
        """The effective codes (K, d), what rows are compared with; carries a graph."""
        codes: Tensor = self.map(self.codes)
        return codes

    def decode(self, indices: Tensor) -> Tensor:
        """The codes of `indices` (...,): (..., d), or (B, d, ...) with `channel_first`; -1 gives zeros."""
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
            mask: bool, True = keep, the shape of the indices. What is left out adds nothing to the losses, the
                perplexity or the usage, whatever it holds; with nothing kept the losses are 0 and carry a graph.

        Raises:
            ValueError: shapes that do not fit. TypeError: z not floats, mask not bool.
            RuntimeError: a first batch for k-means whose numbers cannot be read: under torch.compile, vmap, on meta.
        """
        rows = z.movedim(1, -1) if self.channel_first and z.ndim > 1 else z
        self._check(z, rows, mask)
        if self.training and not self._started:
            self.start_from(z, mask=mask)
        with without_autocast(z):
            rows = as_floats(rows, "z")
            if mask is not None:
                rows = rows.masked_fill(~mask.unsqueeze(-1), 0.0)
            codebook = at_least_float32(self.codebook)
            indices = nearest_code(rows, codebook, distance=self.distance)
            codes = functional.embedding(indices, codebook).to(rows.dtype)
            codebook_loss = _mean((codes - rows.detach()).square().mean(-1), mask)
            commitment_loss = _mean((rows - codes.detach()).square().mean(-1), mask)
            if self.gradient == "straight_through":
                quantized = straight_through(rows, codes)
            else:
                quantized = rotate_to(rows, codes) if self.gradient == "rotation" else codes
        perplexity, usage = self._statistics(indices, mask)
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
        """Set the codes to the k-means centres of the rows of z, by ten of Lloyd's rounds from rows drawn at random.

        Args:
            z, mask: as in `forward`; at least K rows must be kept.

        Raises:
            ValueError: fewer rows than codes, NaN or infinity, or the map is a module of one's own.
            RuntimeError: the rows cannot be read: under torch.compile, vmap, on the meta device.
        """
        if not may_read(z):
            raise RuntimeError(
                "k-means needs a first batch in eager mode: call start_from(z) before torch.compile, vmap or the like"
            )
        if not isinstance(self.map, (nn.Identity, nn.Linear, _Diagonal)):
            raise ValueError("k-means cannot see through a module of your own")
        rows = as_floats(z.movedim(1, -1) if self.channel_first else z, "z")
        rows = rows.reshape(-1, self.dim) if mask is None else rows[mask]
        if not bool(rows.isfinite().all()):
            raise ValueError("k-means takes finite rows, got NaN or infinity, which would stay in the codes")
        if len(rows) < self.num_codes:
            raise ValueError(
                f"k-means wants at least num_codes = {self.num_codes} rows, got {len(rows)}: call start_from with more"
            )
        centres = rows[torch.randperm(len(rows), device=rows.device)[: self.num_codes]]
        for _ in range(_KMEANS_ROUNDS):
            chosen = nearest_code(rows, centres, distance=self.distance)
            sums = torch.zeros_like(centres).index_add_(0, chosen, rows)
            counts = torch.bincount(chosen, minlength=self.num_codes).unsqueeze(1)
            centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        self.codes.copy_(centres)
        self._reset_map()
        self._started = True
        if "started" in self._buffers:
            self.get_buffer("started").fill_(True)

    @torch.no_grad()
    def fold_(self) -> VectorQuantizer:
        """Store the effective codes and drop the map: a plain quantiser with the same output; returns self."""
        self.codes.copy_(self.codebook)
        self.map = nn.Identity()
        return self

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"dim={self.dim}, num_codes={self.num_codes}, gradient={self.gradient!r}, distance={self.distance!r}"

    @torch.no_grad()
    def _reset_map(self) -> None:
        if isinstance(self.map, nn.Linear):
            nn.init.eye_(self.map.weight)
        elif isinstance(self.map, _Diagonal):
            nn.init.ones_(self.map.weight)

    @torch.no_grad()
    def _statistics(self, indices: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        flat = indices.reshape(-1)
        ones = torch.ones_like(flat, dtype=torch.float32) if mask is None else mask.reshape(-1).float()
        counts = torch.zeros(self.num_codes, dtype=torch.float32, device=flat.device).index_add(0, flat, ones)
        share = counts / counts.sum().clamp(min=1)
        return torch.special.entr(share).sum().exp(), (counts > 0).float().mean()

    def _check(self, z: Tensor, rows: Tensor, mask: Tensor | None) -> None:
        if not z.is_floating_point():
            raise TypeError(f"z must be a tensor of floats, got {z.dtype}")
        if z.ndim < (2 if self.channel_first else 1) or rows.shape[-1] != self.dim:
            wanted = f"(B, {self.dim}, ...)" if self.channel_first else f"(..., {self.dim})"
            raise ValueError(f"expected z {wanted}, got {tuple(z.shape)}")
        if mask is None:
            return
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True = keep, got {mask.dtype}")
        if mask.shape != rows.shape[:-1]:
            raise ValueError(f"expected mask {tuple(rows.shape[:-1])}, got {tuple(mask.shape)}")


class _Diagonal(nn.Module):
    """x * w, with w (dim,)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def _notice_codes(module: VectorQuantizer, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Codes that are loaded are not clustered anew, unless the state says that they had seen no batch either."""
    key = f"{prefix}started"
    if f"{prefix}codes" in state:
        said = state.get(key)
        module._started = said is None or said.is_meta or bool(said)
        if "started" in module._buffers and said is None:
            state[key] = torch.tensor(True)  # a state of before there was such a buffer
    if "started" not in module._buffers or f"{prefix}codes" not in state:
        state.pop(key, None)


def _scale(codes: Tensor) -> Tensor:
    """What to divide by so that squares neither over- nor underflow: exactly 1 unless codes are very large or small."""
    limits = torch.finfo(codes.dtype)
    size: Tensor = torch.linalg.vector_norm(codes, torch.inf).clamp(min=limits.tiny)
    return size / size.clamp(limits.max**-0.4, limits.max**0.4)


def _check_pair(z: Tensor, q: Tensor) -> None:
    if z.shape != q.shape or z.ndim < 1:
        raise ValueError(f"expected z and q of one shape (..., d), got {tuple(z.shape)} and {tuple(q.shape)}")
    if not (z.is_floating_point() and q.is_floating_point()):
        raise TypeError(f"z and q must be tensors of floats, got {z.dtype} and {q.dtype}")


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over what is kept, an exact 0 with a graph when that is nothing."""
    if mask is None:
        return values.sum() / max(values.numel(), 1)
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)
