"""What a run writes about itself: `metrics.jsonl`, TensorBoard event files, and samples of rollouts.

    RUN/metrics.jsonl                 a JSON row per step: {"step": 3, "reward/accuracy": 0.25, ...}
    RUN/tensorboard/                  scalars, histograms, and rollout samples as pictures and text
    RUN/rollouts/step_00000005.jsonl  a sampled group per line; its pictures are RUN/rollouts/images/HASH.png

A resumed run takes back what was written after its checkpoint, so the files are those of a run that never stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmeureka_jax.config.schema import TrackingConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import append_whole, explain_write_errors, parse_json, read_bytes, write_atomic
from mmeureka_jax.formats.rgb import as_rgb
from mmeureka_jax.runs.rollout_samples import RolloutSample
from mmeureka_jax.runs.wandb_log import WandbLog

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
ROLLOUTS_FOLDER = "rollouts"
IMAGES_FOLDER = "images"
_MAX_FILE_BYTES = 2**32
MAX_LOGGED_SIDE = 1024  # pixels; larger pictures are scaled down for the log


class Tracker:
    """Writes metrics and samples of one run; on hosts with `enabled=False` every method does nothing.

    Args:
        resume_step: the step of the checkpoint that the run continues from. What was written after it is removed first.
            None or 0 for a run that starts from nothing: all that an attempt before its first checkpoint left is
            removed, the row of step 0 included, which is written again.
        settings: the run's config, which `tracking.wandb` shows next to the metrics.

    Raises:
        UserError: from any method, when a file cannot be written (a full disk, say); what was there before stays whole.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrackingConfig,
        *,
        enabled: bool = True,
        resume_step: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._enabled = enabled
        self._metrics_path = Path(run_dir) / METRICS_FILE
        self._rollouts_dir = Path(run_dir) / ROLLOUTS_FOLDER
        self._events: _EventFile | None = None
        self._wandb: WandbLog | None = None
        if not enabled:
            return
        last_step = resume_step or -1
        with explain_write_errors(Path(run_dir)):
            Path(run_dir).mkdir(parents=True, exist_ok=True)
        _drop_rows_after(last_step, self._metrics_path)
        with explain_write_errors(self._rollouts_dir):
            for step, path in _rollout_files(self._rollouts_dir):
                if step > last_step:
                    path.unlink()
        if config.tensorboard:
            self._events = _EventFile(Path(run_dir) / TENSORBOARD_FOLDER, first_step=last_step + 1)
        if config.wandb:
            self._wandb = WandbLog(Path(run_dir), config.wandb, settings or {}, resuming=bool(resume_step))

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one row, on disk when this returns; NaN and Infinity as Python's json writes them. Once a step."""
        if not self._enabled:
            return
        row: dict[str, Any] = {"step": int(step)} | {name: _plain_number(value) for name, value in metrics.items()}
        _append_line(self._metrics_path, json.dumps(row))
        if self._events:
            self._events.scalars(step, {name: value for name, value in row.items() if name != "step"})
        if self._wandb:
            self._wandb.metrics(row)

    def log_histogram(self, step: int, name: str, values: Any) -> None:
        """Sends the distribution of `values` (any array-like) to TensorBoard; what is not finite is left out."""
        if self._events:
            self._events.histogram(step, name, np.asarray(values, np.float64).ravel())

    def log_rollouts(self, step: int, samples: Sequence[RolloutSample]) -> None:
        """Writes sampled groups with their pictures to `rollouts/`, TensorBoard and Weights & Biases."""
        if not self._enabled or not samples:
            return
        lines = []
        all_pictures = []
        for index, sample in enumerate(samples):
            pictures = [_as_png(data) for data in sample.images]
            names = [f"{IMAGES_FOLDER}/{hashlib.sha256(png).hexdigest()[:20]}.png" for png in pictures]
            for name, png in zip(names, pictures, strict=True):
                if not (self._rollouts_dir / name).exists():
                    write_atomic(self._rollouts_dir / name, png)
            record = {
                "step": int(step),
                "problem_id": sample.problem_id,
                "question": sample.question,
                "images": names,
                "answer": sample.answer,
                "responses": [dataclasses.asdict(response) for response in sample.responses],
            }
            all_pictures.append(pictures)
            lines.append(json.dumps(record, ensure_ascii=False, default=float))
            if self._events:
                self._events.images(step, f"rollouts/{index}", pictures)
                self._events.text(step, f"rollouts/{index}", _as_markdown(sample))
        content = "\n".join(lines) + "\n"
        write_atomic(self._rollouts_dir / f"step_{step:08d}.jsonl", content.encode("utf-8", "replace"))
        if self._wandb:
            self._wandb.rollouts(step, samples, all_pictures)

    def flush(self) -> None:
        """Everything logged so far is on disk when this returns."""
        if self._events:
            self._events.flush()

    def close(self) -> None:
        if self._wandb:
            self._wandb.finish(failed=sys.exc_info()[0] is not None)
            self._wandb = None
        if self._events:
            self._events.close()
            self._events = None


