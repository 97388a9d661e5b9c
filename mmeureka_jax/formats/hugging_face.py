"""Hugging Face checkpoints <-> the policy's parameter tree, by one list of weight mappings in both directions.

Loading checks every tensor's name and shape from the file headers first, and lists all problems at once. Then each
tensor goes from the file to its place on the mesh by itself, every device reading only its own slice; a leaf that
stacks layers is filled on the devices, layer by layer, in a donated buffer. So the host never holds more than one
stored tensor, or one small leaf (measured on CPU devices: loading and saving 0.9 GiB of parameters takes 0.1 GiB more,
most of it the compiler's). Saving streams one tensor at a time the other way, into a folder that gets its name only
when it is complete.
"""

from __future__ import annotations

import collections
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from mmeureka_jax.errors import UserError
from mmeureka_jax.files import interpreting, read_json
from mmeureka_jax.formats.hub import fetch_weights
from mmeureka_jax.formats.orbax import is_orbax, load_orbax, tensor_dtypes
from mmeureka_jax.formats.safetensors import (
    StoredTensor,
    indexed_tensors,
    open_checkpoint,
    write_checkpoint_files,
)
from mmeureka_jax.hosts import is_main, raise_together
from mmeureka_jax.models.checkpoint_config import OtherFiles
from mmeureka_jax.models.families import PolicyConfig, family_named, family_of, weight_mappings
from mmeureka_jax.models.weight_mapping import Layout, WeightMapping, from_stored, to_stored

# Files that are copied unchanged from the checkpoint a policy came from to the one that is saved.
COMPANION_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.json",
    "chat_template.jinja",
)

# The same for the code that some of the hub's models come with: other programs may run it, nothing here does.
_CODE_FILES = ("configuration_*.py", "modeling_*.py", "tokenization_*.py", "processing_*.py", "conversation.py")

_EMBEDDING = "embed_tokens/embedding"  # the end of its leaf

# Leaves up to this size are put together on the host: for a small model, compiling their placement takes far longer.
_SMALL_LEAF_BYTES = 16 * 2**20


