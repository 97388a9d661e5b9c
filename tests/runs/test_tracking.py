"""Metrics rows, event files and rollout samples: what is on disk after logging, after a kill, and after resuming."""

import errno
import io
import json
import math
import struct
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from mmeureka_jax.config.schema import TrackingConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.runs.rollout_samples import ResponseSample, RolloutSample
from mmeureka_jax.runs.tracking import Tracker, read_metrics, read_rollouts

NO_TENSORBOARD = TrackingConfig(tensorboard=False)


def picture(color, size=(20, 10), format="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format)
    return buffer.getvalue()


def sample(problem_id="p1", images=(), text="<think>a\n```b</think><answer>3</answer>") -> RolloutSample:
    failures = {"custom": "KeyError: 'x' (rule.py:3)"}
    response = ResponseSample(text, 1.5, {"accuracy": 1.0, "format": 1.0}, 12, "stop", failures)
    return RolloutSample(problem_id, "How many dots?\nCount.", list(images), "3", [response, response])


def events_of(run_dir) -> list[list]:
    """The events of each event file, in the order the files were written; the framing is TFRecord's."""
    from tensorboardX.proto.event_pb2 import Event

    files = []
    for path in sorted((run_dir / "tensorboard").iterdir(), key=lambda path: int(path.name.rsplit(".")[-1])):
        data = path.read_bytes()
        events = []
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[12 + length + 4 :]
        files.append(events)
    return files


def visible_scalars(run_dir) -> dict[str, dict[int, float]]:
    """tag -> step -> value, as TensorBoard shows them: a start event drops what was logged from its step on."""
    shown: dict[str, dict[int, float]] = defaultdict(dict)
    for events in events_of(run_dir):
        for event in events:
            if event.HasField("session_log"):
                for points in shown.values():
                    for step in [s for s in points if s >= event.step]:
                        del points[step]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    shown[value.tag][event.step] = value.simple_value
    return shown


def test_rows_round_trip_exactly(tmp_path):
    values = {"a": 0.1 + 0.2, "b": math.nan, "c": math.inf, "d": np.float32(0.1), "e": np.int64(3), "f": 1e-300, "g": 7}
    tracker = Tracker(tmp_path, TrackingConfig())
    tracker.log_metrics(1, values)
    (row,) = read_metrics(tmp_path)  # before close: a row is on disk at once
    assert list(row) == ["step", *values]
    assert row["a"] == 0.1 + 0.2 and math.isnan(row["b"]) and row["c"] == math.inf
    assert row["d"] == float(np.float32(0.1)) and row["f"] == 1e-300
    assert type(row["e"]) is int and type(row["g"]) is int
    assert visible_scalars(tmp_path)["d"][1] == np.float32(0.1)
    tracker.close()
    tracker.close()


def test_jax_scalars(tmp_path):
    import jax.numpy as jnp

    with_jax = Tracker(tmp_path, NO_TENSORBOARD)
    with_jax.log_metrics(1, {"x": jnp.float32(0.5), "n": jnp.int32(4)})
    assert read_metrics(tmp_path) == [{"step": 1, "x": 0.5, "n": 4}]


@pytest.mark.parametrize("torn", [b"", b'{"step": 5, "x"', b'{"step": 5}', b"\xff\x00"])
@pytest.mark.parametrize("resume_step, kept", [(3, [0, 1, 2, 3]), (0, []), (None, []), (4, [0, 1, 2, 3, 4])])
def test_resume_takes_back_later_rows_and_samples(tmp_path, torn, resume_step, kept):
    first = Tracker(tmp_path, TrackingConfig())
    for step in range(5):
        first.log_metrics(step, {"x": step / 3})
        first.log_rollouts(step, [sample(f"p{step}")])
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)

    second = Tracker(tmp_path, TrackingConfig(), resume_step=resume_step)  # the first one was killed: not closed
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(lines[: len(kept)])
    assert [step for step, _ in read_rollouts(tmp_path)] == kept
    assert sorted(visible_scalars(tmp_path)["x"]) == kept

    again = len(kept)
    second.log_metrics(again, {"x": -1.0})
    second.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [*kept, again]
    assert visible_scalars(tmp_path)["x"] == {**{s: np.float32(s / 3) for s in kept}, again: -1.0}
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_complete_last_row_without_its_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    Tracker(tmp_path, NO_TENSORBOARD, resume_step=2).log_metrics(3, {})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_broken_row_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"x": 2}\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: .*`step`"):
        Tracker(tmp_path, NO_TENSORBOARD, resume_step=3)


