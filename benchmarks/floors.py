"""The least work that sampling and updating can be: operations of matrix products, and bytes that have to be moved.

Plain arithmetic on a model's sizes; nothing here touches a device. What is counted:

- operations: only matrix products, 2 m k n each, attention only where a query may see a key. Norms, softmax, rotary
  embedding, random numbers and the optimiser's arithmetic are left out.
- bytes: every parameter that a pass uses, once; keys and values; in the update gradients and optimiser state.
  Activations, logits, pictures and the rows gathered from the embedding are left out: they could stay in a cache.

A floor is therefore below what any program of the same layers can reach. The layers are taken to run on all tokens, as
the policy does: that the last one could skip what nothing reads after it is not counted.

A second floor, of kernels, is nearer: attention's products contract over `head_dim` numbers only and its softmax takes
an exponential a score, decoding reads each row's cache by products of a matrix and a few vectors, and neither is as
fast as the products and copies that the device does best. `kernel_seconds` counts each kind at a rate of its own, one
after the other as kernels run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from mmeureka_jax.models.decoder_config import TextConfig
from mmeureka_jax.models.qwen_vl_config import Qwen2_5VLConfig, VisionConfig
from mmeureka_jax.planning.arithmetic import (
    attention_operations,
    cache_bytes,
    causal_pairs,
    head_parameters,
    language_parameters,
    language_read,
    layer_parameters,
    layers_operations,
)


@dataclass(frozen=True)
class Work:
    """Floating-point operations of matrix products, and bytes between memory and processor."""

    flops: float = 0
    bytes: float = 0
    # The part of `flops` between queries and keys, or weights and values, for many queries at a time.
    attention: float = 0
    exponentials: float = 0  # in attention's softmax
    # The part of `bytes` for keys and values that belong to one row and are read for its one new token.
    cached: float = 0
    cached_flops: float = 0  # the part of `flops` for that token's products with them

    def __add__(self, other: Work) -> Work:
        return Work(*(mine + others for mine, others in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class KernelRates:
    """What a device reaches at best in each kind of kernel."""

    matmul: float  # operations a second of large products
    copy: float  # bytes a second
    attention: float  # operations a second of attention's products
    exponential: float  # exponentials a second
    cache: float  # bytes a second of caches that meet a few queries each


@dataclass(frozen=True)
class Batch:
    """Sizes of a rollout or of an update, all prompts alike and without padding."""

    prompts: int  # P
    group: int  # n
    prompt: int  # Lp, tokens
    new: int  # Lr, tokens
    windows: int = 0  # W, those of the one picture of a prompt; 0: only text

    @property
    def rows(self) -> int:
        return self.prompts * self.group


def seconds(work: Work, matmul_rate: float, copy_rate: float) -> float:
    """The floor: operations at `matmul_rate` (1/s) or bytes at `copy_rate` (1/s), whichever takes longer."""
    return max(work.flops / matmul_rate, work.bytes / copy_rate)


def total_seconds(parts: Iterable[Work], matmul_rate: float, copy_rate: float) -> float:
    """The floor of parts that have to follow each other."""
    return sum(seconds(work, matmul_rate, copy_rate) for work in parts)


def kernel_seconds(parts: Iterable[Work], rates: KernelRates) -> float:
    """The floor of kernels: each kind of work at its own rate, one after the other.

    A row's own cache is read by products of a matrix and a few vectors, which wait for bytes: their operations are not
    counted.
    """
    total = 0.0
    for work in parts:
        flops = work.flops - work.attention - work.cached_flops
        total += seconds(Work(flops, work.bytes - work.cached), rates.matmul, rates.copy)
        total += work.attention / rates.attention + work.exponentials / rates.exponential + work.cached / rates.cache
    return total


# Parameters.


def block_kernels(vision: VisionConfig) -> int:
    return vision.hidden_size * (4 * vision.hidden_size + 3 * vision.intermediate_size)


def merger_kernels(vision: VisionConfig) -> int:
    width = vision.hidden_size * vision.spatial_merge_size**2
    return width * (width + vision.out_hidden_size)


def vision_parameters(vision: VisionConfig) -> int:
    size = vision.hidden_size
    width = vision.hidden_size * vision.spatial_merge_size**2
    block = block_kernels(vision) + (4 * size + 2 * vision.intermediate_size + size) + 2 * size
    merger = merger_kernels(vision) + width + vision.out_hidden_size + size
    return vision.depth * block + merger + vision.temporal_patch_size * vision.patch_numbers * size


def parameters(config: Qwen2_5VLConfig) -> int:
    return language_parameters(config.text) + vision_parameters(config.vision)


# Passes.


def scores(text: TextConfig, pairs: int) -> int:
    """Numbers that the softmaxes of all decoder layers are taken over."""
    return text.num_layers * text.num_heads * pairs


def blocks_flops(vision: VisionConfig, prompts: int, windows: int) -> int:
    """The blocks of the vision tower on `windows` of each prompt, all of one picture; padded places count."""
    window = vision.patches_per_window
    patches = prompts * windows * window
    pairs = prompts * block_pairs(vision, windows)
    return 2 * patches * vision.depth * block_kernels(vision) + 4 * pairs * vision.hidden_size


def block_pairs(vision: VisionConfig, windows: int) -> int:
    """(query, key) pairs of all blocks of the tower for one picture of so many windows."""
    window = vision.patches_per_window
    full = len(set(vision.full_attention_blocks))
    return full * (windows * window) ** 2 + (vision.depth - full) * windows * window**2


def patch_flops(vision: VisionConfig, patches: int) -> int:
    return 2 * patches * vision.patch_numbers * vision.hidden_size


def merger_flops(vision: VisionConfig, patches: int) -> int:
    return 2 * (patches // vision.spatial_merge_size**2) * merger_kernels(vision)


def encode(config: Qwen2_5VLConfig, prompts: int, windows: int, width: int) -> Work:
    """The vision tower, forward, on `windows` of each prompt. `width`: bytes a number in the compute dtype."""
    vision = config.vision
    if windows == 0:
        return Work()
    patches = prompts * windows * vision.patches_per_window
    flops = patch_flops(vision, patches) + blocks_flops(vision, prompts, windows) + merger_flops(vision, patches)
    pairs = prompts * block_pairs(vision, windows)
    return Work(flops, width * vision_parameters(vision), 4 * pairs * vision.hidden_size, pairs * vision.num_heads)


def prefill(config: Qwen2_5VLConfig, prompts: int, length: int, width: int) -> Work:
    """The decoder's layers on whole prompts; keys and values are written."""
    text = config.text
    pairs = prompts * causal_pairs(length)
    flops = layers_operations(text, prompts * length, pairs)
    read = width * (text.num_layers * layer_parameters(text) + text.hidden_size)
    written = cache_bytes(text, prompts * length, width)
    return Work(flops, read + written, attention_operations(text, pairs), scores(text, pairs))


