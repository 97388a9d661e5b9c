"""Checkpoints of the Hugging Face hub: from a name to a local folder."""

from __future__ import annotations

import re
from pathlib import Path

from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.formats.safetensors import has_weights
from mmeureka_jax.process.console import waiting

# What the hub is asked for, in two parts: config, tokenizer and indices; and what is large.
_SMALL_FILES = ["*.json", "*.txt", "*.jinja", "*.model", "*.py"]
_WEIGHT_FILES = ["*.safetensors"]


def resolve_checkpoint(name: str | Path, *, weights: bool = True) -> Path:
    """The folder of a checkpoint: `name` itself, or the local copy of the hub repository `owner/model`.

    Args:
        weights: download them too. Without them, config and tokenizer come in seconds, and `load_params` fetches the
            rest.

    Raises:
        UserError: neither a folder nor a hub id that can be downloaded (or found in the local cache when offline).
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path}: this is a file; give the checkpoint's folder")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(name)):
        raise UserError(f"{name}: no such folder (and not a hub id of the form owner/model)")
    return _download(str(name), [*_SMALL_FILES, *_WEIGHT_FILES] if weights else _SMALL_FILES)


def fetch_weights(folder: Path) -> None:
    """Downloads the weights of a hub repository if `folder` is a snapshot of it without them.

    Raises:
        UserError: the hub does not give them.
    """
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--") and not has_weights(folder):
        name = repository.removeprefix("models--").replace("--", "/", 1)
        with waiting(f"downloading the weights of {name}"):
            _download(name, _WEIGHT_FILES, revision=folder.name)


def _download(name: str, patterns: list[str], revision: str | None = None) -> Path:
    import huggingface_hub

    try:
        found = huggingface_hub.snapshot_download(name, allow_patterns=patterns, revision=revision)
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise UserError(
            f"{name}: no such folder, and the hub does not give it either ({type(error).__name__}: {brief(error)}); "
            "check the name, the network, and for gated models `hf auth login`"
        ) from error
    return Path(found)
