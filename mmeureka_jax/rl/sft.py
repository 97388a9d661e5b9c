"""Supervised fine-tuning on `metadata["solution"]`: the same policy, state, checkpoints and tracking as reinforcement learning."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from mmeureka_jax.checkpoint import Checkpointer, RunState
from mmeureka_jax.config import Config, validate_config
from mmeureka_jax.errors import UserError
from mmeureka_jax.mesh import batch_divisor, is_main
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.rl.learner import Learner, pick
from mmeureka_jax.rl.rollout import UpdateBatch
from mmeureka_jax.rl.run_folder import CompileCounter, NonFiniteGuard, begin_run
from mmeureka_jax.rl.setup import open_checked, open_policy, open_processor, same_on_all_hosts
from mmeureka_jax.rl.trainer import due, open_evaluator, validate
from mmeureka_jax.rl.update import imitation_objective
from mmeureka_jax.tracking import Tracker, progress

if TYPE_CHECKING:
    from mmeureka_jax.data.loader import LoadedProblem
    from mmeureka_jax.data.processor import Processor


def fine_tune(config: Config) -> Path:
    """Imitates the solutions of `data.train` into `config.run_dir`, or goes on with the run that is there.

    Raises:
        UserError: as `rl.trainer.train`; also a problem without a solution, or one longer than `sft.max_response_tokens`.
    """
    from mmeureka_jax.data.loader import ProblemLoader
    from mmeureka_jax.rewards.workers import RewardWorkers

    validate_config(config)
    run_dir = Path(config.run_dir)
    with ExitStack() as stack:
        loaded = open_policy(config, run_dir)
        stack.enter_context(jax.set_mesh(loaded.mesh))
        per_micro = config.sft.problems_per_step // config.sft.micro_batches
        if per_micro % batch_divisor(loaded.mesh):
            raise UserError(
                f"mesh: data x fsdp = {batch_divisor(loaded.mesh)} does not divide sft.problems_per_step / "
                f"sft.micro_batches = {per_micro}"
            )
        processor = open_processor(config, loaded.checkpoint)
        problems = open_checked(
            config.data.train, config, processor, require_answer=False, report_file=run_dir / "data_check.json"
        )
        evaluator = None
        if config.data.validation is not None and config.tracking.validate_every:
            rewards = stack.enter_context(RewardWorkers(config.reward))
            rewards.validate()
            evaluator = open_evaluator(config, loaded, processor, rewards)

        learner = Learner(
            config, loaded, imitation_objective(), total_updates=config.steps, micro_batches=config.sft.micro_batches
        )
        checkpointer = Checkpointer(run_dir, config.checkpoint)
        stack.callback(checkpointer.close)
        begin_run(
            config,
            kind="sft",
            fingerprint=problems.source.fingerprint(),
            checkpoint=loaded.checkpoint,
            resuming=bool(checkpointer.steps()),
        )
        run = checkpointer.restore_latest(learner.abstract_state()) or RunState(learner.initial_state())
        loader = ProblemLoader(
            problems.source,
            problems.indices,
            processor,
            batch_size=config.sft.problems_per_step // jax.process_count(),
            seed=config.seed,
            shuffle=config.data.shuffle,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
            workers=config.data.workers,
            prefetch=config.data.prefetch,
        )
        stack.callback(loader.close)
        if run.data is not None:
            loader.set_state(run.data)
        batches = ImitationBatches(
            config, loaded.policy, processor, config.data.max_image_windows or problems.report.max_windows
        )
        guard = NonFiniteGuard(run_dir, config.optimizer.max_nonfinite_updates, run.counters)
        show = config.tracking.progress and is_main()
        tracker = Tracker(run_dir, config.tracking, enabled=is_main(), resume_step=run.step)
        stack.callback(tracker.close)
        bar = stack.enter_context(progress(config.steps, "sft", unit="step", enabled=show, initial=run.step))
        compiles = CompileCounter()

        while run.step < config.steps:
            start = time.perf_counter()
            batch = batches.make(next(loader))
            run.data = loader.get_state()
            run.train, metrics = learner.update_from_shares(run.train, batch)
            run.step += 1
            last = run.step == config.steps
            tokens = float(np.sum(batch.response_mask) + np.sum(batch.prompts.lengths)) * jax.process_count()
            host = jax.device_get(metrics)
            guard.check([host], [batch], run.step - 1)
            row = {
                "sft/loss": float(host["loss/total"]),
                "policy/entropy": float(host["policy/entropy"]),
                "optimizer/grad_norm": float(host["optimizer/grad_norm"]),
                "optimizer/learning_rate": float(host["optimizer/learning_rate"]),
                "optimizer/skipped": float(host["optimizer/skipped"]),
                "response/length": float(batch.response_mask.sum() / len(batch.response_mask)),
            }
            row["time/update"] = time.perf_counter() - start
            row["time/update_tokens_per_s"] = tokens / row["time/update"]
            accuracy = None
            if evaluator is not None and due(run.step, config.tracking.validate_every, last):
                row |= validate(evaluator, run.train)
                accuracy = row["validation/accuracy"]
                run.best_accuracy = max(run.best_accuracy, accuracy)
            row |= {"time/step": time.perf_counter() - start, "time/compiles": float(compiles.since_last())}
            tracker.log_metrics(run.step, row)
            bar.set_postfix_str(f"loss {row['sft/loss']:.3f}")
            bar.update(1)
            run.counters = dict(guard.counters)
            if due(run.step, config.checkpoint.every_steps, last):
                checkpointer.save(run, accuracy)
            guard.stop_if_too_many()
        checkpointer.wait()
    return run_dir


class ImitationBatches:
    """Makes update batches (n = 1) of problems and their solutions, this host's rows."""

    def __init__(self, config: Config, policy: Policy, processor: Processor, num_windows: int):
        self._processor = processor
        self._num_windows = num_windows
        self._limit = config.sft.max_response_tokens
        self._prompt_buckets = config.data.prompt_buckets or (config.data.max_prompt_tokens,)
        self._hidden_size = policy.config.text.hidden_size

    def make(self, loaded: Sequence[LoadedProblem]) -> UpdateBatch:
        from mmeureka_jax.data.processor import collate

        responses = [self._response(item) for item in loaded]
        longest = int(same_on_all_hosts(max(len(item.prompt.tokens) for item in loaded)))
        rows = len(loaded)
        tokens = np.zeros((rows, 1, self._limit), np.int32)
        mask = np.zeros((rows, 1, self._limit), bool)
        for i, response in enumerate(responses):
            tokens[i, 0, : len(response)] = response
            mask[i, 0, : len(response)] = True
        return UpdateBatch(
            prompts=collate([item.prompt for item in loaded], pick(longest, self._prompt_buckets), self._num_windows),
            image_embeds=np.zeros((rows, 0, self._hidden_size), np.float32),
            responses=tokens,
            response_mask=mask,
            old_log_probs=np.zeros(tokens.shape, np.float32),
            advantages=np.ones((rows, 1), np.float32),
            fresh=np.zeros(rows, bool),
        )

    def _response(self, item: LoadedProblem) -> np.ndarray:
        solution = item.problem.metadata.get("solution")
        if not isinstance(solution, str) or not solution:
            raise UserError(f'{item.problem.id}: no metadata["solution"] to imitate; see docs/data.md')
        response = self._processor.encode_response(solution)
        if len(response) > self._limit:
            raise UserError(
                f"{item.problem.id}: its solution has {len(response)} tokens, over sft.max_response_tokens = {self._limit}; "
                "raise the limit or drop the row (nothing is cut)"
            )
        return response
