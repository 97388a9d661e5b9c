"""Files of run and checkpoint folders that are not what they should be: exit code 2 and one message that names the
file, never a traceback, a wait without end or memory taken by a number that a file holds."""

from __future__ import annotations

import base64
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import SMALL, mmeureka, prompt_row, write_rows
from helpers.odd_runs import write_small_run
from PIL import Image

from mmeureka_jax.data import chat_template
from mmeureka_jax.errors import UserError
from mmeureka_jax.runs.provenance import PROVENANCE_FILE
from mmeureka_jax.runs.tracking import read_rollouts
from mmeureka_jax.setup.random_models import write_tiny_checkpoint
from mmeureka_jax.training.sweep import STOPPED_FILE, load_sweep, state

NOT_JSON: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe{\0}\0", "cannot be read as JSON"),
    (b"", "cannot be read as JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested more than 64 levels"),
    (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
    (b"[]", "holds a list, expected a JSON object"),
    (b"null", "holds null, expected a JSON object"),
    (b'"a"', "holds text, expected a JSON object"),
    (b"3", "holds a number, expected a JSON object"),
)
METADATA = {"kind": "rl", "data_fingerprint": "a", "checkpoint": "b", "devices": "c", "packages": {}}


def message_of(capsys, *arguments: object) -> str:
    assert mmeureka(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("mmeureka: error: ") == 1 and "Traceback" not in error
    return error.partition("mmeureka: error: ")[2]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def run(whole_run, tmp_path) -> Path:
    return shutil.copytree(whole_run, tmp_path / "run")


@pytest.mark.parametrize(("content", "words"), NOT_JSON, ids=lambda value: str(value)[:20])
def test_metadata_that_is_no_object(run, capsys, content, words):
    (run / "metadata.json").write_bytes(content)
    for arguments in (["report", run], ["compare", run, "--output", run / "c"], ["export", run, "--output", run / "e"]):
        message = message_of(capsys, *arguments)
        assert message.startswith(f"{run / 'metadata.json'}: ") and words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "'config' is missing"),
        ({"config": []}, "'config' holds a list, expected an object"),
        ({"config": {"steps": "many"}}, "config: steps must be an integer; got 'many'"),
        ({"config": {"steps": 10**400}}, "steps must be at most 2,147,483,647; got a number of"),
        ({"config": {"rl": {"group_size": 10**12}}}, "rl.group_size must be at most"),
        ({"config": {"optimizer": {"learning_rate": float("nan")}}}, "optimizer.learning_rate must be finite"),
        ({"config": {"rl": 3}}, "rl must be a section"),
        ({"config": {"model": {"lora": {"targets": ["("]}}}}, "model.lora.targets: '(' is no regular expression"),
        ({"config": {"model": {"lora": {"alpha": 10**400}}}}, "model.lora.alpha must be a number"),
        ({"config": {"run_dir": "\0"}}, "run_dir must be text"),
        ({"config": {}, "kind": 3}, "'kind' holds a number, expected text"),
        ({"config": {}, "checkpoint": []}, "'checkpoint' holds a list, expected text"),
        ({"config": {}, "packages": True}, "'packages' holds true or false, expected an object"),
        ({"config": {}, "adapters_fingerprint": {}}, "'adapters_fingerprint' holds an object, expected text or null"),
    ],
)
def test_metadata_of_other_types(run, capsys, content, words):
    (run / "metadata.json").write_text(json.dumps(METADATA | content))
    for arguments in (["compare", run, "--output", run / "c"], ["export", run, "--output", run / "e"]):
        message = message_of(capsys, *arguments)
        assert str(run / "metadata.json") in message and words in message


