"""The README.md of an exported checkpoint: what it was made of, how, and how well it does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmeureka_jax.config.reading import to_dict
from mmeureka_jax.config.schema import Config
from mmeureka_jax.config.yaml_text import dump_yaml

_TRAINED = """\
Made of {start} by rule-based reinforcement learning on `{data}`: advantage `{advantage}`, loss `{loss}`{kl}, \
{prompts_per_rollout} prompts x {group_size} responses a rollout, {prompts_per_update} prompts an update, learning \
rate {learning_rate:g} ({schedule}), {steps} steps.
"""
_ADAPTED = "Trained were low-rank adapters (LoRA) of rank {rank}, alpha {alpha:g}, and nothing else."
_ASKED = """\
Prompt style `{prompt_style}`, {pictures}at most {max_new_tokens} new tokens; `mmeureka eval` asks so by default.
"""
_SCORED = """\
The score of a step is the probability of `Yes`, of `Yes` and `No`, at the marker `<prm>` after it; {pictures}\
`mmeureka prm score` gives the model the text that it was trained on.
"""


@dataclass(frozen=True)
class Exported:
    """Which parameters of a run are exported.

    Attributes:
        step: that of the checkpoint.
        average: their average over the updates instead of the last ones.
        adapters: only the adapters.
    """

    step: int
    average: bool = False
    adapters: bool = False


def model_card(
    name: str,
    metadata: Mapping[str, Any],
    exported: Exported,
    metrics: Sequence[Mapping[str, Any]],
    *,
    text_only: bool = False,
    changed_settings: Sequence[str] = (),
) -> bytes:
    """Markdown with the front matter that Hugging Face's hub reads.

    Args:
        metadata: the run's (`metadata.json`).
        metrics: the run's rows (`metrics.jsonl`); those with validation results become a table.
        text_only: the model reads no pictures.
        changed_settings: how its settings files differ from those of the checkpoint that the run started from.
    """
    config = metadata["config"]
    base = config["model"]["checkpoint"]
    front: dict[str, Any] = {
        "library_name": "peft" if exported.adapters else "transformers",
        "pipeline_tag": "text-generation" if text_only else "image-text-to-text",
    }
    if base and "snapshots" in Path(metadata["checkpoint"]).parts:  # it came from the hub, into the hub's cache
        front["base_model"] = base
    tags = {"rl": "reinforcement-learning", "sft": "sft", "prm": "process-reward-model"}
    front["tags"] = [tags[metadata["kind"]], "mmeureka_jax"]
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {name}", "", *_summary(metadata)]
    held = "adapters" if exported.adapters else "parameters"
    averaged = ", averaged over the updates" if exported.average else ""
    lines += [f"These are the {held} after step {exported.step}{averaged}.", ""]
    if (lora := config["model"].get("lora")) is not None:
        lines += [_ADAPTED.format(**lora) + ("" if exported.adapters else " They are merged into the base."), ""]
    lines += _results(config, exported, metrics)
    pictures = "" if text_only else f"pictures of at most {config['data']['max_pixels']:,} pixels (`data.max_pixels`), "
    asked = _SCORED if metadata["kind"] == "prm" else _ASKED
    lines += ["## How it was asked", "", asked.format(pictures=pictures, **config["data"] | config["sampler"])]
    if changed_settings:
        keys = ", ".join(f"`{key}`" for key in changed_settings)
        lines += [f"Other than in the checkpoint that it was made of, as the run had it or not at all: {keys}.", ""]
    lines += ["## Settings", "", "Those that differ from the defaults, as a configuration for `mmeureka`:", ""]
    lines += ["```yaml", _changed(config).strip(), "```", ""]
    versions = ", ".join(f"{package} {version}" for package, version in sorted(metadata["packages"].items()))
    lines += [f"Made on {metadata['devices']} with {versions}.", ""]
    return "\n".join(lines).encode()


def _summary(metadata: Mapping[str, Any]) -> list[str]:
    """What the policy was made of, and how."""
    config = metadata["config"]
    base = config["model"]["checkpoint"]
    start = f"`{base}`" if base else "random weights"
    if metadata["kind"] == "prm":
        prm = config["prm"]
        kind = "hard" if prm["hard_labels"] else "soft"
        labels = f"the {kind} step labels in `{prm['labels']}`, of problems in `{config['data']['train']}`"
        return [f"A process reward model, made of {start} with {labels}.", ""]
    if metadata["kind"] != "rl":
        return [f"Made of {start} by imitation of the solutions in `{config['data']['train']}`.", ""]
    rl = config["rl"]
    optimizer = config["optimizer"]
    kl = f", KL to the start {rl['kl_coefficient']:g} ({rl['kl_estimator']})" if rl["kl_coefficient"] else ""
    return [
        _TRAINED.format(start=start, data=config["data"]["train"], kl=kl, **rl | optimizer | {"steps": config["steps"]})
    ]


def _results(config: Mapping[str, Any], exported: Exported, metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of the validations at the start, at the best step and at the exported one."""
    rows = {row["step"]: row for row in metrics if "validation/accuracy" in row}
    if not rows:
        return []
    best = max(rows, key=lambda at: rows[at]["validation/accuracy"])
    last = max((at for at in rows if at <= exported.step), default=None)
    these = "before averaging" if exported.average else "these parameters"
    named = {0: "the start", best: "the best", last: these if last == exported.step else "the last before"}
    if best == last:
        named[best] += ", the best"
    is_prm = "validation/auroc" in rows[best]
    if is_prm:
        lines = ["## Results", "", f"On the steps in `{config['prm']['validation']}`:", ""]
        lines += ["| step | | accuracy at 0.5 | area under the ROC curve |", "| --- | --- | --- | --- |"]
    else:
        lines = ["## Results", "", f"Greedy, on `{config['data']['validation']}`, by the run's own rules:", ""]
        lines += ["| step | | accuracy | mean tokens of a response |", "| --- | --- | --- | --- |"]
    for at in sorted(at for at in named if at in rows):
        row = rows[at]
        tokens = row.get("validation/response_length", math.nan)
        lines.append(
            f"| {at} | {named[at]} | {row['validation/accuracy']:.1%} | "
            + (f"{row.get('validation/auroc', math.nan):.3f} |" if is_prm else f"{tokens:.0f} |")
        )
    return [*lines, ""]


def _changed(config: Mapping[str, Any]) -> str:
    """The settings that are not the defaults, as YAML; the place of the run is left out."""

    def differ(values: Mapping[str, Any], defaults: Any) -> dict[str, Any]:
        changed = {}
        for key, value in values.items():
            default = defaults.get(key) if isinstance(defaults, Mapping) else None
            if isinstance(value, Mapping):
                inner = differ(value, default)
                if inner:
                    changed[key] = inner
            elif value != default:
                changed[key] = value
        return changed

    changed = differ({key: value for key, value in config.items() if key != "run_dir"}, to_dict(Config()))
    return dump_yaml(changed)