def first_token(config: Qwen2_5VLConfig, prompts: int, width: int) -> Work:
    """Logits after the prompts: one row a prompt, for any group size."""
    head = head_parameters(config.text)
    return Work(2 * prompts * head, width * head)


def decode_step(config: Qwen2_5VLConfig, rows: int, group: int, prompt: int, own: int, width: int) -> Work:
    """One token of `rows` responses in groups of `group`, each with `own` tokens so far, this one included.

    Keys and values of a prompt of `prompt` tokens are read once for its group, a row's own ones by that row.
    """
    text = config.text
    flops = layers_operations(text, rows, rows * (prompt + own)) + 2 * rows * head_parameters(text)
    shared, cached = (cache_bytes(text, tokens, width) for tokens in (rows // group * prompt, rows * own))
    return Work(
        flops,
        width * language_read(text) + shared + cached,
        attention=attention_operations(text, rows * prompt),
        exponentials=scores(text, rows * (prompt + own)),
        cached=cached,
        cached_flops=attention_operations(text, rows * own),
    )


def decode(config: Qwen2_5VLConfig, batch: Batch, width: int) -> Work:
    """Every decode step of a rollout: `new` - 1, since the first token comes with the prompt."""
    steps = (decode_step(config, batch.rows, batch.group, batch.prompt, own, width) for own in range(1, batch.new))
    return sum(steps, Work())


def generation(config: Qwen2_5VLConfig, batch: Batch, width: int) -> dict[str, Work]:
    """A whole rollout of `new` tokens a response, by parts that follow each other."""
    return {
        "vision": encode(config, batch.prompts, batch.windows, width),
        "prefill": prefill(config, batch.prompts, batch.prompt, width),
        "first_token": first_token(config, batch.prompts, width),
        "decode": decode(config, batch, width),
    }


def update(
    config: Qwen2_5VLConfig,
    batch: Batch,
    *,
    remat: bool = False,
    train_vision: bool = False,
    micro_batches: int = 1,
    param_width: int = 4,
) -> dict[str, Work]:
    """One update, by parts that follow each other: gradients, then AdamW (the gradients' norm is between them).

    A product's backward pass is two of its size. With `remat` the forward pass is done again, except the last product
    of each layer, whose result no gradient needs. Without `train_vision` the tower is not run: its embeddings come with
    the batch.

    Args:
        param_width: bytes a number of parameters, gradients and moments (4: float32 masters).
    """
    text = config.text
    vision = config.vision
    tokens = batch.prompts * (batch.prompt + batch.group * batch.new)
    pairs = batch.prompts * causal_pairs(batch.prompt) + batch.rows * causal_pairs(batch.new, batch.prompt)
    head = 2 * batch.rows * batch.new * head_parameters(text)
    forward = layers_operations(text, tokens, pairs)
    flops = 3 * (forward + head)
    # Those of one forward pass.
    attention = attention_operations(text, pairs)
    exponentials = scores(text, pairs)
    if remat:
        flops += forward - 2 * tokens * text.num_layers * text.hidden_size * text.intermediate_size + head
    read = language_read(text)
    trained = language_parameters(text)
    if train_vision:
        trained += vision_parameters(vision)
    if train_vision and batch.windows:
        read += vision_parameters(vision)
        patches = batch.prompts * batch.windows * vision.patches_per_window
        blocks = blocks_flops(vision, batch.prompts, batch.windows)
        flops += 2 * patch_flops(vision, patches) + 3 * (blocks + merger_flops(vision, patches))  # pixels: no gradient
        met = batch.prompts * block_pairs(vision, batch.windows)
        attention += 4 * met * vision.hidden_size
        exponentials += met * vision.num_heads
        if remat:
            flops += blocks - 2 * patches * vision.depth * vision.hidden_size * vision.intermediate_size
    # Each micro-batch reads the parameters forward and backward and adds to the gradients. AdamW then reads
    # gradients, parameters and two moments, and writes the last three.
    passes = 2 * micro_batches * read + (2 * micro_batches - 1) * trained
    forwards = 2 if remat else 1
    gradients = Work(flops, param_width * passes, (forwards + 2) * attention, forwards * exponentials)
    return {"gradients": gradients, "adamw": Work(0, param_width * 7 * trained)}
