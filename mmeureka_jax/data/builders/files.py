"""A TFDS dataset of any problems: what `mmeureka data build` makes from the file formats.

Rows hold the pictures as they were encoded, messages and metadata as JSON text. They are stored as ArrayRecord in the
order of the source, written and read without TensorFlow, and readable without this module.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmeureka_jax.data.builders.folder import tfds_data_dir
from mmeureka_jax.data.pictures import read_picture
from mmeureka_jax.data.problems import ProblemSource, open_problems
from mmeureka_jax.data.readers import TfdsTable
from mmeureka_jax.data.record import Problem, RowError
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import explain_write_errors, remove_folder, temporary_folder
from mmeureka_jax.process.console import progress

VERSION = "1.0.0"

logger = logging.getLogger(__name__)


def problem_features() -> tfds.features.FeaturesDict:
    """The features of a row: `open_problems("tfds:...")` reads them as a chat with separate images."""
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "messages": tfds.features.Text(doc="JSON: [{role, content: [{type: text, text} | {type: image}]}]"),
            "images": tfds.features.Sequence(tfds.features.Scalar(np.object_), doc="picture files (PNG, JPEG, ...)"),
            "answer": tfds.features.Text(doc="empty where there is none"),
            "metadata": tfds.features.Text(doc="JSON object"),
        }
    )


def encode_problem(problem: Problem) -> dict[str, Any]:
    """A problem as a row of `problem_features`. Raises UserError if a picture cannot be read."""
    return {
        "id": problem.id,
        "messages": json.dumps(problem.messages, ensure_ascii=False),
        "images": [ref.read_bytes() for ref in problem.images],
        "answer": problem.answer or "",
        "metadata": json.dumps(problem.metadata, ensure_ascii=False),
    }


class FilesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes problem sources as the splits of one dataset; a row counts as usable once its pictures have been decoded.

    Unusable rows end up in `rejected`. Unless `skip_unusable` they are an error at the end of a split.
    """

    def __init__(
        self,
        name: str,
        sources: Mapping[str, ProblemSource],
        *,
        skip_unusable: bool,
        show_progress: bool,
        **kwargs: Any,
    ):
        self.name = name
        self.VERSION = tfds.core.Version(VERSION)
        self.rejected: list[UserError] = []
        self._sources = sources
        self._skip_unusable = skip_unusable
        self._show_progress = show_progress
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Problems for reinforcement learning, written by `mmeureka data build`.",
            features=problem_features(),
            disable_shuffling=True,  # rows in the order of their source
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split, source) for split, source in self._sources.items()}

    def _generate_examples(self, split: str, source: ProblemSource) -> Iterator[tuple[int, dict[str, Any]]]:
        rejected: list[UserError] = []
        unread: Counter[str] = Counter()
        with progress(len(source), f"build {self.name}@{split}", unit="row", enabled=self._show_progress) as bar:
            for index in range(len(source)):
                try:
                    problem, row = _checked_row(source, index)
                except UserError as error:
                    rejected.append(error)
                else:
                    unread.update(problem.unread)
                    yield index, row
                bar.update()
        if rejected and (not self._skip_unusable or len(rejected) == len(source)):
            shown = [f"  {error}" for error in rejected[:20]] + ["  ..."] * (len(rejected) > 20)
            raise UserError(
                "\n".join([f"{source.name}: {len(rejected)} of {len(source)} rows cannot be used:", *shown])
                + "\nrepair them, or leave them out with --skip-unusable"
            )
        self.rejected += rejected
        for column, count in unread.items():
            logger.warning("column %r looks like a picture and is not read (in %d of the rows)", column, count)


def _checked_row(source: ProblemSource, index: int) -> tuple[Problem, dict[str, Any]]:
    problem = source[index]
    try:
        for ref in problem.images:
            read_picture(ref)
        return problem, encode_problem(problem)
    except UserError as error:
        raise RowError(f"{source.where(index)}: problem {problem.id!r}: {error}", problem_id=problem.id) from None


@dataclass(frozen=True)
class BuiltDataset:
    directory: Path
    spec: str  # `tfds:NAME@SPLIT`, as `open_problems` takes it
    num_rows: int
    rejected: tuple[str, ...]  # why rows were left out


def build_dataset(
    spec: str,
    name: str,
    *,
    data_dir: str | Path | None = None,
    split: str = "train",
    root: str | None = None,
    allow_outside_root: bool = False,
    require_answer: bool = True,
    skip_unusable: bool = False,
    show_progress: bool = True,
) -> BuiltDataset:
    """Writes the problems of `spec` as split `split` of the TFDS dataset `name`, next to those that it already has.

    Args:
        spec, root, allow_outside_root, require_answer: as for `open_problems`.
        data_dir: where TFDS datasets are; default: `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        skip_unusable: leave out rows that cannot be used; else they are an error and nothing is written.

    Raises:
        UserError: a name that TFDS does not take, a split that exists, unusable rows, no usable row, a full disk.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", name) or name == "shapes":
        raise UserError(f"dataset name {name!r}: expected small letters, digits and _, a letter first, and not shapes")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", split):
        raise UserError(f"split {split!r}: expected letters, digits and _")
    directory = Path(data_dir).expanduser() if data_dir is not None else tfds_data_dir()
    final = directory / name / VERSION
    _end_replacement(final, _backup_of(final))
    sources = _existing_splits(name, final)
    if split in sources:
        raise UserError(f"{final}: split {split} exists; choose another split or name, or remove that folder")
    sources[split] = open_problems(
        spec, root=root, allow_outside_root=allow_outside_root, require_answer=require_answer
    )
    tfds.disable_progress_bar()
    with explain_write_errors(directory), temporary_folder(directory / name) as workplace:
        builder = FilesBuilder(
            name, sources, skip_unusable=skip_unusable, show_progress=show_progress, data_dir=workplace
        )
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS talks of downloads
            builder.download_and_prepare()
        _replace(final, workplace / name / VERSION, backup=_backup_of(final))
    return BuiltDataset(
        final,
        f"tfds:{name}@{split}",
        len(sources[split]) - len(builder.rejected),
        tuple(str(error) for error in builder.rejected),
    )


def _existing_splits(name: str, directory: Path) -> dict[str, ProblemSource]:
    """The splits of a dataset that was built before, as sources to write again."""
    if not directory.exists():
        return {}
    splits = tfds.builder_from_directory(directory).info.splits
    return {
        split: ProblemSource([TfdsTable(name, split, directory=directory)], name, require_answer=False)
        for split in splits
    }


def _backup_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _replace(folder: Path, new: Path, backup: Path) -> None:
    """Moves `new` to the place of `folder`; what was there is put back if the move fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rename(backup)
    try:
        new.rename(folder)
    finally:
        _end_replacement(folder, backup)


def _end_replacement(folder: Path, backup: Path) -> None:
    """Ends a replacement that a kill may have cut short: puts the old folder back, or removes it for a new one."""
    if backup.exists():
        with explain_write_errors(folder):
            if folder.exists():
                remove_folder(backup)
            else:
                backup.rename(folder)