def test_metadata_of_other_versions_is_read(run, tmp_path):
    (run / "metadata.json").write_text('{"config": {"steps": 3, "of_another": {"version": 1}}, "more": 1}')
    assert mmeureka("compare", run, "--output", tmp_path / "c") == 0


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"[]", b"3", b"{}", b'{"step": true}', b'{"step": 1.5}', b'{"step": -1}', b'{"step": 1e400}',
     b'{"step": ' + b"9" * 400 + b"}", b'{"step": 1, "a": "b"}', b'{"step": 1, "a": null}', b'{"step": 1, "a": [1]}',
     b'{"step": 1, "a": ' + b"9" * 400 + b"}", b'{"step": ' + b"[" * 100_000],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_metrics_that_are_no_rows(run, capsys, line):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n" + b'{"step": 9}\n')
    for arguments in (["report", run], ["compare", run, "--output", run / "c"]):
        assert f"{run / 'metrics.jsonl'}:4: not a metrics row" in message_of(capsys, *arguments)


GROUP = {"step": 1, "problem_id": "a", "question": "?", "answer": "2", "images": [], "responses": []}
RESPONSE = {"text": "1", "reward": 1.0, "parts": {"accuracy": 1.0}, "length": 3, "finish_reason": "stop"}


@pytest.mark.parametrize(
    "row",
    [[], 3, {}, {"step": 1}, GROUP | {"images": "a"}, GROUP | {"images": [3]}, GROUP | {"responses": {}},
     GROUP | {"responses": [3]},
     *(GROUP | {"responses": [RESPONSE | {key: value}]} for key, value in {
         "text": None, "reward": "1", "parts": [], "length": None, "finish_reason": 3}.items()),
     GROUP | {"responses": [RESPONSE | {"parts": {"accuracy": "1"}}]},
     GROUP | {"responses": [RESPONSE | {"reward": 10**400}]}],
    ids=lambda value: str(value)[-60:],
)  # fmt: skip
def test_rollouts_that_are_no_groups(run, row):
    path = run / "rollouts" / "step_00000001.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="not a logged group") as error:
        list(read_rollouts(run))
    assert str(error.value).startswith(f"{path}:1: ")


def test_a_report_of_rollouts_that_are_no_groups(run, capsys):
    (run / "rollouts" / "step_00000001.jsonl").write_text("[]\n")
    assert "step_00000001.jsonl:1: not a logged group" in message_of(capsys, "report", run)


def test_the_report_holds_what_is_the_runs_own(run, tmp_path):
    """Neither pictures that a rollouts file names elsewhere, nor files in its folder that the run did not write."""
    secret = tmp_path / "secret.png"
    Image.effect_noise((40, 40), 90).convert("RGB").save(secret)
    images = run / "rollouts" / "images"
    (images / "link.png").symlink_to(secret)
    shutil.copy(secret, images / "own.png")
    Image.new("RGB", (60, 60), "blue").save(secret)
    names = [
        "../../secret.png",
        "images/../../../secret.png",
        str(secret),
        "images/link.png",
        "secret.png",
        "images",
        "",
    ]
    names += ["images/\0.png", f"images/{'a' * 300}.png", "images/own.png", "images/gone.png"]
    path = run / "rollouts" / "step_00000001.jsonl"
    path.write_text(json.dumps(GROUP | {"images": names}) + "\n")
    for foreign in ("step_1x.jsonl", "step_99999999999999999999.jsonl", "step_0.jsonl", "notes.jsonl"):
        (run / "rollouts" / foreign).write_text("not mine\n")
    (run / "rollouts" / "step_00000007.jsonl").mkdir()
    os.mkfifo(run / "rollouts" / "step_00000008.jsonl")
    assert mmeureka("report", run) == 0
    page = (run / "report.html").read_text()
    assert base64.b64encode(secret.read_bytes()).decode() not in page
    assert page.count(": not a picture of this run") == 9 and page.count("gone.png: cannot be read") == 1
    first = page[page.index("First logged step") : page.index("Last logged step")]
    assert first.count("data:image/") == 1 and "not mine" not in page


