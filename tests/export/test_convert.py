"""`mmeureka convert`: there and back is the same bits, and what cannot be converted is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers.commands import SMALL, file_size_limit, mmeureka, write_rows
from helpers.internvl_models import FORMS, write_checkpoint
from helpers.support import make_checkpoint
from safetensors.numpy import load_file, save_file

from mmeureka_jax.export.convert import convert
from mmeureka_jax.formats.hugging_face import load_params, read_config
from mmeureka_jax.mesh import tree_shardings
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.setup.random_models import RANDOM_MODEL_FILE, write_tiny_checkpoint


def read(folder):
    return {name: x for file in sorted(folder.glob("*.safetensors")) for name, x in load_file(file).items()}


def write(folder, tensors):
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def make(name, folder):
    if name in ("qwen2_vl", "qwen2"):
        write_tiny_checkpoint(folder, replace(SMALL, family=name, vision_intermediate_size=32))
    elif name.startswith("qwen2_5_vl"):
        make_checkpoint(folder, tied="tied" in name)
    else:
        folder.mkdir()
        write_checkpoint(folder, FORMS[name.removeprefix("internvl ")])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    make("qwen2_5_vl tied", folder)
    return folder


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "orbax"
    assert convert(checkpoint, folder) == "orbax"
    return folder


@pytest.fixture
def orbax(converted, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(converted, tmp_path / "orbax")


def assert_same_bits(result, expected):
    assert result.keys() == expected.keys()
    for name, x in expected.items():
        assert result[name].dtype == x.dtype, name
        assert result[name].tobytes() == x.tobytes(), name


OTHERS = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2_5_vl", *(f"internvl {form}" for form in FORMS))
]


@pytest.mark.parametrize("name", ["qwen2_5_vl tied", "qwen2_vl", "qwen2", *OTHERS])
def test_there_and_back_is_the_same_bits(name, tmp_path, capsys):
    """From one file of several dtypes to three and more of them; everything else is carried over unchanged."""
    source = tmp_path / "source"
    make(name, source)
    tensors = read(source)
    kinds = [np.float32, ml_dtypes.bfloat16, np.float16]
    write(source, {name: x.astype(kinds[i % 3]) for i, (name, x) in enumerate(sorted(tensors.items()))})
    for file in ("mmeureka_jax.json", "README.md", "LICENSE"):
        (source / file).write_text(f'{{"of": "{file}"}}')
    shard_gb = sum(x.nbytes for x in tensors.values()) / 1e10
    assert mmeureka("convert", source, "--output", tmp_path / "orbax") == 0
    assert mmeureka("convert", tmp_path / "orbax", "--output", tmp_path / "back", "--max-shard-gb", shard_gb) == 0
    assert capsys.readouterr().out == f"orbax: {tmp_path / 'orbax'}\nhf: {tmp_path / 'back'}\n"
    assert_same_bits(read(tmp_path / "back"), read(source))
    assert len(list((tmp_path / "back").glob("*.safetensors"))) >= 3
    for folder in ("orbax", "back"):
        assert read_config(tmp_path / folder) == read_config(source)
        for file in source.iterdir():
            if file.suffix != ".safetensors" and file.name not in ("model.safetensors.index.json", RANDOM_MODEL_FILE):
                assert (tmp_path / folder / file.name).read_bytes() == file.read_bytes()
    assert not list((tmp_path / "orbax").glob("*.safetensors"))

    # From those shards to Orbax again: the same arrays.
    assert convert(tmp_path / "back", tmp_path / "again") == "orbax"
    first, again = (json.loads((tmp_path / folder / "orbax_params.json").read_text()) for folder in ("orbax", "again"))
    assert first == again


def test_a_policy_is_read_from_either_onto_a_mesh_in_any_dtype(checkpoint, converted):
    config = read_config(checkpoint)
    policy = Policy(config)
    mesh = jax.make_mesh((1, 2, 1, 2), ("data", "fsdp", "context", "tensor"), devices=jax.devices()[:4])
    shardings = tree_shardings(mesh, policy.abstract_params(), policy.param_axes())
    for dtype in (jnp.float32, jnp.bfloat16):
        ours, theirs = (load_params(folder, config, shardings, dtype) for folder in (converted, checkpoint))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        assert jax.tree.map(lambda x: x.sharding, ours) == shardings
        assert {x.dtype for x in jax.tree.leaves(ours)} == {jnp.dtype(dtype)}


@pytest.mark.slow
def test_the_other_commands_take_the_folder(converted, tmp_path):
    prompts = write_rows(tmp_path / "p.jsonl", [{"id": "a", "messages": [{"role": "user", "content": "1 + 1 ?"}]}])
    arguments = ["--input", prompts, "--output", tmp_path / "o.jsonl", "--max-new-tokens", 2]
    assert mmeureka("sample", "--model", converted, *arguments) == 0
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 1


def test_another_dtype_or_other_shards_of_the_same_format(checkpoint, tmp_path):
    assert convert(checkpoint, tmp_path / "half", to="hf", dtype="bfloat16", max_shard_bytes=100_000) == "hf"
    assert_same_bits(
        read(tmp_path / "half"), {name: x.astype(ml_dtypes.bfloat16) for name, x in read(checkpoint).items()}
    )
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 3
    before, after = (json.loads((path / "config.json").read_text()) for path in (checkpoint, tmp_path / "half"))
    assert after == before | {"dtype": "bfloat16"} != before


def damage_array(folder):
    """Flips a bit of the largest file of arrays."""
    file = max(
        (path for path in (folder / "params").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def other_sizes(folder):
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    text["num_hidden_layers"] = 1
    text.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "harm, messages",
    [
        (damage_array, ["damaged"]),
        (lambda folder: shutil.rmtree(folder / "params"), ["damaged"]),
        (lambda folder: (folder / "orbax_params.json").write_text("{}"), ["not a description that this version reads"]),
        (lambda folder: (folder / "orbax_params.json").write_text("{"), ["cannot be read as JSON"]),
        (other_sizes, ["language/layers/mlp/up_proj/kernel: shape [3, 64", "language/layers/self_attn/q_proj/bias"]),
    ],
    ids=["a bit", "no arrays", "no description", "no JSON", "another config"],
)
def test_what_is_damaged_is_refused(orbax, tmp_path, capsys, harm, messages):
    harm(orbax)
    for dtype in ([], ["--dtype", "bfloat16"]):
        assert mmeureka("convert", orbax, "--output", tmp_path / "out", *dtype) == 2
        error = capsys.readouterr().err
        for message in messages:
            assert message in error
        assert "Traceback" not in error and not (tmp_path / "out").exists()


def test_other_mistakes(checkpoint, tmp_path, capsys):
    def refused(*arguments):
        assert mmeureka("convert", *arguments) == 2
        return capsys.readouterr().err

    assert "exists already" in refused(checkpoint, "--output", checkpoint)
    assert "no such folder" in refused(tmp_path / "nowhere", "--output", tmp_path / "out")
    run = tmp_path / "run"
    run.mkdir()
    (run / "metadata.json").write_text("{}")
    assert "`mmeureka export` writes its policy" in refused(run, "--output", tmp_path / "out")
    wide = shutil.copytree(checkpoint, tmp_path / "wide")
    write(wide, {name: x.astype(np.float64) for name, x in read(checkpoint).items()})
    assert "say which dtype with --dtype" in refused(wide, "--output", tmp_path / "out")
    assert mmeureka("convert", wide, "--output", tmp_path / "narrow", "--dtype", "float32") == 0
    pickled = shutil.copytree(checkpoint, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "only pickled weights" in refused(pickled, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_nothing_behind(checkpoint, tmp_path, capsys):
    with file_size_limit(20_000):
        assert mmeureka("convert", checkpoint, "--output", tmp_path / "out") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
