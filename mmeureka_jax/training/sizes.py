"""What a run keeps on each device, from shapes and shardings only: nothing is compiled.

While a program runs, a device holds its arguments, what it makes, and what it knows nothing of: the rest of the train
state, a reference policy, for the sampler's programs what was made before and is used later, and for an update's the
parts of the batch that they do not read (`Program.beside`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax

from mmeureka_jax.mesh import Program, bytes_of_device
from mmeureka_jax.models.policy import Params
from mmeureka_jax.training.learner import Learner

INITIAL_STATE = "initial state"  # the program that makes the train state: there is none before


def device_bytes(tree: Any) -> int:
    """Bytes of a tree's arrays on one device. An array that comes twice counts once."""
    return bytes_of_device(list({id(leaf): leaf for leaf in _arrays(tree)}.values()))


def always_there(learner: Learner, *, with_reference: bool, process_model: Params | None = None) -> Any:
    """What devices hold during all of a run: the train state, and frozen models: a reference policy, and a process
    reward model, of which these are shapes with shardings."""
    return learner.abstract_state(), (learner.abstract_reference() if with_reference else (), process_model)


def held_beside(program: Program, always: Any, kept: Iterable[Any]) -> Any:
    """The arrays that a device holds while a program runs, and that are not among its arguments.

    Args:
        always: see `always_there`.
        kept: the arguments that the compiled program has; it is compiled without those that it does not use.
    """
    if program.name == INITIAL_STATE:
        _, always = always  # it makes the state
    arguments = {id(leaf) for leaf in kept}
    return [leaf for leaf in _arrays((always, program.beside)) if id(leaf) not in arguments]


def live_bytes(program: Program, always: Any) -> int:
    """The least that a device needs while a program runs: its arguments and what is beside them, without what it
    makes."""
    arguments = list(_arrays(program.arguments))
    return device_bytes((arguments, held_beside(program, always, arguments)))


def _arrays(tree: Any) -> Iterator[Any]:
    return (leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))
