"""What reinforcement learning and supervised fine-tuning share: how a job starts and continues, how its steps end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from mmeureka_jax.config.reading import to_dict
from mmeureka_jax.config.schema import Config, SamplerConfig
from mmeureka_jax.errors import Terminated, UserError
from mmeureka_jax.evaluation.run_benchmarks import RunBenchmarks
from mmeureka_jax.files import exclusive
from mmeureka_jax.hosts import is_main
from mmeureka_jax.process.console import Steps, plural, say, say_facts, waiting
from mmeureka_jax.runs.checkpoint import Checkpointer, RunState
from mmeureka_jax.runs.folder import begin_run
from mmeureka_jax.runs.tracking import Tracker
from mmeureka_jax.runs.wandb_log import import_wandb
from mmeureka_jax.setup.header import say_header, say_start
from mmeureka_jax.setup.policy import OpenedPolicy, check_context, find_checkpoint, open_policy
from mmeureka_jax.setup.problems import CheckedProblems, open_checked, open_processor
from mmeureka_jax.training.learner import INITIAL_STATE, Learner
from mmeureka_jax.training.measures import Measures, open_measures
from mmeureka_jax.training.memory_check import warn_of_memory
from mmeureka_jax.training.programs import RunPrograms, choose_sampling, compile_programs, is_asked
from mmeureka_jax.training.recipe import Recipe
from mmeureka_jax.training.reward_failures import check_custom
from mmeureka_jax.training.watchers import CompileCounter, NonFiniteGuard, TerminationSignal

if TYPE_CHECKING:
    from mmeureka_jax.data.loader import ProblemLoader
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.rewards.workers import RewardWorkers

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """A job under way: what it is made of, how far it is (`run`), and how its steps begin and end.

    while job.begin_step():
        ...                                 # changes run.train and the other fields of `run`
        run.step += 1
        row |= job.validate_if_due()
        job.log(row, "the few numbers that are shown")
        job.save_if_due()
    """

    config: Config
    opened: OpenedPolicy
    processor: Processor
    rewards: RewardWorkers | None
    measures: Measures
    learner: Learner
    sampling: SamplerConfig
    loader: ProblemLoader
    num_windows: int
    run: RunState
    checkpointer: Checkpointer
    guard: NonFiniteGuard
    tracker: Tracker
    steps: Steps
    compiles: CompileCounter
    termination: TerminationSignal
    _step_start: float = 0.0
    _seconds_saving: float = 0.0
    _accuracy: float | None = None  # what validation after this step came to
    _save_at_once: bool = False
    _stopping: bool = field(init=False)

    def __post_init__(self) -> None:
        self._stopping = self.termination.on_any_host()
        if self.measures.benchmarks is not None:
            self.measures.benchmarks.forget(self.run.step + 1)

    @property
    def at_end(self) -> bool:
        return self.run.step >= self.config.steps

    def begin_step(self) -> bool:
        """Whether there is another step; it begins now.

        Raises:
            Terminated: SIGTERM came; what was done is in a complete checkpoint.
        """
        if self.at_end:
            return False
        if self._stopping:
            self.checkpointer.wait()
            raise Terminated(f"stopped by SIGTERM after step {self.run.step}; the same command continues from there")
        self._step_start = time.perf_counter()
        self.steps.begin()
        return True

    def begin_training(self) -> None:
        """What came before the first step is over, and does not count for the time left."""
        self.compiles.seconds_since_last()
        self.steps.begin_training()

    def validate_before_training(self) -> None:
        """The row of step 0: how good the policy is that the run starts from."""
        if self.run.step > 0 or self._stopping:
            return
        row: dict[str, float] = {}
        if self.measures.has_validation:
            row |= self._validate()
            say(f"before training: val {row['validation/accuracy']:.3f}")
            self._accuracy = None  # not that of step 1, whose checkpoint may be the next one
        if self.measures.benchmarks is not None:
            row |= self._ask(self.measures.benchmarks)
        if row:
            self.tracker.log_metrics(0, row)

    def validate_if_due(self) -> dict[str, float]:
        """Validation and public benchmarks, each every so many steps and after the last."""
        row: dict[str, float] = {}
        tracking = self.config.tracking
        if self.measures.has_validation and due(self.run.step, tracking.validate_every, self.at_end):
            row |= self._validate()
        every = tracking.benchmarks.every if tracking.benchmarks is not None else 0
        if self.measures.benchmarks is not None and due(self.run.step, every, self.at_end):
            row |= self._ask(self.measures.benchmarks)
        return row

    def _ask(self, benchmarks: RunBenchmarks) -> dict[str, float]:
        start = time.perf_counter()
        self.steps.phase("asking public benchmarks", is_said=True)
        row = benchmarks.run(self.run.train.params, self.run.step)
        for line in benchmarks.in_words(row):
            say(f"after step {self.run.step}: {line}" if self.run.step else f"before training: {line}")
        return row | {"time/benchmarks": time.perf_counter() - start}

    def _validate(self) -> dict[str, float]:
        start = time.perf_counter()
        self.steps.phase("validating", is_said=True)
        shown = self.config.tracking.progress and is_main()
        row = self.measures.validate(self.run.train.params, bar=shown)
        self._accuracy = row["validation/accuracy"]
        if self._accuracy > self.run.best_accuracy:
            self.run.best_accuracy = self._accuracy
            self._save_at_once = self.config.checkpoint.keep_best > 0 and self.run.step > 0
        return row | {"time/validation": time.perf_counter() - start}

    def log(self, row: dict[str, float], shown: str) -> None:
        """Writes the row of this step and says its few numbers."""
        row |= {
            "time/step": time.perf_counter() - self._step_start,
            "time/checkpoint": self._seconds_saving,  # that the step before it waited for its checkpoint
            "time/compiles": float(compiles := self.compiles.since_last()),
        }
        self.tracker.log_metrics(self.run.step, row)
        seconds = self.compiles.seconds_since_last()
        self.steps.finish(shown, seconds if compiles else 0.0)

    def save_if_due(self) -> None:
        """A checkpoint every so many steps, at the end, at a new best accuracy, and before the run stops for SIGTERM.

        Raises:
            UserError: too many updates in a row were skipped; or see `Checkpointer.save`.
        """
        start = time.perf_counter()
        self._stopping = self.termination.on_any_host()
        regular = due(self.run.step, self.config.checkpoint.every_steps, self.at_end)
        if regular or self._save_at_once or self._stopping:
            self.steps.phase("saving a checkpoint")
            self.run.data = self.loader.get_state()
            self.run.counters = dict(self.guard.counters)
            self.checkpointer.save(self.run, self._accuracy)
        self._accuracy = None
        self._save_at_once = False
        self._seconds_saving = time.perf_counter() - start
        self.guard.stop_if_too_many()


def due(step: int, every: int, last: bool) -> bool:
    """Whether something that happens each `every` steps (0: never) and at the end happens now."""
    return every > 0 and (last or step % every == 0)


@contextmanager
def open_job(config: Config, recipe: Recipe) -> Iterator[Job]:
    """Sets a job up in `config.run_dir`, from its newest checkpoint if it has one. At the end everything is on disk.

    Raises:
        UserError: anything about the config, the data, the checkpoint or the mesh that cannot work.
    """
    run_dir = Path(config.run_dir)
    with ExitStack() as stack:
        termination = stack.enter_context(TerminationSignal())
        compiles = stack.enter_context(CompileCounter())
        if is_main():
            stack.enter_context(exclusive(run_dir))

        # What the job needs. Every mistake that can be known is found here, before step 0.
        if config.tracking.wandb:
            import_wandb()
        opened = _open_policy(config, recipe)
        stack.enter_context(jax.set_mesh(opened.mesh))
        processor = open_processor(opened.checkpoint, config.data)
        rewards = stack.enter_context(_reward_workers(config, recipe))
        problems = _open_problems(config, recipe, processor, rewards)
        learner = make_learner(config, recipe, opened)
        sampling = choose_sampling(config, recipe, opened, learner)
        measures = open_measures(config, recipe, opened, processor, rewards, sampling)
        image_windows = config.data.max_image_windows or problems.report.max_windows
        programs = RunPrograms(config, recipe, opened, learner, sampling, image_windows, *measures.sizes)
        warn_of_memory(programs)
        if recipe.with_reference:
            learner.load_reference()

        # How far it is: at the newest checkpoint, or at the beginning.
        checkpointer = Checkpointer(run_dir, config.checkpoint, opened.load_base if opened.policy.lora else None)
        stack.callback(checkpointer.close)
        _begin_run(config, recipe, opened, problems, resuming=bool(checkpointer.steps()))
        _compile_ahead(programs, checkpointer.steps())
        run = restore(checkpointer, learner) or RunState(learner.initial_state())
        say_start(at_start := run.step, config.steps, config.run_dir)
        loader = stack.enter_context(closing(_open_loader(config, recipe, opened, problems, processor, run.data)))
        tracker = Tracker(run_dir, config.tracking, enabled=is_main(), resume_step=run.step, settings=to_dict(config))
        stack.callback(tracker.close)
        yield Job(
            config=config,
            opened=opened,
            processor=processor,
            rewards=rewards,
            measures=measures,
            learner=learner,
            sampling=sampling,
            loader=loader,
            num_windows=image_windows,
            run=run,
            checkpointer=checkpointer,
            guard=NonFiniteGuard(run_dir, config.optimizer.max_nonfinite_updates, run.counters, recipe.kind != "rl"),
            tracker=tracker,
            steps=stack.enter_context(Steps(config.steps, run.step, recipe.command, bars=config.tracking.progress)),
            compiles=compiles,
            termination=termination,
        )
        _finish_saving(checkpointer, run.step, at_start)


def _finish_saving(checkpointer: Checkpointer, step: int, at_start: int) -> None:
    if step == at_start:
        return
    with waiting(f"finishing checkpoint {step} in {checkpointer.folder}"):
        checkpointer.wait()


def _open_policy(config: Config, recipe: Recipe) -> OpenedPolicy:
    """The policy, after its header is written and its sizes have been checked against those of the job."""
    checkpoint = find_checkpoint(config.model, Path(config.run_dir))
    if recipe.prepare is not None:
        checkpoint = recipe.prepare(Path(config.run_dir), checkpoint)
    opened = open_policy(checkpoint, config.model, config.mesh, seed=config.seed)
    say_header(
        recipe.command,
        opened,
        config.model.checkpoint,
        frozen=config.optimizer.frozen,
        run_dir=config.run_dir,
    )
    recipe.shares(opened)
    check_context(opened.policy.config.text, config.data.max_prompt_tokens + recipe.packing.longest)
    return opened


def _compile_ahead(programs: RunPrograms, saved: Sequence[int]) -> None:
    """Compiles what a run needs from here on, if it should. `saved` are the steps of its checkpoints."""
    config = programs.config
    if not config.sampler.compile_ahead or (saved and saved[-1] >= config.steps):
        return
    sampled = [*programs.of_rollouts, *programs.of_validation, *programs.of_benchmarks]
    ahead = programs.all if programs.learner.compiled_ahead else sampled
    needed = [program for program in ahead if not (saved and program.name == INITIAL_STATE)]
    compile_programs(needed, show=config.tracking.progress and is_main())


def _begin_run(
    config: Config, recipe: Recipe, opened: OpenedPolicy, problems: CheckedProblems, *, resuming: bool
) -> None:
    begin_run(
        config,
        kind=recipe.kind,
        fingerprint=problems.source.fingerprint(),
        checkpoint=opened.checkpoint,
        resuming=resuming,
        mesh=opened.mesh,
        adapters=opened.adapters.fingerprint() if opened.adapters is not None else None,
        process_model=None if recipe.process_model is None else recipe.process_model.fingerprint,
    )


@contextmanager
def _reward_workers(config: Config, recipe: Recipe) -> Iterator[RewardWorkers | None]:
    """The workers, once they have started; None for a job that scores no answers."""
    from mmeureka_jax.rewards.workers import RewardWorkers

    if not (recipe.scored or is_asked(config, recipe)):
        yield None
        return
    with RewardWorkers(config.reward) as rewards:
        with waiting(f"starting {plural(config.reward.workers, 'reward worker')}"):
            rewards.validate()
        yield rewards


def _open_problems(
    config: Config, recipe: Recipe, processor: Processor, rewards: RewardWorkers | None
) -> CheckedProblems:
    """The problems to train on, checked; a rule of the user's own is tried on one of them."""
    spec, source = (config.data.train, None) if recipe.open_source is None else recipe.open_source(config)
    problems = open_checked(
        spec,
        config.data,
        processor,
        require_answer=recipe.scored,
        also_check=recipe.also_check,
        report_file=Path(config.run_dir) / "data_check.json",
        bars=config.tracking.progress,
        source=source,
    )
    say_facts({"data": problems.describe()})
    if rewards is not None and recipe.scored:
        check_custom(config.reward, rewards, problems)
    check_image_windows(
        config.data.max_image_windows,
        problems.report.max_windows,
        text_only=processor.image_token_id is None,
    )
    return problems