# ---------------------------------------------------------------------------------------------------------------------
# Reading back.


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`, without a last line that a kill cut short.

    Raises:
        UserError: there is no such file, or a line that is not a metrics row.
    """
    path = Path(run_dir) / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{path}: no metrics here; give the folder of a run (`run_dir` of its config)")
    return [row for _, row in _read_rows(path, _is_metrics, "metrics row")]


def read_rollouts(run_dir: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(step, logged groups) by step; a group is the JSON form of a `RolloutSample` with picture paths."""
    for step, path in _rollout_files(Path(run_dir) / ROLLOUTS_FOLDER):
        yield step, [row for _, row in _read_rows(path, _is_group, "logged group")]


def picture_of(run_dir: Path, name: str) -> Path | None:
    """The file of a picture that a logged group names; None unless it is one of the tracker's names, inside the run."""
    folder = (Path(run_dir) / ROLLOUTS_FOLDER).resolve()
    if not re.fullmatch(rf"{IMAGES_FOLDER}/[\w-]{{1,100}}\.png", name):
        return None
    path = folder / name
    return path if path.resolve() == path else None


def _read_rows(path: Path, fits: Callable[[dict[str, Any]], bool], kind: str) -> list[tuple[bytes, dict[str, Any]]]:
    """(line, row) of a JSONL file whose rows have a step; a last line that was cut short is left out.

    Raises:
        UserError: the file cannot be read, or another line of it is no such row (`fits`).
    """
    try:
        content = read_bytes(path, _MAX_FILE_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    lines = content.splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and type(step := row.get("step")) is int and 0 <= step < 2**31 and fits(row):
            rows.append((line, row))
        elif number < len(lines) or content.endswith(b"\n"):
            raise UserError(f"{path}:{number}: not a {kind} in JSON with a `step`; mend or remove this line")
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _is_metrics(row: dict[str, Any]) -> bool:
    return all(_is_number(value) for value in row.values())


def _is_group(row: dict[str, Any]) -> bool:
    def is_response(response: Any) -> bool:
        return (
            isinstance(response, dict)
            and isinstance(response.get("text"), str)
            and isinstance(response.get("finish_reason"), str)
            and isinstance(parts := response.get("parts"), dict)
            and all(_is_number(value) for value in (response.get("reward"), response.get("length"), *parts.values()))
        )

    return (
        {"problem_id", "question", "answer"} <= row.keys()
        and isinstance(images := row.get("images"), list)
        and all(isinstance(name, str) for name in images)
        and isinstance(responses := row.get("responses"), list)
        and all(map(is_response, responses))
    )


def _rollout_files(folder: Path) -> list[tuple[int, Path]]:
    """The tracker's own files by step; other files in the folder are ignored."""
    named = ((re.fullmatch(r"step_(\d{8,9})\.jsonl", path.name), path) for path in folder.glob("step_*.jsonl"))
    return sorted((int(match[1]), path) for match, path in named if match and path.is_file())


# ---------------------------------------------------------------------------------------------------------------------
# Files.


def _drop_rows_after(last_step: int, path: Path) -> None:
    """Removes rows with step > last_step, and a torn last line; the other rows stay as they are, byte for byte."""
    if not path.exists():
        return
    content = b"".join(
        line + b"\n" for line, row in _read_rows(path, _is_metrics, "metrics row") if row["step"] <= last_step
    )
    if content != path.read_bytes():
        write_atomic(path, content)


def _append_line(path: Path, line: str) -> None:
    """Appends a whole line or, where that fails, nothing."""
    with explain_write_errors(path), path.open("ab", buffering=0) as file:
        append_whole(file, line.encode() + b"\n")


def _plain_number(value: Any) -> int | float:
    """A Python number of a NumPy or JAX scalar: counts stay integers."""
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, bool | int) else float(value)


def _as_png(data: bytes) -> bytes:
    """The picture as the policy sees it, but no larger than people need; unchanged if it is that already."""
    original = Image.open(io.BytesIO(data))
    original.load()
    if (
        (original.format, original.mode) == ("PNG", "RGB")
        and not original.info
        and max(original.size) <= MAX_LOGGED_SIDE
    ):
        return data
    image = as_rgb(original)
    image.thumbnail((MAX_LOGGED_SIDE, MAX_LOGGED_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _as_markdown(sample: RolloutSample) -> str:
    def verbatim(text: str) -> str:
        # Indented: nothing that a model writes can end the block.
        return "\n".join(f"    {line}" for line in text.splitlines())

    blocks = [f"**{sample.problem_id}**", verbatim(sample.question), f"gold answer: `{sample.answer}`"]
    for number, response in enumerate(sample.responses, start=1):
        parts = ", ".join(f"{name} {value:g}" for name, value in response.parts.items())
        blocks.append(
            f"**{number}.** reward {response.reward:g} ({parts}), {response.length} tokens, {response.finish_reason}"
        )
        blocks += [verbatim(f"{rule} failed: {reason}") for rule, reason in response.failures.items()]
        blocks.append(verbatim(response.text))
    return "\n\n".join(blocks)


class _EventFile:
    """One TensorBoard event file, written in the caller's thread.

    tensorboardX's SummaryWriter hands events to a background thread; if that dies of a full disk, the next event waits
    for ever. Called directly, its parts raise where they fail, and a kill loses nothing.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        # Imported here because tensorboardX imports torch where torch is installed, which takes seconds.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2, summary_pb2

        self._folder = folder
        self._summary = summary
        self._event_pb2 = event_pb2
        self._summary_pb2 = summary_pb2
        with explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # The usual name counts in seconds: a run that is resumed within one must not overwrite the file.
            self._writer = event_file_writer.EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        # TensorBoard then ignores the events of earlier files from this step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(step=first_step, session_log=start))
        self.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        Value = self._summary_pb2.Summary.Value
        self._add(step, *(Value(tag=name, simple_value=value) for name, value in values.items()))
        self.flush()

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        values = values[np.isfinite(values)]
        if values.size:
            self._add(step, *self._summary.histogram(name, values, bins=64).value)

    def images(self, step: int, name: str, pictures: Sequence[bytes]) -> None:
        Summary = self._summary_pb2.Summary
        for index, png in enumerate(pictures):
            width, height = Image.open(io.BytesIO(png)).size
            image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
            self._add(step, Summary.Value(tag=f"{name}/image_{index}", image=image))

    def text(self, step: int, name: str, markdown: str) -> None:
        self._add(step, *self._summary.text(name, markdown.encode("utf-8", "replace").decode()).value)

    def flush(self) -> None:
        with explain_write_errors(self._folder):
            self._writer.flush()

    def close(self) -> None:
        with explain_write_errors(self._folder):
            self._writer.close()

    def _add(self, step: int, *values: Any) -> None:
        summary = self._summary_pb2.Summary(value=values)
        self._write(self._event_pb2.Event(step=int(step), summary=summary))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        with explain_write_errors(self._folder):
            self._writer.write_event(event)
