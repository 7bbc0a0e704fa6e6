"""Interface of a scikit-learn transformer, without importing scikit-learn: parameters, output containers, tags."""

from __future__ import annotations

import inspect
import sys
from typing import Any, Self

from kexue._arrays import Array, host
from kexue._optional import import_optional

_CONTAINERS = ("default", "pandas", "polars")


class Transformer:
    """Base of an estimator whose constructor stores its arguments and does nothing else."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {name: getattr(self, name) for name in self._defaults()}

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments; a fitted estimator uses the new ones at once. Returns self."""
        names = self._defaults()
        for name, value in params.items():
            if name not in names:
                raise ValueError(f"unknown parameter {name!r}; {type(self).__name__} has {', '.join(names)}.")
            setattr(self, name, value)
        return self

    def set_output(self, *, transform: str | None = None) -> Self:
        """Choose what `transform` returns: "default" (arrays), "pandas" or "polars" data frames. Returns self.

        None changes nothing. Without a choice `sklearn.set_config(transform_output=...)` is followed.
        """
        if transform not in (None, *_CONTAINERS):
            raise ValueError(f"transform must be one of {', '.join(_CONTAINERS)} or None, got {transform!r}.")
        if transform is not None:
            self._sklearn_output_config = {"transform": transform}
        return self

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """Return the names of the output columns."""
        raise NotImplementedError

    def wrap_output(self, result: Any, X: Any) -> Any:
        """Return the result of `transform` in the chosen container; a pandas frame keeps the index of `X`."""
        container = vars(self).get("_sklearn_output_config", {}).get("transform")
        if container is None and (sklearn := sys.modules.get("sklearn")) is not None:
            container = sklearn.get_config()["transform_output"]
        if container in (None, "default"):
            return result
        frames = import_optional(container, extra="bench")
        columns = self.get_feature_names_out()
        if container == "polars":
            return frames.DataFrame(host(result), schema=columns.tolist())
        return frames.DataFrame(host(result), columns=columns, index=getattr(X, "index", None))

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """Default of each constructor argument, by name."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def __repr__(self) -> str:
        defaults = self._defaults()
        params = {k: v for k, v in self.get_params().items() if v is not defaults[k] and v != defaults[k]}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in params.items())})"

    def __sklearn_tags__(self) -> Any:
        utils = import_optional("sklearn.utils", extra="bench")
        return utils.Tags(
            estimator_type=None,
            target_tags=utils.TargetTags(required=False),
            transformer_tags=utils.TransformerTags(preserves_dtype=["float64", "float32"]),
        )
