"""What every policy offers to the sampler and to the update, as pure functions of (parameters, arrays).

    encode_images     pictures                    -> image embeddings              (vision tower)
    prefill           prompts                     -> last hidden state, prompt KV   (once per prompt, whatever n is)
    decode_step       one token of n continuations -> hidden state, their own KV     (in the sampler's loop)
    group_hidden      prompts + n responses       -> hidden states that predict each response token
    token_log_probs   the same                    -> log-probabilities and entropies (the update)

All of them run the same layers on the same parameters, so what the sampler saw and what the update computes agree to
rounding. The static part of a policy (sizes, dtypes) is the hashable `Policy`; parameters are a nested dict of
float32 arrays.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from mmeureka_jax.mesh import constrain
from mmeureka_jax.models.attention import attention, keys_first, shared_prefix_attention
from mmeureka_jax.models.batch import Array, ImageBatch, PromptBatch
from mmeureka_jax.models.config import Qwen2_5VLConfig
from mmeureka_jax.models.layers import Rotary, multimodal_rotary
from mmeureka_jax.models.qwen2_5_vl import DecoderLayer, Qwen2_5VL

Params = dict[str, Any]
KeyValue = tuple[Array, Array]


@functools.cache
def _module(config: Qwen2_5VLConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Qwen2_5VL(config)))


@dataclass(frozen=True)
class Policy:
    """The static part of a policy: hashable, so that jitted functions take it as a static argument.

    Attributes:
        compute_dtype: dtype of activations; parameters are cast to it where they are used. Softmax, norms, rotary
        angles and
            log-probabilities are float32 always.
        remat: recompute each layer's activations in the backward pass.
        vocab_chunk: positions of each prompt's row whose logits exist at one time in `token_log_probs`.
    """

    config: Qwen2_5VLConfig
    compute_dtype: str = "float32"
    remat: bool = True
    vocab_chunk: int = 512

    def abstract_params(self) -> Params:
        """Shapes and dtypes (float32 masters) of the parameter tree."""
        return nnx.to_pure_dict(_module(self.config)[1])

    def param_axes(self) -> Params:
        """Logical axis names of every parameter, in the same tree (see mesh.RULES)."""
        state = _module(self.config)[1]
        axes = jax.tree.map(lambda v: v.axes, state, is_leaf=lambda v: isinstance(v, nnx.Variable))
        return nnx.to_pure_dict(axes)

    def module(self, params: Params) -> Qwen2_5VL:
        return nnx.merge(_module(self.config)[0], params)

    def rotary(self, positions: Int[Array, "B 3 T"]) -> Rotary:
        text = self.config.text
        return multimodal_rotary(positions, text.head_dim, text.rope_theta, text.mrope_section)

    @property
    def forbidden_tokens(self) -> tuple[int, ...]:
        """Tokens that are never sampled: a placeholder without its picture would break the next forward pass."""
        return (self.config.image_token_id, self.config.video_token_id)


def encode_images(policy: Policy, params: Params, images: ImageBatch) -> Float[Array, "P M D"]:
    """Embeddings of the merged image tokens, in the order that `PromptBatch.image_index` refers to."""
    prompts, windows, places, _ = images.patches.shape
    merged = windows * places // policy.config.vision.spatial_merge_size**2
    dtype = jnp.dtype(policy.compute_dtype)
    if windows == 0:
        return jnp.zeros((prompts, merged, policy.config.text.hidden_size), dtype)
    return policy.module(params).vision(images, dtype=dtype, remat=policy.remat)


def embed_prompts(
    policy: Policy, model: Qwen2_5VL, prompts: PromptBatch, image_embeds: Array
) -> Float[Array, "P Lp D"]:
    """Token embeddings, with image embeddings where `image_index` points to one."""
    embeds = model.language.embed_tokens(prompts.tokens, jnp.dtype(policy.compute_dtype))
    if image_embeds.shape[1] == 0:
        return embeds
    pictured = jnp.take_along_axis(image_embeds, jnp.maximum(prompts.image_index, 0)[..., None], axis=1)
    return jnp.where((prompts.image_index >= 0)[..., None], pictured.astype(embeds.dtype), embeds)


def prompt_mask(prompts: PromptBatch) -> Bool[Array, "P Lp"]:
    return jnp.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]


def last_token(x: Float[Array, "P Lp D"], prompts: PromptBatch) -> Float[Array, "P D"]:
    return jnp.take_along_axis(x, (prompts.lengths - 1)[:, None, None], axis=1)[:, 0]


def causal_mask(length: int) -> Bool[Array, "T T"]:
    return jnp.tril(jnp.ones((length, length), bool))


def prefill(
    policy: Policy, params: Params, prompts: PromptBatch, image_embeds: Float[Array, "P M D"]
) -> tuple[Float[Array, "P D"], tuple[Float[Array, "L P K Lp h"], Float[Array, "L P K Lp h"]]]:
    """Runs the prompts. Returns the final hidden state of each prompt's last token, and all layers' keys and values."""
    model = policy.module(params)
    mask = causal_mask(prompts.tokens.shape[1]) & prompt_mask(prompts)[:, None, :]

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, KeyValue]:
        key, value = keys_first(key), keys_first(value)
        return attention(query, key, value, mask), (key, value)

    x = embed_prompts(policy, model, prompts, image_embeds)
    x, cache = model.language.scan_layers(x, policy.rotary(prompts.positions), attend, remat=False)
    return model.language.norm(last_token(x, prompts)), cache


def decode_step(
    policy: Policy,
    model: Qwen2_5VL,
    layers: list[DecoderLayer],
    tokens: Int[Array, "P n"],
    step: Int[Array, ""],
    prompts: PromptBatch,
    prompt_cache: list[KeyValue],
    own_cache: list[KeyValue],
) -> tuple[Float[Array, "P n D"], list[KeyValue]]:
    """Feeds response token number `step` (from 0) of every continuation.

    Args:
        layers: `model.language.unstacked_layers(dtype)`, made once outside the loop.
        prompt_cache: per layer, keys and values [P, K, Lp, h] of the prompts: one copy for the n continuations.
        own_cache: per layer, keys and values [P, K, n, S, h] of the responses; place `step` is written.

    Returns:
        Final hidden states (they predict token step + 1) and the updated own cache.
    """
    x = model.language.embed_tokens(tokens, jnp.dtype(policy.compute_dtype))
    positions = jnp.broadcast_to((prompts.next_position + step)[:, None, None], (tokens.shape[0], 3, tokens.shape[1]))
    rotary = policy.rotary(positions)
    prefix_mask = prompt_mask(prompts)
    own_mask = (jnp.arange(own_cache[0][0].shape[3]) <= step)[None, None, None]
    new_cache = []
    for layer, prefix, own in zip(layers, prompt_cache, own_cache, strict=True):

        def attend(query: Array, key: Array, value: Array, prefix=prefix, own=own) -> tuple[Array, KeyValue]:
            # key is [P, n, K, h]: the n continuations stand in the sequence place, one token each.
            keys, values = (
                jax.lax.dynamic_update_slice(cache, new.transpose(0, 2, 1, 3)[:, :, :, None], (0, 0, 0, step, 0))
                for cache, new in zip(own, (key, value), strict=True)
            )
            out = shared_prefix_attention(query[:, :, None], prefix[0], prefix[1], prefix_mask, keys, values, own_mask)
            return out[:, :, 0], (keys, values)

        x, cache = layer(x, rotary, attend)
        new_cache.append(cache)
    return model.language.norm(x), new_cache


def group_hidden(
    policy: Policy,
    params: Params,
    prompts: PromptBatch,
    image_embeds: Float[Array, "P M D"],
    responses: Int[Array, "P n Lr"],
) -> Float[Array, "P n Lr D"]:
    """Final hidden states that predict each response token, with every prompt computed once for its n responses.

    A prompt and its responses travel through the layers as one row [Lp + n * Lr]; only attention tells them apart.
    Cost grows with Lp + n * Lr, not with n * (Lp + Lr), and the gradients are those of the repeated layout.
    """
    model = policy.module(params)
    count, n, length = responses.shape
    prompt_length = prompts.tokens.shape[1]
    mask = prompt_mask(prompts)
    prompt_causal = causal_mask(prompt_length) & mask[:, None, :]
    own_causal = causal_mask(length)[None, None]

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, None]:
        def own(x: Array) -> Array:  # [P, n*Lr, N, h] -> [P, n, Lr, N, h]
            return x[:, prompt_length:].reshape(count, n, length, *x.shape[2:])

        prefix_key, prefix_value = keys_first(key[:, :prompt_length]), keys_first(value[:, :prompt_length])
        of_prompt = attention(query[:, :prompt_length], prefix_key, prefix_value, prompt_causal)
        own_key, own_value = (own(x).transpose(0, 3, 1, 2, 4) for x in (key, value))
        of_response = shared_prefix_attention(
            own(query), prefix_key, prefix_value, mask, own_key, own_value, own_causal
        )
        of_response = of_response.reshape(count, n * length, *of_response.shape[3:])
        return jnp.concatenate([of_prompt, of_response], axis=1), None

    x = jnp.concatenate(
        [
            embed_prompts(policy, model, prompts, image_embeds),
            model.language.embed_tokens(responses.reshape(count, -1), jnp.dtype(policy.compute_dtype)),
        ],
        axis=1,
    )
    own_positions = jnp.tile(prompts.next_position[:, None] + jnp.arange(length), (1, n))
    own_positions = jnp.broadcast_to(own_positions[:, None], (count, 3, n * length))
    rotary = policy.rotary(jnp.concatenate([prompts.positions, own_positions], axis=2))
    x, _ = model.language.scan_layers(constrain(x, "batch", "seq", "act_embed"), rotary, attend, remat=policy.remat)

    # The first response token is predicted by the prompt's last one, token t by response token t - 1.
    first = jnp.broadcast_to(last_token(x[:, :prompt_length], prompts)[:, None, None], (count, n, 1, x.shape[-1]))
    rest = x[:, prompt_length:].reshape(count, n, length, -1)[:, :, :-1]
    return model.language.norm(jnp.concatenate([first, rest], axis=2))


def log_probs_of(
    hidden: Float[Array, "P T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "P T"],
    *,
    temperature: float,
    chunk: int,
) -> tuple[Float[Array, "P T"], Float[Array, "P T"]]:
    """Log-probability of each target and entropy of its distribution, softmax(hidden @ head / temperature), in float32.

    Works through `chunk` positions at a time and recomputes their logits in the backward pass, so that the largest
    array with a vocabulary dimension is [P, chunk, V]. No gradient flows through the entropy.
    """
    prompts, length, _ = hidden.shape
    chunk = min(chunk, length)
    padding = -length % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(_: None, inputs: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        x, target = inputs
        # Cast in here: the scan then adds up the head's gradient in float32, over however many chunks.
        logits = jnp.einsum("ptd,dv->ptv", x, head.astype(x.dtype), preferred_element_type=jnp.float32) / temperature
        logits = constrain(logits, "batch", "seq", "act_vocab")
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        # A masked sum, not a gather: it shards over the vocabulary, and its gradient needs no scatter.
        chosen = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == target[..., None], logits, 0.0), axis=-1)
        frozen = jax.lax.stop_gradient(logits)
        log_p = frozen - jax.lax.stop_gradient(normaliser)[..., None]
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        return None, (chosen - normaliser, entropy)

    def chunks(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(prompts, -1, chunk, *x.shape[2:]), 1, 0)

    _, outputs = jax.lax.scan(body, None, (chunks(hidden), chunks(targets)))
    log_probs, entropy = (jnp.moveaxis(x, 0, 1).reshape(prompts, -1)[:, :length] for x in outputs)
    return log_probs, entropy


def token_log_probs(
    policy: Policy,
    params: Params,
    prompts: PromptBatch,
    image_embeds: Float[Array, "P M D"],
    responses: Int[Array, "P n Lr"],
    *,
    temperature: float = 1.0,
) -> tuple[Float[Array, "P n Lr"], Float[Array, "P n Lr"]]:
    """Natural-log probability of every response token, and the entropy of the distribution that it was drawn from.

    The distribution is the policy's at `temperature` with full support (before any top-k or top-p).
    """
    hidden = group_hidden(policy, params, prompts, image_embeds, responses)
    count, n, length, size = hidden.shape
    head = policy.module(params).language.head_kernel()
    log_probs, entropy = log_probs_of(
        hidden.reshape(count, n * length, size),
        head,
        responses.reshape(count, -1),
        temperature=temperature,
        chunk=policy.vocab_chunk,
    )
    return log_probs.reshape(responses.shape), entropy.reshape(responses.shape)
