"""Bad input: one message that names what is wrong, exit code 2, and no half-written file.

Through the command line, on real files. A NaN loss and a corrupt checkpoint are in
`training/test_nonfinite.py` and `runs/test_checkpoint.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import TINY, environment, file_size_limit, mmeureka, prompt_row, write_rows
from PIL import Image
from safetensors.numpy import load_file, save_file

from mmeureka_jax.config.load import save_config
from mmeureka_jax.config.schema import Config, DataConfig, ModelConfig
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.setup.problems import open_checked
from mmeureka_jax.setup.random_models import write_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("shared_reward_workers")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    write_tiny_checkpoint(folder, TINY)
    return folder


@pytest.fixture
def broken(checkpoint, tmp_path) -> Path:
    """A copy of the checkpoint, to be broken."""
    return shutil.copytree(checkpoint, tmp_path / "broken")


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """Rows that are right."""
    Image.new("RGB", (112, 112), (200, 30, 30)).save(tmp_path / "red.png")
    return [
        prompt_row("text", "what is 1 + 1 ?", answer="2"),
        prompt_row("picture", "how many dots ?", "red.png", answer="0"),
    ]


@pytest.fixture
def sample_fails(tmp_path, capsys) -> Callable[..., str]:
    """Runs `mmeureka sample`, which has to fail before anything is sampled, and gives the message."""

    def run(model: Path, rows: list[dict] | str, *arguments: object) -> str:
        prompts = tmp_path / "p.jsonl"
        if isinstance(rows, str):
            prompts.write_text(rows)
        else:
            write_rows(prompts, rows)
        folder = tmp_path / "samples"
        arguments = ("--output", folder / "o.jsonl", "--max-new-tokens", 4, *arguments)
        assert mmeureka("sample", "--model", model, "--input", prompts, *arguments) == 2
        assert not folder.exists() or list(folder.iterdir()) == []
        return one_message(capsys)

    return run


@pytest.fixture
def train_fails(checkpoint, tmp_path, capsys) -> Callable[..., str]:
    """Runs `mmeureka train`, which has to fail before step 0, and gives the message."""

    def run(rows: list[dict] | str, *overrides: str, config: str = "") -> str:
        data = tmp_path / "train.jsonl"
        yaml = tmp_path / "run.yaml"
        run_dir = tmp_path / "run"
        if isinstance(rows, str):
            data.write_text(rows)
        else:
            write_rows(data, rows)
        settings = [f"run_dir={run_dir}", f"data.train={data}", f"model.checkpoint={checkpoint}"]
        settings += ["rl.prompts_per_rollout=8", "rl.prompts_per_update=8", "sampler.max_new_tokens=4"]
        settings += ["sampler.compile_ahead=false"]
        yaml.write_text(config)
        assert mmeureka("train", yaml, *settings, *overrides) == 2
        assert not (run_dir / "metrics.jsonl").exists()
        assert not list(run_dir.glob("checkpoints/*")) and not list(run_dir.rglob("*.tmp"))
        return one_message(capsys)

    return run


def one_message(capsys) -> str:
    error = capsys.readouterr().err
    assert error.count("mmeureka: error: ") == 1 and "Traceback" not in error
    return error.partition("mmeureka: error: ")[2]


# Configuration.


def test_unknown_config_key(train_fails, rows):
    message = train_fails(rows, "rl.drift_coeficient=0.1", "samplr.top_p=0.9", config="steps: 3\nrl:\n  los: cpgd\n")
    assert "run.yaml:3: unknown key 'rl.los'; the nearest key is 'rl.loss'" in message
    assert "unknown key 'rl.drift_coeficient'; the nearest key is 'rl.drift_coefficient'" in message
    assert "the nearest key is 'sampler.top_p'" in message or "the nearest key is 'sampler'" in message


def test_wrong_value(train_fails, rows):
    message = train_fails(rows, "rl.kl_place=los", "steps=many")
    assert "rl.kl_place must be one of loss, reward; got 'los' (did you mean loss?)" in message
    assert "steps must be an integer; got 'many'" in message


# Checkpoints.


def test_missing_checkpoint(sample_fails, rows, tmp_path):
    assert f"{tmp_path / 'nowhere'}: no such folder" in sample_fails(tmp_path / "nowhere", rows)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_missing_model_file(sample_fails, rows, broken, name):
    (broken / name).unlink()
    message = sample_fails(broken, rows)
    assert str(broken) in message and (name.partition(".")[0].partition("_")[0] in message)


def test_missing_and_misshapen_tensors_are_all_listed(sample_fails, rows, broken):
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["visual.merger.ln_q.weight"]
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].copy()
    tensors["model.layers.0.self_attn.q_proj.weight"] = tensors["model.layers.0.self_attn.q_proj.weight"].T[:5].copy()
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    message = sample_fails(broken, rows)
    assert f"{broken}: 4 tensors do not agree with its config.json" in message
    assert "model.layers.1.mlp.up_proj.weight: missing (expected shape [48, 32])" in message
    assert "visual.merger.ln_q.weight: missing (expected shape [16])" in message
    assert "model.norm.weight: shape [31], expected [32]" in message
    assert "model.layers.0.self_attn.q_proj.weight: shape [5, 32], expected [32, 32]" in message


def test_training_refuses_a_wrong_checkpoint_too(train_fails, rows, broken):
    tensors = load_file(broken / "model.safetensors")
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"][1:].copy()}, broken / "model.safetensors")
    assert "model.norm.weight: shape [31], expected [32]" in train_fails(rows, f"model.checkpoint={broken}")


def test_truncated_weights(sample_fails, rows, broken):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert f"{file}: truncated" in sample_fails(broken, rows)


def test_unsupported_family(sample_fails, rows, broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "llava_next"}))
    message = sample_fails(broken, rows)
    assert str(broken / "config.json") in message and "'llava_next'" in message and "Qwen2.5-VL" in message


# Pictures.


def bomb(path: Path) -> None:
    """A PNG of 56 bytes that claims 60000 x 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.fixture
