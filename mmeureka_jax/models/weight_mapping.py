"""Which stored tensor is which leaf of the parameter tree: one list of mappings, which loading and saving both follow.

A family lists its own (`weight_mappings` in its model file) with the help of `WeightMappings`; `add_decoder` adds the
text decoder's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.models.decoder_config import TextConfig

Layout = Literal["same", "linear", "patches", "convolution"]


@dataclass(frozen=True)
class WeightMapping:
    """One leaf of the parameter tree and the stored tensor (or the tensor of each layer) that it holds."""

    leaf: str  # path in the parameter tree, "/" between keys
    tensor: str  # name in the hub's layout; "{}" is the layer
    shape: tuple[int, ...]  # the stored tensor's (one layer's)
    layout: Layout
    layers: int | None = None  # the leaf's leading axis, if layers are stacked
    padding: int = 0  # rows of zeros after the tensor's, in the leaf only (`TextConfig.padded_vocab_size`)

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """The stored tensor's shape with the padding."""
        return (self.shape[0] + self.padding, *self.shape[1:])

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        stored = jax.ShapeDtypeStruct(self.padded_shape, jnp.float32)
        one = jax.eval_shape(lambda x: from_stored(x, self.layout), stored)
        return one.shape if self.layers is None else (self.layers, *one.shape)

    @property
    def unpadded(self) -> WeightMapping:
        """The same for a leaf without padding."""
        return replace(self, padding=0)

    def tensors(self) -> list[tuple[str, int | None]]:
        """(stored name, layer) of everything in the leaf."""
        if self.layers is None:
            return [(self.tensor, None)]
        return [(self.tensor.format(layer), layer) for layer in range(self.layers)]

    def of_leaf(self, tensor: np.ndarray) -> np.ndarray:
        """A stored tensor as it is in the leaf."""
        if self.padding:
            tensor = np.pad(tensor, ((0, self.padding), *[(0, 0)] * (tensor.ndim - 1)))
        return from_stored(tensor, self.layout)


@dataclass
class WeightMappings:
    """A list of mappings that grows by what a layer holds."""

    mappings: list[WeightMapping] = field(default_factory=list)

    def add(
        self,
        leaf: str,
        tensor: str,
        shape: tuple[int, ...],
        layout: Layout = "same",
        layers: int | None = None,
        padding: int = 0,
    ) -> None:
        self.mappings.append(WeightMapping(leaf, tensor, shape, layout, layers, padding))

    def scale(self, leaf: str, tensor: str, size: int, layers: int | None = None, bias: bool = False) -> None:
        """A norm."""
        self.add(f"{leaf}/scale", f"{tensor}.weight", (size,), layers=layers)
        if bias:
            self.add(f"{leaf}/bias", f"{tensor}.bias", (size,), layers=layers)

    def linear(
        self, leaf: str, tensor: str, inputs: int, outputs: int, layers: int | None = None, bias: bool = False
    ) -> None:
        self.add(f"{leaf}/kernel", f"{tensor}.weight", (outputs, inputs), "linear", layers)
        if bias:
            self.add(f"{leaf}/bias", f"{tensor}.bias", (outputs,), layers=layers)


# What the tensors of a decoder layer are called: by Qwen2, Qwen3 and Llama alike, and by InternLM2.
_HUGGING_FACE = {
    "embed_tokens": "embed_tokens", "input_layernorm": "input_layernorm", "qkv_proj": "", "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj", "o_proj": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
    "post_attention_layernorm": "post_attention_layernorm", "gate_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}  # fmt: skip
_INTERNLM2 = {
    "embed_tokens": "tok_embeddings", "input_layernorm": "attention_norm", "qkv_proj": "attention.wqkv",
    "o_proj": "attention.wo", "post_attention_layernorm": "ffn_norm", "gate_proj": "feed_forward.w1",
    "up_proj": "feed_forward.w3", "down_proj": "feed_forward.w2",
}  # fmt: skip


def add_decoder(weights: WeightMappings, text: TextConfig, model: str = "model", head: str = "lm_head") -> None:
    """The text decoder's tensors, stored under `model` and its output head as `head`."""
    names = _INTERNLM2 if text.fused_qkv else _HUGGING_FACE
    count = text.num_layers
    size = text.hidden_size
    inner = text.intermediate_size
    q_size = text.num_heads * text.head_dim
    kv_size = text.num_kv_heads * text.head_dim
    embedding = f"{model}.{names['embed_tokens']}.weight"
    padding = text.padded_vocab_size - text.vocab_size
    weights.add("language/embed_tokens/embedding", embedding, (text.vocab_size, size), padding=padding)

    def tensor(name: str) -> str:
        return f"{model}.layers.{{}}.{names[name]}"

    leaf = "language/layers"
    weights.scale(f"{leaf}/input_layernorm", tensor("input_layernorm"), size, count)
    projections = {"qkv_proj": q_size + 2 * kv_size}
    if not text.fused_qkv:
        projections = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
    for name, outputs in projections.items():
        weights.linear(f"{leaf}/self_attn/{name}", tensor(name), size, outputs, count, bias=text.attention_bias)
    if text.qk_norm:
        for name in ("q_norm", "k_norm"):
            weights.scale(f"{leaf}/self_attn/{name}", tensor(name), text.head_dim, count)
    weights.linear(f"{leaf}/self_attn/o_proj", tensor("o_proj"), q_size, size, count)
    weights.scale(f"{leaf}/post_attention_layernorm", tensor("post_attention_layernorm"), size, count)
    for name in ("gate_proj", "up_proj"):
        weights.linear(f"{leaf}/mlp/{name}", tensor(name), size, inner, count)
    weights.linear(f"{leaf}/mlp/down_proj", tensor("down_proj"), inner, size, count)
    weights.scale("language/norm", f"{model}.norm", size)
    if not text.tie_word_embeddings:
        weights.add("language/lm_head/kernel", f"{head}.weight", (text.vocab_size, size), "linear", padding=padding)


def from_stored(tensor: Any, layout: Layout) -> Any:
    """A stored tensor in the layout of the parameter tree."""
    if layout == "linear":  # [out, in] -> [in, out]
        return tensor.T
    if layout == "patches":  # [out, channel, time, row, column] -> [time, (channel, row, column), out]
        outputs, _, times, _, _ = tensor.shape
        return tensor.transpose(2, 1, 3, 4, 0).reshape(times, -1, outputs)
    if layout == "convolution":  # [out, channel, row, column] -> [(channel, row, column), out]
        return tensor.reshape(len(tensor), -1).T
    return tensor


def to_stored(value: jax.Array, layout: Layout, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `from_stored`."""
    if layout == "linear":
        return value.T
    if layout == "patches":
        outputs, channels, times, rows, columns = shape
        return value.reshape(times, channels, rows, columns, outputs).transpose(4, 1, 0, 2, 3)
    if layout == "convolution":
        return value.T.reshape(shape)
    return value
