"""The sampler: jitted prefill and decode of n responses to each prompt.

A prompt's keys and values are computed and stored once, whatever n is. The random key of each drawn token is named by
(seed, stream, rollout, name of the prompt, sample index, position), where a training run names a prompt by its place in
the data stream and its id: a response depends on nothing else, and so not on the batch it is drawn in, on the mesh, or
on an interruption.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key, UInt32

from mmeureka_jax.mesh import constrain
from mmeureka_jax.models.batch import Array, PromptBatch
from mmeureka_jax.models.policy import Params, Policy, decode_step, encode_images, prefill

STREAMS = {"rollout": 0, "validation": 1, "sample": 2}  # independent noise for each use of the sampler


@dataclass(frozen=True)
class SamplingSettings:
    """Static settings of one compiled sampler. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off."""

    group_size: int
    max_new_tokens: int
    eos_token_ids: tuple[int, ...]  # none: every response gets max_new_tokens
    pad_token_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@flax.struct.dataclass
class Samples:
    """n responses to each of P prompts, padded on the right."""

    tokens: Int[Array, "P n Lr"]  # pad_token_id after the end
    log_probs: Float[
        Array, "P n Lr"
    ]  # of each token under the policy at the temperature, full support; 0 after the end
    lengths: Int[Array, "P n"]  # tokens up to and including the end token
    finished: Bool[Array, "P n"]  # an end token was drawn; False: cut off by max_new_tokens


def prompt_seeds(ids: Sequence[str]) -> UInt32[np.ndarray, "P 2"]:
    """64 bits that name each prompt, from its id alone (the same in every process and run)."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    return np.frombuffer(b"".join(digests), dtype="<u4").reshape(len(ids), 2).astype(np.uint32)


def response_keys(
    seed: Int[Array, ""], stream: str, rollout: Int[Array, ""], seeds: UInt32[Array, "P 2"], group_size: int
) -> Key[Array, "P n"]:
    """The random key of every response; `fold_in` the position to get a token's."""
    base = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STREAMS[stream]), rollout)

    def of_response(words: UInt32[Array, "2"], index: Int[Array, ""]) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(base, words[0]), words[1]), index)

    return jax.vmap(lambda words: jax.vmap(lambda index: of_response(words, index))(jnp.arange(group_size)))(seeds)


def filter_logits(logits: Float[Array, "... V"], top_k: int, top_p: float) -> Float[Array, "... V"]:
    """-inf for tokens outside the `top_k` most likely, then outside the smallest set with probability `top_p`.

    Ties at the edge of either set are kept, as transformers' TopKLogitsWarper does for top-k.
    """
    if 0 < top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p < 1.0:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # the first token has 0 before it: always kept
        threshold = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    return logits


def draw(
    policy: Policy,
    settings: SamplingSettings,
    keys: Key[Array, "P n"],
    position: Int[Array, ""] | int,
    hidden: Float[Array, "P n D"],
    head: Float[Array, "D V"],
) -> tuple[Int[Array, "P n"], Float[Array, "P n"]]:
    """Draws one token for every response (Gumbel-max) and gives its log-probability.

    The log-probability is the policy's at the temperature (1 when greedy), over the whole vocabulary: what the update
    computes.
    """
    logits = jnp.einsum("pnd,dv->pnv", hidden, head, preferred_element_type=jnp.float32)
    logits = constrain(logits, "batch", None, "act_vocab")
    if settings.temperature > 0:
        logits = logits / settings.temperature
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    forbidden = np.zeros(logits.shape[-1], bool)
    forbidden[list(policy.forbidden_tokens)] = True
    scores = jnp.where(forbidden, -jnp.inf, logits)
    if settings.temperature > 0:
        scores = filter_logits(scores, settings.top_k, settings.top_p)
        token_keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, position)))(keys)
        scores = scores + jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:])))(token_keys)
    tokens = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    chosen = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == tokens[..., None], logits, 0.0), axis=-1)
    return tokens, chosen - normaliser


