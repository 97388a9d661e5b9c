"""The text decoder that all families share, and stacks of layers.

Mirrors `transformers`' Qwen2, Llama and Qwen3 (their decoders differ in a bias and a norm, see `TextConfig`) and
InternLM2, whose queries, keys and values come from one matrix. Names are Hugging Face's, so that the list of weight
mappings (weight_mapping.py) is short. Layers are stacked for a scan, and a layer does not know how its queries meet
keys: the caller hands it an `attend` function, and so one layer serves prefill, the group-shared update and
single-token decoding alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from mmeureka_jax.mesh import constrain, shard_count
from mmeureka_jax.models.attention import split_heads
from mmeureka_jax.models.batch import Array
from mmeureka_jax.models.chunks import chunk_count, in_chunks
from mmeureka_jax.models.decoder_config import TextConfig
from mmeureka_jax.models.layers import Embedding, GatedMLP, Linear, RMSNorm, Rotary, apply_rotary

# (query [B,T,H,h], key [B,T,K,h], value [B,T,K,h]) -> (attention output [B,T,H,h], what the caller wants to keep)
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]

UNROLLED = 8  # a stack of so many layers is not scanned


def run_stack(
    body: Callable[[Array, Any], tuple[Array, Any]], x: Array, stacked: Any, *, remat: bool
) -> tuple[Array, Any]:
    """`jax.lax.scan(body, x, stacked)`, with `body` recomputed in the backward pass if `remat`.

    A scan keeps what the backward pass needs in stacked buffers, which it first fills with zeros, and copies to and
    from them. A stack of few layers is unrolled instead.
    """
    count = len(jax.tree.leaves(stacked)[0])
    if remat or count > UNROLLED:
        return jax.lax.scan(jax.checkpoint(body, prevent_cse=False) if remat else body, x, stacked)
    kept = []
    for number in range(count):
        x, more = body(x, jax.tree.map(lambda leaf, number=number: leaf[number], stacked))
        kept.append(more)
    return x, jax.tree.map(lambda *parts: jnp.stack(parts), *kept)


class SelfAttention(nnx.Module):
    """Its matrices are `q_proj`, `k_proj` and `v_proj`, or (`fused_qkv`) `qkv_proj`."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    qkv_proj: Linear

    def __init__(self, config: TextConfig, *, stack: int | None = None):
        query = config.num_heads * config.head_dim
        key = config.num_kv_heads * config.head_dim
        self.fused = config.fused_qkv
        self.qk_norm = config.qk_norm
        projections = {"qkv_proj": query + 2 * key} if self.fused else {"q_proj": query, "k_proj": key, "v_proj": key}
        for name, size in projections.items():
            linear = Linear(config.hidden_size, size, ("embed", "heads"), bias=config.attention_bias, stack=stack)
            setattr(self, name, linear)
        if self.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, stack=stack)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, stack=stack)
        self.o_proj = Linear(query, config.hidden_size, ("heads", "embed"), stack=stack)
        self.head_dim = config.head_dim
        self.groups = config.num_heads // config.num_kv_heads

    def heads(self, x: Float[Array, "B T D"]) -> tuple[Array, Array, Array]:
        """Queries [B, T, H, h], keys and values [B, T, K, h]."""
        if not self.fused:
            query, key, value = (
                split_heads(project(x), self.head_dim) for project in (self.q_proj, self.k_proj, self.v_proj)
            )
            return query, key, value
        # InternLM2: for each key head, its queries, its key and its value.
        parts = split_heads(self.qkv_proj(x), self.head_dim)
        parts = parts.reshape(*parts.shape[:2], -1, self.groups + 2, self.head_dim)
        query, key, value = jnp.split(parts, (self.groups, self.groups + 1), axis=-2)
        return query.reshape(*x.shape[:2], -1, self.head_dim), key[..., 0, :], value[..., 0, :]

    def __call__(self, x: Float[Array, "B T D"], rotary: Rotary, attend: Attend) -> tuple[Float[Array, "B T D"], Any]:
        places = "seq" if _is_shared(x) else None
        query, key, value = (constrain(part, "batch", places, "act_heads", None) for part in self.heads(x))
        if self.qk_norm:
            query = self.q_norm(query)
            key = self.k_norm(key)
        out, kept = attend(apply_rotary(query, rotary), apply_rotary(key, rotary), value)
        if x.shape[1] > 1:  # as in DecoderMLP
            out = constrain(out, "batch", places, "act_heads", None)
        return self.o_proj(out.reshape(*out.shape[:-2], -1)), kept


