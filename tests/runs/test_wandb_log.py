"""Weights & Biases: what is handed to the package, that a resumed run is the same run there, and that its failures end
nothing. A stand-in has the calls of the package; where that is installed, a run without network uses it."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from mmeureka_jax.config.schema import TrackingConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.runs.rollout_samples import ResponseSample, RolloutSample
from mmeureka_jax.runs.tracking import Tracker, read_metrics
from mmeureka_jax.runs.wandb_log import import_wandb

CONFIG = TrackingConfig(tensorboard=False, wandb="project")


class StandIn:
    """The calls that are made to the package; those whose names are in `failing` raise."""

    def __init__(self) -> None:
        self.runs: list[dict] = []
        self.logged: list[dict] = []
        self.finished: list[int] = []
        self.failing: set[str] = set()

    def _called(self, name: str) -> None:
        if name in self.failing:
            raise ConnectionError(f"{name}: no network\nand more")

    def init(self, **arguments):
        self._called("init")
        self.runs.append(arguments)
        return self

    def Settings(self, **settings):
        return settings

    def Image(self, picture):
        return picture.size

    def Table(self, columns):
        table = SimpleNamespace(columns=columns, rows=[])
        table.add_data = lambda *cells: table.rows.append(dict(zip(columns, cells, strict=True)))
        return table

    def define_metric(self, name, step_metric=None):
        pass

    def log(self, row):
        self._called("log")
        self.logged.append(row)

    def finish(self, exit_code):
        self._called("finish")
        self.finished.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def sample() -> RolloutSample:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, "PNG")
    responses = [
        ResponseSample(text="5", reward=1.5, parts={"accuracy": 1.0}, length=3, finish_reason="stop"),
        ResponseSample(text="6", reward=0.0, parts={"accuracy": 0.0}, length=4, finish_reason="length"),
    ]
    return RolloutSample("dots-1", "How many?", [buffer.getvalue()], "5", responses)


def test_metrics_config_and_rollouts_are_sent(wandb, tmp_path):
    tracker = Tracker(tmp_path / "run", CONFIG, settings={"steps": 3})
    tracker.log_metrics(1, {"reward/total": 0.5})
    tracker.log_rollouts(1, [sample()])
    tracker.close()
    (started,) = wandb.runs
    assert (started["project"], started["name"], started["config"]) == ("project", "run", {"steps": 3})
    metrics, rollouts = wandb.logged
    assert metrics == {"step": 1, "reward/total": 0.5}
    assert rollouts["step"] == 1 and [row["response"] for row in rollouts["rollouts"].rows] == ["5", "6"]
    assert rollouts["rollouts"].rows[0]["pictures"] == [(20, 10)]
    assert wandb.finished == [0]
    assert started["settings"] == {"console": "off", "finish_timeout": 300}


@pytest.mark.parametrize("config", [TrackingConfig(tensorboard=False), TrackingConfig(tensorboard=False, wandb="")])
def test_without_the_key_nothing_is_sent(wandb, tmp_path, config):
    tracker = Tracker(tmp_path, config)
    tracker.log_metrics(1, {"x": 1.0})
    tracker.close()
    assert wandb.runs == wandb.logged == [] and not (tmp_path / "wandb.json").exists()


def test_other_processes_send_nothing(wandb, tmp_path):
    Tracker(tmp_path, CONFIG, enabled=False).log_metrics(1, {"x": 1.0})
    assert wandb.runs == wandb.logged == []


def started_ids(wandb, run_dir, *resume_steps, project="project") -> list[str]:
    for step in resume_steps:
        Tracker(run_dir, TrackingConfig(tensorboard=False, wandb=project), resume_step=step).close()
    return [run["id"] for run in wandb.runs]


def test_a_resumed_run_is_the_same_there(wandb, tmp_path):
    first, resumed, anew = started_ids(wandb, tmp_path, None, 3, 0)
    assert first == resumed != anew
    assert {run["resume"] for run in wandb.runs} == {"allow"}
    assert started_ids(wandb, tmp_path, 3, project="another")[-1] not in (first, anew)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"project": "project", "id": 5}', "[" * 9999, "\udcff"])
def test_a_damaged_id_is_a_new_run_there(wandb, tmp_path, content):
    (tmp_path / "wandb.json").write_bytes(content.encode(errors="surrogateescape"))
    (run_id,) = started_ids(wandb, tmp_path, 3)
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"project": "project", "id": run_id}


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_its_failures_end_no_run_and_are_said_once(wandb, tmp_path, caplog, failing):
    wandb.failing = {failing}
    tracker = Tracker(tmp_path, CONFIG)
    for step in (1, 2):
        tracker.log_metrics(step, {"x": 1.0})
        tracker.log_rollouts(step, [sample()])
    tracker.close()
    assert len(read_metrics(tmp_path)) == 2
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"Weights & Biases: ConnectionError: {failing}: no network; the run continues without it" in message


def test_a_run_that_fails_is_marked_so(wandb, tmp_path):
    tracker = Tracker(tmp_path, CONFIG)
    try:
        raise ValueError
    except ValueError:
        tracker.close()
    assert wandb.finished == [1]


def test_a_missing_package_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"the package wandb is not installed: pip install 'mmeureka_jax\[wandb\]'"):
        import_wandb()
    (tmp_path / "wandb").mkdir()  # what the package leaves behind can be imported, and is not the package
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="not installed"):
        import_wandb()


@pytest.mark.slow
def test_offline_with_the_package_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (None, 1):
        tracker = Tracker(tmp_path, CONFIG, resume_step=step, settings={"steps": 3})
        tracker.log_metrics((step or 0) + 1, {"x": 1.0})
        tracker.log_rollouts((step or 0) + 1, [sample()])
        tracker.close()
    # Folders are called offline-run-SECOND-ID, and where both begin in one second the other one ID-1.
    names = {folder.name.split("-")[3] for folder in (tmp_path / "wandb").glob("offline-run-*")}
    assert names == {json.loads((tmp_path / "wandb.json").read_text())["id"]}
