"""`mmeureka convert`: a checkpoint in Orbax's format or in Hugging Face's, bit for bit or in another dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.files import read_json, temporary_folder
from mmeureka_jax.formats.hub import resolve_checkpoint
from mmeureka_jax.formats.hugging_face import (
    folder_files,
    load_params,
    read_config,
    save_params,
    stored_dtypes,
)
from mmeureka_jax.formats.orbax import is_orbax, write_orbax
from mmeureka_jax.formats.safetensors import check_is_new
from mmeureka_jax.models.families import weight_mappings
from mmeureka_jax.process.console import say, waiting
from mmeureka_jax.runs.checkpoint import is_no_space
from mmeureka_jax.runs.metadata import METADATA_FILE
from mmeureka_jax.runs.provenance import CARD_FILE, PROVENANCE_FILE

Format = Literal["orbax", "hf"]


def convert(
    source: str | Path,
    output: Path,
    *,
    to: Format | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Format:
    """Writes the checkpoint `source`, a folder or hub id, as the new folder `output`. Returns its format.

    Runs in one process and holds the parameters in memory, in the dtype that they are stored in (or `dtype`).
    Tokenizer, processor and generation files are carried over.

    Args:
        to: None: the format that the source does not have. The source's own is for another dtype or other shards.
        dtype: that of all tensors; None: each keeps its own, and there and back gives the same bits.
        max_shard_bytes: for Hugging Face's format, see `save_params`.

    Raises:
        UserError: no such checkpoint, a damaged one or one of an unsupported family, or `output` is taken or cannot be
            written (nothing is then left there).
    """
    check_is_new(output)
    if Path(source).is_dir() and (Path(source) / METADATA_FILE).is_file():
        raise UserError(f"{source}: this is the folder of a run; `mmeureka export` writes its policy")
    folder = resolve_checkpoint(source)
    to = to or ("hf" if is_orbax(folder) else "orbax")
    config = read_config(folder)
    dtypes = stored_dtypes(folder)
    if dtype is not None:
        dtypes = dict.fromkeys(dtypes, np.dtype(jnp.dtype(dtype)))
    elif any(kind == np.float64 for kind in dtypes.values()):
        raise UserError(f"{folder}: has float64 tensors, which would lose bits; say which dtype with --dtype")
    with waiting(f"reading {folder}"):
        params = load_params(folder, config, dtype=dtype)
    files = _carried_over(folder, dtype)
    say(f"writing {output} ...")
    if to == "hf":
        save_params(params, config, output, source=folder, dtype=dtypes, max_shard_bytes=max_shard_bytes, files=files)
        return to
    try:
        with temporary_folder(output) as temporary:
            write_orbax(params, weight_mappings(config), temporary, {name: kind.name for name, kind in dtypes.items()})
            for name, content in (folder_files(config, folder, dtypes) | files).items():
                (temporary / name).write_bytes(content)
            check_is_new(output)  # another process may have written it in the meantime
            temporary.rename(output)
    except Exception as error:
        if isinstance(error, OSError) or is_no_space(error):
            raise UserError(
                f"{output}: cannot be written ({brief(error)}); nothing was left there. "
                "Free some space or give another folder"
            ) from error
        raise
    return to


def _carried_over(folder: Path, dtype: str | None) -> dict[str, bytes]:
    """`config.json` as it is, except for another `dtype`, and what a folder has next to a model's usual files."""
    content = read_json(folder / "config.json")
    if dtype is None:
        config = (folder / "config.json").read_bytes()
    else:
        key = "dtype" if "dtype" in content else "torch_dtype"
        config = (json.dumps(content | {key: dtype}, indent=2, ensure_ascii=False) + "\n").encode()
    beside = [folder / PROVENANCE_FILE, folder / CARD_FILE, *sorted(folder.glob("LICENSE*"))]
    return {"config.json": config} | {file.name: file.read_bytes() for file in beside if file.is_file()}
