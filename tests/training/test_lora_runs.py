"""Runs that train adapters: their checkpoints, how they continue, what they export, and what starts from that."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict
from helpers.commands import mmeureka
from helpers.guessing import write_guessing_checkpoint
from safetensors.numpy import load_file, save_file

from mmeureka_jax.config.load import load_config
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.hugging_face import load_params, read_config
from mmeureka_jax.formats.peft import open_adapters
from mmeureka_jax.runs.tracking import read_metrics
from mmeureka_jax.setup.policy import open_policy
from mmeureka_jax.training import job
from mmeureka_jax.training.rl import train

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"
OVERRIDES = """
    steps=3 model.random=null sampler.max_new_tokens=6 sampler.batch_prompts=8
    rl.group_size=4 rl.prompts_per_rollout=4 rl.prompts_per_update=4 rl.micro_batches=1 rl.packing=0
    rl.filter.enabled=false rl.kl_coefficient=0.1 data.train=tfds:shapes/dots@train[:20]
    data.validation=tfds:shapes/dots@test[:8] checkpoint.keep=3 checkpoint.every_steps=1 tracking.validate_every=3
    tracking.progress=false tracking.tensorboard=false reward.workers=1 optimizer.learning_rate=2e-3
    optimizer.schedule=constant optimizer.warmup_fraction=0 optimizer.ema_decay=0.5
    model.lora.rank=4 model.lora.alpha=8 model.lora.dropout=0.1
""".split()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "model"
    write_guessing_checkpoint(folder, layers=1)
    return folder


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(job, "open_policy", functools.partial(open_policy, devices=jax.devices()[:2]))
        yield


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(config_of(folder, base))
    return folder


def config_of(run_dir, base, *overrides):
    return load_config(SMOKE, [f"run_dir={run_dir}", f"model.checkpoint={base}", *OVERRIDES, *overrides])


def without_times(run_dir):
    return [{name: x for name, x in row.items() if not name.startswith("time/")} for row in read_metrics(run_dir)]


def state_of(run_dir, step):
    path = run_dir / "checkpoints" / str(step) / "state"
    return jax.tree.map(np.asarray, ocp.StandardCheckpointer().restore(path.resolve()))


@pytest.mark.slow
def test_checkpoints_hold_adapters_alone_and_runs_go_on_from_them_exactly(finished, base, tmp_path):
    rows = read_metrics(finished)
    assert rows[1]["policy/kl_reference"] == pytest.approx(0, abs=0.05)  # dropout's noise alone
    assert rows[3]["policy/kl_reference"] != rows[1]["policy/kl_reference"]
    state = state_of(finished, 3)
    assert set(state) == {"updates", "trainable", "optimizer", "average"}
    assert {path.rpartition("/")[2] for path in flatten_dict(state["trainable"], sep="/")} == {"lora_a", "lora_b"}

    copy = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "3")
    train(config_of(copy, base))
    assert without_times(copy) == without_times(finished)
    jax.tree.map(np.testing.assert_array_equal, state_of(copy, 3), state)


@pytest.mark.slow
def test_a_base_that_is_no_longer_the_same_is_refused(finished, base, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "run")
    changed = shutil.copytree(base, tmp_path / "model")
    tensors = load_file(changed / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    again = config_of(copy, changed, "steps=4", "checkpoint.allow_config_change=true")
    with pytest.raises(UserError, match="adapters alone, and .* is no longer the same .*frozen/language/norm/scale"):
        train(again)
    assert mmeureka("export", copy, "--output", tmp_path / "out", "--source", changed) == 2
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="trained with model.lora.alpha 8, and with 16 they would be another policy"):
        train(config_of(copy, base, "steps=4", "checkpoint.allow_config_change=true", "model.lora.alpha=16"))


@pytest.mark.slow
def test_adapters_are_exported_alone_or_merged_and_runs_start_from_them(finished, base, tmp_path, capsys):
    assert mmeureka("export", finished, "--output", tmp_path / "adapters", "--adapters") == 0
    assert mmeureka("export", finished, "--output", tmp_path / "merged") == 0
    assert mmeureka("export", finished, "--output", tmp_path / "half", "--dtype", "bfloat16") == 0
    assert "base_model" not in (tmp_path / "adapters" / "README.md").read_text()  # nobody else has this one
    assert "merged into the base" in (tmp_path / "merged" / "README.md").read_text()

    before, after = (
        flatten_dict(load_params(path, read_config(path)), sep="/") for path in (base, tmp_path / "merged")
    )
    state = flatten_dict(state_of(finished, 3)["trainable"], sep="/")
    for path, value in after.items():
        expected = before[path].astype("bfloat16").astype("float32")
        if (lora_a := path.replace("kernel", "lora_a")) in state:
            expected = expected + 2.0 * state[lora_a] @ state[path.replace("kernel", "lora_b")]
        np.testing.assert_allclose(value, expected, atol=1e-5)
    settings = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 8.0, 0.1)

    # The file of adapters holds the ones that are merged, and a run that starts from it begins there.
    stored = open_adapters(tmp_path / "adapters", read_config(base)).read()
    assert stored.keys() == {path for path in state if path.rpartition("/")[2] in ("lora_a", "lora_b")}
    for path, value in stored.items():
        np.testing.assert_array_equal(value, state[path])
    of_base = load_params(tmp_path / "half", read_config(tmp_path / "half"))
    assert jax.tree.structure(of_base) == jax.tree.structure(load_params(base, read_config(base)))

    start = f"model.lora.adapters={tmp_path / 'adapters'}"
    train(config_of(tmp_path / "next", base, start, "model.lora.dropout=0", "steps=1"))
    first, second = read_metrics(tmp_path / "next")
    assert first["validation/accuracy"] == read_metrics(finished)[-1]["validation/accuracy"]
    assert second["policy/kl_reference"] == pytest.approx(0, abs=1e-3)  # its reference starts there too
    rows = read_metrics(tmp_path / "next")
    elsewhere = shutil.copytree(tmp_path / "adapters", tmp_path / "elsewhere")
    tensors = load_file(elsewhere / "adapter_model.safetensors")
    save_file({name: x * 2 for name, x in tensors.items()}, elsewhere / "adapter_model.safetensors")
    moved = f"model.lora.adapters={elsewhere}", "checkpoint.allow_config_change=true", "model.lora.dropout=0"
    with pytest.raises(UserError, match="started from other adapters than model.lora.adapters"):
        train(config_of(tmp_path / "next", base, *moved, "steps=2"))
    assert read_metrics(tmp_path / "next") == rows
    others = "model.lora.rank=8", "model.lora.targets=[language/.*/mlp/.*]"
    with pytest.raises(UserError) as caught:
        train(config_of(tmp_path / "other", base, start, *others))
    assert "model.lora.rank is 8, theirs is 4" in str(caught.value)
    assert "they have one for language/layers/self_attn/q_proj" in str(caught.value)

    capsys.readouterr()
    assert mmeureka("export", finished, "--output", tmp_path / "x", "--adapters", "--dtype", "bfloat16") == 2
    assert "--dtype is of merged weights" in capsys.readouterr().err
    assert mmeureka("export", finished, "--output", tmp_path / "adapters", "--adapters") == 2
    assert "exists already" in capsys.readouterr().err
