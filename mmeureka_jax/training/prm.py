"""A process reward model, trained on step labels: the job is that of reinforcement learning and imitation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmeureka_jax.config.checks import as_run
from mmeureka_jax.config.schema import Config
from mmeureka_jax.prm.examples import labelled_process, open_labels
from mmeureka_jax.prm.form import MarkerTokens
from mmeureka_jax.prm.growth import open_base
from mmeureka_jax.process.console import plural, say_facts
from mmeureka_jax.rl.marker_loss import MarkerObjective, StepLabels
from mmeureka_jax.rl.metrics import Mean
from mmeureka_jax.rl.rows import Packing
from mmeureka_jax.setup.checks import validate_config
from mmeureka_jax.training.job import Job, open_job
from mmeureka_jax.training.recipe import Recipe
from mmeureka_jax.training.supervised import Examples, examples_batch, learn_step

if TYPE_CHECKING:
    from mmeureka_jax.data.loader import LoadedProblem
    from mmeureka_jax.data.problems import ProblemSource
    from mmeureka_jax.data.processor import Processor


def train_prm(config: Config) -> Path:
    """Learns the labels of `prm.labels` into `config.run_dir`, or continues the run that is there.

    Raises:
        UserError, Terminated: as `rl.train`. Rows of labels that cannot be used, or whose process is longer than
            `prm.max_process_tokens`, are left out as other unusable rows are.
    """
    validate_config(config, command="prm")
    config = as_run(config, "prm")
    with open_job(config, recipe(config)) as job:
        _say_epochs(job)
        examples = LabelledProcesses(config, job.processor, job.num_windows)
        job.validate_before_training()
        job.begin_training()
        while job.begin_step():
            learn_step(job, examples, loss="prm/loss", logged=["prm/accuracy"])
    return Path(config.run_dir)


def _say_epochs(job: Job) -> None:
    config = job.config
    processes = job.loader.get_state()["num_problems"]
    epochs = config.steps * config.prm.paths_per_step / processes
    rows = plural(config.prm.paths_per_step, "row")
    say_facts({"epochs": f"{epochs:.3g} ({plural(config.steps, 'step')} of {rows} each, {processes:,} in all)"})


def recipe(config: Config) -> Recipe:
    prm = config.prm
    return Recipe(
        kind="prm",
        command="prm train",
        objective=MarkerObjective(),
        updates_per_step=1,
        packing=Packing(
            groups=prm.paths_per_step,
            group_size=1,
            longest=prm.max_process_tokens,
            micro_batches=prm.micro_batches,
            ratio=prm.packing,
        ),
        prompts_per_batch=prm.paths_per_step,
        scored=False,
        also_check=lambda problem, processor: labelled_process(problem, processor, config),
        prepare=open_base,
        open_source=_open_source,
    )


def _open_source(config: Config) -> tuple[str, ProblemSource]:
    assert config.prm.labels is not None
    return config.prm.labels, open_labels(config.prm.labels, config.data.train, config.data)


class LabelledProcesses:
    """Makes the examples of a step: prompts and labelled processes."""

    def __init__(self, config: Config, processor: Processor, num_windows: int):
        self._config = config
        self._processor = processor
        self._tokens = MarkerTokens.of(processor)
        self._num_windows = num_windows

    def __call__(self, loaded: Sequence[LoadedProblem]) -> Examples:
        config = self._config
        processes = [labelled_process(item.problem, self._processor, config) for item in loaded]
        responses = [tokens for tokens, _ in processes]
        batch = examples_batch(loaded, responses, config.prm.max_process_tokens, config, self._num_windows)
        labels = np.zeros(batch.responses.shape, np.float32)
        marked = np.zeros(batch.responses.shape, bool)
        for row, (tokens, own) in enumerate(processes):
            marked[row, 0, : len(tokens)] = self._tokens.labelled(tokens)
            labels[row, 0, marked[row, 0]] = own
        measured = {"prm/labels": Mean.of(marked.sum((1, 2))), "prm/label": Mean.of(labels[marked])}
        targets = StepLabels(labels, marked, np.tile(self._tokens.choices, (len(loaded), 1)))
        return Examples(batch, targets, marked, measured)
