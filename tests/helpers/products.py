"""Operations of matrix products, counted in a traced program: an oracle for arithmetic on sizes."""

from __future__ import annotations

import math

import jax


def traced_flops(function, *arguments, branch: int = 0) -> int:
    """Operations of all matrix products of a traced function, scans unrolled; of a cond, of one branch."""

    def count(jaxpr) -> int:
        total = 0
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            settings = equation.params
            if name == "dot_general":
                (contracted, _), _ = settings["dimension_numbers"]
                inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
                total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
            elif name == "cond":
                total += count(settings["branches"][branch].jaxpr)
            else:
                assert name != "while"
                inside = [getattr(value, "jaxpr", value) for value in settings.values()]
                repeats = settings["length"] if name == "scan" else 1
                total += repeats * sum(count(value) for value in inside if hasattr(value, "eqns"))
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)
