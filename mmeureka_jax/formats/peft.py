"""Adapters in PEFT's file layout: `adapter_config.json` and `adapter_model.safetensors`.

PEFT names a matrix by the torch module that it belongs to, as transformers has it in memory:

    base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight     [rank, in]
    base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight     [out, rank]

Older transformers call modules what the hub's files do; both are read. Adapters of only some layers of a stack are
read too: those of the other layers are zero, and add nothing.

Source: `peft.tuners.lora` and `peft.utils.save_and_load.get_peft_model_state_dict`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from mmeureka_jax.errors import UserError
from mmeureka_jax.files import read_json
from mmeureka_jax.formats.safetensors import StoredTensor, open_checkpoint, write_checkpoint_files
from mmeureka_jax.models.families import PolicyConfig, family_of, weight_mappings
from mmeureka_jax.models.layers import LORA_A, LORA_B
from mmeureka_jax.models.lora import OUTPUT, Lora, linear_maps

CONFIG_FILE = "adapter_config.json"
_NAME = "adapter_model"
_PREFIX = "base_model.model."
_MATRICES = {LORA_A: ".lora_A.weight", LORA_B: ".lora_B.weight"}

# Features that adapters may have besides two matrices, with the values that mean that they do not have them.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None), "use_rslora": (False, None), "fan_in_fan_out": (False, None), "bias": ("none", None),
    "lora_bias": (False, None), "modules_to_save": (None, []), "rank_pattern": (None, {}), "alpha_pattern": (None, {}),
    "trainable_token_indices": (None,), "target_parameters": (None, []), "layer_replication": (None, []),
    "use_qalora": (False, None), "use_bdlora": (False, None), "alora_invocation_tokens": (None,),
    "arrow_config": (None,), "kasa_config": (None,), "monteclora_config": (None,), "velora_config": (None,),
    # The other values also change the base (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), and fit only the base that they made.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}  # fmt: skip


@dataclass(frozen=True)
class _Place:
    """Where an adapter's matrix is in the parameter tree."""

    path: str  # the linear map's
    layer: int | None
    layers: int | None
    size_in: int
    size_out: int


def _places(config: PolicyConfig) -> dict[str, _Place]:
    """Every linear map of every layer by the stored name of its kernel, without ".weight"."""
    maps = set(linear_maps(config))
    places = {}
    for mapping in weight_mappings(config):
        path = mapping.leaf.removesuffix("/kernel")
        if path in maps:
            size_out, size_in = mapping.shape
            for name, layer in mapping.tensors():
                places[name.removesuffix(".weight")] = _Place(path, layer, mapping.layers, size_in, size_out)
    return places


