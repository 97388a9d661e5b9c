"""How much likelier a policy finds one token than another, from hidden states and without the other logits."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float, Int

from mmeureka_jax.models.batch import Array
from mmeureka_jax.models.policy import GroupHidden, Params, Policy


def log_odds_of_hidden(
    policy: Policy, params: Params, states: GroupHidden, choices: Int[Array, "P 2"]
) -> Float[Array, "P n Lr"]:
    """ln(p(first) / p(second)) before each response token, in float32; 0 where a packed row has none.

    Args:
        choices: the two tokens, of each prompt.
    """
    language = policy.module(params).language
    if language.lm_head is None:
        first, second = (jnp.take(states.table, choices[:, i], axis=0).astype(jnp.float32) for i in (0, 1))
    else:
        head = language.head_kernel()
        first, second = (jnp.take(head, choices[:, i], axis=1).T.astype(jnp.float32) for i in (0, 1))
    # A sum of products, not a matrix product: some devices round the operands of those.
    odds = jnp.sum(states.hidden.astype(jnp.float32) * (first - second)[:, None], axis=-1)
    return states.places.unpack(odds)
