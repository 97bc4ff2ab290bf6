"""Makes the Gymnasium environment that a card names. Needs Gymnasium, but no deep-learning framework."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pillion_artifacts.card.model_card import Environment, Wrapper
from pillion_artifacts.errors import InvalidArtifactError

if TYPE_CHECKING:
    import gymnasium


def make_environment(environment: Environment) -> gymnasium.Env[Any, Any]:
    """Makes the environment with its wrappers, in the card's order. The caller closes it.

    Raises `InvalidArtifactError` for a wrapper that `gymnasium.wrappers` does not have, and Gymnasium's own error if the
    environment or a package that it needs is not installed.
    """
    import gymnasium

    if environment.module:
        importlib.import_module(environment.module)
    return wrap(gymnasium.make(environment.id, **_arguments(environment.kwargs)), environment.wrappers)


def wrap(inner: gymnasium.Env[Any, Any], wrappers: Sequence[Wrapper]) -> gymnasium.Env[Any, Any]:
    """Wraps `inner`; the first wrapper is the innermost. Raises `InvalidArtifactError`."""
    import gymnasium.wrappers

    for wrapper in wrappers:
        if wrapper.name not in gymnasium.wrappers.__all__:
            raise InvalidArtifactError(f"model card: environment: gymnasium.wrappers has no {wrapper.name!r}")
        make = getattr(gymnasium.wrappers, wrapper.name)
        # `__all__` also contains the submodule of vector wrappers
        if not (isinstance(make, type) and issubclass(make, gymnasium.Wrapper)):
            raise InvalidArtifactError(f"model card: environment: {wrapper.name!r} is not a gymnasium.Wrapper")
        inner = make(inner, **_arguments(wrapper.kwargs))
    return inner


def _arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    # YAML has no tuples, and Gymnasium requires tuples for shapes
    return {name: tuple(value) if isinstance(value, list) else value for name, value in kwargs.items()}
