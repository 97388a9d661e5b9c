"""A process reward model, trained on step labels: the job is that of reinforcement learning and imitation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from mmeureka_jax.config.checks import as_run
from mmeureka_jax.config.schema import Config
from mmeureka_jax.hosts import max_over_hosts, sum_over_hosts
from mmeureka_jax.mesh import row_shares
from mmeureka_jax.models.batch import GroupBatch, collate, pick_bucket
from mmeureka_jax.prm.examples import labelled_process, open_labels
from mmeureka_jax.prm.form import MarkerTokens
from mmeureka_jax.prm.growth import open_base
from mmeureka_jax.process.console import plural, say_facts
from mmeureka_jax.rl.marker_loss import MarkerObjective, StepLabels
from mmeureka_jax.rl.metrics import Mean, computed, over_hosts
from mmeureka_jax.rl.rows import Packing
from mmeureka_jax.setup.checks import validate_config
from mmeureka_jax.training.job import Job, open_job
from mmeureka_jax.training.recipe import Recipe

if TYPE_CHECKING:
    from mmeureka_jax.data.loader import LoadedProblem
    from mmeureka_jax.data.problems import ProblemSource
    from mmeureka_jax.data.processor import Processor

_LOGGED = ("prm/accuracy", "optimizer/grad_norm", "optimizer/learning_rate", "optimizer/skipped")


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
        batches = LabelledBatches(config, job.processor, job.num_windows)
        job.validate_before_training()
        job.begin_training()
        while job.begin_step():
            _step(job, batches)
    return Path(config.run_dir)


def _step(job: Job, batches: LabelledBatches) -> None:
    start = time.perf_counter()
    run = job.run
    job.steps.phase("updating")
    batch, labels = batches.make(next(job.loader))
    run.train, on_device = job.learner.imitate(run.train, batch, labels, labels.marked)
    run.step += 1
    metrics = computed(jax.device_get(on_device))
    job.guard.check([metrics], [(batch, labels)].__getitem__, run.step)
    row = {"prm/loss": metrics["loss/total"]} | {name: metrics[name] for name in _LOGGED}
    row |= computed(
        over_hosts(
            {
                "prm/labels": Mean.of(labels.marked.sum((1, 2))),
                "prm/label": Mean.of(labels.labels[labels.marked]),
                "response/length": Mean.of(batch.lengths),
                "update/padding": on_device["update/padding"],  # hosts have as many places each
            }
        )
    )
    counted = batch.prompts.length.sum() + batch.response_mask.sum()
    (tokens,) = sum_over_hosts([counted / len(row_shares(job.opened.mesh).sharing)])
    row["time/update"] = time.perf_counter() - start
    row["time/update_tokens_per_s"] = tokens / row["time/update"]
    row |= job.validate_if_due()
    job.log(row, f"loss {row['prm/loss']:.3f}")
    job.save_if_due()


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


class LabelledBatches:
    """Makes batches (n = 1) of prompts and labelled processes, this host's rows."""

    def __init__(self, config: Config, processor: Processor, num_windows: int):
        self._config = config
        self._processor = processor
        self._tokens = MarkerTokens.of(processor)
        self._num_windows = num_windows

    def make(self, loaded: Sequence[LoadedProblem]) -> tuple[GroupBatch, StepLabels]:
        config = self._config
        longest = int(max_over_hosts(max(len(item.prompt.tokens) for item in loaded)))
        length = pick_bucket(longest, config.data.prompt_lengths)
        shape = (len(loaded), 1, config.prm.max_process_tokens)
        responses = np.zeros(shape, np.int32)
        mask = np.zeros(shape, bool)
        labels = np.zeros(shape, np.float32)
        marked = np.zeros(shape, bool)
        for row, item in enumerate(loaded):
            tokens, own = labelled_process(item.problem, self._processor, config)
            responses[row, 0, : len(tokens)] = tokens
            mask[row, 0, : len(tokens)] = True
            marked[row, 0, : len(tokens)] = self._tokens.labelled(tokens)
            labels[row, 0, marked[row, 0]] = own
        batch = GroupBatch(
            prompts=collate([item.prompt for item in loaded], length, self._num_windows),
            image_features=None,
            responses=responses,
            response_mask=mask,
        )
        return batch, StepLabels(labels, marked, np.tile(self._tokens.choices, (len(loaded), 1)))