def bad_pictures(tmp_path) -> list[dict]:
    """A row for each way in which a picture can be unusable."""
    noise = Image.effect_noise((112, 112), 90).convert("RGB")
    noise.save(tmp_path / "whole.jpg")
    (tmp_path / "truncated.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-600])
    bomb(tmp_path / "bomb.png")
    (tmp_path / "words.png").write_text("not a picture")
    names = ["missing.png", "truncated.jpg", "bomb.png", "words.png"]
    return [prompt_row(Path(name).stem, "what is this ?", name, answer="1") for name in names]


def test_unusable_pictures_are_all_named(sample_fails, checkpoint, rows, bad_pictures, tmp_path):
    message = sample_fails(checkpoint, [*rows, *bad_pictures])
    assert "4 of 6 rows cannot be used" in message
    for name, reason in (
        ("missing.png", "no such file"),
        ("truncated.jpg", "not a readable picture"),
        ("bomb.png", "too large"),
        ("words.png", "not a readable picture"),
    ):
        (line,) = [line for line in message.splitlines() if name in line]
        assert reason in line and f"problem '{Path(name).stem}'" in line and f"{tmp_path / 'p.jsonl'}:" in line


def test_training_on_unusable_pictures_alone(train_fails, bad_pictures):
    message = train_fails(bad_pictures)
    assert "no row can be used" in message
    assert all(f"problem '{row['id']}'" in message for row in bad_pictures)


@pytest.fixture
def outside(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    Image.new("RGB", (56, 56)).save(folder / "secret.png")
    return folder


def test_image_outside_the_root(sample_fails, checkpoint, outside, tmp_path):
    (tmp_path / "link.png").symlink_to(outside / "secret.png")
    climbing = os.path.relpath(outside / "secret.png", tmp_path)
    paths = {"absolute": str(outside / "secret.png"), "climbing": climbing, "link": "link.png", "url": "http://x/y.png"}
    message = sample_fails(checkpoint, [prompt_row(name, "?", path) for name, path in paths.items()])
    assert "4 of 4 rows cannot be used" in message
    for name in paths:
        (line,) = [line for line in message.splitlines() if f"problem '{name}'" in line]
        assert f"lies outside the data root {tmp_path}" in line or name == "url"


@pytest.mark.slow
def test_another_image_root_is_allowed_when_it_is_named(checkpoint, outside, tmp_path):
    rows = [prompt_row("relative", "?", "secret.png"), prompt_row("absolute", "?", str(outside / "secret.png"))]
    prompts = write_rows(tmp_path / "p.jsonl", rows)
    output = tmp_path / "o.jsonl"
    arguments = ["--image-root", outside, "--max-new-tokens", 2, "--temperature", 0]
    assert mmeureka("sample", "--model", checkpoint, "--input", prompts, "--output", output, *arguments) == 0
    relative, absolute = map(json.loads, output.read_text().splitlines())
    assert relative["tokens"] == absolute["tokens"]


def test_training_refuses_images_outside_the_root_unless_told(train_fails, outside, tmp_path):
    row = prompt_row("one", "what is this ?", str(outside / "secret.png"), answer="1")
    assert f"lies outside the data root {tmp_path}" in train_fails([row])
    # Told so, it continues to the next mistake.
    assert "outside the data root" not in train_fails([row], "data.allow_outside_root=true", "data.max_prompt_tokens=4")


# Rows.


def test_malformed_json(sample_fails, train_fails, checkpoint, rows, tmp_path):
    text = json.dumps(rows[0]) + '\n{"id": "two", "messages": [}\n' + json.dumps(rows[1]) + "\n"
    message = sample_fails(checkpoint, text)
    assert f"{tmp_path / 'p.jsonl'}:2: " in message and "JSON" in message
    message = train_fails('{"id": "one", "question": }\n')
    assert f"{tmp_path / 'train.jsonl'}:1: " in message and "JSON" in message


def test_rows_of_no_known_form(sample_fails, checkpoint):
    message = sample_fails(checkpoint, [{"id": "one", "text": "what is 1 + 1 ?"}])
    assert "p.jsonl:1: keys id, text fit no known form of rows" in message


def test_an_id_that_repeats_cannot_be_sampled(sample_fails, checkpoint, rows):
    message = sample_fails(checkpoint, [rows[0], rows[0]])
    assert "problem 'text': row 0 has the same id" in message


def test_rows_without_a_response_cannot_be_scored(checkpoint, rows, tmp_path, capsys):
    rows = [rows[0] | {"response": "2"}, rows[1], rows[0] | {"id": "number", "response": 2}]
    prompts = write_rows(tmp_path / "p.jsonl", rows)
    assert mmeureka("score", "--model", checkpoint, "--input", prompts, "--output", tmp_path / "o.jsonl") == 2
    message = one_message(capsys)
    assert "2 of 3 rows" in message and "problem 'picture': no `response`" in message and "'number'" in message
    assert not (tmp_path / "o.jsonl").exists()


def test_a_missing_input_file(sample_fails, checkpoint, rows, tmp_path):
    assert "nothing.jsonl: no such file" in sample_fails(checkpoint, rows, "--input", tmp_path / "nothing.jsonl")


def test_gold_answers_that_do_not_parse(train_fails, checkpoint, rows, tmp_path, caplog):
    """A data set of nothing else is refused; of others they are dropped, by id and with the reason."""
    bad = [prompt_row(f"bad {i}", "why ?", answer=gold) for i, gold in enumerate(["$\\frac{1$", " ", "$\\sqrt{$"])]
    message = train_fails(bad)
    assert "no row can be used" in message and all(f"problem 'bad {i}': the gold answer" in message for i in range(3))

    data = str(write_rows(tmp_path / "mixed.jsonl", [rows[0], bad[0], rows[1]]))
    processor = Processor.from_checkpoint(checkpoint, prompt_style="plain", max_prompt_tokens=96)
    problems = open_checked(data, DataConfig(), processor, report_file=tmp_path / "report.json", bars=False)
    assert [problems.source[index].id for index in problems.indices] == ["text", "picture"]
    assert "problem 'bad 0': the gold answer" in caplog.text
    (rejected,) = json.loads((tmp_path / "report.json").read_text())["rejected"]
    assert (rejected["id"], rejected["kind"]) == ("bad 0", "gold answer does not parse")


def test_prompt_over_the_limit(sample_fails, train_fails, checkpoint, rows):
    long = prompt_row("long", "what is " + "1 + " * 100 + "1 ?", answer="101")
    message = sample_fails(checkpoint, [*rows, long], "--max-prompt-tokens", 96)
    assert "1 of 3 rows" in message and "problem 'long': its prompt has" in message
    assert "over max_prompt_tokens = 96" in message
    assert "over max_prompt_tokens = 96" in train_fails([long], "data.max_prompt_tokens=96")


# Meshes (the tests see eight devices).


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("mesh.fsdp=3",), "(data, fsdp, context, tensor) = (1, 3, 1, 1) does not divide the 8 devices"),
        (("mesh.fsdp=2", "mesh.tensor=4"), "mesh.tensor = 4 does not divide the model's 2 query heads"),
        (("sampler.batch_prompts=7", "rl.group_size=6"), "7 prompts in a sampler call, with 6 responses to each"),
        (("mesh.data=-1", "mesh.fsdp=-1"), "one of them may be -1"),
    ],
)
def test_mesh_that_does_not_divide(train_fails, rows, overrides, message):
    assert message in train_fails(rows, *overrides)