def stored_shapes(config: PolicyConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every stored tensor, by name, in the order of the forward pass."""
    return {name: mapping.shape for mapping in weight_mappings(config) for name, _ in mapping.tensors()}


def table_names(config: PolicyConfig) -> tuple[str, ...]:
    """The stored tensors that have a row for each token: the embedding, and the output head where it is another."""
    embedding = next(mapping.tensor for mapping in weight_mappings(config) if mapping.leaf.endswith(_EMBEDDING))
    return (embedding,) if config.text.tie_word_embeddings else (embedding, config.head_name)


def read_config(path: str | Path) -> PolicyConfig:
    """The config of the checkpoint folder `path`, from its `config.json` and `generation_config.json` (optional)."""
    config_file = Path(path) / "config.json"
    generation_file = Path(path) / "generation_config.json"
    if not config_file.is_file():
        raise UserError(f"{config_file}: no such file; {path} is not a Hugging Face checkpoint folder")
    generation = read_json(generation_file) if generation_file.is_file() else None
    content = read_json(config_file)
    source = str(config_file)
    family = family_named(content.get("model_type"), source)
    folder = Path(path)
    other_files = OtherFiles(functools.partial(added_tokens, folder), functools.partial(_tensor_names, folder))
    with interpreting(config_file):
        return family.config.from_hf(content, generation, source, other_files)


def added_tokens(path: Path) -> dict[str, int]:
    """The tokens of a checkpoint's tokenizer that its vocabulary proper lacks, with their ids."""
    found: dict[str, int] = {}
    if (file := path / "tokenizer.json").is_file():
        with interpreting(file):
            found |= {token["content"]: int(token["id"]) for token in read_json(file).get("added_tokens") or ()}
    if (file := path / "tokenizer_config.json").is_file():
        with interpreting(file):
            decoder = read_json(file).get("added_tokens_decoder") or {}
            found |= {token["content"]: int(number) for number, token in decoder.items()}
    if (file := path / "added_tokens.json").is_file():
        with interpreting(file):
            found |= {name: int(number) for name, number in read_json(file).items()}
    return found


def _tensor_names(path: Path) -> list[str]:
    """The names of the stored tensors; none where the folder has no weights."""
    if is_orbax(path):
        return list(tensor_dtypes(path))
    if (names := indexed_tensors(path)) is not None:  # without the files themselves, which may still be on the hub
        return names
    fetch_weights(path)
    return list(open_checkpoint(path)) if next(path.glob("*.safetensors"), None) else []


def stored_dtypes(path: str | Path) -> dict[str, np.dtype]:
    """The dtype of every tensor of a checkpoint folder that the policy has, by the name in the hub's layout."""
    path = Path(path)
    if is_orbax(path):
        return tensor_dtypes(path)
    config = read_config(path)
    fetch_weights(path)
    stored = _match_tensors(path, config)
    return {name: stored[name].dtype for name in stored_shapes(config)}  # type: ignore[misc]


def load_params(
    path: str | Path,
    config: PolicyConfig,
    shardings: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
) -> dict[str, Any]:
    """Reads the safetensors (or the Orbax files, see formats/orbax.py) of the folder `path` straight onto the devices.

    Args:
        path: a checkpoint folder, in the hub's or the newer tensor names, one file or several with an index.
        config: decides which tensors there must be, and their shapes.
        shardings: the parameter tree with a `NamedSharding` (or a `SingleDeviceSharding`) at each leaf; None puts
            everything on the default device. In a run of many processes each reads only what its devices hold, and
            all must call this.
        dtype: the parameters' dtype, whatever the file's. None: the file's (a stack of several has one that holds all).

    Returns:
        The parameter tree: nested dicts of `jax.Array`.

    Raises:
        UserError: no safetensors, a broken file, or any missing, misshapen, oddly typed or unexpected tensor (all of
            them in one message, before any data is read).
    """
    if is_orbax(Path(path)):
        return load_orbax(Path(path), weight_mappings(config), shardings, dtype)
    fetch_weights(Path(path))
    stored = _match_tensors(path, config)
    if config.text.tie_word_embeddings and config.head_name in stored:
        _check_tied_head(Path(path), config, stored)
    params: dict[str, Any] = {}
    for mapping in weight_mappings(config):
        sharding = jnp.zeros(()).sharding if shardings is None else _get(shardings, mapping.leaf)
        kinds = {stored[name].dtype for name, _ in mapping.tensors()} if dtype is None else {dtype}
        _set(params, mapping.leaf, _load_leaf(mapping, stored, sharding, jnp.result_type(*kinds)))
    return params


def read_tensors(path: Path, config: PolicyConfig) -> Iterator[np.ndarray]:
    """Every stored tensor as it is stored, in the order of `stored_shapes`, one at a time. For one process.

    Raises:
        UserError: as `load_params`.
    """
    if is_orbax(path):
        params = load_params(path, config, dtype=None)
        yield from _fetch_tensors(params, weight_mappings(config), stored_dtypes(path))
        return
    fetch_weights(path)
    stored = _match_tensors(path, config)
    if config.text.tie_word_embeddings and config.head_name in stored:
        _check_tied_head(path, config, stored)
    for name in stored_shapes(config):
        yield stored[name].read()


def save_params(
    params: Mapping[str, Any],
    config: PolicyConfig,
    path: str | Path,
    *,
    source: str | Path | None = None,
    dtype: Any | Mapping[str, Any] = jnp.float32,
    max_shard_bytes: int = 5_000_000_000,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a checkpoint folder in the hub's layout, which transformers and `load_params` read.

    In a run of many processes all must call this, and process 0 writes. Tensors are fetched one at a time.

    Args:
        params: the parameter tree, of `jax.Array` with any sharding.
        path: the new folder. It appears under this name only when it is complete.
        source: the checkpoint that the policy came from; its tokenizer, processor and generation files are copied.
        dtype: that of the stored tensors; one for all, or one for each by its stored name.
        max_shard_bytes: a file takes no more than this (unless a single tensor is larger).
        files: more files for the folder, by name.

    Raises:
        UserError: `path` is taken, or it cannot be written (a full disk, missing permissions); nothing is left behind.
    """
    path = Path(path)
    dtypes = _each(dtype, config)
    tensors = _fetch_tensors(params, weight_mappings(config), dtypes)
    message = None
    if is_main():
        try:
            write_checkpoint(
                tensors, config, path, source=source, dtype=dtypes, max_shard_bytes=max_shard_bytes, files=files
            )
        except UserError as error:
            message = str(error)
    if jax.process_count() > 1:
        for _ in tensors:  # fetching is collective: all take part until the end, process 0 also after an error
            pass
    raise_together(message)


def write_checkpoint(
    tensors: Iterable[np.ndarray],
    config: PolicyConfig,
    path: Path,
    *,
    source: str | Path | None,
    dtype: Any,
    max_shard_bytes: int = 5_000_000_000,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a checkpoint folder from stored tensors, in the order of `stored_shapes`. See `save_params`."""
    dtypes = _each(dtype, config)
    others = folder_files(config, source, dtypes) | dict(files or {})
    write_checkpoint_files(path, stored_shapes(config), tensors, dtypes, others, max_shard_bytes)


def folder_files(config: PolicyConfig, source: str | Path | None, dtypes: Mapping[str, np.dtype]) -> dict[str, bytes]:
    """All files of a checkpoint folder except its weights: configs, and what is copied unchanged from `source`."""
    counts = collections.Counter[np.dtype]()
    for name, shape in stored_shapes(config).items():
        counts[dtypes[name]] += math.prod(shape)
    ((usual, _),) = counts.most_common(1)
    files = {
        "config.json": _to_json(config.to_hf(usual.name)),
        "generation_config.json": _to_json(config.to_hf_generation()),
    }
    if source is not None:
        present = [Path(source) / name for name in COMPANION_FILES if (Path(source) / name).is_file()]
        present += [file for pattern in _CODE_FILES for file in sorted(Path(source).glob(pattern))]
        files |= {file.name: file.read_bytes() for file in present}
    return files


def _each(dtype: Any | Mapping[str, Any], config: PolicyConfig) -> dict[str, np.dtype]:
    """The dtype of each stored tensor."""
    return {
        name: np.dtype(jnp.dtype(dtype[name] if isinstance(dtype, Mapping) else dtype))
        for name in stored_shapes(config)
    }


def _match_tensors(path: str | Path, config: PolicyConfig) -> dict[str, StoredTensor]:
    """The stored tensors under their names in the hub's layout; every disagreement with the config in one error."""
    found: dict[str, StoredTensor] = {}
    problems: list[str] = []
    renamed = family_of(config).renamed
    for name, tensor in open_checkpoint(Path(path)).items():
        hub_name = name
        for pattern, replacement in renamed:
            hub_name = re.sub(pattern, replacement, hub_name)
        if hub_name in found:
            problems.append(f"{name}: stored twice, also under another name")
        found[hub_name] = tensor
    shapes = stored_shapes(config)
    for name, shape in shapes.items():
        if name not in found:
            problems.append(f"{name}: missing (expected shape {list(shape)})")
        elif found[name].shape != shape:
            problems.append(f"{name}: shape {list(found[name].shape)}, expected {list(shape)}")
        elif found[name].dtype is None:
            problems.append(f"{name}: stored as {found[name].dtype_name}, expected a floating-point type")
    expected = set(shapes)
    if config.text.tie_word_embeddings:
        expected.add(config.head_name)  # some tied checkpoints store the copy too
    problems += [
        f"{name}: unexpected, the model has no such tensor"
        for name in found
        if name not in expected and not name.endswith("rotary_emb.inv_freq")  # a constant that old files carry
    ]
    if problems:
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(
            f"{path}: {len(problems)} tensors do not agree with its config.json:\n{listing}\n"
            "the weights and the config must come from the same checkpoint"
        )
    return found


def _check_tied_head(path: Path, config: PolicyConfig, stored: Mapping[str, StoredTensor]) -> None:
    """
    Raises:
        UserError: the output head is said to be the embedding, and a head is stored that is another.
    """
    (embedding,) = table_names(config)
    head = stored[config.head_name]
    tokens = stored[embedding]
    rows = max(1, _SMALL_LEAF_BYTES // (4 * tokens.shape[1]))
    same = head.shape == tokens.shape and head.dtype is not None
    for start in range(0, tokens.shape[0], rows) if same else ():
        part = (slice(start, start + rows),)
        same = same and np.array_equal(head.read(part).astype(np.float32), tokens.read(part).astype(np.float32))
    if not same:
        raise UserError(
            f"{path}: config.json says tie_word_embeddings true, and {config.head_name} is stored and is not "
            f"{embedding}. Set tie_word_embeddings to false to use that head, or remove the tensor from the file"
        )


def _load_leaf(
    mapping: WeightMapping, stored: Mapping[str, StoredTensor], sharding: Sharding, dtype: np.dtype
) -> jax.Array:
    if math.prod(mapping.leaf_shape) * dtype.itemsize <= _SMALL_LEAF_BYTES:
        layers = [mapping.of_leaf(stored[name].read()).astype(dtype) for name, _ in mapping.tensors()]
        leaf = layers[0] if mapping.layers is None else np.stack(layers)
        return jax.make_array_from_callback(mapping.leaf_shape, sharding, lambda index: leaf[index])

    stored_sharding = _stored_sharding(sharding, mapping)

    def read(name: str) -> jax.Array:
        part = functools.partial(_read_padded, stored[name], mapping.padding)
        return jax.make_array_from_callback(mapping.padded_shape, stored_sharding, part)

    if mapping.layers is None:
        return _converter(mapping.layout, sharding, dtype)(read(mapping.tensor))
    stack = _zeros(mapping.leaf_shape, dtype, sharding)()
    set_layer = _layer_setter(mapping.layout, sharding)
    for name, layer in mapping.tensors():
        # Wait for each layer: dispatch would otherwise run ahead and queue the host copies of many.
        stack = jax.block_until_ready(set_layer(stack, read(name), layer))
    return stack


def _read_padded(tensor: StoredTensor, padding: int, index: tuple[slice, ...]) -> np.ndarray:
    """A part of a tensor with rows of zeros after its own."""
    if not padding:
        return tensor.read(index)
    own = tensor.shape[0]
    start, stop, _ = index[0].indices(own + padding)
    value = tensor.read((slice(min(start, own), min(stop, own)), *index[1:]))
    return np.pad(value, ((0, stop - start - len(value)), *[(0, 0)] * (value.ndim - 1)))


# Leaves of one shape and sharding share a compiled function.
@functools.lru_cache(maxsize=64)
def _zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding) -> Any:
    return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=sharding)


@functools.lru_cache(maxsize=64)
def _converter(layout: Layout, sharding: Sharding, dtype: np.dtype) -> Any:
    return jax.jit(lambda tensor: from_stored(tensor, layout).astype(dtype), out_shardings=sharding)


@functools.lru_cache(maxsize=64)
def _layer_setter(layout: Layout, sharding: Sharding) -> Any:
    def set_layer(stack: jax.Array, tensor: jax.Array, layer: jax.Array) -> jax.Array:
        value = from_stored(tensor, layout).astype(stack.dtype)
        return jax.lax.dynamic_update_index_in_dim(stack, value, layer, axis=0)

    return jax.jit(set_layer, out_shardings=sharding, donate_argnums=0)


def _stored_sharding(sharding: Sharding, mapping: WeightMapping) -> Sharding:
    """The layout of one stored tensor on the devices that lets it move into the leaf with (almost) no communication."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    rank = len(mapping.leaf_shape)
    axes = (*sharding.spec, *[None] * (rank - len(sharding.spec)))[mapping.layers is not None :]
    if mapping.layout == "linear":
        axes = axes[::-1]
    elif mapping.layout in ("patches", "convolution"):
        axes = (axes[-1],)
    return NamedSharding(sharding.mesh, PartitionSpec(*axes), memory_kind=sharding.memory_kind)


def _fetch_tensors(
    params: Mapping[str, Any], mappings: Iterable[WeightMapping], dtypes: Mapping[str, np.dtype]
) -> Iterator[np.ndarray]:
    """Every stored tensor on the host, one at a time, listed as in `stored_shapes`. Collective if leaves span hosts."""
    for mapping in mappings:
        leaf = _get(params, mapping.leaf)
        if leaf.shape != mapping.leaf_shape:
            raise ValueError(f"{mapping.leaf} has shape {leaf.shape}, the config says {mapping.leaf_shape}")
        for name, layer in mapping.tensors():
            value = _extract(leaf, layer, mapping.layout, mapping.padded_shape, dtypes[name])
            if not value.is_fully_addressable:
                value = multihost_utils.process_allgather(value, tiled=True)
            yield np.asarray(value)[: mapping.shape[0]]


@functools.partial(jax.jit, static_argnames=("layout", "shape", "dtype"))
def _extract(
    leaf: jax.Array, layer: jax.Array | None, layout: Layout, shape: tuple[int, ...], dtype: np.dtype
) -> jax.Array:
    value = leaf if layer is None else jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
    return to_stored(value, layout, shape).astype(dtype)


def _get(tree: Mapping[str, Any], path: str) -> Any:
    return functools.reduce(lambda node, key: node[key], path.split("/"), tree)


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
