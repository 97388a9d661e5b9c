"""What a policy is measured by during a job: the validation set, and public benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmeureka_jax.config.schema import Config, SamplerConfig
from mmeureka_jax.evaluation.examiner import Examiner
from mmeureka_jax.evaluation.run_benchmarks import AskedSizes, RunBenchmarks, open_run_benchmarks
from mmeureka_jax.evaluation.validation import open_validation
from mmeureka_jax.sampling.answers import PromptSizes
from mmeureka_jax.setup.policy import OpenedPolicy
from mmeureka_jax.training.programs import is_validated

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.rewards.workers import RewardWorkers


@dataclass(frozen=True)
class Measures:
    """Each is None where the config asks for none.

    Attributes:
        examiner: of the validation set.
    """

    examiner: Examiner | None
    benchmarks: RunBenchmarks | None

    @property
    def sizes(self) -> tuple[PromptSizes | None, list[AskedSizes] | None]:
        """Of both, as `RunPrograms` takes them."""
        validation = self.examiner.sizes if self.examiner is not None else None
        return validation, self.benchmarks.sizes if self.benchmarks is not None else None


def open_measures(
    config: Config,
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
    examiner = None
    if rewards is not None and is_validated(config):
        examiner = open_validation(config, opened, processor, rewards, sampling)
    return Measures(examiner, open_run_benchmarks(config, opened, sampling))
