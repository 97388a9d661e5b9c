"""Rule-based reinforcement learning for vision-language models in JAX.

from mmeureka_jax import evaluate, load_config, sample, train       # docs/python.md
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmeureka_jax.commands.api import evaluate, load_config, sample, train

__version__ = "0.1.0"
__all__ = ["evaluate", "load_config", "sample", "train"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is asked for: the package itself is light."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmeureka_jax.commands import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
