"""The command line itself: its help, its exit codes, and the demo end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import environment, mmeureka, prompt_row, read_rows, write_rows

from mmeureka_jax.data.shapes.problems import generate

ROOT = Path(__file__).parents[2]
COMMANDS = "sft train sample score eval export report demo data".split()
MODEL = ["--model", "m"]
FILES = ["--input", "p.jsonl", "--output", "o.jsonl"]


def test_every_command_has_help(capsys):
    assert mmeureka("--help") == 0
    overview = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command} " in overview
        assert mmeureka(command, "--help") == 0
        assert f"usage: mmeureka {command}" in capsys.readouterr().out


def test_help_waits_for_no_large_library():
    large = {"jax", "transformers", "grain", "tensorflow_datasets", "math_verify", "orbax", "torch", "pyarrow"}
    code = f"import sys; from mmeureka_jax.cli import build_parser; build_parser(); print({large} & sys.modules.keys())"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["trian", "x.yaml"], "invalid choice: 'trian'"),
        (["sample", *MODEL, *FILES, "--temprature", "0"], "unrecognized arguments: --temprature"),
        (["sample", *MODEL, *FILES, "--temp", "0"], "unrecognized arguments: --temp"),  # scripts outlive abbreviations
        (["sample", *FILES], "--model"),
        (
            ["sample", *MODEL, *FILES, "--seed", "2147483648"],
            "--seed: must be 0 or a positive integer below 2147483648",
        ),
        (["sample", *MODEL, *FILES, "--n", "0"], "--n: must be a positive integer, at most 1048576; got '0'"),
        *(
            (["sample", *MODEL, *FILES, option, value], f"{option}: must be {kind}")
            for value in ("1e12", "1000000000000", "9" * 5000, "nan", "-1", "0x10", "")
            for option, kind in {
                "--n": "a positive",
                "--batch-size": "a positive",
                "--max-new-tokens": "a positive",
                "--max-prompt-tokens": "a positive",
                "--max-pixels": "a positive",
                "--top-k": "0 or",
                "--seed": "0 or",
            }.items()
        ),
        *(
            (["sample", *MODEL, *FILES, option, value], f"{option}: must be ")
            for value in ("1e400", "nan", "one")
            for option in ("--temperature", "--top-p")
        ),
        (["sample", *MODEL, *FILES, "--mesh", f"1,1,{10**30}"], "--mesh: must be three sizes"),
        (
            ["sample", *MODEL, *FILES, "--n", "65536", "--batch-size", "65536"],
            "--n x --batch-size x --max-new-tokens is 4,398,046,511,104; lower them to below 2,147,483,648 together",
        ),
        (["data", "difficulty", "d", *MODEL, "--output", "o", "--n", "1e12"], "--n: must be a positive integer"),
        (
            ["data", "difficulty", "d", *MODEL, "--output", "o", "--temperature", "0"],
            "--temperature: must be a positive",
        ),
        (["data", "check", "d", "--max-pixels", "0"], "--max-pixels: must be a positive integer"),
        (["export", "r", "--output", "o", "--step", "-1"], "--step: must be a step, best or latest"),
        (["export", "r", "--output", "o", "--max-shard-gb", "1e300"], "--max-shard-gb: must be a positive number"),
        (["sample", *MODEL, *FILES, "--temperature", "-1"], "--temperature: must be 0 or a positive number"),
        (["sample", *MODEL, *FILES, "--temperature", "nan"], "--temperature: must be 0 or a positive number"),
        (["sample", *MODEL, *FILES, "--top-p", "1.5"], "--top-p: must be a number above 0 and at most 1"),
        (["score", *MODEL, *FILES, "--temperature", "0"], "--temperature: must be a positive number"),
        (["score", *MODEL, *FILES, "--mesh", "2,2"], "--mesh: must be three sizes, data,fsdp,tensor"),
        (["eval", *MODEL, "--data", "d", "--output", "o", "--accuracy", "box"], "invalid choice: 'box'"),
        (["export", "r", "--output", "o", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_what_argparse_refuses(capsys, arguments, message):
    assert mmeureka(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_mistake_is_one_message_and_no_traceback(capsys, tmp_path):
    assert mmeureka("report", tmp_path / "nowhere") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mmeureka: error: {tmp_path / 'nowhere'}: no such folder") and error.count("\n") == 1


@pytest.mark.parametrize("option", ["--num-processes", "--process-id"])
def test_a_process_of_many_needs_a_coordinator(monkeypatch, capsys, tmp_path, option):
    monkeypatch.delenv("MMEUREKA_DISTRIBUTED", raising=False)
    config = tmp_path / "run.yaml"
    config.write_text("model: {random: {}}\n")
    assert mmeureka("train", config, option, 1) == 2
    assert f"{option} needs --coordinator HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "goes_on"), [("train", True), ("report", False)])
def test_ctrl_c(monkeypatch, capsys, command, goes_on):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"mmeureka_jax.commands.{command}.run", interrupted)
    assert mmeureka(command, "x") == 130
    assert ("continues from the last checkpoint" in capsys.readouterr().err) == goes_on


def test_a_reader_that_ends_early_is_no_error(tmp_path):
    rows = [prompt_row(f"p{i}", "what is 1 + 1 ? " * 100, answer="2") for i in range(200)]  # more than a pipe holds
    data = write_rows(tmp_path / "p.jsonl", rows)
    command = [sys.executable, "-m", "mmeureka_jax.cli", "data", "show", str(data), "--rows", ":"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)


@pytest.fixture
def small_demo(tmp_path) -> list[str]:
    """Overrides that shrink the demo to seconds; its problems come from a file, so that no dataset is prepared."""
    rows = []
    for index in range(16):
        shape = generate(index, split="train", mixture=[("dots", "easy")])
        (tmp_path / f"{index}.png").write_bytes(shape.image)
        rows.append(prompt_row(shape.id, shape.question, f"{index}.png", answer=shape.answer, **shape.metadata()))
    data = write_rows(tmp_path / "shapes.jsonl", rows)
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
        "vision_hidden_size": 16, "vision_intermediate_size": 24, "vision_depth": 1, "vision_num_heads": 2,
    }  # fmt: skip
    return [
        "steps=2", f"data.train={data}", f"data.validation={data}", "sft.problems_per_step=8", "rl.group_size=2",
        "rl.prompts_per_rollout=8", "rl.prompts_per_update=8", "rl.micro_batches=1", "sft.micro_batches=1",
        "reward.workers=1",
        "sampler.max_new_tokens=8", "sampler.batch_prompts=0", "sampler.compile_ahead=false", "data.prompt_buckets=[]",
        "data.max_prompt_tokens=96", "sft.max_response_tokens=96",
        "checkpoint.every_steps=1", "tracking.validate_every=1", "tracking.validation_batch=8",
        "model.random.vision_full_attention_blocks=[0]",
        *(f"model.random.{name}={size}" for name, size in sizes.items()),
    ]  # fmt: skip


@pytest.mark.slow
def test_the_demo_ends_with_one_json_line_and_is_not_done_twice(small_demo, tmp_path):
    def run() -> dict:
        command = [sys.executable, "-m", "mmeureka_jax.cli", "demo", "--output", "demo", *small_demo]
        process = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    result = run()
    assert list(result) == ["accuracy_before", "accuracy_after", "seconds", "report", "tensorboard", "export"]
    metrics = [row for row in read_rows(tmp_path / "demo" / "rl" / "metrics.jsonl") if "validation/accuracy" in row]
    assert (metrics[0]["step"], metrics[-1]["step"]) == (0, 2)
    assert result["accuracy_before"] == metrics[0]["validation/accuracy"]
    assert result["accuracy_after"] == metrics[-1]["validation/accuracy"]
    assert Path(result["report"]) == tmp_path / "demo" / "rl" / "report.html" and Path(result["report"]).is_file()
    assert Path(result["tensorboard"]).is_absolute() and list(Path(result["tensorboard"]).glob("events*"))
    assert Path(result["export"]).is_absolute() and (Path(result["export"]) / "model.safetensors").is_file()

    exports = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.safetensors")}
    again = run()
    assert again | {"seconds": 0} == result | {"seconds": 0} and 0 < again["seconds"] < result["seconds"]
    assert {path: path.stat().st_mtime_ns for path in exports} == exports
