"""Operations of a traced function, counted in what JAX traced: the same rule for whatever program is compiled of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def operations(jaxpr: Jaxpr) -> float:
    """Multiplications and additions of all matrix products, over all devices. A scan's count for each of its turns.

    Of the branches of a `cond`, the one with most counts; the body of a `while`, whose turns nobody knows, counts once.
    A Pallas kernel counts what it says of itself, or its body for each step of its grid.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        params = equation.params
        if name == "dot_general":
            total += _product(equation)
        elif name == "cond":
            total += max(operations(branch.jaxpr) for branch in params["branches"])
        elif name == "pallas_call" and params.get("cost_estimate") is not None:
            total += params["cost_estimate"].flops
        else:
            total += _times(name, params) * sum(map(operations, _within(params)))
    return total


def _product(equation: Any) -> float:
    (contracting, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracting)


def _times(name: str, params: dict[str, Any]) -> int:
    """How often what is within an equation runs, on how many devices."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
    return 1


def _within(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(inner, ClosedJaxpr):
                yield inner.jaxpr
            elif isinstance(inner, Jaxpr):
                yield inner