def test_mesh_that_does_not_divide_a_parameter(sample_fails, rows, tmp_path):
    from dataclasses import replace

    write_tiny_checkpoint(tmp_path / "odd", replace(TINY, hidden_size=36, num_heads=2))
    message = sample_fails(tmp_path / "odd", rows, "--mesh", "1,8,1")
    assert "cannot be sharded" in message and "language/embed_tokens/embedding" in message and "36" in message


# Places that cannot be written.


def test_output_that_cannot_be_written_is_found_before_sampling(checkpoint, rows, tmp_path, capsys):
    prompts = write_rows(tmp_path / "p.jsonl", rows)
    (tmp_path / "file").write_text("")
    for output, reason in ((tmp_path, "it is a folder"), (tmp_path / "file" / "o.jsonl", "cannot write")):
        assert mmeureka("sample", "--model", checkpoint, "--input", prompts, "--output", output) == 2
        message = one_message(capsys)
        assert str(output) in message and reason in message


@pytest.mark.slow
def test_disk_that_fills_while_sampling(checkpoint, rows, tmp_path, capsys):
    """The rows that an earlier command wrote there stay."""
    prompts = write_rows(tmp_path / "p.jsonl", rows)
    output = tmp_path / "samples" / "o.jsonl"
    output.parent.mkdir()
    output.write_text("earlier")
    arguments = ["--output", output, "--n", 8, "--max-new-tokens", 32]
    with file_size_limit(8192):
        assert mmeureka("sample", "--model", checkpoint, "--input", prompts, *arguments) == 2
    message = one_message(capsys)
    assert f"{output}: cannot write: File too large" in message
    assert [path.name for path in output.parent.iterdir()] == ["o.jsonl"] and output.read_text() == "earlier"


