"""Encoding of texts: the model is chosen, the prompt of the role put before, and what an encoder returns is checked."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, cast

from kexue.errors import ModelNotFoundError
from kexue.search.products import Vectors
from kexue.search.space import Space, SupportsEncode, as_vectors, read_record
from kexue.search.store.base import Store, Value
from kexue.text.identity import ModelIdentity, identify
from kexue.text.roles import Role, choose_prompt


def encode_texts(encoder: SupportsEncode, texts: list[str], role: Role, *, dim: int | None = None) -> Vectors:
    """Encode texts with the prompt of their role, if the encoder has one.

    Args:
        encoder: has ``encode(texts) -> (n, dim)``.
        texts: n texts.
        role: see `choose_prompt`.
        dim: expected length of a vector; None accepts any.

    Returns:
        Vectors (n, dim) in float32, before whitening; finite.

    Raises:
        ValueError: not n vectors, or NaN or infinity in one. SpaceMismatchError: vectors of another length.
    """
    choose_model(encoder, texts)
    prompt = choose_prompt(encoder, role)
    options: dict[str, Any] = {} if prompt is None else {"prompt_name": prompt}
    vectors = encoder.encode(texts, **options)
    if len(vectors) != len(texts):
        raise ValueError(f"the encoder made {len(vectors)} vectors of {len(texts)} texts.")
    return as_vectors(vectors, dim=dim, what="the encoder's vectors")


def tokenize_queries(encoder: Any, queries: Sequence[str]) -> Any:
    """Return the token ids of each query after its prompt, as `Encoder.tokenize`; None where an encoder does not tell.

    Other libraries' encoders may have a `tokenize` of their own; `count_tokens` marks those that work like `Encoder`.
    """
    if not hasattr(encoder, "count_tokens"):
        return None
    return encoder.tokenize(list(queries), prompt_name=choose_prompt(encoder, "query"))


def choose_model(encoder: object, texts: Sequence[str]) -> None:
    """Let an encoder whose model is not chosen yet choose it by texts; others have no such method, or do nothing."""
    choose = getattr(encoder, "choose_model", None)
    if choose is not None:
        choose(texts)


class IndexEncoder:
    """The vector space that a store records, and the encoder whose vectors it holds.

    The encoder is loaded when it is first needed, and then kept.

    Args:
        store: the store of the index.
        path: path of the index, for messages.
        encoder: already loaded and compared with the record; None: the recorded one, when needed.

    Attributes:
        path: as given.
        encoder: None until it is loaded.
    """

    def __init__(self, store: Store, path: str, encoder: SupportsEncode | None = None) -> None:
        self.encoder = encoder
        self._store = store
        self.path = path
        self._space: Space | None = None
        self._key: tuple[Value | None, Value] | None = None

    @property
    def space(self) -> Space:
        """The recorded space; read again when another process has changed it."""
        metadata = self._store.metadata()
        key = (metadata.get("space"), metadata["model"])
        if self._space is None or self._key != key:
            self._space = read_record(self.path, "model or its whitening", lambda: Space.load(metadata))
            self._key = key
        return self._space

    @property
    def last_space(self) -> Space:
        """The space as it was last read, if the index held vectors then; a search compares it with the record."""
        return self._space if self._space is not None and self._space.token is not None else self.space

    def choose_model(self, texts: Sequence[str]) -> None:
        """Choose the model by the first texts, where neither the index nor the caller has named one."""
        if self.space.model.model_id is None:
            if self.encoder is None and self.space.model.reference is None:
                return  # an index of vectors
            choose_model(self.load(), texts)

    def load(
        self, model: SupportsEncode | str | None = None, *, device: str = "auto", dtype: str = "auto"
    ) -> SupportsEncode:
        """Return the encoder, loaded if necessary.

        Args:
            model: folder or hub id of the encoder if it has moved, or the encoder itself; None: it has not moved.
            device: "auto", "cpu", "cuda" or "mps".
            dtype: "auto", "float32", "bfloat16" or "float16".

        Raises:
            ModelNotFoundError: it is not there, or the index does not record how to open it.
            SpaceMismatchError: `model` is another encoder.
        """
        if self.encoder is None or model is not None:
            recorded = self.space.model
            reference = model or recorded.reference
            if reference is None:
                raise ModelNotFoundError(
                    f"{self.path} does not record how to open its encoder ({recorded.describe()}).",
                    remedy="Pass it: Index.open(path, encoder=...), or search with vectors.",
                )
            self.use(reference, device=device, dtype=dtype)
            assert self.encoder is not None
        return self.encoder

    def use(self, encoder: SupportsEncode | str | PathLike[str], **options: Any) -> None:
        """Take an encoder, or the name of one to open, after comparing it with the recorded one.

        Raises:
            SpaceMismatchError: it is another encoder.
        """
        space = self.space
        if isinstance(encoder, str | PathLike):
            from kexue.text import Encoder

            encoder = cast(SupportsEncode, Encoder(encoder, **space.model.settings(), **options))
        if space.model != ModelIdentity():  # else there is nothing to compare, and the texts to come choose the model
            space.model.check(identify(encoder), whitened=space.whitening is not None)
        self.encoder = encoder

    def encode(self, texts: list[str], role: Role) -> Vectors:
        """Encode texts for this space; see `encode_texts`."""
        dim = self._space.model.dim if self._space is not None else self.space.model.dim
        return encode_texts(self.load(), texts, role, dim=dim)

    @property
    def truncated_count(self) -> int:
        """Texts of the last call of `encode` that the encoder cut."""
        return int(getattr(self.encoder, "truncated_", 0))
