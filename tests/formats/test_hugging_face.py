"""Checkpoints: every leaf against torch, bitwise round trips, placement on a mesh, and broken files of every kind."""

import json
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.commands import environment, file_size_limit
from helpers.torch_checkpoints import make_checkpoint, read_state, rename_to_newer
from jax.sharding import NamedSharding, PartitionSpec

from mmeureka_jax.errors import UserError
from mmeureka_jax.formats import hugging_face
from mmeureka_jax.formats import safetensors as safetensors_files
from mmeureka_jax.formats.hub import resolve_checkpoint
from mmeureka_jax.formats.hugging_face import load_params, read_config, save_params
from mmeureka_jax.models.families import weight_mappings
from mmeureka_jax.models.policy import Policy


@pytest.mark.parametrize("tied", [True, False])
def test_leaves_hold_the_torch_parameters(tmp_path, tied, leaf_size):
    state = make_checkpoint(tmp_path, tied=tied)
    params = load_params(tmp_path, read_config(tmp_path))
    for name, tensor in state.items():
        expected = tensor.numpy()
        if name == "visual.patch_embed.proj.weight":
            continue  # by what it computes, below
        if name.startswith("visual.merger.mlp."):
            name = name.replace("mlp.", "mlp_")
        keys = name.replace("visual.", "vision.").replace("model.", "language.").split(".")
        if keys[0] == "lm_head":
            keys = ["language", *keys]
        layer = next((int(key) for key in keys if key.isdigit()), None)
        keys = [key for key in keys if not key.isdigit()]
        if keys[-1] == "weight":
            if "embed_tokens" in keys:
                keys[-1] = "embedding"
            else:
                keys[-1], expected = ("kernel", expected.T) if expected.ndim == 2 else ("scale", expected)
        leaf = params
        for key in keys:
            leaf = leaf[key]
        np.testing.assert_array_equal(leaf if layer is None else leaf[layer], expected, err_msg=name)

    weight = state["visual.patch_embed.proj.weight"]
    pixels = torch.randn(1, *weight.shape[1:])  # [1, channel, time, row, column]
    convolved = torch.nn.functional.conv3d(pixels, weight)[0, :, 0, 0, 0]
    by_time = pixels[0].permute(1, 0, 2, 3).reshape(weight.shape[2], -1).numpy()
    ours = np.einsum("ti,tio->o", by_time, params["vision"]["patch_embed"]["kernel"])
    np.testing.assert_allclose(ours, convolved, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_the_tree_is_the_policys(tmp_path, tied):
    make_checkpoint(tmp_path, tied=tied)
    config = read_config(tmp_path)
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), Policy(config).abstract_params())
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), load_params(tmp_path, config)) == expected


@pytest.mark.parametrize(
    ("dtype", "tied", "shard", "newer"),
    [
        ("float32", True, "1GB", False),
        ("float32", False, "50KB", False),
        ("bfloat16", True, "20KB", False),
        ("bfloat16", False, "1GB", True),
    ],
)
def test_round_trip_is_bitwise(tmp_path, dtype, tied, shard, newer):
    source = tmp_path / "source"
    target = tmp_path / "target"
    state = make_checkpoint(source, tied=tied, dtype=dtype, shard=shard)
    assert (source / "model.safetensors.index.json").is_file() == (shard != "1GB")
    if newer:
        rename_to_newer(source)
    config = read_config(source)
    save_params(load_params(source, config), config, target, source=source, dtype=dtype, max_shard_bytes=40_000)

    result = read_state(target)
    assert result.keys() == state.keys()
    for name, tensor in state.items():
        assert result[name].dtype == tensor.dtype
        assert torch.equal(result[name].view(torch.uint8), tensor.view(torch.uint8)), name
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in state.values())
    assert set(index["weight_map"].values()) == {file.name for file in target.glob("*.safetensors")}
    assert read_config(target) == config


def test_transformers_loads_what_is_saved(saved, tmp_path):
    import transformers

    config = read_config(saved)
    save_params(load_params(saved, config), config, tmp_path / "out", source=saved, max_shard_bytes=50_000)
    model = transformers.Qwen2_5_VLForConditionalGeneration
    theirs, info = model.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    before = model.from_pretrained(saved).state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_companion_files_travel_unchanged_and_others_stay(checkpoint, tmp_path):
    names = (
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "merges.txt",
        "chat_template.jinja",
    )
    for name in names:
        (checkpoint / name).write_text(f'{{"from": "{name}", "eos_token_id": [2]}}')
    (checkpoint / "optimizer.pt").write_bytes(b"not ours to copy")
    config = read_config(checkpoint)
    params = load_params(checkpoint, config)
    save_params(params, config, tmp_path / "out", source=checkpoint)
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (checkpoint / name).read_bytes()
    assert {file.name for file in (tmp_path / "out").iterdir()} == {*names, "config.json", "model.safetensors"}
    save_params(params, config, tmp_path / "bare")
    assert json.loads((tmp_path / "bare" / "generation_config.json").read_text())["eos_token_id"] == 2


