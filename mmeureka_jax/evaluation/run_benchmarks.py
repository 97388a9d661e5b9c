"""Public benchmarks during training (`tracking.benchmarks`): asked and judged as `mmeureka eval --suite` does.

RUN/benchmarks/step_00000050/   the files of `mmeureka eval`, of the policy after step 50
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mmeureka_jax.config.reading import to_dict
from mmeureka_jax.config.schema import BenchmarksConfig, Config, SamplerConfig
from mmeureka_jax.evaluation.ask import answer_rows, judge_again, write_settings
from mmeureka_jax.evaluation.benchmark import open_benchmark
from mmeureka_jax.evaluation.draw import Exam, OpenedExam, open_exam
from mmeureka_jax.evaluation.options import EvalOptions, questions
from mmeureka_jax.evaluation.release import read_release
from mmeureka_jax.evaluation.suite import Entry, read_suite
from mmeureka_jax.files import remove_folder
from mmeureka_jax.hosts import is_main
from mmeureka_jax.models.batch import length_buckets
from mmeureka_jax.models.policy import Params
from mmeureka_jax.runs.provenance import how_asked
from mmeureka_jax.sampling.answers import PromptSizes
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings
from mmeureka_jax.setup.policy import OpenedPolicy

FOLDER = "benchmarks"
LOGGED = ("official", "ours", "unparsed", "truncated", "failed")  # of each benchmark's results


class AskedSizes(NamedTuple):
    """What a benchmark's answers are drawn by, and in which sizes."""

    sampler: Sampler
    sizes: PromptSizes


@dataclass(frozen=True)
class RunBenchmarks:
    """The benchmarks of a run. All hosts call its methods together, under `jax.set_mesh` of the run's mesh.

    Attributes:
        workers: processes that judge.
        bars: progress is shown as a bar.
    """

    run_dir: Path
    exams: Sequence[OpenedExam]
    workers: int
    bars: bool

    @property
    def sizes(self) -> list[AskedSizes]:
        return [AskedSizes(one.examiner.sampler, one.examiner.sizes) for one in self.exams]

    def run(self, params: Params, step: int) -> dict[str, float]:
        """Asks and judges them all, and writes the files above.

        Returns:
            Metrics of the step; on other hosts than the main one none.

        Raises:
            UserError: the files cannot be written.
        """
        folder = self._folder_of(step)
        self.forget(step)
        for exam in self.exams:
            with answer_rows(folder, exam.exam.name) as rows:
                exam.draw(lambda: params, rows, {"command": "train", "step": step}, bars=self.bars, leave=False)
            write_settings(folder, exam, {"model": str(self.run_dir), "step": step})
        if not is_main():
            return {}
        results = judge_again([exam.exam.released for exam in self.exams], folder, self.workers, bars=self.bars)
        return {f"benchmark/{name}/{key}": float(figures[key]) for name, figures in results.items() for key in LOGGED}

    def in_words(self, row: Mapping[str, float]) -> Iterator[str]:
        """A line for each benchmark whose metrics are in the row."""
        for name in (exam.exam.name for exam in self.exams):
            if f"benchmark/{name}/official" in row:
                shares = ", ".join(f"{key} {row[f'benchmark/{name}/{key}']:.1%}" for key in LOGGED)
                yield f"{name} {shares}"

    def forget(self, step: int) -> None:
        """Removes what an attempt that ended early has left of this step and later ones."""
        if is_main():
            for folder in (self.run_dir / FOLDER).glob("step_*"):
                if (number := re.fullmatch(r"step_(\d{8,9})", folder.name)) and int(number[1]) >= step:
                    remove_folder(folder)

    def _folder_of(self, step: int) -> Path:
        return self.run_dir / FOLDER / f"step_{step:08d}"


def open_run_benchmarks(config: Config, opened: OpenedPolicy, limits: SamplerConfig) -> RunBenchmarks | None:
    """The benchmarks of a run, opened and checked before its first step; None if it has none.

    They are asked as `mmeureka eval` asks the exported policy, in batches that are padded to one length for all.

    Args:
        limits: the sampler's settings in rollouts, with `decode_weights` chosen.

    Raises:
        UserError: the suite or a benchmark's files cannot be used.
    """
    given = config.tracking.benchmarks
    if given is None:
        return None
    exams = [
        open_exam(opened, _exam(config, given, entry), trained=how_asked(to_dict(config)), limits=limits)
        for entry in _entries(given)
    ]
    longest = max(exam.examiner.sizes.buckets[-1] for exam in exams)
    windows = max(exam.examiner.sizes.image_windows for exam in exams)

    def in_common_sizes(exam: OpenedExam) -> OpenedExam:
        sizes = PromptSizes(exam.examiner.sizes.prompts, (longest,), windows)
        compiled = config.sampler.compile_ahead
        return dataclasses.replace(exam, examiner=dataclasses.replace(exam.examiner, sizes=sizes, compiled=compiled))

    bars = config.tracking.progress
    return RunBenchmarks(Path(config.run_dir), [in_common_sizes(exam) for exam in exams], config.reward.workers, bars)


def planned_sizes(config: Config, opened: OpenedPolicy, limits: SamplerConfig, image_windows: int) -> list[AskedSizes]:
    """As `RunBenchmarks.sizes`, from the config and the suite alone: as if the longest problem were as long as a
    training prompt may be.

    Args:
        image_windows: those of a training prompt.
    """
    given = config.tracking.benchmarks
    sizes = []
    for entry in _entries(given) if given is not None else ():
        options = entry.options(_options(config, entry))
        usual = open_benchmark(entry.name).settings.usual
        asked = questions(options, opened, usual, how_asked(to_dict(config)))
        drawn = options.sampling(limits, asked["max_new_tokens"])
        settings = SamplingSettings.of(opened.policy.config, drawn, options.n)
        longest = options.max_prompt_tokens or config.data.max_prompt_tokens
        buckets = (length_buckets(longest)[-1],)
        sampler = Sampler(opened.policy, settings, "validation", options.seed)
        sizes.append(AskedSizes(sampler, PromptSizes(options.batch_size, buckets, image_windows)))
    return sizes


def _entries(given: BenchmarksConfig) -> list[Entry]:
    return read_suite(given.suite, Path(given.files))


def _exam(config: Config, given: BenchmarksConfig, entry: Entry) -> Exam:
    released = read_release(open_benchmark(entry.name), entry.path, partial=given.problems > 0)
    options = entry.options(_options(config, entry))
    options.check()
    return Exam(released.part(given.problems) if given.problems else released, options)


def _options(config: Config, entry: Entry) -> EvalOptions:
    """How a benchmark is asked where its suite does not say."""
    return EvalOptions(str(entry.path), batch_size=config.tracking.validation_batch)
