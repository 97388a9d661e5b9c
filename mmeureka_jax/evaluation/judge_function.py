"""A judge model that a function of the user's own asks: `judge(question: str, answer: str, response: str) -> bool`."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmeureka_jax.config.reading import CustomFunction
from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.judge_model import JudgeModel, Question, Reply
from mmeureka_jax.rewards.custom import JUDGE
from mmeureka_jax.rewards.workers import RewardWorkers
from mmeureka_jax.user_code import parse_spec

TIME_LIMIT = 120.0  # seconds for a verdict: the function may ask a server
_AT_ONCE = 16  # verdicts between two writes of the file


@dataclass(frozen=True)
class JudgeFunction(JudgeModel):
    """A function in a file of the user's, run in killable processes as `reward.custom` is.

    Attributes:
        digest: SHA-256 of the file.
        workers: processes.
    """

    file: Path
    name: str
    digest: str
    workers: int

    @classmethod
    def read(cls, spec: str, workers: int) -> JudgeFunction:
        """
        Raises:
            UserError: no `FILE.py:FUNCTION`, or the file cannot be read.
        """
        file, name = parse_spec(JUDGE.key, spec)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
        return cls(file, name, hashlib.sha256(content).hexdigest(), workers)

    @property
    def identity(self) -> Mapping[str, str]:
        return {"function": self.name, "sha256": self.digest}

    @property
    def described(self) -> Mapping[str, str]:
        return {"file": self.file.name, **self.identity}

    def check(self) -> None:
        with self._processes() as processes:
            processes.validate()

    def ask(self, questions: Sequence[Question]) -> Generator[tuple[Question, Reply], None, None]:
        with self._processes() as processes:
            processes.validate()
            for start in range(0, len(questions), _AT_ONCE):
                part = questions[start : start + _AT_ONCE]
                replies = processes.call_custom([vars(question) for question in part])
                for question, reply in zip(part, replies, strict=True):
                    if "error" in reply:
                        yield question, Reply(None, f"{self.name} of {self.file} failed: {reply['error']}")
                    else:
                        yield question, Reply(bool(reply["value"]), "")

    def _processes(self) -> RewardWorkers:
        spec = CustomFunction(f"{self.file}:{self.name}")
        config = RewardConfig(workers=self.workers, time_limit=TIME_LIMIT, custom=spec, custom_memory_mb=0)
        return RewardWorkers(config, (), JUDGE)
