"""What every policy offers to the sampler and to the update, as pure functions of (parameters, arrays).

    encode_images     pictures                    -> image features                (vision tower)
    prefill           prompts                     -> last hidden state, prompt KV   (once per prompt, whatever n is)
    decode_step       one token of every row      -> hidden state, its own KV       (in the sampler's loop)
    group_hidden      prompts + n responses       -> hidden states that predict each response token
    log_probs_of_hidden, values_of_hidden         -> log-probabilities and entropies, a critic's values (the update)
    token_log_probs   group_hidden, then its log-probabilities and entropies

All of them run the same layers on the same parameters, so what the sampler saw and what the update computes agree to
rounding. The static part of a policy (sizes, dtypes) is the hashable `Policy`; parameters are a nested dict of
arrays: float32 masters, except for the frozen base under adapters (lora.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from mmeureka_jax.errors import UserError
from mmeureka_jax.mesh import batch_shards, constrain, platform, shard_count
from mmeureka_jax.models.attention import PADDING, PROMPT, Kernel, RowLayout, attention, keys_first
from mmeureka_jax.models.batch import Array, ImageFeatures, Images, Prompt
from mmeureka_jax.models.decoder import aligned, split_residual, whole_residual
from mmeureka_jax.models.decoding import DecoderWeights, PromptCache
from mmeureka_jax.models.families import PolicyConfig, family_of
from mmeureka_jax.models.layers import Rotary, multimodal_rotary
from mmeureka_jax.models.log_probs import OutputHead, log_probs_of
from mmeureka_jax.models.lora import Lora, add_adapters, base_paths, in_base_dtype, is_adapter, with_dropout_keys

Params = dict[str, Any]
KeyValue = tuple[Array, Array]


@functools.cache
def _module(config: PolicyConfig, lora: Lora | None, dropping: bool) -> tuple[nnx.GraphDef, nnx.State]:
    def make() -> nnx.Module:
        model = family_of(config).module(config)
        if lora is not None:
            add_adapters(model, lora, config, dropping=dropping)
        return model

    return nnx.split(nnx.eval_shape(make))


@dataclass(frozen=True)
class Policy:
    """The static part of a policy: hashable, so that jitted functions take it as a static argument.

    Attributes:
        compute_dtype: dtype of activations; parameters are cast to it where they are used. Softmax, norms, rotary
            angles and log-probabilities are always float32.
        remat: recompute each layer's activations in the backward pass.
        logits_mb: megabytes (2**20 bytes) of float32 logits that exist on a device at one time.
        attention: see `attention.attention`.
        lora: adapters of some linear maps.
        dropping: inputs of adapters are dropped out (see `with_dropout`).
    """

    config: PolicyConfig
    compute_dtype: str = "float32"
    remat: bool = True
    logits_mb: float = 64.0
    attention: Kernel = "auto"
    lora: Lora | None = None
    dropping: bool = False

    def vocab_block(self, positions: int) -> int:
        """How many entries of a device's share of the vocabulary have logits at one time, for `positions` positions in
        all rows. At least 128, however many positions there are: with fewer, matrix products are slow."""
        return max(128, int(self.logits_mb * 2**20 / (4 * -(-positions // batch_shards()))))

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameter tree: float32 masters, except for the base of a policy with adapters."""
        shapes = nnx.to_pure_dict(self._module()[1])
        return shapes if self.lora is None else in_base_dtype(shapes, self.lora)

    def param_axes(self) -> Params:
        """Logical axis names of every parameter, in the same tree (see mesh.AXIS_RULES)."""
        axes = jax.tree.map(lambda v: v.axes, self._module()[1], is_leaf=lambda v: isinstance(v, nnx.Variable))
        return nnx.to_pure_dict(axes)

    def module(self, params: Params) -> Any:
        """The family's module, with `vision` (if it reads pictures) and `language` (a `Decoder`)."""
        return nnx.merge(self._module()[0], params)

    def _module(self) -> tuple[nnx.GraphDef, nnx.State]:
        return _module(self.config, self.lora, self.dropping)

    @property
    def base(self) -> Policy:
        """The same policy without adapters, for parameters without them (`lora.without_adapters`)."""
        return dataclasses.replace(self, lora=None, dropping=False)

    def frozen(self, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        """What is not trained, for `optimizer.split_frozen`: `prefixes`, and with adapters everything but them.

        Raises:
            UserError: there are adapters under a prefix.
        """
        if self.lora is None:
            return prefixes
        for path in self.lora.paths(self.config):
            for prefix in prefixes:
                if f"{path}/".startswith(f"{prefix}/") or (prefix.startswith(f"{path}/") and is_adapter(prefix)):
                    raise UserError(
                        f"model.lora.targets gives {path} an adapter, and optimizer.frozen leaves {prefix!r} "
                        "untrained; take it off one of the two (all but adapters is frozen anyway)"
                    )
        return *prefixes, *base_paths(self.abstract_params())

    def with_dropout(self, params: Params, *draw: Array | int) -> tuple[Policy, Params]:
        """A policy with dropout, and its parameters; this one if there is no dropout.

        Args:
            draw: whole numbers that name the draw: the same numbers drop the same inputs.
        """
        if self.lora is None or self.lora.dropout == 0:
            return self, params
        numbers = [jnp.asarray(number).astype(jnp.uint32) for number in draw]
        key = functools.reduce(jax.random.fold_in, numbers, jax.random.key(self.lora.seed))
        return dataclasses.replace(self, dropping=True), with_dropout_keys(params, key)

    def rotary(self, positions: Int[Array, "B 3 T"]) -> Rotary:
        text = self.config.text
        return multimodal_rotary(positions, text.head_dim, text.rope_theta, text.mrope_section)

    @property
    def forbidden_tokens(self) -> tuple[int, ...]:
        return self.config.forbidden_tokens


def encode_images(policy: Policy, params: Params, images: Images) -> ImageFeatures | None:
    """What the vision tower makes of pictures, in the order that `Prompt.image_index` refers to; None without any."""
    if images.num_windows == 0:
        return None
    return policy.module(params).vision(images, dtype=jnp.dtype(policy.compute_dtype), remat=policy.remat)


def insert_images(
    embeds: Float[Array, "P T D"], image_index: Int[Array, "P T"], features: ImageFeatures | None
) -> Float[Array, "P T D"]:
    """Token embeddings, with image tokens where `image_index` (see `Prompt`) points to one."""
    if features is None:
        return embeds
    pictured = jnp.take_along_axis(features.tokens, jnp.maximum(image_index, 0)[..., None], axis=1)
    return split_residual(jnp.where((image_index >= 0)[..., None], pictured.astype(embeds.dtype), embeds))


def prompt_segments(prompts: Prompt) -> Int[Array, "P Lp"]:
    return jnp.where(jnp.arange(prompts.tokens.shape[1]) < prompts.length[:, None], PROMPT, PADDING)


def last_token(x: Float[Array, "P Lp D"], prompts: Prompt) -> Float[Array, "P D"]:
    return jnp.take_along_axis(x, (prompts.length - 1)[:, None, None], axis=1)[:, 0]


def prefill(
    policy: Policy, params: Params, prompts: Prompt, features: ImageFeatures | None
) -> tuple[Float[Array, "P D"], tuple[Float[Array, "L P K Lp h"], Float[Array, "L P K Lp h"]]]:
    """Runs the prompts. Returns the final hidden state of each prompt's last token, and all layers' keys and values."""
    model = policy.module(params)
    length = prompts.tokens.shape[1]
    segments = _aligned_row(prompt_segments(prompts), PADDING)
    layout = RowLayout(prompt=segments.shape[1])

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, KeyValue]:
        key = keys_first(key)
        value = keys_first(value)
        out = attention(query, key, value, segments, layout, kernel=policy.attention)
        return out, (key[:, :, :length], value[:, :, :length])

    x = model.language.embed_tokens(_aligned_row(prompts.tokens), jnp.dtype(policy.compute_dtype))
    x = insert_images(split_residual(x), _aligned_row(prompts.image_index, -1), features)
    x, cache = model.language.scan_layers(x, policy.rotary(_aligned_row(prompts.positions)), attend, remat=False)
    return model.language.norm(last_token(x, prompts)), cache


