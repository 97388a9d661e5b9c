"""TFDS builder of the built-in rendered problems, without TensorFlow: encoded PNG bytes in ArrayRecord files."""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mmeureka_jax.data.builders.folder import tfds_data_dir
from mmeureka_jax.data.shapes.canvas import DEFAULT_SIDE
from mmeureka_jax.data.shapes.levels import DIFFICULTIES, KINDS
from mmeureka_jax.data.shapes.problems import CARELESS_FRACTION, HASTY_FRACTION, Split, generate
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import explain_write_errors, temporary_folder
from mmeureka_jax.process.console import progress

DEMO_KINDS = ("dots", "fraction", "bars")  # what a policy of a few million parameters learns in minutes

_PREPARING = threading.Lock()  # one thread at a time; processes are kept apart by their folders


@dataclass(kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """Which problems, in turn, and how many of them.

    Attributes:
        mixture: (kind, difficulty) pairs.
        hasty_fraction: of the solutions in the train split; the test split offers careful solutions only.
        careless_fraction: the same, for solutions in steps; None: the solutions are thoughts.
    """

    mixture: tuple[tuple[str, str], ...]
    train_size: int
    test_size: int
    seed: int = 0
    side: int = DEFAULT_SIDE
    hasty_fraction: float = HASTY_FRACTION
    careless_fraction: float | None = None


def _config(
    name: str,
    kinds: tuple[str, ...],
    difficulties: tuple[str, ...],
    train_size: int,
    *,
    careless_fraction: float | None = None,
    side: int = DEFAULT_SIDE,
) -> ShapesConfig:
    described = f"{', '.join(kinds)}; {' and '.join(difficulties)}"
    return ShapesConfig(
        name=name,
        description=described if careless_fraction is None else f"{described}; solutions in steps",
        mixture=tuple((kind, difficulty) for kind in kinds for difficulty in difficulties),
        train_size=train_size,
        test_size=512,
        careless_fraction=careless_fraction,
        side=side,
    )


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Rendered pictures with a question, an exact answer, and a careful worked solution next to a worse one."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Eight kinds of problem at two difficulties."}
    BUILDER_CONFIGS = [
        _config("mixed", KINDS, DIFFICULTIES, 16_000),
        _config("easy", DEMO_KINDS, ("easy",), 16_000),
        _config("hard", KINDS, ("hard",), 16_000),
        *(_config(kind, (kind,), DIFFICULTIES, 4_000) for kind in KINDS),
        _config("steps-mixed", KINDS, DIFFICULTIES, 16_000, careless_fraction=CARELESS_FRACTION),
        _config("steps-easy", DEMO_KINDS, ("easy",), 16_000, careless_fraction=CARELESS_FRACTION),
        _config("steps-dots", ("dots",), ("easy",), 16_000, careless_fraction=CARELESS_FRACTION),
        _config("steps-dice", ("dice",), ("easy",), 16_000, careless_fraction=0.7, side=56),
    ]
    url_infos = None  # nothing is downloaded, so there are no checksums to look for

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=f"{type(self).__doc__} Generated from a seed; train and test share no picture. "
            f"This config: {self.builder_config.description}.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "question": tfds.features.Text(),
                    "answer": tfds.features.Text(),
                    "image": tfds.features.Scalar(np.object_),  # a PNG file; an Image feature would need TensorFlow
                    "metadata": tfds.features.Text(),  # a JSON object
                }
            ),
            disable_shuffling=True,  # rows keep their order, in which the kinds alternate
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config = self.builder_config
        return {
            "train": self._generate_examples(
                "train", config.train_size, config.hasty_fraction, config.careless_fraction
            ),
            "test": self._generate_examples(
                "test", config.test_size, 0.0, careless_fraction=None if config.careless_fraction is None else 0.0
            ),
        }

    def _generate_examples(
        self, split: Split, size: int, hasty_fraction: float, careless_fraction: float | None
    ) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        with progress(size, f"prepare shapes/{config.name}@{split}", unit="row", enabled=True) as bar:
            for index in range(size):
                problem = generate(
                    index,
                    split=split,
                    mixture=config.mixture,
                    seed=config.seed,
                    side=config.side,
                    hasty_fraction=hasty_fraction,
                    careless_fraction=careless_fraction,
                )
                yield (
                    index,
                    {
                        "id": problem.id,
                        "question": problem.question,
                        "answer": problem.answer,
                        "image": problem.image,
                        "metadata": json.dumps(problem.metadata(), sort_keys=True),
                    },
                )
                bar.update()


def prepare_shapes(name: str = "shapes", data_dir: str | Path | None = None) -> Shapes:
    """The builder of `shapes[/CONFIG][:VERSION]`, prepared below `data_dir` (TFDS's default folder) where it is not.

    It is written elsewhere and renamed when complete, so a killed or a concurrent preparation leaves nothing or a whole
    dataset.

    Raises:
        UserError: an unknown config or version, a folder that cannot be written, a full disk.
    """
    match = re.fullmatch(r"shapes(?:/(?P<config>[^:]+))?(?::(?P<version>.+))?", name)
    configs = [config.name for config in Shapes.BUILDER_CONFIGS]
    if match is None or (match["config"] or configs[0]) not in configs:
        raise UserError(f"tfds:{name}: the configs of shapes are {', '.join(configs)}; write for instance shapes/easy")
    directory = Path(data_dir).expanduser() if data_dir is not None else tfds_data_dir()

    def make(folder: Path = directory) -> Shapes:
        return Shapes(
            config=match["config"], version=match["version"], data_dir=str(folder), file_format="array_record"
        )

    with _PREPARING, explain_write_errors(directory):
        try:
            builder = make()
        except AssertionError as error:  # how TFDS refuses a version
            raise UserError(f"tfds:{name}: {error}") from None
        if builder.is_prepared():
            return builder
        tfds.disable_progress_bar()  # there is our own
        final = Path(builder.data_path)
        try:
            with temporary_folder(final) as workplace:
                with contextlib.redirect_stdout(io.StringIO()):  # TFDS talks of downloads
                    made = make(workplace)
                    made.download_and_prepare()
                Path(made.data_path).rename(final)
        except OSError:
            if not builder.is_prepared():  # else another process was quicker, with the same rows
                raise
        return make()
