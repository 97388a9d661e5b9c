"""The arrays a policy reads: prompts, their pictures, and the responses that share them.

One glossary for the whole project (jaxtyping axis names):

    P   prompts (the group is the unit: a prompt and everything about it is one row)
    n   responses of a prompt (the group size)
    Lp  padded prompt length        Lr  padded response length
    W   vision windows of a prompt, all its pictures together     S  patches in a window (Qwen2.5-VL: 64, Qwen2-VL: 4)
    C   numbers in a patch (3 * patch * patch)                    M  merged image tokens of a prompt (W * S / 4)
    D   hidden size                 V  vocabulary
    H   query heads    K  key/value heads    h  head dimension

Pictures are laid out by attention window (InternVL: tile; Qwen2-VL, which has none: image token): the patches of one
window are S consecutive places, in the order of Hugging Face's `window_index` (each run of merge_size**2 patches
becomes one image token), and windows at a picture's edge are padded with masked places. Window attention is then a
plain batch of S x S, with no index on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    Array = Any  # for type checkers; jaxtyping's checks at run time use the union below
else:
    Array = jax.Array | np.ndarray  # one record serves both sides: NumPy on the host, JAX on devices


@flax.struct.dataclass
class ImageBatch:
    """The pictures of P prompts. W = 0 means that no prompt has a picture (the vision tower is then not run)."""

    patches: Float[Array, "P W S C"]  # normalised pixels, (channel, row, column) flattened
    patch_positions: Int[Array, "P W S 2"]  # (row, column) of the patch in its picture, for 2-D rotary embedding
    patch_mask: Bool[Array, "P W S"]  # False for padding
    image_ids: Int[Array, "P W"]  # which picture of the prompt the window belongs to; -1 for padding


@flax.struct.dataclass
class PromptBatch:
    """P prompts, padded on the right."""

    tokens: Int[Array, "P Lp"]
    positions: Int[Array, "P 3 Lp"]  # multimodal rotary positions (time, row, column); 0 for padding
    lengths: Int[Array, "P"]
    next_position: Int[Array, "P"]  # rotary position of the first response token
    image_index: Int[Array, "P Lp"]  # which of the prompt's M image tokens stands here; -1 for text and padding
    images: ImageBatch


def pick_bucket(length: int, buckets: Sequence[int]) -> int:
    """The smallest of the ascending `buckets` that `length` fits in. Raises ValueError if none does."""
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise ValueError(f"a length of {length} fits in none of the buckets {tuple(buckets)}")