def sample(
    policy: Policy,
    settings: SamplingSettings,
    params: Params,
    prompts: PromptBatch,
    image_embeds: Float[Array, "P M D"],
    keys: Key[Array, "P n"],
    active: Bool[Array, "P"],
) -> Samples:
    """Samples `group_size` responses to each prompt. Pure; `jit_sample` is the compiled form.

    Args:
        active: False for rows that only fill up the batch; they draw nothing.
    """
    count, n, limit = prompts.tokens.shape[0], settings.group_size, settings.max_new_tokens
    model = policy.module(params)
    layers = model.language.unstacked_layers(jnp.dtype(policy.compute_dtype))
    hidden, (keys_stack, values_stack) = prefill(policy, params, prompts, image_embeds)
    head = model.language.head_kernel().astype(hidden.dtype)
    cache_axes = ("batch", "act_heads", None, None)
    prompt_cache = [
        (constrain(keys_stack[i], *cache_axes), constrain(values_stack[i], *cache_axes)) for i in range(len(layers))
    ]
    kv_heads, head_dim = prompt_cache[0][0].shape[1], prompt_cache[0][0].shape[3]

    def empty_cache() -> Array:
        zeros = jnp.zeros((count, kv_heads, n, limit, head_dim), hidden.dtype)
        return constrain(zeros, "batch", "act_heads", None, None, None)

    def record(state: dict, position: Array | int, tokens: Array, log_probs: Array) -> dict:
        running = ~state["done"]
        tokens = jnp.where(running, tokens, settings.pad_token_id)
        ended = jnp.any(tokens[..., None] == np.asarray(settings.eos_token_ids, np.int32), axis=-1)
        return state | {
            "tokens": jax.lax.dynamic_update_slice(state["tokens"], tokens[..., None], (0, 0, position)),
            "log_probs": jax.lax.dynamic_update_slice(
                state["log_probs"], jnp.where(running, log_probs, 0.0)[..., None], (0, 0, position)
            ),
            "lengths": state["lengths"] + running,
            "finished": state["finished"] | (running & ended),
            "done": state["done"] | ended,
            "last": tokens,
        }

    start = {
        "tokens": jnp.full((count, n, limit), settings.pad_token_id, jnp.int32),
        "log_probs": jnp.zeros((count, n, limit), jnp.float32),
        "lengths": jnp.zeros((count, n), jnp.int32),
        "finished": jnp.zeros((count, n), bool),
        "done": jnp.broadcast_to(~active[:, None], (count, n)),
    }
    first = jnp.broadcast_to(hidden[:, None], (count, n, hidden.shape[-1]))
    state = record(start, 0, *draw(policy, settings, keys, 0, first, head))
    state |= {"position": jnp.int32(1), "cache": [(empty_cache(), empty_cache()) for _ in layers]}

    def unfinished(state: dict) -> Array:
        return (state["position"] < limit) & ~jnp.all(state["done"])

    def advance(state: dict) -> dict:
        position = state["position"]
        hidden, cache = decode_step(
            policy, model, layers, state["last"], position - 1, prompts, prompt_cache, state["cache"]
        )
        state = record(state, position, *draw(policy, settings, keys, position, hidden, head))
        return state | {"position": position + 1, "cache": cache}

    state = jax.lax.while_loop(unfinished, advance, state)
    outputs = {name: state[name] for name in ("tokens", "log_probs", "lengths", "finished")}
    return Samples(**{name: constrain(x, "batch", *(None,) * (x.ndim - 1)) for name, x in outputs.items()})


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def jit_rollout(
    policy: Policy,
    settings: SamplingSettings,
    stream: str,
    params: Params,
    prompts: PromptBatch,
    seeds: UInt32[Array, "P 2"],
    seed: Int[Array, ""],
    rollout: Int[Array, ""],
    active: Bool[Array, "P"],
) -> tuple[Samples, Float[Array, "P M D"]]:
    """Encodes the pictures and samples. Returns the samples and the image embeddings, which a frozen tower's update
    reuses."""
    image_embeds = encode_images(policy, params, prompts.images)
    keys = response_keys(seed, stream, rollout, seeds, settings.group_size)
    return sample(policy, settings, params, prompts, image_embeds, keys, active), image_embeds
