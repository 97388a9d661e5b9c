"""Operations and bytes of each phase of a step, from the sizes of a policy; nothing here touches a device.

Two counts of operations, both of matrix products only (2 m k n each):

- `model` operations are what the mathematics asks for: attention only where a query may see a key, a backward pass of
  two products for each of the forward pass. MFU is about these.
- `hardware` operations are what the programs do beyond that: layers, scores and logits that are computed again in the
  backward pass. What padding adds is for the caller: it gives places instead of tokens.

Bytes are what a phase has to move if everything else stays in a cache: weights, keys and values, gradients, moments.
What a compiled program really moves is read from its text (`hlo.ProgramText.bytes_moved`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import jax

from mmeureka_jax.models.decoder_config import TextConfig
from mmeureka_jax.models.families import PolicyConfig
from mmeureka_jax.models.internvl_config import InternViTConfig
from mmeureka_jax.models.lora import is_adapter
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.models.qwen_vl_config import VisionConfig


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of matrix products; see the module."""

    model: float = 0.0
    hardware: float = 0.0

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.model + other.model, self.hardware + other.hardware)

    def __mul__(self, times: float) -> Operations:
        return Operations(self.model * times, self.hardware * times)


@dataclass(frozen=True)
class Tower:
    """What a vision tower's operations depend on.

    Attributes:
        depth: blocks.
        width: of its hidden states.
        kernels: entries of one block's matrices.
        patch_kernels: entries of the map that patches pass before the blocks.
        merger_kernels: entries of the matrices that each image token passes behind them.
        merged: patches that become one image token.
        window: patches in a window of `Images`.
        extra: places that a window has in the blocks beyond its patches (a class token).
        full: blocks in which patches see all windows of their picture, and not only their own.
    """

    depth: int
    width: int
    kernels: int
    patch_kernels: int
    merger_kernels: int
    merged: int
    window: int
    extra: int
    full: int

    def pairs(self, windows: int) -> int:
        """(query, key) pairs of all blocks, for one picture of so many windows."""
        places = self.window + self.extra
        return self.full * (windows * places) ** 2 + (self.depth - self.full) * windows * places**2

    def block_operations(self, windows: int) -> int:
        """The blocks, forward, for one picture of so many windows; padded places count."""
        places = windows * (self.window + self.extra)
        return 2 * places * self.depth * self.kernels + 4 * self.width * self.pairs(windows)

    def patch_operations(self, windows: int) -> int:
        """The map before the blocks."""
        return 2 * windows * self.window * self.patch_kernels

    def merger_operations(self, windows: int) -> int:
        """What is behind the blocks."""
        return 2 * (windows * self.window // self.merged) * self.merger_kernels

    def operations(self, windows: int) -> int:
        """The tower, forward, for one picture of so many windows."""
        return self.patch_operations(windows) + self.block_operations(windows) + self.merger_operations(windows)


def tower_of(config: PolicyConfig) -> Tower | None:
    """The vision tower of a policy; None for one that reads only text."""
    vision = getattr(config, "vision", None)
    if vision is None:
        return None
    size = vision.hidden_size
    width = size * vision.spatial_merge_size**2
    common = {
        "depth": vision.depth,
        "width": size,
        "patch_kernels": vision.patch_numbers * size,
        "merged": vision.spatial_merge_size**2,
        "window": vision.patches_per_window,
    }
    if isinstance(vision, InternViTConfig):
        hidden = config.text.hidden_size
        return Tower(
            **common,
            kernels=4 * size**2 + 2 * size * vision.intermediate_size,
            merger_kernels=width * hidden + hidden**2,
            extra=1,
            full=0,
        )
    assert isinstance(vision, VisionConfig)
    matrices = 2 if vision.plain_blocks else 3
    return Tower(
        **common,
        kernels=size * (4 * size + matrices * vision.intermediate_size),
        merger_kernels=width * (width + vision.out_hidden_size),
        extra=0,
        full=len(set(vision.full_attention_blocks)),
    )


# The decoder.


def layer_kernels(text: TextConfig) -> int:
    """Entries of one decoder layer's matrices: a token's pass takes twice as many operations."""
    query = text.num_heads * text.head_dim
    key = text.num_kv_heads * text.head_dim
    return text.hidden_size * (2 * query + 2 * key + 3 * text.intermediate_size)


def layer_parameters(text: TextConfig) -> int:
    """Entries of everything in a decoder layer but norms of single heads."""
    biases = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim if text.attention_bias else 0
    return layer_kernels(text) + biases + 2 * text.hidden_size


def head_parameters(text: TextConfig) -> int:
    return text.hidden_size * text.vocab_size


def language_parameters(text: TextConfig) -> int:
    """All parameters of the decoder, with its embedding and output head (one table where they are tied)."""
    tables = 1 if text.tie_word_embeddings else 2
    return text.num_layers * layer_parameters(text) + text.hidden_size + tables * head_parameters(text)


def language_read(text: TextConfig) -> int:
    """Parameters that a pass from tokens to log-probabilities reads whole: all but an embedding of its own."""
    return text.num_layers * layer_parameters(text) + text.hidden_size + head_parameters(text)


def layers_operations(text: TextConfig, tokens: float, pairs: float) -> float:
    """All decoder layers on `tokens`, whose queries see `pairs` keys together."""
    return text.num_layers * 2 * tokens * layer_kernels(text) + attention_operations(text, pairs)


def attention_operations(text: TextConfig, pairs: float) -> float:
    """Scores and weighted values of all decoder layers for `pairs` of a query and a key."""
    return 4 * text.head_dim * text.num_layers * text.num_heads * pairs


def head_operations(text: TextConfig, tokens: float) -> float:
    return 2 * tokens * head_parameters(text)


def causal_pairs(length: float, before: float = 0) -> float:
    """(query, key) pairs of a sequence that sees itself causally, and all of `before` earlier tokens."""
    return length * (length + 1) / 2 + length * before


def row_pairs(prompt: float, responses: Iterable[float]) -> float:
    """(query, key) pairs of a row: a prompt, and responses of these lengths that each see it and themselves."""
    return causal_pairs(prompt) + sum(causal_pairs(length, prompt) for length in responses)


def cache_bytes(text: TextConfig, tokens: float, width: int) -> float:
    """Keys and values of `tokens` in all layers, `width` bytes a number."""
    return 2 * text.num_layers * text.num_kv_heads * text.head_dim * tokens * width


# Phases.


@dataclass(frozen=True)
class Model:
    """A policy as its arithmetic sees it.

    Attributes:
        adapters: numbers in the adapters of the decoder; 0: all of the decoder is trained.
        trained: numbers that the optimiser moves.
        vision: which part of the tower an update runs: none of it (`frozen`: its output comes from the rollout), all
            with a gradient of what is behind the blocks (`merger`), or all with gradients of everything (`all`).
        remat: each layer is computed again in the backward pass.
        width: bytes of a number in the compute dtype.
        base_width: bytes of a number of parameters that are not trained: 4, or 2 for a base under adapters.
    """

    text: TextConfig
    tower: Tower | None
    adapters: int
    trained: int
    vision: Literal["frozen", "merger", "all"]
    remat: bool
    width: int
    base_width: int

    @classmethod
    def of(cls, policy: Policy, trainable: Any) -> Model:
        """
        Args:
            trainable: the part of the parameter tree that is trained, or its shapes (`TrainState.trainable`).
        """

        def count(tree: Any, adapters_only: bool = False) -> int:
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            return sum(
                math.prod(leaf.shape)
                for path, leaf in leaves
                if not adapters_only or is_adapter(jax.tree_util.keystr(path, simple=True, separator="/"))
            )

        vision = trainable.get("vision", {})
        return cls(
            text=policy.config.text,
            tower=tower_of(policy.config),
            adapters=count(policy.abstract_params()["language"], adapters_only=True) if policy.lora else 0,
            trained=count(trainable),
            vision="all" if "blocks" in vision else "merger" if vision else "frozen",
            remat=policy.remat,
            width=jax.numpy.dtype(policy.compute_dtype).itemsize,
            base_width=2 if policy.lora is not None and policy.lora.base_dtype == "bfloat16" else 4,
        )

    def encode(self, windows: int) -> Operations:
        """The vision tower, forward, on the picture of one prompt."""
        count = self.tower.operations(windows) if self.tower is not None and windows else 0
        return Operations(count, count)

    def prefill(self, tokens: float) -> Operations:
        """The decoder's layers on one prompt; and the first token's logits."""
        count = self._layers(tokens, causal_pairs(tokens)) + head_operations(self.text, 1)
        return Operations(count, count)

    def decode_token(self, prompt: float, own: float) -> Operations:
        """One token of one response, the `own`-th (this one included)."""
        count = self._layers(1, prompt + own) + head_operations(self.text, 1)
        return Operations(count, count)

    def decode(self, prompt: float, length: float) -> Operations:
        """All tokens of one response but the first, which comes with the prompt."""
        steps = length - 1
        pairs = steps * prompt + causal_pairs(steps)
        count = self._layers(steps, pairs) + head_operations(self.text, steps)
        return Operations(count, count)

    def log_probs(self, prompt: float, responses: Iterable[float]) -> Operations:
        """Log-probabilities of a row: a prompt and responses of these lengths."""
        lengths = tuple(responses)
        tokens = prompt + sum(lengths)
        count = self._layers(tokens, row_pairs(prompt, lengths)) + head_operations(self.text, sum(lengths))
        return Operations(count, count)

    def update(self, prompt: float, responses: Iterable[float], windows: int = 0) -> Operations:
        """The loss of a row and its gradients.

        Under adapters a backward pass computes no gradient of the matrices themselves: one product for each of the
        forward pass and not two. Attention's backward pass computes the scores again (two products become five), and
        the log-probabilities' the logits; with `remat` each layer's forward pass is done again, but for its last
        product, whose result no gradient needs.
        """
        lengths = tuple(responses)
        text = self.text
        tokens = prompt + sum(lengths)
        kernels = text.num_layers * 2 * tokens * layer_kernels(text)
        adapters = 2 * tokens * self.adapters
        attention = attention_operations(text, row_pairs(prompt, lengths))
        head = head_operations(text, sum(lengths))
        backward = 1 if self.adapters else 2
        model = (1 + backward) * (kernels + head) + 3 * (adapters + attention)
        again = 0.5 * attention + head
        if self.remat:
            last = text.num_layers * 2 * tokens * text.hidden_size * text.intermediate_size
            again += kernels + adapters + attention - last
        total = Operations(model, model + again)
        return total + self._tower_update(windows)

    def _tower_update(self, windows: int) -> Operations:
        """The tower's part of an update; pixels need no gradient."""
        if self.tower is None or self.vision == "frozen" or windows == 0:
            return Operations()
        count = self.tower.operations(windows) + 2 * self.tower.merger_operations(windows)
        again = 0
        if self.vision == "all":
            blocks = self.tower.block_operations(windows)
            count += 2 * blocks + self.tower.patch_operations(windows)
            again = blocks if self.remat else 0
        return Operations(count, count + again)

    def _layers(self, tokens: float, pairs: float) -> float:
        return layers_operations(self.text, tokens, pairs) + 2 * tokens * self.adapters

    # Bytes.

    def decode_bytes(self, prompts: float, prompt: float, rows: float, own: float) -> float:
        """What one token of `rows` responses reads: weights once, each prompt's cache once, each row's own."""
        weights = self.width * (language_read(self.text) + self.adapters)
        return weights + cache_bytes(self.text, prompts * prompt + rows * own, self.width)

    def optimiser_bytes(self) -> float:
        """AdamW in float32: reads gradients, parameters and two moments, writes the last three."""
        return 7 * 4 * self.trained

    def gradient_bytes(self, parts: int) -> float:
        """Parameters that `parts` passes forward and backward read, and gradients that they add up."""
        read = (self.base_width if self.adapters else 4) * language_read(self.text)
        return 2 * parts * read + (2 * parts - 1) * 4 * self.trained