def decoder_weights(policy: Policy, params: Params, *, split: bool = False) -> DecoderWeights:
    """The weights that single-token decoding reads, of a parameter tree; gathered or split, see models/decoding.py.

    Those that decoding reads in their place among the parameters are left out: `with_parameters` adds them.
    """
    dtype = jnp.dtype(policy.compute_dtype)
    in_place = _reads_parameters()

    def weight(leaf: Array, names: tuple[str | None, ...]) -> Array | None:
        return None if in_place and leaf.dtype == dtype else constrain(leaf.astype(dtype), *names)

    return _cut_by_layer(policy, params, split=split).with_axes(policy.param_axes(), weight)


def with_parameters(policy: Policy, params: Params, weights: DecoderWeights) -> DecoderWeights:
    """All weights, with slices of the parameters for those that `decoder_weights` left out. In the body of a loop."""

    def is_absent(leaf: Any) -> bool:
        return leaf is None

    if not any(map(is_absent, jax.tree.leaves(weights, is_leaf=is_absent))):
        return weights
    whole = _cut_by_layer(policy, params, split=weights.split)
    return jax.tree.map(lambda own, cut: cut if own is None else own, weights, whole, is_leaf=is_absent)


def _reads_parameters() -> bool:
    """Whether decoding reads parameters that are in the compute dtype where they are: on TPUs, whose compiler makes the
    slice of a layer a part of the product that reads it, if `fsdp` splits none of them."""
    return platform() == "tpu" and shard_count("embed") == 1


