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

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import flax.struct
import jax
import numpy as np
from flax.struct import field
from jaxtyping import Bool, Float, Int

from mmeureka_jax.errors import UserError

if TYPE_CHECKING:
    Array = Any  # for type checkers; jaxtyping's checks at run time use the union below
else:
    Array = jax.Array | np.ndarray  # one record serves both sides: NumPy on the host, JAX on devices

SMALLEST_BUCKET = 32  # tokens


T = TypeVar("T")


def pad(letter: str, axis: int = 0, fill: float = 0) -> dict[str, Any]:
    """The metadata of a field whose arrays are padded with `fill` where records are stacked (see `stack_rows`).

    Args:
        letter: of the dimension that is padded, from the glossary above.
        axis: which one it is in a single record.
    """
    return {"pad": (letter, axis, fill)}


# In the records below the leading P is there in a record of many prompts, and not in that of a single one.


@flax.struct.dataclass
class Images:
    """The pictures of a prompt. W = 0 means that there are none (the vision tower is then not run).

    Attributes:
        patches: normalised pixels, (channel, row, column) flattened.
        patch_positions: (row, column) of the patch in its picture, for 2-D rotary embedding.
        patch_mask: False for padding.
        image_ids: which picture of the prompt the window belongs to; -1 for padding.
    """

    patches: Float[Array, "*P W S C"] = field(metadata=pad("W"))
    patch_positions: Int[Array, "*P W S 2"] = field(metadata=pad("W"))
    patch_mask: Bool[Array, "*P W S"] = field(metadata=pad("W"))
    image_ids: Int[Array, "*P W"] = field(metadata=pad("W", fill=-1))

    @property
    def num_windows(self) -> int:
        return self.image_ids.shape[-1]


@flax.struct.dataclass
class Prompt:
    """What a policy reads before it responds, padded on the right.

    Attributes:
        positions: multimodal rotary positions (time, row, column); 0 for padding.
        length: tokens that are not padding.
        next_position: rotary position of the first response token.
        image_index: which of the prompt's M image tokens is here; -1 for text and padding.
    """

    tokens: Int[Array, "*P Lp"] = field(metadata=pad("Lp"))
    positions: Int[Array, "*P 3 Lp"] = field(metadata=pad("Lp", axis=1))
    length: Int[Array, "*P"]
    next_position: Int[Array, "*P"]
    image_index: Int[Array, "*P Lp"] = field(metadata=pad("Lp", fill=-1))
    images: Images


@flax.struct.dataclass
class ImageFeatures:
    """What the vision tower makes of the pictures of a prompt, for the decoder. In place of it, None means that there
    are no pictures, or that they have not been encoded.

    Attributes:
        tokens: embeddings of the merged image tokens.
    """

    tokens: Float[Array, "*P M D"] = field(metadata=pad("M"))


@flax.struct.dataclass
class GroupBatch:
    """What a forward pass reads: P prompts with n responses each.

    Attributes:
        image_features: of pictures that have been encoded already, by a tower that is not trained.
        response_mask: True up to each response's length.
        width: places that the responses of a prompt are packed into (see `group_hidden`); None: each is padded.
    """

    prompts: Prompt
    image_features: ImageFeatures | None
    responses: Int[Array, "P n Lr"]
    response_mask: Bool[Array, "P n Lr"]
    width: int | None = field(pytree_node=False, default=None)

    @property
    def lengths(self) -> Int[Array, "P n"]:
        return self.response_mask.sum(-1, dtype=np.int32)


def stack_rows(rows: Sequence[T], sizes: Mapping[str, int] | None = None) -> T:
    """Single records as one record of many: every array (NumPy) gets a leading dimension.

    Args:
        rows: dataclasses whose fields are arrays, such dataclasses, or None in all rows.
        sizes: letter -> size that the dimension is padded to, or cut to where all beyond is padding. Without one it is
            that of the largest row.

    Raises:
        ValueError: a field is None in some of the rows only.
    """
    record: Any = rows[0]
    columns: dict[str, Any] = {}
    for column in dataclasses.fields(record):
        values = [getattr(row, column.name) for row in rows]
        absent = [value is None for value in values]
        if any(absent):
            if not all(absent):
                raise ValueError(f"some of these rows have {column.name} and others have not")
            columns[column.name] = None
        elif dataclasses.is_dataclass(values[0]):
            columns[column.name] = stack_rows(values, sizes)
        elif "pad" in column.metadata:
            letter, axis, fill = column.metadata["pad"]
            columns[column.name] = stack_padded(values, axis, (sizes or {}).get(letter), fill)
        else:
            columns[column.name] = np.stack(values)
    return type(record)(**columns)


def stack_padded(arrays: Sequence[np.ndarray], axis: int, size: int | None = None, fill: float = 0) -> np.ndarray:
    """Stacks arrays that differ along `axis`, each padded with `fill` (or cut) to `size` there, or to the largest."""
    size = max(array.shape[axis] for array in arrays) if size is None else size
    before = (slice(None),) * axis
    shape = list(arrays[0].shape)
    shape[axis] = size
    stacked = np.full((len(arrays), *shape), fill, arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        kept = array[(*before, slice(size))]
        row[(*before, slice(kept.shape[axis]))] = kept
    return stacked


def take_row(rows: T, index: int) -> T:
    """One record of many, or of any tree of arrays with a leading dimension. Its arrays are copies: a row that is kept
    must not keep all the others in memory."""
    return jax.tree.map(lambda x: np.array(x[index]), rows)


def pick_bucket(length: int, buckets: Sequence[int]) -> int:
    """The smallest of the ascending `buckets` that `length` fits in. Raises ValueError if none does."""
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise ValueError(f"a length of {length} fits in none of the buckets {tuple(buckets)}")


def length_buckets(longest: int) -> tuple[int, ...]:
    """Padded sizes for up to `longest` tokens: doubling, so that few programs are compiled."""
    sizes = [SMALLEST_BUCKET]
    while sizes[-1] < longest:
        sizes.append(2 * sizes[-1])
    sizes[-1] = -(-max(longest, 1) // SMALLEST_BUCKET) * SMALLEST_BUCKET
    return tuple(sizes)


def collate(prompts: Sequence[Prompt], prompt_length: int, num_windows: int) -> Prompt:
    """Pads prompts on the right to `prompt_length` tokens and `num_windows` windows (0 if none has a picture).

    Raises:
        UserError: a prompt that does not fit.
    """
    longest = max(len(prompt.tokens) for prompt in prompts)
    most = max(prompt.images.num_windows for prompt in prompts)
    if longest > prompt_length:
        raise UserError(f"a prompt of {longest} tokens does not fit in {prompt_length}; raise data.max_prompt_tokens")
    if most > num_windows:
        raise UserError(
            f"the pictures of a prompt have {most} windows, over {num_windows}; raise data.max_image_windows"
        )
    return stack_rows(prompts, {"Lp": prompt_length, "W": num_windows})