def test_a_folder_of_pictures_that_leads_elsewhere(run, tmp_path):
    (run / "rollouts" / "images").rename(tmp_path / "elsewhere")
    (run / "rollouts" / "images").symlink_to(tmp_path / "elsewhere")
    assert mmeureka("report", run) == 0
    assert "data:image/" not in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "a config file holds `key: value` lines"),
        ("rl: 3", "rl must be a section"),
        ("steps: many", "steps must be an integer"),
        ("run_dir: !!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system is not read"),
        ("a: &a [*a]", "more than 20 levels deep"),
        ("\ufffe", "not valid YAML"),
    ],
)
def test_a_runs_config_that_is_none(run, capsys, text, words):
    (run / "config.yaml").write_text(text)
    message = message_of(capsys, "report", run)
    assert str(run / "config.yaml") in message and words in message


@pytest.mark.parametrize(("content", "words"), [*NOT_JSON, (b'{"message": 3}', "'message' holds a number")])
def test_a_sweeps_note_of_why_a_run_stopped(tmp_path, content, words):
    (tmp_path / "sweep.yaml").write_text(
        f"config: {Path(__file__).parents[1] / 'configs' / 'smoke.yaml'}\nfolder: {tmp_path / 'out'}\n"
    )
    (member,) = load_sweep(tmp_path / "sweep.yaml").members
    from mmeureka_jax.config.reading import to_dict
    from mmeureka_jax.runs.metadata import write_metadata

    member.folder.mkdir(parents=True)
    write_metadata(member.folder, METADATA | {"config": to_dict(member.config)})
    (member.folder / STOPPED_FILE).write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        state(member)
    assert str(member.folder / STOPPED_FILE) in str(error.value)


# Checkpoint folders, through `data check --model`, which reads all but the weights.


@pytest.fixture(scope="module")
def whole_checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for family in ("qwen2_5_vl", "internvl"):
        write_tiny_checkpoint(folder / family, replace(SMALL, family=family))
    write_rows(folder / "rows.jsonl", [prompt_row("a", "what is 1 + 1 ?", answer="2")])
    return folder


@pytest.fixture
def check(whole_checkpoints, tmp_path, capsys):
    """The message of a check with a checkpoint of which one file is another."""

    def check(file: str, content: Any, family: str = "qwen2_5_vl") -> str:
        folder = shutil.copytree(whole_checkpoints / family, tmp_path / family, dirs_exist_ok=True)
        if isinstance(content, dict):
            content = json.dumps(json.loads((folder / file).read_text()) | content)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        arguments = ["data", "check", whole_checkpoints / "rows.jsonl", "--model", folder, "--headers-only"]
        message = message_of(capsys, *arguments)
        assert str(folder) in message
        return message

    return check