def _cut_by_layer(policy: Policy, params: Params, *, split: bool) -> DecoderWeights:
    language = params["language"]
    return DecoderWeights(
        embedding=language["embed_tokens"]["embedding"],
        layers=[
            jax.tree.map(lambda leaf, number=number: leaf[number], language["layers"])
            for number in range(policy.config.text.num_layers)
        ],
        head=policy.module(params).language.head_kernel(),
        split=split,
    )


def prompt_cache(prompts: Prompt, cache: tuple[Array, Array], places: int) -> PromptCache:
    """The cache of `prefill`, layer by layer, with so many places for a prompt."""
    keys, values = (jnp.pad(x, ((0, 0),) * 3 + ((0, places - x.shape[3]), (0, 0))) for x in cache)
    axes = ("batch", "act_heads", None, None)
    return PromptCache(
        lengths=prompts.length,
        next_position=prompts.next_position,
        keys=[constrain(jnp.swapaxes(of_layer, 2, 3), *axes) for of_layer in keys],
        values=[constrain(of_layer, *axes) for of_layer in values],
    )


def decode_step(
    policy: Policy,
    params: Params,
    weights: DecoderWeights,
    tokens: Int[Array, "R"],
    rotary: Rotary,
    attend: Callable[[int, Array, Array, Array], tuple[Array, KeyValue]],
) -> tuple[Float[Array, "R D"], list[KeyValue]]:
    """Feeds one token of every row.

    Args:
        rotary: rotary angles of the tokens' positions, [R, 1, h / 2] each.
        attend: (layer, query [R, K, G, h], key [R, K, h], value [R, K, h]) -> attention to all that a token sees,
            itself included [R, K, G, h], and what is kept of its key and value.

    Returns:
        Final hidden states (they predict the next token), and what `attend` kept, layer by layer.
    """
    model = policy.module(params)
    axes = policy.param_axes()
    x = weights.embed(tokens)[:, None]
    kept = []
    for number, layer in enumerate(weights.layers):

        def attend_one(query: Array, key: Array, value: Array, number=number) -> tuple[Array, KeyValue]:
            rows, _, heads, head_dim = query.shape
            grouped = query.reshape(rows, key.shape[2], heads // key.shape[2], head_dim)
            out, keep = attend(number, grouped, key[:, 0], value[:, 0])
            return out.reshape(query.shape), keep

        x, of_layer = weights.place(model.language.layer(layer), axes)(x, rotary, attend_one)
        kept.append(of_layer)
    return model.language.norm(x)[:, 0], kept


@flax.struct.dataclass
class _Places:
    """Which response token is in each place of a row, after the prompt.

    Attributes:
        index: the token's place among the n * Lr places of padded responses; n * Lr for padding. None: the row's places
            are those.
    """

    index: Int[Array, "#P W"] | None
    n: int = flax.struct.field(pytree_node=False)
    longest: int = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, responses: Int[Array, "P n Lr"], lengths: Int[Array, "P n"] | None, width: int | None) -> _Places:
        _, n, longest = responses.shape
        if width is None:
            even = aligned(n * longest)
            index = None if even == n * longest else jnp.minimum(jnp.arange(even), n * longest)[None]
            return cls(index, n, longest)
        if lengths is None:
            raise ValueError("packing responses into rows of a width takes their lengths")
        width = aligned(width)
        ends = jnp.cumsum(lengths, axis=1)
        place = jnp.arange(width)
        number = jnp.sum(place[:, None] >= ends[:, None], axis=-1)  # the response that the place belongs to
        start = jnp.take_along_axis(ends - lengths, jnp.minimum(number, n - 1), axis=1)
        return cls(jnp.where(number < n, number * longest + place - start, n * longest), n, longest)

    def pack(self, x: Array) -> Array:
        """[P, n, Lr] as [P, W]."""
        x = x.reshape(x.shape[0], -1)
        if self.index is None:
            return x
        index = jnp.broadcast_to(self.index, (len(x), self.index.shape[1]))
        return jnp.take_along_axis(x, jnp.minimum(index, x.shape[1] - 1), axis=1)

    def unpack(self, x: Array) -> Array:
        """[P, W] as [P, n, Lr], with 0 where no token is."""
        if self.index is not None:
            empty = jnp.zeros(self.n * self.longest, x.dtype)
            index = jnp.broadcast_to(self.index, x.shape)
            x = jax.vmap(lambda row, index: empty.at[index].set(row, mode="drop"))(x, index)
        return x.reshape(-1, self.n, self.longest)

    def segments_and_offsets(self) -> tuple[Int[Array, "#P W"], Int[Array, "#P W"]]:
        """For each place: its segment (see models/attention.py), and how many tokens of its response precede it."""
        index = jnp.arange(self.n * self.longest)[None] if self.index is None else self.index
        segments = jnp.where(index < self.n * self.longest, index // self.longest + 1, PADDING)
        return segments, index % self.longest


@flax.struct.dataclass
class GroupHidden:
    """Final hidden states that predict the response tokens.

    Attributes:
        hidden: the state for every place of the responses' row.
        table: the embedding, for a head that is tied to it (see `Embedding.with_table`).
        places, responses: which token is in each place.
    """

    hidden: Float[Array, "P W D"]
    table: Float[Array, "V D"]
    places: _Places
    responses: Int[Array, "P n Lr"]


def group_hidden(
    policy: Policy,
    params: Params,
    prompts: Prompt,
    features: ImageFeatures | None,
    responses: Int[Array, "P n Lr"],
    *,
    lengths: Int[Array, "P n"] | None = None,
    width: int | None = None,
) -> GroupHidden:
    """Final hidden states that predict each response token, with every prompt computed once for its n responses.

    A prompt and its responses travel through the layers as one row [Lp + W]; only attention tells them apart. Cost
    grows with Lp + W, not with n * (Lp + Lr), and the gradients are those of the repeated layout.

    Args:
        width: W, places for the responses of a prompt, one after another, each as long as `lengths` says. Tokens that
            do not fit would be lost: W must be at least the sum of a prompt's lengths. None: each response has Lr
            places.
    """
    places = _Places.of(responses, lengths, width)
    model = policy.module(params)
    count, prompt_length = prompts.tokens.shape
    segments, offsets = places.segments_and_offsets()
    segments = jnp.concatenate([prompt_segments(prompts), jnp.tile(segments, (count // len(segments), 1))], axis=1)
    segments = _aligned_row(segments, PADDING)
    layout = RowLayout(prompt_length, places.longest)

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, None]:
        return attention(query, keys_first(key), keys_first(value), segments, layout, kernel=policy.attention), None

    tokens = _aligned_row(jnp.concatenate([prompts.tokens, places.pack(responses)], axis=1))
    x, table = model.language.embed_tokens.with_table(tokens, jnp.dtype(policy.compute_dtype))
    image_index = jnp.pad(prompts.image_index, ((0, 0), (0, offsets.shape[1])), constant_values=-1)
    x = insert_images(split_residual(x), _aligned_row(image_index, -1), features)
    own_positions = prompts.next_position[:, None] + offsets
    own_positions = jnp.broadcast_to(own_positions[:, None], (count, 3, own_positions.shape[1]))
    rotary = policy.rotary(_aligned_row(jnp.concatenate([prompts.positions, own_positions], axis=2)))
    x, _ = model.language.scan_layers(x, rotary, attend, remat=policy.remat)

    # The first token of a response is predicted by the prompt's last one, any other by the one before it.
    x = whole_residual(x)
    first = last_token(x, prompts)[:, None]
    before = jax.lax.slice_in_dim(x, prompt_length - 1, prompt_length - 1 + offsets.shape[1], axis=1)
    hidden = split_residual(jnp.where((offsets == 0)[..., None], first, before))
    return GroupHidden(whole_residual(model.language.norm(hidden)), table, places, responses)


def _aligned_row(x: Int[Array, "P ... T"], fill: int = 0) -> Int[Array, "P ... _"]:
    """Rows, filled up to as many places as devices can share."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, aligned(x.shape[-1]) - x.shape[-1])], constant_values=fill)


def log_probs_of_hidden(
    policy: Policy, params: Params, states: GroupHidden, *, temperature: float = 1.0, entropy_gradient: bool = False
) -> tuple[Float[Array, "P n Lr"], Float[Array, "P n Lr"]]:
    """Natural-log probability of every response token, and the entropy of the distribution that it was drawn from.

    The distribution is the policy's at `temperature` with full support (before any top-k or top-p). Both are 0 where a
    packed row has no token.

    Args:
        entropy_gradient: whether a gradient flows through the entropy.
    """
    language = policy.module(params).language
    tied = language.lm_head is None
    hidden = states.hidden
    places = states.places
    log_probs, entropy = log_probs_of(
        hidden,
        OutputHead(states.table if tied else language.head_kernel(), tied, policy.config.text.vocab_size),
        places.pack(states.responses),
        temperature=temperature,
        block=policy.vocab_block(hidden.shape[0] * hidden.shape[1]),
        entropy_gradient=entropy_gradient,
    )
    return places.unpack(log_probs), places.unpack(entropy)


def initial_value_head(policy: Policy) -> Params:
    """A critic's head that predicts 0 everywhere."""
    return {"kernel": jnp.zeros(policy.config.text.hidden_size, jnp.float32), "bias": jnp.zeros((), jnp.float32)}


def values_of_hidden(head: Params, states: GroupHidden) -> Float[Array, "P n Lr"]:
    """What a critic's linear head predicts before each response token, in float32; 0 where a packed row has none."""
    # A sum of products, not a matrix product: some devices round the operands of those.
    values = jnp.sum(states.hidden.astype(jnp.float32) * head["kernel"], axis=-1) + head["bias"]
    return states.places.unpack(values)


def token_log_probs(
    policy: Policy,
    params: Params,
    prompts: Prompt,
    features: ImageFeatures | None,
    responses: Int[Array, "P n Lr"],
    *,
    temperature: float = 1.0,
) -> tuple[Float[Array, "P n Lr"], Float[Array, "P n Lr"]]:
    """`log_probs_of_hidden` of `group_hidden`, for responses that are padded."""
    states = group_hidden(policy, params, prompts, features, responses)
    return log_probs_of_hidden(policy, params, states, temperature=temperature)