class DecoderMLP(GatedMLP):
    """An MLP of places of rows, [B, T, D] or [B, S, C, D] (see chunks.py).

    `tensor` splits its hidden layer, also in the backward pass: the gradient comes from the residual stream, which is
    split by place, and the compiler would else gather the weights.
    """

    def hidden(self, x: Float[Array, "B T ... D"]) -> Float[Array, "B T ... f"]:
        inner = super().hidden(x)
        if x.shape[1] == 1:  # a token that is decoded, with weights that may be split in other ways
            return inner
        places = "seq" if x.shape[1] % shard_count("seq") == 0 else None
        return constrain(inner, "batch", places, *(None,) * (x.ndim - 3), "act_mlp")


class DecoderLayer(nnx.Module):
    def __init__(self, config: TextConfig, *, stack: int | None = None):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, stack=stack)
        self.self_attn = SelfAttention(config, stack=stack)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, stack=stack)
        self.mlp = DecoderMLP(config.hidden_size, config.intermediate_size, ("embed", "mlp"), stack=stack)

    def __call__(self, x: Float[Array, "B T D"], rotary: Rotary, attend: Attend) -> tuple[Float[Array, "B T D"], Any]:
        mixed, kept = self.self_attn(whole_residual(self.input_layernorm(x)), rotary, attend)
        x = split_residual(x + split_residual(mixed))
        return split_residual(x + self._mlp(x)), kept

    def _mlp(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The second branch, of a long row chunk by chunk."""
        count = chunk_count(x.shape[0], x.shape[1], self.mlp.gate_proj.kernel.shape[-1])
        if count == 1 or self.mlp.gate_proj.dropout_key is not None:  # what is dropped must not depend on chunks
            return split_residual(self.mlp(whole_residual(self.post_attention_layernorm(x))))
        definition, state = nnx.split((self.post_attention_layernorm, self.mlp))

        def of_places(parameters: nnx.State, x: Float[Array, "B S C D"]) -> Float[Array, "B S C D"]:
            norm, mlp = nnx.merge(definition, parameters)
            return mlp(constrain(norm(x), "batch", "seq", None, "act_embed"))

        return in_chunks(of_places, jax.tree.map(lambda leaf: leaf.astype(x.dtype), state), x, count)


def split_residual(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The residual stream between layers, of which devices that share a row hold different places."""
    return constrain(x, "batch", "residual_seq" if _is_shared(x) else None, "act_embed")


def whole_residual(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """What goes into projections that `tensor` splits by their outputs: all places, but for what `context` splits."""
    return constrain(x, "batch", "seq" if _is_shared(x) else None, "act_embed")


def _is_shared(x: Float[Array, "B T D"]) -> bool:
    """A single token, in decoding, is not split."""
    return x.shape[1] % shard_count("residual_seq") == 0


def aligned(places: int) -> int:
    """How many places a row has that holds `places`: so many that each of the devices that share it has whole tiles of
    its memory (16 vectors in bfloat16)."""
    shards = shard_count("residual_seq")
    return places if shards == 1 else -(-places // (16 * shards)) * 16 * shards


class Decoder(nnx.Module):
    """The text model. `layers` is one module whose parameters carry a leading layer dimension."""

    def __init__(self, config: TextConfig):
        self.embed_tokens = Embedding(config.padded_vocab_size, config.hidden_size)
        self.layers = DecoderLayer(config, stack=config.num_layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(config.hidden_size, config.padded_vocab_size, ("embed", "vocab"))

    def head_kernel(self) -> Float[Array, "D V"]:
        """The output projection, float32: the transposed embedding where the two are tied."""
        return self.embed_tokens.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]

    def scan_layers(
        self, x: Float[Array, "B T D"], rotary: Rotary, attend: Attend, *, remat: bool
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Runs all layers; what `attend` kept comes back stacked over layers."""
        definition, stacked = nnx.split(self.layers)

        def body(x: Array, parameters: nnx.State) -> tuple[Array, Any]:
            return nnx.merge(definition, parameters)(x, rotary, attend)

        return run_stack(body, x, stacked, remat=remat)

    def layer(self, parameters: Any) -> DecoderLayer:
        """One layer, from its own parameters (a slice of the stack)."""
        return nnx.merge(nnx.split(self.layers)[0], parameters)
