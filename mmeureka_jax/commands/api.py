"""The Python API, for notebooks and scripts: the same functions that the commands call. See docs/python.md."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmeureka_jax.commands.arguments import check_numbers
from mmeureka_jax.commands.jax_setup import start_jax
from mmeureka_jax.config.load import load_config
from mmeureka_jax.config.schema import Config, PromptStyle, SamplerConfig
from mmeureka_jax.errors import UserError

__all__ = ["evaluate", "load_config", "sample", "train"]


def train(config: Config) -> Path:
    """Reinforcement learning, as `mmeureka train`: on a run folder that exists it continues. Writes the report too.

    Returns:
        The run folder; of a config with stages, that of the last one.

    Raises:
        UserError: anything about the config, the data or the checkpoint that cannot work; or what stops a run.
    """
    from mmeureka_jax.config.stages import stage_configs
    from mmeureka_jax.setup.checks import validate_config

    if not isinstance(config, Config):
        raise UserError(f"train takes what load_config gives; got {type(config).__name__}")
    validate_config(config)
    start_jax(mesh=config.mesh, folder=config.run_dir)
    from mmeureka_jax.report.page import write_report
    from mmeureka_jax.training import rl

    run_dir = rl.train(config)
    for stage in stage_configs(config):
        write_report(stage.run_dir)
    return run_dir


def evaluate(
    model: str | Path, data: str | Path, output: str | Path, *, adapters: str | Path | None = None, **options: Any
) -> dict[str, Any]:
    """Accuracy on a problem set, as `mmeureka eval`: an interrupted call continues. Greedy by default.

    Args:
        model: a checkpoint folder or hub id (`export_run` writes one of a run).
        data: as `data.train` of a config.
        output: the folder of `results.json`, `rows.jsonl` and `data_check.json`.
        adapters: those that belong to the checkpoint, in PEFT's layout.
        options: the fields of `EvalOptions`: n, temperature, limit, batch_size, max_new_tokens, ...

    Returns:
        What `results.json` holds.

    Raises:
        UserError: anything about the checkpoint, the data or the output that cannot work, before the first answer.
    """
    check_numbers(options)
    start_jax()
    from mmeureka_jax.evaluation.accuracy import measure_accuracy
    from mmeureka_jax.evaluation.options import EvalOptions, ModelOptions

    return measure_accuracy(ModelOptions(str(model), _text(adapters)), EvalOptions(str(data), **options), Path(output))


def sample(
    model: str | Path,
    prompts: str | Path | Sequence[str | Mapping[str, Any]],
    output: str | Path | None = None,
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int = 1024,
    seed: int = 0,
    adapters: str | Path | None = None,
    prompt_style: PromptStyle = "plain",
    image_root: str | Path | None = None,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """Responses to prompts, as `mmeureka sample`.

    Args:
        model: a checkpoint folder or hub id.
        prompts: questions, rows `{"id", "messages"}`, or a JSONL file of such rows.
        output: a JSONL file for the rows; with it an interrupted call continues.
        n: responses to each prompt.
        temperature: 0 is greedy.
        image_root: where image paths start and must lie; default: the folder of the file, or the current one.

    Returns:
        Rows `{"id", "sample", "text", "tokens", "log_probs", "finish_reason"}`, in the order of the prompts.

    Raises:
        UserError: anything about the checkpoint, the prompts or the output that cannot work, before anything is
            sampled.
    """
    numbers = {"n": n, "temperature": temperature, "top_k": top_k, "top_p": top_p, "max_new_tokens": max_new_tokens}
    check_numbers(numbers | {"seed": seed, "batch_size": batch_size})
    start_jax()
    from mmeureka_jax.evaluation.options import ModelOptions
    from mmeureka_jax.evaluation.prompt_files import PromptOptions
    from mmeureka_jax.evaluation.sample import sample_file

    with tempfile.TemporaryDirectory() as folder:
        if isinstance(prompts, str | Path):
            file = Path(prompts)
        else:
            file = Path(folder) / "prompts.jsonl"
            rows = [_row(number, prompt) for number, prompt in enumerate(prompts)]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            image_root = image_root or Path.cwd()
        result = Path(output) if output is not None else Path(folder) / "samples.jsonl"
        sample_file(
            ModelOptions(str(model), _text(adapters)),
            PromptOptions(file, _text(image_root), prompt_style, batch_size=batch_size),
            result,
            n=n,
            sampler=SamplerConfig(temperature, top_k, top_p, max_new_tokens),
            seed=seed,
        )
        return [json.loads(line) for line in result.read_text(encoding="utf-8").split("\n") if line]


def _row(number: int, prompt: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(prompt, str):
        return {"id": str(number), "messages": [{"role": "user", "content": prompt}]}
    if not isinstance(prompt, Mapping):
        raise UserError(f"prompt {number} must be text or a row {{id, messages}}; got {type(prompt).__name__}")
    return prompt


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