def save_adapters(
    params: Mapping[str, Any],
    config: PolicyConfig,
    lora: Lora,
    path: Path,
    *,
    base: str | None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes the adapters of `params`, float32, to the new folder `path`; for one process.

    Args:
        base: the checkpoint that they belong to, a folder or hub id; None if it exists only in the run.
        files: more files for the folder, by name.

    Raises:
        UserError: `path` is taken or cannot be written.
    """
    flat = flatten_dict(params, sep="/")
    paths = lora.paths(config)
    modules: dict[str, _Place] = {}
    for name, place in _places(config).items():
        if place.path in paths:
            for pattern, replacement in family_of(config).modules(config):
                name = re.sub(pattern, replacement, name)
            modules[name] = place
    leaves = [
        (f"{_PREFIX}{name}{suffix}", flat[f"{place.path}/{leaf}"], place.layer)
        for name, place in modules.items()
        for leaf, suffix in _MATRICES.items()
    ]

    def tensors() -> Iterator[np.ndarray]:
        for _, leaf, layer in leaves:
            yield np.asarray(leaf if layer is None else leaf[layer], np.float32).T

    content = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(modules),
        "task_type": None,
    }
    shapes = {name: leaf.shape[-1:-3:-1] for name, leaf, _ in leaves}
    write_checkpoint_files(
        path,
        shapes,
        tensors(),
        dict.fromkeys(shapes, np.dtype(np.float32)),
        {CONFIG_FILE: (json.dumps(content, indent=2) + "\n").encode()} | dict(files or {}),
        name=_NAME,
    )


@dataclass(frozen=True)
class StoredAdapters:
    """Adapters of a folder: their rank and scale, the linear maps that they adapt, and their values."""

    folder: Path
    rank: int
    alpha: float
    dropout: float
    tensors: dict[tuple[str, str, int | None], StoredTensor]  # by path of the map, lora_a or lora_b, layer
    places: dict[str, _Place]  # a place of each map (of one of its layers), by path

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(re.escape(path) for path in self.places)

    def fingerprint(self) -> str:
        """A fingerprint of rank, scale and values."""
        checksum = zlib.crc32(repr((self.rank, self.alpha)).encode())
        for path, value in sorted(self.read().items()):
            checksum = zlib.crc32(value.tobytes(), zlib.crc32(path.encode(), checksum))
        return f"{checksum:08x}"

    def read(self) -> dict[str, np.ndarray]:
        """float32 values by the path of their leaf, as `lora.initial_adapters` gives them."""
        adapters = {}
        for path, place in self.places.items():
            sizes = {LORA_A: (place.size_in, self.rank), LORA_B: (self.rank, place.size_out)}
            for leaf, size in sizes.items():
                stack = () if place.layers is None else (place.layers,)
                value = np.zeros((*stack, *size), np.float32)
                for layer in [None] if place.layers is None else range(place.layers):
                    if (stored := self.tensors.get((path, leaf, layer))) is not None:
                        value[... if layer is None else layer] = stored.read().T
                adapters[f"{path}/{leaf}"] = value
        return adapters


def open_adapters(folder: Path, config: PolicyConfig) -> StoredAdapters:
    """The adapters of a folder, from its config and the header of its tensors.

    Raises:
        UserError: not such a folder (pickled adapters are refused by name), a broken file, adapters of a kind that is
            not supported, or tensors that do not belong to the policy; all of those in one message.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder / CONFIG_FILE}: no such file; give a folder of adapters in PEFT's layout")
    content = read_json(folder / CONFIG_FILE)
    problems = []
    if content.get("peft_type") != "LORA":
        problems.append(f"{CONFIG_FILE}: peft_type is {content.get('peft_type')!r}, only LORA is read")
    problems += [
        f"{CONFIG_FILE}: {key} is {content[key]!r}, which is not supported"
        for key, plain in _PLAIN.items()
        if content.get(key) not in plain
    ]
    rank: Any = content.get("r")
    alpha: Any = content.get("lora_alpha")
    dropout: Any = content.get("lora_dropout") or 0.0
    if type(rank) is not int or rank < 1 or not _is_number(alpha) or alpha <= 0:
        problems.append(f"{CONFIG_FILE}: r is {rank!r}, lora_alpha {alpha!r}; both must be positive numbers, r whole")
        rank = alpha = 1
    if not _is_number(dropout) or not 0 <= dropout < 1:
        problems.append(f"{CONFIG_FILE}: lora_dropout is {dropout!r}; it must be 0 or more and below 1")
        dropout = 0.0
    places = _places(config)
    renamed = family_of(config).renamed
    tensors: dict[tuple[str, str, int | None], StoredTensor] = {}
    for name, stored in open_checkpoint(folder, _NAME).items():
        leaf, module = _parse(name)
        hub_name = f"{module}.weight"
        for pattern, replacement in renamed:
            hub_name = re.sub(pattern, replacement, hub_name)
        place = places.get(hub_name.removesuffix(".weight"))
        if leaf is None or place is None:
            problems.append(f"{name}: the model has no such linear map")
            continue
        if place.path == OUTPUT:
            problems.append(f"{name}: adapters of the output projection are not supported")
            continue
        if (place.path, leaf, place.layer) in tensors:
            problems.append(f"{name}: stored twice, also under another name")
        shape = (rank, place.size_in) if leaf == LORA_A else (place.size_out, rank)
        if stored.shape != shape:
            problems.append(f"{name}: shape {list(stored.shape)}, expected {list(shape)}")
        elif stored.dtype is None:
            problems.append(f"{name}: stored as {stored.dtype_name}, expected a floating-point type")
        tensors[place.path, leaf, place.layer] = stored
    for path, leaf, layer in tensors:
        other = LORA_B if leaf == LORA_A else LORA_A
        if (path, other, layer) not in tensors:
            where = path if layer is None else f"{path}, layer {layer}"
            problems.append(f"{where}: {_MATRICES[leaf]} is there, {_MATRICES[other]} is missing")
    if not tensors and not problems:
        problems.append("there are no adapters in it")
    if problems:
        raise UserError(
            f"{folder}: these adapters do not fit the policy:\n  "
            + "\n  ".join(problems)
            + "\ngive adapters that were trained beside this checkpoint"
        )
    used = {path for path, _, _ in tensors}
    by_path = {place.path: place for place in places.values() if place.path in used}
    return StoredAdapters(folder, rank, float(alpha), float(dropout), tensors, by_path)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _parse(name: str) -> tuple[str | None, str]:
    """lora_a or lora_b, and the module, of a tensor's name; None for another kind of tensor."""
    for leaf, suffix in _MATRICES.items():
        if name.startswith(_PREFIX) and name.endswith(suffix):
            return leaf, name.removeprefix(_PREFIX).removesuffix(suffix)
    return None, name