def test_rollout_samples_and_their_pictures(tmp_path):
    red = picture("red")
    large = picture("blue", (3000, 1500), "JPEG")
    tracker = Tracker(tmp_path, TrackingConfig())
    tracker.log_rollouts(5, [sample("a", [red]), sample("b", [red, large], text="lone \ud800 surrogate, é")])
    tracker.close()

    [(step, [a, b])] = read_rollouts(tmp_path)
    assert step == 5 and (a["problem_id"], a["question"], a["answer"]) == ("a", "How many dots?\nCount.", "3")
    assert a["responses"][0] == {
        "text": "<think>a\n```b</think><answer>3</answer>",
        "reward": 1.5,
        "parts": {"accuracy": 1.0, "format": 1.0},
        "length": 12,
        "finish_reason": "stop",
        "failures": {"custom": "KeyError: 'x' (rule.py:3)"},
    }
    assert b["responses"][0]["text"].endswith("surrogate, é")
    assert a["images"] == b["images"][:1]
    folder = tmp_path / "rollouts"
    assert len(list((folder / "images").iterdir())) == 2  # the shared picture is stored once
    assert (folder / a["images"][0]).read_bytes() == red
    with Image.open(folder / b["images"][1]) as image:
        assert image.format == "PNG" and image.size == (1024, 512)

    values = [value for events in events_of(tmp_path) for event in events for value in event.summary.value]
    pictures = {value.tag: value.image for value in values if value.HasField("image")}
    assert set(pictures) == {"rollouts/0/image_0", "rollouts/1/image_0", "rollouts/1/image_1"}
    assert pictures["rollouts/0/image_0"].encoded_image_string == red
    assert (pictures["rollouts/1/image_1"].width, pictures["rollouts/1/image_1"].height) == (1024, 512)
    text = {value.tag: value.tensor.string_val[0].decode() for value in values if value.tag.endswith("text_summary")}
    assert "    ```b</think><answer>3</answer>" in text["rollouts/0/text_summary"]


def test_histogram_counts_finite_values(tmp_path):
    tracker = Tracker(tmp_path, TrackingConfig())
    tracker.log_histogram(2, "response/length", np.array([[1, 2], [3, np.nan]]))
    tracker.log_histogram(2, "nothing", [np.inf])
    tracker.flush()
    [value] = [v for events in events_of(tmp_path) for event in events for v in event.summary.value]
    assert value.tag == "response/length" and value.histo.num == 3 and value.histo.sum == 6


def test_without_tensorboard_no_event_files(tmp_path):
    tracker = Tracker(tmp_path, NO_TENSORBOARD)
    tracker.log_histogram(1, "x", [1.0])
    tracker.log_metrics(1, {"x": 1.0})
    tracker.log_rollouts(1, [sample(images=[picture("red")])])
    tracker.flush()
    assert not (tmp_path / "tensorboard").exists() and len(list(read_rollouts(tmp_path))) == 1


def test_other_hosts_write_nothing(tmp_path):
    tracker = Tracker(tmp_path / "run", TrackingConfig(), enabled=False, resume_step=3)
    tracker.log_metrics(4, {"x": 1.0})
    tracker.log_histogram(4, "x", [1.0])
    tracker.log_rollouts(4, [sample(images=[b"not looked at"])])
    tracker.flush()
    tracker.close()
    assert not (tmp_path / "run").exists()


class FullDisk(io.FileIO):
    """A file on a disk with room for ten more bytes."""

    room = 10

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(data[: self.room])
        self.room -= written
        return written


def test_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    tracker = Tracker(tmp_path, NO_TENSORBOARD)
    tracker.log_metrics(1, {"x": 1.0})
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", lambda self, mode, buffering: FullDisk(self, mode.replace("b", "")))
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot write: No space left on device; free some space"):
            tracker.log_metrics(2, {"x": 2.0})
    assert path.read_bytes() == before


def test_full_disk_leaves_no_half_sample(tmp_path, monkeypatch):
    tracker = Tracker(tmp_path, NO_TENSORBOARD)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"step_00000001\.jsonl: .*free some space"):
        tracker.log_rollouts(1, [sample()])
    assert list((tmp_path / "rollouts").iterdir()) == []


def test_run_dir_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="run: cannot write"):
        Tracker(tmp_path / "run", TrackingConfig())


def test_read_metrics_of_no_run(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl: no metrics here"):
        read_metrics(tmp_path)


def test_metrics_are_valid_json_lines(tmp_path):
    tracker = Tracker(tmp_path, NO_TENSORBOARD)
    for step in range(3):
        tracker.log_metrics(step, {"loss/total": -0.5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": step, "loss/total": -0.5} for step in range(3)]