@pytest.mark.slow
def test_disk_that_fills_while_training(checkpoint, rows, tmp_path):
    """On a real full disk where this process may mount one: the run ends with a message and what it had saved."""
    rows = [row | {"id": f"{row['id']} {i}"} for row in rows for i in range(4)]
    data = write_rows(tmp_path / "train.jsonl", rows)
    disk = tmp_path / "disk"
    yaml = tmp_path / "run.yaml"
    disk.mkdir()
    config = Config(
        run_dir=str(disk / "run"),
        steps=8,
        model=ModelConfig(checkpoint=str(checkpoint)),
        data=DataConfig(train=str(data), root=str(tmp_path), prompt_style="plain", max_prompt_tokens=96),
    )
    save_config(config, yaml)
    overrides = "rl.prompts_per_rollout=8 rl.prompts_per_update=8 rl.group_size=2 rl.filter.enabled=false"
    overrides += " sampler.max_new_tokens=4 optimizer.frozen=[] checkpoint.every_steps=1 checkpoint.keep=8"
    overrides += " rl.packing=0 reward.workers=1 sampler.compile_ahead=false"
    train = f"{sys.executable} -m mmeureka_jax.cli train {yaml} {overrides}"
    script = f"mount -t tmpfs -o size=1500k none {disk} && {train}; code=$?; ls {disk}/run/checkpoints; exit $code"
    # A disk of its own that fills up needs a mount, which some containers and hardened kernels refuse to users.
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", disk], capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    command = ["unshare", "-rm", "bash", "-c", script]
    process = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert process.returncode == 2, process.stderr
    *_, message = process.stderr.splitlines()
    assert message.startswith("mmeureka: error: ") and str(disk) in message and "No space left" in message
    assert "Traceback" not in process.stderr and "Warning" not in process.stderr, process.stderr
    saved = process.stdout.split()  # and nothing that was begun and not finished
    assert 1 <= len(saved) < 8 and saved == [str(step + 1) for step in range(len(saved))]