def requested_shardings(config, spec_of):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    tree = {}
    for mapping in weight_mappings(config):
        hugging_face._set(tree, mapping.leaf, NamedSharding(mesh, PartitionSpec(*spec_of(mapping))))
    return tree


def last_two(mapping):
    """fsdp and tensor on the last two axes of matrices."""
    rank = len(mapping.leaf_shape)
    return (*[None] * (rank - 2), "fsdp", "tensor") if mapping.layout != "same" else (*[None] * (rank - 1), "tensor")


def test_loads_onto_a_mesh_with_the_shardings_asked_for(saved, leaf_size):
    config = read_config(saved)
    shardings = requested_shardings(config, last_two)
    whole = load_params(saved, config)
    sharded = load_params(saved, config, shardings)

    def check(one, many, sharding):
        assert many.sharding == sharding
        assert many.addressable_shards[0].data.size < many.size
        np.testing.assert_array_equal(one, many)

    jax.tree.map(check, whole, sharded, shardings)


def test_stacked_layers_may_be_sharded_too(tmp_path, saved, leaf_size):
    config = read_config(saved)

    def spec_of(mapping):  # two vision blocks over fsdp
        return ("fsdp",) if mapping.layers == config.vision.depth else ()

    shardings = requested_shardings(config, spec_of)
    sharded = load_params(saved, config, shardings)
    jax.tree.map(np.testing.assert_array_equal, load_params(saved, config), sharded)
    kernel = sharded["vision"]["blocks"]["attn"]["qkv"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec("fsdp")
    save_params(sharded, config, tmp_path / "out")
    for name, tensor in read_state(tmp_path / "out").items():
        assert torch.equal(tensor, read_state(saved)[name]), name


def test_each_device_reads_its_slice_only(saved, monkeypatch):
    monkeypatch.setattr(hugging_face, "_SMALL_LEAF_BYTES", 0)
    config = read_config(saved)
    reads = []

    class Recorder(safetensors_files.StoredTensor):
        def read(self, index=None):
            result = super().read(index)
            reads.append(result.size / np.prod(self.shape))
            assert result.base is None or not isinstance(result.base, np.memmap)
            return result

    monkeypatch.setattr(safetensors_files, "StoredTensor", Recorder)
    load_params(saved, config, requested_shardings(config, last_two))
    # a quarter of each matrix, half of each vector; the patch embedding is split by output only
    assert max(reads) <= 0.5
    assert 0.25 in reads


def test_parameters_take_the_dtype_asked_for(saved, leaf_size):
    params = load_params(saved, read_config(saved), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_checkpoints_that_are_not_there(tmp_path, monkeypatch):
    assert resolve_checkpoint(tmp_path) == tmp_path
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="this is a file"):
        resolve_checkpoint(tmp_path / "file")
    with pytest.raises(UserError, match="no such folder"):
        resolve_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nobody/nothing: no such folder, and the hub"):
        resolve_checkpoint("nobody/nothing")  # the tests are offline
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        read_config(tmp_path)
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config\.json: "):
            read_config(tmp_path)


def test_hub_ids_resolve_through_the_hubs_own_cache(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append(name) or str(tmp_path)
    )
    assert resolve_checkpoint("Qwen/Qwen2.5-VL-3B-Instruct") == tmp_path
    assert asked == ["Qwen/Qwen2.5-VL-3B-Instruct"]


def test_a_taken_folder_is_left_alone(saved, tmp_path):
    config = read_config(saved)
    params = load_params(saved, config)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    for taken in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(UserError, match="exists already"):
            save_params(params, config, taken)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    save_params(params, config, tmp_path / "empty")  # an empty folder is as good as none
    assert read_config(tmp_path / "empty") == config


def test_a_full_disk_leaves_nothing_behind(saved, tmp_path):
    config = read_config(saved)
    params = load_params(saved, config)
    with file_size_limit(100_000), pytest.raises(UserError, match="out: cannot be written"):
        save_params(params, config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_params(params, config, tmp_path / "file" / "out")


TWO_PROCESSES = """
import sys, jax
from jax.sharding import NamedSharding, PartitionSpec
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats import hugging_face
rank, port, source, target = int(sys.argv[1]), *sys.argv[2:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
config = hugging_face.read_config(source)
shardings = {}
for mapping in hugging_face.weight_mappings(config):
    spec = (*[None] * (len(mapping.leaf_shape) - 1), "fsdp")
    hugging_face._set(shardings, mapping.leaf, NamedSharding(mesh, PartitionSpec(*spec)))
params = hugging_face.load_params(source, config, shardings)
hugging_face.save_params(params, config, target, source=source, max_shard_bytes=50_000)
try:
    hugging_face.save_params(params, config, target)
except UserError as error:
    print("second save:", error)
"""


@pytest.mark.slow
def test_two_processes_write_one_checkpoint(saved, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    target = tmp_path / "out"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), port, str(saved), str(target)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all(f"second save: {target}: exists already" in said for said, _ in outputs)  # both, though one writes
    state = read_state(saved)
    result = read_state(target)
    assert result.keys() == state.keys()
    assert all(torch.equal(result[name], state[name]) for name in state)
