"""What a policy is measured by during a job: the validation set, and public benchmarks; or labelled steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmeureka_jax.config.schema import Config, SamplerConfig
from mmeureka_jax.evaluation.examiner import Examiner
from mmeureka_jax.evaluation.run_benchmarks import AskedSizes, RunBenchmarks, open_run_benchmarks
from mmeureka_jax.evaluation.validation import open_validation, summarise
from mmeureka_jax.models.policy import Params
from mmeureka_jax.prm.validation import StepValidation, open_step_validation
from mmeureka_jax.process.console import progress
from mmeureka_jax.sampling.answers import PromptSizes
from mmeureka_jax.setup.policy import OpenedPolicy
from mmeureka_jax.training.programs import is_asked
from mmeureka_jax.training.recipe import Recipe

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.rewards.workers import RewardWorkers


@dataclass(frozen=True)
class Measures:
    """Each is None where the config asks for none.

    Attributes:
        examiner: of the validation set.
        steps: a process reward model's, in place of that.
    """

    examiner: Examiner | None
    benchmarks: RunBenchmarks | None
    steps: StepValidation | None = None

    @property
    def has_validation(self) -> bool:
        return self.examiner is not None or self.steps is not None

    def validate(self, params: Params, *, bar: bool) -> dict[str, Any]:
        """The metrics of validation. All hosts call it together."""
        if self.steps is not None:
            with progress(self.steps.count, "validate", unit="row", enabled=bar, leave=False) as shown:
                return self.steps.run(params, shown.update)
        assert self.examiner is not None
        with progress(self.examiner.count, "validate", unit="problem", enabled=bar, leave=False) as shown:
            return summarise(self.examiner.run(params, shown.update))

    @property
    def sizes(self) -> tuple[PromptSizes | None, list[AskedSizes] | None]:
        """Of both, as `RunPrograms` takes them."""
        validation = self.examiner.sizes if self.examiner is not None else None
        return validation, self.benchmarks.sizes if self.benchmarks is not None else None


def open_measures(
    config: Config,
    recipe: Recipe,
    opened: OpenedPolicy,
    processor: Processor,
    rewards: RewardWorkers | None,
    sampling: SamplerConfig,
) -> Measures:
    """
    Args:
        sampling: the sampler's settings in rollouts, with `decode_weights` chosen.

    Raises:
        UserError: the validation set, the suite or a benchmark's files cannot be used.
    """
    if recipe.kind == "prm":
        return Measures(None, None, open_step_validation(config, opened, processor))
    examiner = None
    if rewards is not None and is_asked(config, recipe):
        examiner = open_validation(config, opened, processor, rewards, sampling)
    return Measures(examiner, open_run_benchmarks(config, opened, sampling))
