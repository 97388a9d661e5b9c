"""The settings files of an exported checkpoint: how its run sampled, and the sizes that pictures had there.

The checkpoint that a run starts from brings both files with values of its own, such as a `repetition_penalty` that no
response of the run was drawn with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmeureka_jax.files import read_json
from mmeureka_jax.models.families import PolicyConfig
from mmeureka_jax.models.internvl_config import InternVLConfig

GENERATION_FILE = "generation_config.json"
# The image processor's, where transformers 5 has it and where 4 does.
_PICTURE_FILES = {"processor_config.json": "image_processor", "preprocessor_config.json": None}
_KEPT = ("transformers_version", "_from_model_config")  # what a generation_config.json keeps, next to token ids


def settings_files(
    source: Path, model: PolicyConfig, metadata: Mapping[str, Any]
) -> tuple[dict[str, bytes], list[str]]:
    """Files to write instead of those of `source`, and how they differ from them, for people.

    Args:
        metadata: the run's.
    """
    config = metadata["config"]
    inherited = read_json(source / GENERATION_FILE) if (source / GENERATION_FILE).is_file() else {}
    kept = {key: value for key, value in inherited.items() if key in _KEPT or key.endswith("_token_id")}
    sampler = config["sampler"]
    drawn = {"do_sample": False}
    if metadata["kind"] == "rl":
        drawn = {"do_sample": True, **{key: sampler[key] for key in ("temperature", "top_k", "top_p")}}
    generation = kept | model.to_hf_generation() | drawn
    files = {GENERATION_FILE: generation}
    changed = [key for key in inherited if inherited[key] != generation.get(key)]
    for name, section in _PICTURE_FILES.items():
        if model.image_token_id is None or not (source / name).is_file():
            continue
        content = read_json(source / name)
        settings = content if section is None else content.get(section)
        if isinstance(settings, dict):
            sized = _sized(settings, model, config["data"])
            files[name] = sized if section is None else content | {section: sized}
            changed += [f"{name}: {key}" for key in sized if sized[key] != settings.get(key)]
    written = {name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in files.items()}
    return {name: text.encode() for name, text in written.items()}, changed


def _sized(settings: dict[str, Any], model: PolicyConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """The image processor's settings with the run's sizes of pictures."""
    if isinstance(model, InternVLConfig):
        if model.tiling is not None:  # config.json says it, and is that of the model
            return settings
        most = max(1, min(settings.get("max_patches") or 12, data["max_pixels"] // model.vision.tile_size**2))
        return settings | {"max_patches": most}
    limits: dict[str, Any] = {"min_pixels": data["min_pixels"], "max_pixels": data["max_pixels"]}
    edges = {"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]}
    size = settings.get("size")
    if isinstance(size, dict) and size:
        known = edges | limits
        limits |= {"size": size | {key: known[key] for key in size if key in known}}
    return settings | limits
