"""Reading and writing checkpoint folders of safetensors files, one slice or tensor at a time.

The format (https://huggingface.co/docs/safetensors): eight bytes with the length of a JSON header, the header with each
tensor's dtype, shape and byte range, and the data. It is simple enough to be read here without its library, which gives
what a loader onto a mesh needs: bfloat16 in NumPy, slices that never touch the rest of the file, nothing mapped longer
than needed, and a message for every way in which a file can be broken.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.files import expect, parse_json, read_json, temporary_folder

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, known from only the header."""

    file: Path
    offset: int  # bytes from the start of the file
    shape: tuple[int, ...]
    dtype_name: str  # as the header says
    dtype: np.dtype | None  # None if it is not a floating-point type that is read here

    def read(self, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A copy of `tensor[index]`. The file is mapped only while it is copied: its pages do not count as memory."""
        if self.dtype is None:
            raise TypeError(f"{self.file}: {self.dtype_name} tensors are not read")
        mapped = np.memmap(self.file, self.dtype, mode="r", offset=self.offset, shape=self.shape)
        return np.array(mapped[index or ()], order="C", subok=False)


def open_checkpoint(folder: Path, name: str = "model") -> dict[str, StoredTensor]:
    """The tensors of a checkpoint folder by stored name, from NAME.safetensors or the files that its index
    (NAME.safetensors.index.json) names.

    Raises:
        UserError: no safetensors (a folder with only pickled weights is refused by name), an index or header that is
            not valid, a file that is missing or shorter than its header says.
    """
    single_file, index_file = _file_names(name)
    if (folder / single_file).is_file():
        return _read_header(folder / single_file)
    if not (folder / index_file).is_file():
        raise UserError(_explain_no_weights(folder, name))
    weight_map = _read_index(folder / index_file)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: {index_file} names files that are not there: {', '.join(missing)}; copy them too")
    headers = {name: _read_header(folder / name) for name in names}
    lost = [f"{tensor} ({file})" for tensor, file in weight_map.items() if tensor not in headers[file]]
    if lost:
        raise UserError(f"{folder / index_file}: names tensors that their files do not hold: {', '.join(lost)}")
    return {tensor: headers[file][tensor] for tensor, file in weight_map.items()}


def indexed_tensors(folder: Path, name: str = "model") -> list[str] | None:
    """The names of a folder's tensors, from its index, whether or not the files are there; None without an index."""
    single_file, index_file = _file_names(name)
    if (folder / single_file).is_file() or not (folder / index_file).is_file():
        return None
    return list(_read_index(folder / index_file))


def has_weights(folder: Path, name: str = "model") -> bool:
    """Whether the files with a folder's tensors are there."""
    single_file, index_file = _file_names(name)
    if not (folder / index_file).is_file():
        return (folder / single_file).is_file()
    return all((folder / file).is_file() for file in _read_index(folder / index_file).values())


def check_is_new(folder: Path) -> None:
    """Raises a UserError if there is something at `folder` already (an empty folder may be)."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already; give a new folder, or remove this one first")


def write_checkpoint_files(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[np.ndarray],
    dtypes: Mapping[str, np.dtype],
    files: Mapping[str, bytes],
    max_shard_bytes: int = 5_000_000_000,
    name: str = "model",
) -> None:
    """Writes a checkpoint folder: safetensors (several with an index above `max_shard_bytes`) and other `files`.

    Everything goes to a temporary folder next to `folder`, which is renamed at the end and removed on any error.

    Args:
        shapes: name and shape of each tensor, in the order in which `tensors` yields them.
        tensors: taken one at a time.
        dtypes: of each tensor, by name.

    Raises:
        UserError: `folder` exists and is not empty, or the disk is full or not writable.
    """
    check_is_new(folder)
    try:
        with temporary_folder(folder) as temporary:
            _write_shards(temporary, name, shapes, iter(tensors), dtypes, max_shard_bytes)
            for file_name, content in files.items():
                _write(temporary / file_name, [content])
            check_is_new(folder)  # another process may have written it in the meantime
            temporary.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); nothing was left there. "
            "Free some space or give another folder"
        ) from error


def _file_names(name: str) -> tuple[str, str]:
    """The names of the file that holds everything, and of the index of several files."""
    return f"{name}.safetensors", f"{name}.safetensors.index.json"


def _write_shards(
    folder: Path,
    stem: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Any,
    dtypes: Mapping[str, np.dtype],
    max_shard_bytes: int,
) -> None:
    single_file, index_file = _file_names(stem)
    shards: list[list[str]] = [[]]
    filled = 0
    sizes = {name: math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items()}
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    count = len(shards)
    names = [f"{stem}-{k + 1:05}-of-{count:05}.safetensors" for k in range(count)] if count > 1 else [single_file]
    for file_name, shard in zip(names, shards, strict=True):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in shard:
            begin = end
            end += sizes[name]
            shape = list(shapes[name])
            header[name] = {"dtype": _DTYPE_NAMES[dtypes[name]], "shape": shape, "data_offsets": [begin, end]}
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)  # the data starts aligned
        data = (_as_bytes(next(tensors), name, shapes[name], dtypes[name]) for name in shard)
        _write(folder / file_name, [len(encoded).to_bytes(8, "little"), encoded], data)
    if count > 1:
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        _write(folder / index_file, [(json.dumps(index, indent=2) + "\n").encode()])


def _as_bytes(tensor: np.ndarray, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, expected {dtype} {shape}")
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)


def _write(file: Path, *chunks: Iterable[Any]) -> None:
    with file.open("wb") as stream:
        for group in chunks:
            for chunk in group:
                stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())  # a full disk or quota may show only here


def _explain_no_weights(folder: Path, name: str) -> str:
    single_file, index_file = _file_names(name)
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    if others:
        return f"{folder}: has {', '.join(others)} but neither {single_file} nor {index_file}; copy the index file too"
    if pickles:
        return (
            f"{folder}: has only pickled weights ({', '.join(pickles)}), which are not read because they can run code; "
            "save the model as safetensors"
        )
    return f"{folder}: holds no weights (neither {single_file} nor {index_file})"


def _read_index(file: Path) -> dict[str, str]:
    names = expect(file, read_json(file), "weight_map", dict, {})
    if not names:
        raise UserError(f"{file}: not a safetensors index, its weight_map names nothing; download it again")
    for name in names.values():
        if not isinstance(name, str) or not re.fullmatch(r"[^/\0]{1,200}\.safetensors", name):
            raise UserError(
                f"{file}: not a safetensors index, it names the file {str(name)[:100]!r}, which is no plain name of "
                "one in this folder; download it again"
            )
    return names


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file, after checking that the file holds the bytes that its header promises."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError(f"its header would take {length} bytes")
            header = parse_json(stream.read(length), object_pairs_hook=_each_once)
        tensors = {name: _parse_entry(file, 8 + length, e) for name, e in header.items() if name != "__metadata__"}
        ranges = sorted((*entry["data_offsets"], name) for name, entry in header.items() if name in tensors)
        for (_, end, name), (begin, _, other) in itertools.pairwise(ranges):
            if begin < end:
                raise ValueError(f"{name} and {other} overlap")
        end = 8 + length + max((end for _, end, _ in ranges), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not a valid safetensors file, perhaps truncated ({brief(error)}); download or copy it again"
        ) from error
    if end != size:
        state = "truncated" if size < end else "damaged"
        raise UserError(f"{file}: {state}, it has {size} bytes and its header says {end}; download or copy it again")
    return tensors


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        twice = next(name for name, count in collections.Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice} is there twice")
    return names


def _parse_entry(file: Path, data_start: int, entry: Mapping[str, Any]) -> StoredTensor:
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)) or begin > end:
        raise ValueError(f"odd numbers in {entry}")
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is not None and end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"shape and byte range do not agree in {entry}")
    return StoredTensor(file, data_start + begin, shape, entry["dtype"], dtype)
