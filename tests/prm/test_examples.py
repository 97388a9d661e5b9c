"""Rows of labels become problems; what is wrong with one is said with file, row and id."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from mmeureka_jax.config.prm import PRMConfig
from mmeureka_jax.config.schema import Config, DataConfig, RandomModelConfig
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.data.record import RowError
from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.examples import labelled_process, open_labels
from mmeureka_jax.prm.form import MarkerTokens
from mmeureka_jax.prm.growth import write_grown
from mmeureka_jax.setup.random_models import write_tiny_checkpoint

DOTS = "tfds:shapes/dots@train[:3]"
FIRST = "dots-easy-train-000000"
GOOD = {"id": FIRST, "text": "count the dots<prm>\n\nthere are 3<prm>", "labels": [0.25, 0]}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    write_tiny_checkpoint(folder / "model", RandomModelConfig(hidden_size=48, num_layers=1))
    write_grown(folder / "model", folder / "grown")
    return Processor.from_checkpoint(folder / "grown", prompt_style="plain", max_prompt_tokens=200)


def test_a_row_is_its_problem_and_the_process(processor, tmp_path):
    source = pickle.loads(pickle.dumps(open_labels(write(tmp_path / "l.jsonl", GOOD, GOOD), DOTS, DataConfig())))
    problem = source[1]
    assert problem.id == f"{FIRST}#1" and source.where(1) == f"{tmp_path / 'l.jsonl'}:2" and len(source) == 2
    user, assistant = problem.messages
    assert user == {"role": "user", "content": [{"type": "image"}]} and len(problem.images) == 1
    assert assistant["content"][0]["text"].startswith("Question: ") and problem.question == ""
    assert assistant["content"][0]["text"].endswith("\nProcess:")

    tokens, labels = labelled_process(problem, processor, Config())
    np.testing.assert_array_equal(labels, [0.25, 0])
    marker = MarkerTokens.of(processor).marker
    assert np.sum(tokens == marker) == 2 and tokens[-1] == processor.end_token_id
    assert processor.decode(tokens) == " count the dots\n\nthere are 3"
    hard = Config(prm=PRMConfig(hard_labels=True))
    np.testing.assert_array_equal(labelled_process(problem, processor, hard)[1], [1, 0])
    short = Config(prm=PRMConfig(max_process_tokens=len(tokens) - 1))
    with pytest.raises(RowError, match=f"its process has {len(tokens)} tokens, over prm.max_process_tokens"):
        labelled_process(problem, processor, short)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a <prm>", "labels": [1]}, "no `id`"),
        ({"id": FIRST, "labels": [1]}, "no `text`"),
        ({"id": FIRST, "text": "a <prm>", "labels": [1, 0]}, "1 markers <prm> in its text, and 2 labels"),
        ({"id": FIRST, "text": "a <prm>", "labels": [1.5]}, "`labels` must be numbers from 0 to 1"),
        ({"id": FIRST, "text": "a", "labels": []}, "at least one"),
    ],
)
def test_a_row_that_is_none_is_named(row, message, tmp_path):
    source = open_labels(write(tmp_path / "l.jsonl", GOOD, row), DOTS, DataConfig())
    with pytest.raises(RowError, match=f"l.jsonl:2: .*{message}"):
        source[1]


def test_labels_of_other_problems_are_refused(tmp_path):
    path = write(tmp_path / "l.jsonl", GOOD, {**GOOD, "id": "nobody"})
    with pytest.raises(UserError, match=r"does not have the problems of 1 rows of labels:\n  .*l.jsonl:2: .*'nobody'"):
        open_labels(path, DOTS, DataConfig())
    with pytest.raises(UserError, match="no such file of labels"):
        open_labels(str(tmp_path / "none.jsonl"), DOTS, DataConfig())


def test_another_special_token_in_a_process_is_refused(processor):
    problem = SimpleNamespace(id="p", metadata={"process": "a <|im_end|> b<prm>", "labels": [1.0]})
    with pytest.raises(RowError, match="its process: .*<|im_end|>"):
        labelled_process(problem, processor, Config())
