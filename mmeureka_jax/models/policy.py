"""What every policy offers to the sampler and to the update, as pure functions of (parameters, arrays).

    encode_images     pictures                    -> image embeddings              (vision tower)
    prefill           prompts                     -> last hidden state, prompt KV   (once per prompt, whatever n is)
    decode_step       one token of every row      -> hidden state, its own KV       (in the sampler's loop)
    group_hidden      prompts + n responses       -> hidden states that predict each response token
    token_log_probs   the same                    -> log-probabilities and entropies (the update)

All of them run the same layers on the same parameters, so what the sampler saw and what the update computes agree to
rounding. The static part of a policy (sizes, dtypes) is the hashable `Policy`; parameters are a nested dict of
float32 arrays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from mmeureka_jax.mesh import batch_shards, constrain, gathered
from mmeureka_jax.models.attention import attention, decode_attention, keys_first, shared_prefix_attention
from mmeureka_jax.models.batch import Array, ImageBatch, PromptBatch
from mmeureka_jax.models.config import Qwen2_5VLConfig
from mmeureka_jax.models.layers import Rotary, multimodal_rotary
from mmeureka_jax.models.log_probs import log_probs_of
from mmeureka_jax.models.qwen2_5_vl import Qwen2_5VL

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
        logits_mb: megabytes (2**20 bytes) of float32 logits that exist on a device at one time in `token_log_probs`.
    """

    config: Qwen2_5VLConfig
    compute_dtype: str = "float32"
    remat: bool = True
    logits_mb: float = 64.0

    def vocab_block(self, positions: int) -> int:
        """Entries of the vocabulary (of a device's share) whose logits exist at one time, for so many positions of all
        rows. At least 128, however many positions there are: fewer make no matrix product."""
        return max(128, int(self.logits_mb * 2**20 / (4 * -(-positions // batch_shards()))))

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


def insert_images(
    embeds: Float[Array, "P Lp D"], prompts: PromptBatch, image_embeds: Float[Array, "P M D"]
) -> Float[Array, "P Lp D"]:
    """The prompts' token embeddings, with image embeddings where `image_index` points to one."""
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

    x = model.language.embed_tokens(prompts.tokens, jnp.dtype(policy.compute_dtype))
    x = insert_images(x, prompts, image_embeds)
    x, cache = model.language.scan_layers(x, policy.rotary(prompts.positions), attend, remat=False)
    return model.language.norm(last_token(x, prompts)), cache


@flax.struct.dataclass
class DecoderWeights:
    """The decoder as single-token decoding reads it: embedding, a tree for each layer, and output projection, in the
    compute dtype.

    XLA does not hoist slices of stacked weights out of a loop, so they are cut once before it. What is sharded over
    `fsdp` is gathered: each device holds these weights whole while it decodes, but for what `tensor` splits.
    """

    embedding: Float[Array, "V D"]
    layers: list[Params]
    head: Float[Array, "D V"]


def decoder_weights(policy: Policy, params: Params) -> DecoderWeights:
    dtype = jnp.dtype(policy.compute_dtype)
    language, axes = params["language"], policy.param_axes()["language"]

    def whole(leaf: Array, names: tuple[str | None, ...]) -> Array:
        return constrain(leaf.astype(dtype), *gathered(*names))

    def layer(number: int) -> Params:
        return jax.tree.map(lambda leaf, names: whole(leaf[number], names[1:]), language["layers"], axes["layers"])

    return DecoderWeights(
        embedding=whole(language["embed_tokens"]["embedding"], axes["embed_tokens"]["embedding"]),
        layers=[layer(number) for number in range(policy.config.text.num_layers)],
        head=constrain(policy.module(params).language.head_kernel().astype(dtype), None, "act_vocab"),
    )


@flax.struct.dataclass
class PromptCache:
    """What decoding knows of P prompts: per layer transposed keys and values, one copy for all responses."""

    lengths: Int[Array, "P"]
    next_position: Int[Array, "P"]
    keys: list[Float[Array, "P K h Lp"]]
    values: list[Float[Array, "P K Lp h"]]


def prompt_cache(prompts: PromptBatch, cache: tuple[Array, Array]) -> PromptCache:
    """The cache of `prefill`, layer by layer."""
    axes = ("batch", "act_heads", None, None)
    return PromptCache(
        lengths=prompts.lengths,
        next_position=prompts.next_position,
        keys=[constrain(jnp.swapaxes(keys, 2, 3), *axes) for keys in cache[0]],
        values=[constrain(values, *axes) for values in cache[1]],
    )


def decode_step(
    policy: Policy,
    params: Params,
    weights: DecoderWeights,
    tokens: Int[Array, "R"],
    rotary: Rotary,
    prompts: PromptCache,
    own: Sequence[Sequence[tuple[Array, Array, Array]]],
    write: Callable[[int, Array, Array], tuple[Array, Array, Array]],
    by_prompt: Callable[[Array], Array],
    by_row: Callable[[Array], Array],
) -> tuple[Float[Array, "R D"], list[KeyValue]]:
    """Feeds one token of every row.

    Args:
        rotary: of the tokens' positions, [R, 1, h / 2] each.
        own: for each layer, the parts of the rows' own caches that this token only reads (see `decode_attention`).
        write: (layer, key [R, K, h], value [R, K, h]) -> the part of the cache that holds this token too.
        by_prompt, by_row: see `decode_attention`.

    Returns:
        Final hidden states (they predict the next token), and what `write` gave, layer by layer, without masks.
    """
    model = policy.module(params)
    x = jnp.take(weights.embedding, tokens, axis=0)[:, None]
    mask = jnp.arange(prompts.keys[0].shape[-1]) < prompts.lengths[:, None]
    written = []
    for number, layer in enumerate(weights.layers):

        def attend(query: Array, key: Array, value: Array, number=number) -> tuple[Array, KeyValue]:
            rows, _, heads, head_dim = query.shape
            part = write(number, key[:, 0], value[:, 0])
            out = decode_attention(
                query.reshape(rows, key.shape[2], heads // key.shape[2], head_dim),
                (prompts.keys[number], prompts.values[number], mask),
                [*own[number], part],
                by_prompt,
                by_row,
            )
            return out.reshape(query.shape), part[:2]

        x, kept = model.language.layer(layer)(x, rotary, attend)
        written.append(kept)
    return model.language.norm(x)[:, 0], written


def group_hidden(
    policy: Policy,
    params: Params,
    prompts: PromptBatch,
    image_embeds: Float[Array, "P M D"],
    responses: Int[Array, "P n Lr"],
) -> tuple[Float[Array, "P n Lr D"], Float[Array, "V D"]]:
    """Final hidden states that predict each response token, with every prompt computed once for its n responses.

    A prompt and its responses travel through the layers as one row [Lp + n * Lr]; only attention tells them apart.
    Cost grows with Lp + n * Lr, not with n * (Lp + Lr), and the gradients are those of the repeated layout.

    Returns:
        The hidden states, and the embedding for a head that is tied to it (see `Embedding.with_table`).
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

    tokens = jnp.concatenate([prompts.tokens, responses.reshape(count, -1)], axis=1)
    x, table = model.language.embed_tokens.with_table(tokens, jnp.dtype(policy.compute_dtype))
    of_prompts = insert_images(x[:, :prompt_length], prompts, image_embeds)
    x = jnp.concatenate([of_prompts, x[:, prompt_length:]], axis=1)
    own_positions = jnp.tile(prompts.next_position[:, None] + jnp.arange(length), (1, n))
    own_positions = jnp.broadcast_to(own_positions[:, None], (count, 3, n * length))
    rotary = policy.rotary(jnp.concatenate([prompts.positions, own_positions], axis=2))
    x, _ = model.language.scan_layers(constrain(x, "batch", "seq", "act_embed"), rotary, attend, remat=policy.remat)

    # The first response token is predicted by the prompt's last one, token t by response token t - 1.
    first = jnp.broadcast_to(last_token(x[:, :prompt_length], prompts)[:, None, None], (count, n, 1, x.shape[-1]))
    rest = x[:, prompt_length:].reshape(count, n, length, -1)[:, :, :-1]
    return model.language.norm(jnp.concatenate([first, rest], axis=2)), table


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
    hidden, table = group_hidden(policy, params, prompts, image_embeds, responses)
    count, n, length, size = hidden.shape
    language = policy.module(params).language
    tied = language.lm_head is None
    log_probs, entropy = log_probs_of(
        hidden.reshape(count, n * length, size),
        table if tied else language.head_kernel(),
        responses.reshape(count, -1),
        temperature=temperature,
        block=policy.vocab_block(responses.size),
        transposed=tied,
    )
    return log_probs.reshape(responses.shape), entropy.reshape(responses.shape)
