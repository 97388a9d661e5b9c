"""The model families, one line each. How to add one: CONTRIBUTING.md, "Add a model family"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax import nnx

from mmeureka_jax.errors import UserError
from mmeureka_jax.models import internvl, qwen_vl, text_only
from mmeureka_jax.models.internvl import InternVL
from mmeureka_jax.models.internvl_config import InternVLConfig
from mmeureka_jax.models.qwen_vl import Qwen2_5VL
from mmeureka_jax.models.qwen_vl_config import Qwen2_5VLConfig
from mmeureka_jax.models.text_only import TextOnly, TextOnlyConfig
from mmeureka_jax.models.weight_mapping import WeightMapping

PolicyConfig = Qwen2_5VLConfig | InternVLConfig | TextOnlyConfig


@dataclass(frozen=True)
class Family:
    """How checkpoints of a family are read, built and written.

    Attributes:
        config: the class of its sizes, whose `from_hf` reads `config.json`.
        module: makes the Flax module of a config, with the towers `vision` (if it reads pictures) and `language`.
        mappings: its parameters' stored names and shapes (`weight_mappings` of the model's file).
        modules: (pattern, replacement) pairs that turn stored names into those of torch's modules in memory, which
            PEFT's files use; without them the two are the same.
        renamed: (pattern, replacement) pairs that turn other names of stored tensors into those of `mappings`.
    """

    config: type[Any]
    module: Callable[[Any], nnx.Module]
    mappings: Callable[[Any], tuple[WeightMapping, ...]]
    modules: Callable[[Any], tuple[tuple[str, str], ...]] = lambda config: ()
    renamed: tuple[tuple[str, str], ...] = ()


QWEN_VL = Family(Qwen2_5VLConfig, Qwen2_5VL, qwen_vl.weight_mappings, qwen_vl.module_names, qwen_vl.RENAMED)
INTERNVL = Family(InternVLConfig, InternVL, internvl.weight_mappings, internvl.module_names, internvl.RENAMED)
TEXT_ONLY = Family(TextOnlyConfig, TextOnly, text_only.weight_mappings)

# By `model_type` of config.json.
FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": QWEN_VL,
    "qwen2_vl": QWEN_VL,
    "internvl": INTERNVL,
    "internvl_chat": INTERNVL,
    "qwen2": TEXT_ONLY,
    "qwen3": TEXT_ONLY,
}


def family_of(config: PolicyConfig) -> Family:
    return next(family for family in FAMILIES.values() if isinstance(config, family.config))


def weight_mappings(config: PolicyConfig) -> tuple[WeightMapping, ...]:
    """Every parameter of the policy, with its stored name and shape, in the order of the forward pass."""
    return family_of(config).mappings(config)


def family_named(model_type: Any, source: str) -> Family:
    """
    Raises:
        UserError: `model_type` is none of `FAMILIES`.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"{source}: model_type is {model_type!r:.100}, but only {', '.join(map(repr, FAMILIES))} are supported; "
            "give a Qwen2.5-VL, Qwen2-VL or InternVL checkpoint, or a text-only one of Qwen2, Qwen2.5 or Qwen3"
        )
    return FAMILIES[model_type]
