"""The Python API: light to import, and its documented example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import TINY, environment, prompt_row, write_rows

import mmeureka_jax
from mmeureka_jax.errors import UserError
from mmeureka_jax.setup.random_models import write_tiny_checkpoint

ROOT = Path(__file__).parents[2]


def test_importing_it_imports_no_jax():
    code = "import sys; from mmeureka_jax import evaluate, load_config, sample, train; load_config(None, ['steps=2'])"
    code += "; print({'jax', 'numpy', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_its_names():
    assert set(mmeureka_jax.__all__) <= set(dir(mmeureka_jax))
    with pytest.raises(AttributeError, match="module 'mmeureka_jax' has no attribute 'evalute'"):
        _ = mmeureka_jax.evalute


def test_samples_of_questions_are_those_of_a_file_with_the_same_rows(tmp_path):
    write_tiny_checkpoint(tmp_path / "model", TINY)
    questions = ["what is 1 + 1 ?", "why ?"]
    options = {"n": 2, "max_new_tokens": 4, "seed": 3}
    rows = mmeureka_jax.sample(tmp_path / "model", questions, **options)
    assert [(row["id"], row["sample"]) for row in rows] == [("0", 0), ("0", 1), ("1", 0), ("1", 1)]
    prompts = write_rows(tmp_path / "p.jsonl", [prompt_row(str(i), text) for i, text in enumerate(questions)])
    output = tmp_path / "o.jsonl"
    assert mmeureka_jax.sample(tmp_path / "model", prompts, output, **options) == rows
    assert output.exists()
    with pytest.raises(UserError, match="prompt 1 must be text or a row {id, messages}; got int"):
        mmeureka_jax.sample(tmp_path / "model", ["what ?", 3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mmeureka_jax.sample("m", ["x"], n=0), "n must be a positive integer, at most 1048576; got '0'"),
        (lambda: mmeureka_jax.sample("m", ["x"], temperature=-1), "temperature must be 0 or a positive number"),
        (lambda: mmeureka_jax.sample("m", ["x"], max_new_tokens=2.5), "max_new_tokens must be a positive integer"),
        (lambda: mmeureka_jax.sample("m", ["x"], batch_size=0), "batch_size must be a positive integer"),
        (lambda: mmeureka_jax.evaluate("m", "d", "o", seed=-1), "seed must be 0 or a positive integer"),
        (lambda: mmeureka_jax.evaluate("m", "d", "o", top_p=float("nan")), "top_p must be a number above 0"),
        (lambda: mmeureka_jax.train("configs/smoke.yaml"), "train takes what load_config gives; got str"),
    ],
)
def test_what_the_command_refuses_is_refused_here_too(call, message):
    with pytest.raises(UserError, match=f"^{message}"):
        call()


@pytest.mark.slow
def test_the_documented_example(tmp_path):
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), flags=re.M | re.S)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    accuracy, *rows = done.stdout.splitlines()
    assert re.fullmatch(r"[01]\.\d+ of 8 problems", accuracy)
    assert len(rows) >= 4
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()
