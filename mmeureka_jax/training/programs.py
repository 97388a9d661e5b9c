"""The programs that a run compiles, from its config and its mesh only: no weights, no data, and nothing is computed.

All functions here are called under `jax.set_mesh` of the run's mesh. While a program runs, devices also hold what is
not among its arguments: the rest of `Learner.abstract_state`, and the parameters of a reference policy.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from mmeureka_jax.config.schema import Config, SamplerConfig
from mmeureka_jax.evaluation.run_benchmarks import AskedSizes, planned_sizes
from mmeureka_jax.evaluation.validation import validation_sampler, validation_sizes
from mmeureka_jax.mesh import Program, abstract, batch_divisor, row_shares
from mmeureka_jax.models.batch import GroupBatch, Prompt, collate
from mmeureka_jax.models.families import PolicyConfig
from mmeureka_jax.models.policy import Params, Policy, encode_images
from mmeureka_jax.process.console import progress
from mmeureka_jax.process.cpu import cores
from mmeureka_jax.rl.groups import Targets
from mmeureka_jax.rl.marker_loss import StepLabels
from mmeureka_jax.rl.rows import MicroBatch
from mmeureka_jax.sampling.answers import PromptSizes, queue_of, rows_per_batch
from mmeureka_jax.sampling.memory import with_weights_chosen
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.spread import copies_of_prompts
from mmeureka_jax.sampling.token_draws import SamplingSettings, SpecialTokens
from mmeureka_jax.setup.policy import OpenedPolicy
from mmeureka_jax.training.learner import Learner
from mmeureka_jax.training.recipe import Recipe


def choose_sampling(config: Config, recipe: Recipe, opened: OpenedPolicy, learner: Learner) -> SamplerConfig:
    """`config.sampler` with the way that decoding's weights lie, chosen for the largest batches of rollouts that the
    config allows; of validation in a run without rollouts. Validation does as rollouts do: where their weights hardly
    fit next to everything else, its start needs as much room for them."""
    resident = learner.resident_bytes(
        with_reference=recipe.with_reference, process_model=recipe.abstract_process_model(opened)
    )
    if recipe.kind == "rl":
        sizes = PromptSizes(recipe.prompts_per_batch, config.data.prompt_lengths, 0)
        return with_weights_chosen(config.sampler, opened, sizes, config.rl.group_size, resident)
    if is_asked(config, recipe):
        sizes = validation_sizes(config, config.data.max_prompt_tokens, 0)
        return with_weights_chosen(config.sampler, opened, sizes, 1, resident)
    return config.sampler


@dataclass(frozen=True)
class RunPrograms:
    """Every program of a run, each listed when it is first asked for and once.

    Attributes:
        learner: the run's, or one of `make_learner`: programs belong to the learner that has them.
        image_windows: vision windows of a prompt: `data.max_image_windows`, or where that is 0 the most that a problem
            of the run has.
        validation: sizes of a batch of validation; None: the largest that the config allows.
        benchmarks: how public benchmarks are asked; None: as `planned_sizes` says.
    """

    config: Config
    recipe: Recipe
    opened: OpenedPolicy
    learner: Learner
    sampling: SamplerConfig
    image_windows: int
    validation: PromptSizes | None = None
    benchmarks: Sequence[AskedSizes] | None = None

    @property
    def all(self) -> list[Program]:
        return [*self.of_rollouts, *self.of_learning, *self.of_validation, *self.of_benchmarks]

    @functools.cached_property
    def of_rollouts(self) -> list[Program]:
        if self.recipe.kind != "rl":
            return []
        sizes = PromptSizes(self.recipe.prompts_per_batch, self.config.data.prompt_lengths, self.image_windows)
        policy = self.opened.policy
        drawn = dataclasses.replace(self.config, sampler=self.sampling)
        return self._of_sampler(rollout_sampler(policy, policy.config, drawn), sizes)

    @functools.cached_property
    def of_learning(self) -> list[Program]:
        """Those of the initial state and of updates."""
        parts = part_shapes(self.config, self.recipe, self.opened.policy, self.learner, self.image_windows)
        programs = self.learner.programs(
            parts,
            with_log_probs=self.recipe.kind == "rl" and self.config.rl.importance_cap is not None,
            with_reference=self.recipe.with_reference,
        )
        return list(programs)

    @functools.cached_property
    def of_validation(self) -> list[Program]:
        if not is_asked(self.config, self.recipe):
            return []
        longest = self.config.data.max_prompt_tokens
        sizes = self.validation or validation_sizes(self.config, longest, self.image_windows)
        sampler = validation_sampler(self.sampling, self.opened, self.opened.policy.config)
        return _named("validation's", self._of_sampler(sampler, self._whole_batches(sizes)))

    @functools.cached_property
    def of_benchmarks(self) -> list[Program]:
        """Those of public benchmarks; several that are asked alike share theirs."""
        asked = self.benchmarks
        if asked is None:
            asked = planned_sizes(self.config, self.opened, self.sampling, self.image_windows)
        programs: list[Program] = []
        for number, (sampler, sizes) in enumerate(dict.fromkeys(asked)):
            of = self._of_queue if sampler.settings.group_size == 1 else self._of_sampler
            owner = "benchmarks'" if number == 0 else f"benchmarks' ({number + 1})"
            programs += _named(owner, of(sampler, self._whole_batches(sizes)))
        return programs

    def _whole_batches(self, sizes: PromptSizes) -> PromptSizes:
        mesh = self.opened.sampler_mesh
        return dataclasses.replace(sizes, prompts=rows_per_batch(mesh, sizes.prompts) * row_shares(mesh).count)

    def _of_sampler(self, sampler: Sampler, sizes: PromptSizes) -> list[Program]:
        return sampler_programs(sampler, self.opened.sampler_mesh, self.learner.abstract_state().params, sizes)

    def _of_queue(self, sampler: Sampler, sizes: PromptSizes) -> list[Program]:
        mesh = self.opened.sampler_mesh
        queue = queue_of(sampler, mesh, sizes)
        with jax.set_mesh(mesh):
            prompts = prompt_shapes(sampler.policy.config, queue.admitted, sizes.buckets[-1], sizes.image_windows)
            request = request_shapes(prompts)
            programs = list(queue.programs(self.learner.abstract_state().params, request))
        return [dataclasses.replace(program, mesh=mesh) for program in programs]


def _named(owner: str, programs: Sequence[Program]) -> list[Program]:
    return [dataclasses.replace(program, name=f"{owner} {program.name}") for program in programs]


def is_asked(config: Config, recipe: Recipe) -> bool:
    """Whether validation asks a policy problems, whose answers are graded."""
    return recipe.kind != "prm" and config.data.validation is not None and config.tracking.validate_every > 0


def compile_programs(programs: Sequence[Program], *, show: bool) -> None:
    """Compiles programs under `jax.set_mesh`, in as many threads as there are cores: a later call of their functions
    compiles nothing. Each is traced here, while those before it are compiled.

    Args:
        show: show a bar.
    """
    if not programs:
        return
    with (
        progress(len(programs), "compile", unit="program", enabled=show) as bar,
        ThreadPoolExecutor(min(cores(), len(programs)), thread_name_prefix="compiling") as pool,
    ):
        futures = []
        try:
            for program in programs:
                futures.append(pool.submit(_compile_under, program.mesh or jax.sharding.get_mesh(), program.lower()))
                futures[-1].add_done_callback(lambda _: bar.update(1))
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _compile_under(mesh: Mesh, lowered: jax.stages.Lowered) -> None:
    """JAX finds again what was compiled under the same mesh, which each thread sets for itself."""
    with jax.set_mesh(mesh):
        lowered.compile()


def rollout_sampler(policy: Policy, tokens: SpecialTokens, config: Config) -> Sampler:
    """What draws the responses that are trained on."""
    settings = SamplingSettings.of(tokens, config.sampler, config.rl.group_size)
    return Sampler(policy, settings, "rollout", config.seed, longest_prompt=config.data.prompt_lengths[-1])


def part_shapes(
    config: Config, recipe: Recipe, policy: Policy, learner: Learner, image_windows: int
) -> dict[str, MicroBatch]:
    """Shapes of the parts (micro-batches) of an optimiser step's batch, by names for their sizes: for every bucket of
    prompts and every width of rows."""
    is_rl = recipe.kind == "rl"
    packing = learner.packing
    count = packing.rows
    of_tokens = by_row(jax.ShapeDtypeStruct((count, packing.group_size, packing.longest), np.float32))
    features = None
    if is_rl and learner.vision_frozen:  # rollouts keep what the tower makes of pictures, and not the pictures
        images = prompt_shapes(policy.config, count, 1, image_windows).images
        params = learner.abstract_state().params
        features = jax.tree.map(by_row, jax.eval_shape(functools.partial(encode_images, policy), params, images))
        image_windows = 0
    targets = _targets(config, recipe, of_tokens)
    parts: dict[str, MicroBatch] = {}
    for length in config.data.prompt_lengths:
        for width in packing.widths:
            batch = GroupBatch(
                prompts=prompt_shapes(policy.config, count, length, image_windows),
                image_features=features,
                responses=by_row(jax.ShapeDtypeStruct(of_tokens.shape, np.int32)),
                response_mask=by_row(jax.ShapeDtypeStruct(of_tokens.shape, bool)),
                width=width,
            )
            name = f"prompt {length}, width {packing.places(width)}"
            parts[name] = MicroBatch(batch, targets, weights=of_tokens)
    return parts


def _targets(config: Config, recipe: Recipe, of_tokens: jax.ShapeDtypeStruct) -> Targets | StepLabels | None:
    """Shapes of what the loss reads next to a batch, with a number for each token as in `of_tokens`."""
    count = of_tokens.shape[0]
    if recipe.kind == "sft":
        return None
    if recipe.kind == "prm":
        marked = by_row(jax.ShapeDtypeStruct(of_tokens.shape, bool))
        return StepLabels(of_tokens, marked, by_row(jax.ShapeDtypeStruct((count, 2), np.int32)))
    values = of_tokens if recipe.with_critic else None
    return Targets(
        old_log_probs=of_tokens,
        advantages=of_tokens,
        fresh=by_row(jax.ShapeDtypeStruct((count,), bool)),
        reference_log_probs=of_tokens if recipe.with_reference else None,
        importance=of_tokens if config.rl.importance_cap is not None else None,
        values=values,
        returns=values,
    )


def sampler_programs(sampler: Sampler, mesh: Mesh, params: Params, sizes: PromptSizes) -> list[Program]:
    """What sampling may need, for prompts of every bucket.

    Args:
        mesh: the sampler's.
        params: parameters, or their shapes with shardings.
    """
    programs: dict[str, Program] = {}
    copies = copies_of_prompts(sizes.prompts, batch_divisor(mesh), sampler.settings.group_size)
    rows = sizes.prompts * copies
    with jax.set_mesh(mesh):
        for bucket in sorted(sizes.buckets, reverse=True):
            request = request_shapes(prompt_shapes(sampler.policy.config, rows, bucket, sizes.image_windows), copies)
            for program in sampler.programs(params, request):
                # Buckets share what comes after `start` if their caches have one size.
                programs.setdefault(program.name, dataclasses.replace(program, mesh=mesh))
    return list(programs.values())


def request_shapes(prompts: Prompt, copies: int = 1) -> Request:
    """Shapes of a request for these prompts."""
    rows = len(prompts.tokens)
    return Request(
        prompts=prompts,
        names=by_row(np.zeros((rows, 2), np.uint32)),
        active=by_row(np.zeros(rows, bool)),
        first=by_row(np.zeros(rows, np.int32)) if copies > 1 else None,
        copies=copies,
    )


def prompt_shapes(config: PolicyConfig, count: int, length: int, image_windows: int) -> Prompt:
    """Shapes of `count` prompts of the loader, padded to `length` tokens and so many vision windows."""
    from mmeureka_jax.data.processor import filler

    one = collate([filler(config)], length, image_windows)
    return jax.tree.map(lambda x: by_row(jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)), one)


def by_row(x: np.ndarray | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape of an array that `to_global` spreads over the mesh."""
    return abstract(x, "batch", *(None,) * (x.ndim - 1))