def make_learner(config: Config, recipe: Recipe, opened: OpenedPolicy) -> Learner:
    """The learner of a job. Reads no weights."""
    return Learner(
        config,
        opened,
        recipe.objective,
        total_updates=config.steps * recipe.updates_per_step,
        packing=recipe.packing,
        with_critic=recipe.with_critic,
    )


def _open_loader(
    config: Config,
    recipe: Recipe,
    opened: OpenedPolicy,
    problems: CheckedProblems,
    processor: Processor,
    position: dict[str, Any] | None,
) -> ProblemLoader:
    """This host's share of the problems, from a checkpoint's position or from the beginning.

    Raises:
        UserError: see `restore_position`.
    """
    from mmeureka_jax.data.loader import ProblemLoader, RowOrder
    from mmeureka_jax.setup.difficulty import rows_by_difficulty

    shares = recipe.shares(opened)
    loader = ProblemLoader(
        problems.source,
        RowOrder(rows_by_difficulty(config.data, problems), config.seed, config.data.shuffle),
        processor,
        batch_size=recipe.prompts_per_batch // shares.count,
        host=(shares.index, shares.count),
        workers=config.data.workers,
        prefetch=config.data.prefetch,
    )
    try:
        restore_position(loader, position, config)
    except UserError:
        loader.close()
        raise
    return loader


def restore(checkpointer: Checkpointer, learner: Learner) -> RunState | None:
    """The newest checkpoint's state, if there is one."""
    if not checkpointer.steps():
        return None
    with waiting(f"reading checkpoint {checkpointer.steps()[-1]}"):
        return checkpointer.restore_latest(learner.abstract_state())


def check_image_windows(limit: int, needed: int, *, text_only: bool = False) -> None:
    if limit and text_only:
        raise UserError(f"data.max_image_windows = {limit}, but the model reads text alone; set it to 0")
    if 0 < limit < needed:
        raise UserError(
            f"data.max_image_windows = {limit}, but the pictures of a problem take {needed} windows; raise it to "
            f"{needed}, set it to 0 (the largest that the data needs), or lower data.max_pixels"
        )


def restore_position(loader: ProblemLoader, position: dict[str, Any] | None, config: Config) -> None:
    """Puts the loader where the checkpoint left it; with changed data that are allowed, at their beginning.

    Raises:
        UserError: the data are not those of the checkpoint.
    """
    if position is None:
        return
    try:
        loader.set_state(position)
    except UserError as error:
        if not config.checkpoint.allow_config_change:
            raise
        logger.warning("%s; checkpoint.allow_config_change is set: the new data are read from their beginning", error)
