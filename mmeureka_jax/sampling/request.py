"""What is asked of the sampler, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, UInt32

from mmeureka_jax.mesh import to_global
from mmeureka_jax.models.batch import Array, Prompt
from mmeureka_jax.sampling.token_draws import prompt_seeds


@flax.struct.dataclass
class Request:
    """P prompts to respond to.

    Attributes:
        prompts: the prompts, padded to one length.
        names: 64 bits that name each prompt's random numbers (see `prompt_seeds`).
        active: False for prompts that only fill up the batch; nothing is drawn for them.
        rollout: number of the sampler call, part of the name of every random number.
        limits: tokens after which each response is cut off, where that is before `max_new_tokens`.
        first: the number of each prompt's first response, part of the names of its random numbers; None: 0.
        copies: the number of times that each prompt is there, each time for its share of the group; n is then the
            group size divided by it. See `Spread`.
    """

    prompts: Prompt
    names: UInt32[Array, "P 2"]
    active: Bool[Array, "P"]
    rollout: int | Int[Array, ""] = 0
    limits: Int[Array, "P n"] | None = None
    first: Int[Array, "P"] | None = None
    copies: int = flax.struct.field(pytree_node=False, default=1)

    @classmethod
    def of(
        cls,
        ids: Sequence[str | None],
        prompts: Prompt,
        mesh: Mesh | None = None,
        *,
        rollout: int = 0,
        limits: Int[np.ndarray, "P n"] | None = None,
    ) -> Request:
        """A request for this host's prompts.

        Args:
            ids: a name for each prompt; those that have none, or for which there is None, only fill up the batch.
            mesh: the mesh over which the arrays are spread by prompt; None: they stay where they are.
        """
        every = [*ids, *[None] * (len(prompts.tokens) - len(ids))]
        names = prompt_seeds(["filler" if name is None else name for name in every])
        arrays = (prompts, names, np.asarray([name is not None for name in every]), limits)
        prompts, names, active, limits = arrays if mesh is None else to_global(mesh, arrays)
        return cls(prompts, names, active, rollout, limits)


@flax.struct.dataclass
class Samples:
    """n responses to each of P prompts, padded on the right.

    Attributes:
        tokens: the response tokens; `pad_token_id` after the end.
        log_probs: log-probability of each token under the policy at the temperature, over the whole vocabulary; 0 after
            the end.
        lengths: tokens up to and including the end token.
        finished: whether an end token was drawn; otherwise the response was cut off.
    """

    tokens: Int[Array, "P n Lr"]
    log_probs: Float[Array, "P n Lr"]
    lengths: Int[Array, "P n"]
    finished: Bool[Array, "P n"]