FILES = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("file", FILES)
def test_checkpoint_files_that_are_no_object(check, file):
    for content, words in NOT_JSON[:4] + NOT_JSON[5:6]:
        message = check(file, content)
        assert f"/{file}: " in message and words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model_type": []}, "model_type is []"),
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1000000000, expected an integer of at most 1000"),
        ({"num_hidden_layers": 1.0}, "'num_hidden_layers' is 1.0, expected an integer"),
        ({"vocab_size": 10**400}, "'vocab_size' is 1000"),
        ({"hidden_size": True}, "'hidden_size' is True, expected an integer"),
        ({"hidden_size": -32}, "a size is not positive"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' is nan"),
        ({"rope_scaling": []}, "'rope_scaling' is [], expected an object"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [-8, 8, 8]}}, "mrope_section"),
        ({"text_config": 3}, "'text_config' is 3, expected an object"),
        ({"vision_config": []}, "no settings of a vision tower"),
        ({"layer_types": 3, "text_config": {}}, "not what such a file holds (TypeError"),
        ({"image_token_id": -1}, "image_token_id -1 is outside the vocabulary"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_configs_of_other_types_and_sizes(check, content, words):
    assert words in check("config.json", content)


@pytest.mark.parametrize("value", [10**12, -2, {}, [], ["a"], [10**12], True, 1.5, "2"])
def test_end_tokens_that_are_no_tokens(check, value):
    assert "must be token ids" in check("generation_config.json", {"eos_token_id": value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("window_size", 10**9), ("patch_size", 10**9), ("in_channels", 10**6), ("depth", 10**9), ("spatial_merge_size", 0),
     ("temporal_patch_size", "2"), ("fullatt_block_indexes", [10**9]), ("num_heads", 0), ("window_size", 28 * 10**6)],
)  # fmt: skip
def test_sizes_of_the_tower(check, whole_checkpoints, key, value):
    vision = json.loads((whole_checkpoints / "qwen2_5_vl" / "config.json").read_text())["vision_config"]
    check("config.json", {"vision_config": vision | {key: value}})


@pytest.mark.parametrize(
    ("content", "family"),
    [
        ({"image_mean": "a"}, "qwen2_5_vl"),
        ({"image_std": [0, 0, 0]}, "qwen2_5_vl"),
        ({"image_std": [1, 2]}, "qwen2_5_vl"),
        ({"rescale_factor": None}, "qwen2_5_vl"),
        ({"rescale_factor": 10**400}, "qwen2_5_vl"),
        ({"resample": 99}, "qwen2_5_vl"),
        ({"resample": []}, "qwen2_5_vl"),
        ({"patch_size": "14"}, "qwen2_5_vl"),
        ({"max_patches": 10**9}, "internvl"),
        ({"max_patches": "12"}, "internvl"),
        ({"size": []}, "internvl"),
        ({"image_mean": {}}, "internvl"),
    ],
)
def test_settings_of_the_image_processor(check, content, family):
    assert "/preprocessor_config.json: " in check("preprocessor_config.json", content, family)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% generation %}{{ 'x' * 100 }}{% endgeneration %}{% endfor %}",
        "{{ 'a' * 10 ** 11 }}",
        "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(40) }}",
        "{{ raise_exception('not for you') }}",
        "{% for %}",
        "{{ messages.nothing.at.all }}",
        "{{ (" * 200,
        b"\xff\xfe",
    ],
    ids=lambda value: str(value)[:30],
)
def test_chat_templates_that_do_not_end_or_fail(check, monkeypatch, template):
    monkeypatch.setattr(chat_template, "_SECONDS", 1)
    message = check("chat_template.jinja", template)
    assert "chat template" in message or "tokenizer cannot be loaded" in message


@pytest.mark.parametrize("template", ["", "always the same", "{{ messages[0].role }}"])
def test_chat_templates_without_the_question(check, template):
    assert "its chat template leaves the question out" in check("chat_template.jinja", template)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "holds a list, expected a JSON object"),
        (b'{"max_new_tokens": 1e12}', "sampler.max_new_tokens must be at most 1,048,576"),
        (b'{"max_new_tokens": "8"}', "sampler.max_new_tokens must be an integer"),
        (b'{"prompt_style": "mine"}', "data.prompt_style must be one of"),
        (b'{"accuracy": []}', "reward.accuracy must be one of"),
        (b'{"min_pixels": 9, "max_pixels": 3}', "data.min_pixels (9) must not exceed data.max_pixels (3)"),
        (b'{"lora_base_dtype": 3}', "model.lora.base_dtype must be one of"),
    ],
)
def test_the_note_of_an_export(whole_checkpoints, tmp_path, capsys, content, words):
    folder = shutil.copytree(whole_checkpoints / "qwen2_5_vl", tmp_path / "model")
    (folder / PROVENANCE_FILE).write_bytes(content)
    arguments = ["--data", whole_checkpoints / "rows.jsonl", "--output", tmp_path / "results"]
    message = message_of(capsys, "eval", "--model", folder, *arguments)
    assert str(folder / PROVENANCE_FILE) in message and words in message
