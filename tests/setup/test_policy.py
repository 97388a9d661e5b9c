"""What is refused, remade or left out before a job starts."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from helpers.commands import TINY, prompt_row, write_rows

from mmeureka_jax.config.schema import Config, DataConfig, SFTConfig
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.hugging_face import read_config
from mmeureka_jax.setup import problems
from mmeureka_jax.setup.policy import check_context, open_random_model
from mmeureka_jax.setup.problems import open_checked
from mmeureka_jax.setup.random_models import write_tiny_checkpoint
from mmeureka_jax.training.job import Job, check_image_windows
from mmeureka_jax.training.measures import Measures
from mmeureka_jax.training.sft import recipe


def test_random_weights_follow_the_settings_until_there_are_checkpoints(tmp_path):
    folder = open_random_model(tmp_path, TINY)
    first = (folder / "model.safetensors").read_bytes()
    written = (folder / "config.json").stat().st_mtime_ns
    assert open_random_model(tmp_path, TINY) == folder and (folder / "config.json").stat().st_mtime_ns == written
    other = dataclasses.replace(TINY, seed=7, num_layers=1)
    open_random_model(tmp_path, other)
    second = (folder / "model.safetensors").read_bytes()
    assert len(second) < len(first)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"model.random.num_layers: 1 -> 2\n  model.random.seed: 7 -> 0"):
        open_random_model(tmp_path, TINY)
    assert open_random_model(tmp_path, other) == folder
    assert (folder / "model.safetensors").read_bytes() == second


def test_a_model_that_is_not_random_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a model that model.random did not make"):
        open_random_model(tmp_path, TINY)
    assert (tmp_path / "model" / "config.json").read_text() == "{}"


def test_solutions_are_checked_before_the_first_step(tmp_path, caplog):
    write_tiny_checkpoint(tmp_path / "model", TINY)
    processor = Processor.from_checkpoint(tmp_path / "model", prompt_style="plain", max_prompt_tokens=96)
    rows = [
        prompt_row("good", "what is 1 + 1 ?", solution="2"),
        prompt_row("none", "what is 1 + 2 ?"),
        prompt_row("long", "what is 1 + 3 ?", solution="1 + " * 50),
        prompt_row("placeholder", "what is 1 + 4 ?", solution="<|image_pad|>"),
        prompt_row("blank", "what is 1 + 5 ?", solution=" \n"),
    ]

    def check(rows):
        data = str(write_rows(tmp_path / "train.jsonl", rows))
        config = Config(data=DataConfig(train=data), sft=SFTConfig(max_response_tokens=16))
        report_file = tmp_path / "report.json"
        also_check = recipe(config).also_check
        return open_checked(
            data,
            config.data,
            processor,
            require_answer=False,
            also_check=also_check,
            report_file=report_file,
            bars=False,
        )

    assert check(rows).indices == [0]
    assert "problem 'none': no metadata" in caplog.text
    rejected = json.loads((tmp_path / "report.json").read_text())["rejected"]
    assert [(row["id"], row["row"], row["kind"]) for row in rejected] == [
        ("none", 1, "no solution"), ("long", 2, "solution over the limit"), ("placeholder", 3, "malformed solution"),
        ("blank", 4, "no solution"),
    ]  # fmt: skip
    with pytest.raises(UserError, match="no row can be used(?s:.*)over sft.max_response_tokens = 16"):
        check(rows[1:])


def test_hosts_that_see_other_rows_are_told(monkeypatch):
    other = np.zeros(2, np.uint32)
    monkeypatch.setattr(problems, "every_host", lambda own: np.stack([own, own, other]))
    with pytest.raises(UserError, match=r"data.jsonl: hosts \[2\] see other usable rows than host 0"):
        problems._check_that_hosts_agree("data.jsonl", [[0, 1], 4, "fingerprint"])
    monkeypatch.setattr(problems, "every_host", lambda own: np.stack([own, own]))
    problems._check_that_hosts_agree("data.jsonl", [[0, 1], 4, "fingerprint"])


def test_lengths_beyond_what_the_checkpoint_was_trained_on(tmp_path, caplog):
    write_tiny_checkpoint(tmp_path, TINY)
    text = dataclasses.replace(read_config(tmp_path).text, max_position_embeddings=100)
    check_context(text, 100)
    assert not caplog.records
    check_context(text, 101)
    assert "may take 101 positions, and the checkpoint was trained on 100" in caplog.text
    dynamic = dataclasses.replace(text, dynamic_rope=True)
    check_context(dynamic, 100)
    with pytest.raises(UserError, match="rope_scaling dynamic.*lower the limits"):
        check_context(dynamic, 101)


def test_too_few_image_windows_are_refused():
    check_image_windows(0, 9)
    check_image_windows(9, 9)
    with pytest.raises(UserError, match="data.max_image_windows = 8, but the pictures of a problem take 9 windows"):
        check_image_windows(8, 9)
    check_image_windows(0, 0, text_only=True)
    with pytest.raises(UserError, match="data.max_image_windows = 8, but the model reads text alone; set it to 0"):
        check_image_windows(8, 0, text_only=True)


def test_accuracy_before_training_is_not_that_of_a_checkpoint():
    class Watched(Job):
        def __init__(self):
            self.rows = {}
            self.measures = Measures(examiner=self, benchmarks=None)
            self.tracker = self
            self._stopping = False
            self.run = type("Run", (), {"step": 0})()

        def _validate(self):
            self._accuracy = 0.5
            return {"validation/accuracy": 0.5}

        def log_metrics(self, step, row):
            self.rows[step] = row

    job = Watched()
    job.validate_before_training()
    assert job.rows == {0: {"validation/accuracy": 0.5}} and job._accuracy is None
