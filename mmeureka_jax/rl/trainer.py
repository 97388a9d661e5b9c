"""The training loop: rollout -> reward -> filter -> update -> log -> validate -> checkpoint.

`train` is the whole story, top to bottom. It is one program on every host: hosts load and score their own share of the prompts,
everything after that is the same everywhere, and one host writes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from mmeureka_jax.checkpoint import Checkpointer, RunState
from mmeureka_jax.config import Config, validate_config
from mmeureka_jax.errors import UserError
from mmeureka_jax.mesh import batch_divisor, is_main
from mmeureka_jax.rl.collect import Collected, Collector
from mmeureka_jax.rl.evaluate import Evaluator, summarise
from mmeureka_jax.rl.learner import Learner, Metrics, group_batches, summarise_updates
from mmeureka_jax.rl.online_filter import GroupBuffer
from mmeureka_jax.rl.rollout import Group, UpdateBatch
from mmeureka_jax.rl.run_folder import CompileCounter, NonFiniteGuard, begin_run
from mmeureka_jax.rl.setup import LoadedPolicy, open_checked, open_policy, open_processor
from mmeureka_jax.rl.update import TrainState, policy_objective
from mmeureka_jax.tracking import Tracker, progress

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.rewards.workers import RewardWorkers


def train(config: Config) -> Path:
    """Trains by reinforcement learning into `config.run_dir`, or goes on with the run that is there. Returns the run folder.

    Raises:
        UserError: anything about the config, the data, the checkpoint or the mesh that cannot work; before step 0 where it can
            be known.
    """
    from mmeureka_jax.data.loader import ProblemLoader
    from mmeureka_jax.rewards.workers import RewardWorkers

    validate_config(config)
    run_dir = Path(config.run_dir)
    with ExitStack() as stack:
        # What the run needs; every mistake that can be known is found here, before step 0.
        loaded = open_policy(config, run_dir)
        stack.enter_context(jax.set_mesh(loaded.mesh))
        check_batch_sizes(config, loaded)
        processor = open_processor(config, loaded.checkpoint)
        rewards = stack.enter_context(RewardWorkers(config.reward))
        rewards.validate()
        problems = open_checked(config.data.train, config, processor, report_file=run_dir / "data_check.json")
        evaluator = open_evaluator(config, loaded, processor, rewards)

        # Where the run stands: the newest checkpoint, or the beginning.
        learner = Learner(
            config,
            loaded,
            policy_objective(config),
            total_updates=config.steps * updates_per_step(config),
            micro_batches=config.rl.micro_batches,
        )
        checkpointer = Checkpointer(run_dir, config.checkpoint)
        stack.callback(checkpointer.close)
        begin_run(
            config,
            kind="rl",
            fingerprint=problems.source.fingerprint(),
            checkpoint=loaded.checkpoint,
            resuming=bool(checkpointer.steps()),
        )
        run = checkpointer.restore_latest(learner.abstract_state()) or RunState(learner.initial_state())
        loader = ProblemLoader(
            problems.source,
            problems.indices,
            processor,
            batch_size=(config.sampler.batch_prompts or config.rl.prompts_per_rollout) // jax.process_count(),
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
        buffer = GroupBuffer()
        buffer.add(run.groups)
        collector = Collector(
            config,
            loaded,
            processor,
            loader,
            rewards,
            num_windows=config.data.max_image_windows or problems.report.max_windows,
            vision_frozen=learner.vision_frozen,
        )
        guard = NonFiniteGuard(run_dir, config.optimizer.max_nonfinite_updates, run.counters)
        show = config.tracking.progress and is_main()
        tracker = Tracker(run_dir, config.tracking, enabled=is_main(), resume_step=run.step)
        stack.callback(tracker.close)
        bar = stack.enter_context(progress(config.steps, "train", unit="step", enabled=show, initial=run.step))
        compiles = CompileCounter()

        if evaluator is not None and run.step == 0:
            row = validate(evaluator, run.train)
            run.best_accuracy = row["validation/accuracy"]
            tracker.log_metrics(0, row)

        while run.step < config.steps:
            start = time.perf_counter()
            first_rollout = run.rollout
            collected, run.rollout = collector.collect(
                run.train.params,
                buffer,
                step=run.step,
                rollout=run.rollout,
                on_round=lambda count: bar.set_postfix_str(f"groups {count}/{config.rl.prompts_per_rollout}"),
            )
            run.train, row = learn(learner, guard, config, run.train, collected.groups, run.step, first_rollout)
            run.step += 1
            last = run.step == config.steps

            row |= collected.metrics
            accuracy = None
            if evaluator is not None and due(run.step, config.tracking.validate_every, last):
                row |= validate(evaluator, run.train)
                accuracy = row["validation/accuracy"]
                run.best_accuracy = max(run.best_accuracy, accuracy)
            row |= {"time/step": time.perf_counter() - start, "time/compiles": float(compiles.since_last())}
            log_step(tracker, config, run.step, row, collected, last)
            bar.set_postfix_str(describe(row))
            bar.update(1)

            run.data, run.groups, run.counters = loader.get_state(), tuple(buffer.groups), dict(guard.counters)
            if due(run.step, config.checkpoint.every_steps, last):
                checkpointer.save(run, accuracy)
            guard.stop_if_too_many()
        checkpointer.wait()
    return run_dir


def updates_per_step(config: Config) -> int:
    """Optimiser steps on one rollout batch."""
    return config.rl.epochs_per_rollout * config.rl.prompts_per_rollout // config.rl.prompts_per_update


def due(step: int, every: int, last: bool) -> bool:
    """Whether something that happens each `every` steps (0: never) and at the end happens now."""
    return every > 0 and (last or step % every == 0)


def learn(
    learner: Learner,
    guard: NonFiniteGuard,
    config: Config,
    state: TrainState,
    groups: Sequence[Group],
    step: int,
    first_rollout: int,
) -> tuple[TrainState, dict[str, float]]:
    """All optimiser steps on one rollout batch. Metrics are read once, at the end: nothing waits for the device in between."""
    start = time.perf_counter()
    rows: list[Metrics] = []
    batches: list[UpdateBatch] = []
    for batch in group_batches(config, groups, step=step, first_rollout=first_rollout):
        state, row = learner.update(state, batch)
        rows.append(row)
        batches.append(batch)
    rows = jax.device_get(rows)
    guard.check(rows, batches, step)
    seconds = time.perf_counter() - start
    tokens = sum(group.length * len(group.lengths) + int(group.lengths.sum()) for group in groups)
    tokens *= config.rl.epochs_per_rollout
    return state, summarise_updates(rows) | {"time/update": seconds, "time/update_tokens_per_s": tokens / seconds}


def check_batch_sizes(config: Config, loaded: LoadedPolicy) -> None:
    """Raises a UserError that lists every number of prompts that the mesh does not divide."""
    divisor = batch_divisor(loaded.mesh)
    sizes = {
        "rl.prompts_per_rollout": config.rl.prompts_per_rollout,
        "sampler.batch_prompts": config.sampler.batch_prompts,
        "rl.prompts_per_update / rl.micro_batches": config.rl.prompts_per_update // config.rl.micro_batches,
    }
    problems = [f"  {name} = {size}" for name, size in sizes.items() if size % divisor]
    if problems:
        raise UserError(
            f"mesh: data x fsdp = {divisor} does not divide these numbers of prompts:\n" + "\n".join(problems)
        )


def open_evaluator(
    config: Config, loaded: LoadedPolicy, processor: Processor, rewards: RewardWorkers
) -> Evaluator | None:
    """Validation on `data.validation`, if the config asks for it."""
    if config.data.validation is None or config.tracking.validate_every == 0:
        return None
    problems = open_checked(config.data.validation, config, processor)
    return Evaluator(
        loaded,
        processor,
        rewards,
        problems.source,
        problems.indices[: config.tracking.validation_problems or None],
        max_new_tokens=config.sampler.max_new_tokens,
        batch_size=config.tracking.validation_batch,
        buckets=config.data.prompt_buckets or (config.data.max_prompt_tokens,),
        num_windows=problems.report.max_windows,
    )


def validate(evaluator: Evaluator, state: TrainState) -> dict[str, float]:
    start = time.perf_counter()
    row: dict[str, Any] = summarise(evaluator.run(state.params))
    return row | {"time/validation": time.perf_counter() - start}


def describe(row: dict[str, float]) -> str:
    """The few numbers that the progress bar shows."""
    parts = [f"acc {row['reward/accuracy']:.2f}", f"len {row['response/length']:.0f}", f"kept {row['filter/kept']:.0%}"]
    if "validation/accuracy" in row:
        parts.append(f"val {row['validation/accuracy']:.3f}")
    return " ".join(parts)


def log_step(
    tracker: Tracker, config: Config, step: int, row: dict[str, float], collected: Collected, last: bool
) -> None:
    tracker.log_histogram(step, "response/length", collected.lengths)
    if step == 1 or due(step, config.tracking.rollouts_every, last):
        tracker.log_rollouts(step, collected.samples)
    tracker.log_metrics(step, row)
