"""A small run folder as a run leaves it, for tests that spoil its files."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from mmeureka_jax.config.load import save_config
from mmeureka_jax.config.reading import to_dict
from mmeureka_jax.config.schema import Config
from mmeureka_jax.runs.metadata import write_metadata
from mmeureka_jax.runs.rollout_samples import ResponseSample, RolloutSample
from mmeureka_jax.runs.tracking import Tracker
from mmeureka_jax.training.sweep import STOPPED_FILE


def write_small_run(folder: Path) -> Path:
    config = Config(run_dir=str(folder))
    tracker = Tracker(folder, config.tracking)
    picture = io.BytesIO()
    Image.new("RGB", (60, 60), "red").save(picture, "PNG")
    response = ResponseSample("1", 0.5, {"accuracy": 1.0}, 3, "stop")
    for step in range(1, 4):
        tracker.log_metrics(step, {"reward/total": 0.5, "validation/accuracy": 0.5, "time/step": 1.0})
        tracker.log_rollouts(step, [RolloutSample("a", "?", [picture.getvalue()], "2", [response] * 2)])
    tracker.close()
    save_config(config, folder / "config.yaml")
    metadata = {"kind": "rl", "data_fingerprint": "a", "checkpoint": "b", "devices": "cpu", "packages": {"jax": "1"}}
    write_metadata(folder, metadata | {"config": to_dict(config) | {"stages": [{"steps": 1}]}})
    (folder / STOPPED_FILE).write_text('{"message": "why"}')
    return folder
