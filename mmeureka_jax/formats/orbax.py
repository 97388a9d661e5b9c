"""Parameters in Orbax's format, as `mmeureka convert` writes them and `hugging_face.load_params` reads them.

    FOLDER/params/             the parameter tree
    FOLDER/orbax_params.json   dtype, shape and checksum of every array, dtype of every tensor that it was made of
    FOLDER/...                 config.json, tokenizer and processor files, as in a folder of Hugging Face's layout

Arrays are stored in chunks, and every device reads those that it needs. Nothing is lost: a leaf that stacks tensors of
several dtypes is of one that holds them all, and they are written back as they were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.files import interpreting, read_json
from mmeureka_jax.formats.checksums import describe_arrays, verify_arrays
from mmeureka_jax.formats.padding import cut, whole_where_cut, with_padding
from mmeureka_jax.models.weight_mapping import WeightMapping

DESCRIPTION_FILE = "orbax_params.json"
_PARAMS = "params"
_CHUNK_BYTES = 16 * 2**20  # at most


def is_orbax(folder: Path) -> bool:
    return (folder / DESCRIPTION_FILE).is_file()


def write_orbax(
    params: Mapping[str, Any], mappings: tuple[WeightMapping, ...], folder: Path, dtypes: Mapping[str, str]
) -> None:
    """Writes params/ and orbax_params.json into `folder`, which exists.

    Args:
        mappings: of the model; the padding of its vocabulary is not written.
        dtypes: of the tensors that the parameters were made of, by their stored names.
    """
    import orbax.checkpoint as ocp

    own = {mapping.leaf: mapping.unpadded.leaf_shape for mapping in mappings}
    flat = flatten_dict(params, sep="/")
    params = unflatten_dict(
        {name: x if x.shape == own[name] else cut(x, own[name]) for name, x in flat.items()}, sep="/"
    )
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), params)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder.resolve() / _PARAMS, args=ocp.args.PyTreeSave(params, save_args=chunks))
    arrays: dict[str, Any] = {}
    for name, leaf in flatten_dict(params, sep="/").items():  # one at a time: checksums of all together take memory
        arrays |= describe_arrays({name: leaf})
    content = {"format": 1, "arrays": arrays, "tensors": dict(dtypes)}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(content, indent=1) + "\n")


def tensor_dtypes(folder: Path) -> dict[str, np.dtype]:
    """The dtype of every tensor that the parameters were made of, by its stored name."""
    with interpreting(folder / DESCRIPTION_FILE):
        return {name: np.dtype(jnp.dtype(dtype)) for name, dtype in _read_description(folder)["tensors"].items()}


def load_orbax(
    folder: Path, mappings: tuple[WeightMapping, ...], shardings: Mapping[str, Any] | None, dtype: Any | None
) -> dict[str, Any]:
    """The parameters; see `hugging_face.load_params`.

    Raises:
        UserError: arrays that are missing, misshapen or unexpected (all of them in one message), or damaged ones.
    """
    import orbax.checkpoint as ocp

    arrays = _read_description(folder)["arrays"]
    expected = {mapping.leaf: list(mapping.unpadded.leaf_shape) for mapping in mappings}
    problems = [f"{name}: missing (expected shape {shape})" for name, shape in expected.items() if name not in arrays]
    with interpreting(folder / DESCRIPTION_FILE):
        problems += [
            f"{name}: shape {list(shape)}, expected {expected[name]}"
            if name in expected
            else f"{name}: unexpected, the model has no such array"
            for name, (dtype_name, shape, checksum) in arrays.items()
            if expected.get(name) != list(shape) or not (jnp.dtype(dtype_name) and isinstance(checksum, int))
        ]
    if problems:
        raise UserError(
            f"{folder}: {len(problems)} arrays do not agree with its config.json:\n  "
            + "\n  ".join(problems)
            + "\nconvert the checkpoint again"
        )
    places = flatten_dict(shardings, sep="/") if shardings is not None else {}
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    padded = {
        mapping.leaf: jax.ShapeDtypeStruct(
            mapping.leaf_shape, jnp.dtype(arrays[mapping.leaf][0]), sharding=places.get(mapping.leaf, here)
        )
        for mapping in mappings
    }
    target = {name: whole_where_cut(leaf, tuple(expected[name])) for name, leaf in padded.items()}
    tree = unflatten_dict(target, sep="/")
    arguments = ocp.args.PyTreeRestore(item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
    # The bytes that Orbax may read at a time: less than the largest array would be an error.
    largest = max(leaf.size * leaf.dtype.itemsize for leaf in target.values())
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=1 + largest // 2**30)
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            params = checkpointer.restore(folder.resolve() / _PARAMS, args=arguments)
        for name, leaf in flatten_dict(params, sep="/").items():
            verify_arrays({name: leaf}, arrays)
    except jax.errors.JaxRuntimeError:
        raise  # for example, a device's memory is full
    except Exception as error:  # a damaged file can make its readers raise anything
        raise UserError(f"{folder}: damaged ({brief(error)}); copy it or convert the checkpoint again") from error
    params = with_padding(params, unflatten_dict(padded, sep="/"))
    if dtype is None:
        return params
    flat = flatten_dict(params, sep="/")
    del params
    return unflatten_dict({name: flat.pop(name).astype(dtype) for name in list(flat)}, sep="/")


def _read_description(folder: Path) -> dict[str, Any]:
    content = read_json(folder / DESCRIPTION_FILE)
    if content.get("format") != 1 or not {"arrays", "tensors"} <= content.keys():
        raise UserError(f"{folder / DESCRIPTION_FILE}: not a description that this version reads; convert again")
    return content
