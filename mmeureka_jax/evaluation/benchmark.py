"""What a public benchmark is: the rows of its release, what is asked of each, who judges the answers, what is reported.

Each folder of `eval/` holds one: `benchmark.py` with a `Benchmark`, `settings.yaml` with the facts of its release and
of how it is asked, and a README. Two judges are always reported: the benchmark's own rule without a model (`official`),
and the project's accuracy rule (`ours`).
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import yaml

from mmeureka_jax.config.reading import did_you_mean
from mmeureka_jax.config.schema import PromptStyle
from mmeureka_jax.data.row_pictures import find_pictures
from mmeureka_jax.errors import UserError

PACKAGE = "mmeureka_jax.eval"

Row = Mapping[str, Any]  # of a release: its columns, pictures included


@dataclass(frozen=True)
class Release:
    """What is known of a benchmark's released rows.

    Attributes:
        rows: how many there are.
        columns: those that every row has; a table without one of them is another.
        ids: SHA-256 of the ids, sorted as text and joined by newlines; None where nobody has counted them.
        source: where the files are, for messages.
    """

    rows: int
    columns: tuple[str, ...]
    ids: str | None
    source: str


@dataclass(frozen=True)
class Asked:
    """How the benchmark's problems are asked, unless a command says otherwise.

    Attributes:
        prompt_style: instructions around the question, as `data.prompt_style`.
    """

    prompt_style: PromptStyle = "instruct"
    max_new_tokens: int = 4096
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True)
class Published:
    """A published score.

    Attributes:
        score: percent, as it was published.
        judge: who judged, and how the problems were asked, as far as the source says it.
        source: a paper, repository or thread.
    """

    model: str
    score: float
    judge: str
    source: str


@dataclass(frozen=True)
class Settings:
    """A benchmark's settings.yaml."""

    title: str
    release: Release
    asked: Asked = field(default_factory=Asked)
    published: tuple[Published, ...] = ()

    @property
    def usual(self) -> dict[str, Any]:
        """What `asked` says, by the names of options."""
        return {key: value for key, value in asdict(self.asked).items() if value is not None}

    @classmethod
    def read(cls, file: Path) -> Settings:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        release = content["release"]
        return cls(
            content["title"],
            Release(release["rows"], tuple(release["columns"]), release["ids"], release["source"]),
            Asked(**content.get("asked", {})),
            tuple(Published(**one) for one in content.get("published", ())),
        )


class Benchmark(ABC):
    """A public benchmark. Its class is in `eval/NAME/benchmark.py`; `open_benchmark(NAME)` makes one.

    Rows come as the release has them; everything but `pictures` also works without the pictures' columns.

    Attributes:
        root: the release's folder, from that of a file with rows: pictures are looked for in it only.
    """

    name: ClassVar[str]
    root: ClassVar[str] = "."

    @cached_property
    def settings(self) -> Settings:
        module = importlib.import_module(type(self).__module__)
        assert module.__file__ is not None
        return Settings.read(Path(module.__file__).with_name("settings.yaml"))

    @property
    def official(self) -> str:
        """The official rule as `module:function`, for the processes that judge: it is called with `response` and `row`
        (as JSON holds it, without pictures), and returns whether the answer is right and the text that was judged."""
        return f"{PACKAGE}.{self.name}.official:judge"

    @abstractmethod
    def name_of(self, row: Row) -> str:
        """The id of a row."""

    @abstractmethod
    def question(self, row: Row) -> str:
        """What is asked; `<image>` or `<image1>` where a picture is shown, or pictures come first."""

    @abstractmethod
    def answer(self, row: Row) -> str:
        """The gold answer as the project's accuracy rule takes it."""

    def readable(self, response: str) -> str:
        """A response as the project's accuracy rule takes it, where the question asks for a form of its own."""
        return response

    def pictures(self, row: Row) -> Sequence[Any]:
        """The pictures, in order: paths, bytes, or objects that hold them."""
        return find_pictures(row, used={"question", "answer"}).values

    def needs_picture(self, row: Row) -> bool:
        """Whether a row without a picture cannot be asked."""
        return True

    def groups(self, row: Row) -> Mapping[str, Sequence[str]]:
        """What scores are broken down by: for each breakdown the values that the row counts for."""
        return {}

    def counts_overall(self, row: Row) -> bool:
        """Whether the row is part of the overall score."""
        return True

    def figures(self, rows: Sequence[Row], right: Sequence[float]) -> Mapping[str, float]:
        """More figures that the authors report.

        Args:
            rows: those that were answered.
            right: for each the share of its answers that are right, by one judge.
        """
        return {}


def benchmark_names() -> list[str]:
    """The names of all benchmarks."""
    package = importlib.import_module(PACKAGE)
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.ispkg)


def open_benchmark(name: str) -> Benchmark:
    """The benchmark of this name. Raises UserError if there is none."""
    names = benchmark_names()
    if name not in names:
        raise UserError(f"{name}: no such benchmark; there are {', '.join(names)}{did_you_mean(name, names)}")
    module = importlib.import_module(f"{PACKAGE}.{name}.benchmark")
    own = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
    (found,) = [one for one in own if issubclass(one, Benchmark)]
    return found()
