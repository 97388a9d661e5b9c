"""Checkpoints that do not fit the policy or are broken: what is accepted, and how the rest is refused."""

import json
import os
import shutil
import struct

import pytest
import torch
from helpers.torch_checkpoints import make_checkpoint, rewrite
from hypothesis import given, settings
from hypothesis import strategies as st

from mmeureka_jax.errors import UserError
from mmeureka_jax.formats import hugging_face
from mmeureka_jax.formats.hugging_face import load_params, read_config


def test_all_tensor_problems_are_listed_at_once(checkpoint):
    def damage(state):
        del state["model.layers.1.self_attn.k_proj.bias"]
        state["visual.merger.mlp.2.weight"] = torch.zeros(7, 5)
        state["model.norm.weight"] = torch.zeros(32, dtype=torch.int8)
        state["model.layers.3.mlp.up_proj.weight"] = torch.zeros(48, 32)
        state["model.language_model.embed_tokens.weight"] = torch.zeros(96, 32)

    rewrite(checkpoint, damage)
    with pytest.raises(UserError) as error:
        load_params(checkpoint, read_config(checkpoint))
    message = str(error.value)
    assert "5 tensors" in message and str(checkpoint) in message
    assert "model.layers.1.self_attn.k_proj.bias: missing (expected shape [16])" in message
    assert "visual.merger.mlp.2.weight: shape [7, 5], expected [32, 128]" in message
    assert "model.norm.weight: stored as I8" in message
    assert "model.layers.3.mlp.up_proj.weight: unexpected" in message
    assert "embed_tokens.weight: stored twice" in message


def test_harmless_extras_are_accepted(checkpoint):
    def extend(state):
        state["model.rotary_emb.inv_freq"] = torch.zeros(4)
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()

    rewrite(checkpoint, extend)
    params = load_params(checkpoint, read_config(checkpoint))
    assert "lm_head" not in params["language"]


@pytest.mark.parametrize("part_bytes", [2**24, 64], ids=["at once", "in parts"])
@pytest.mark.parametrize(
    "head", [lambda e: e * 1.01, lambda e: e[:-1], lambda e: e.int(), lambda e: e.index_fill(0, torch.tensor([-1]), 7)]
)
def test_a_tied_head_of_its_own_is_refused(checkpoint, monkeypatch, head, part_bytes):
    monkeypatch.setattr(hugging_face, "_SMALL_LEAF_BYTES", part_bytes)
    config = read_config(checkpoint)
    rewrite(
        checkpoint, lambda state: state.update({"lm_head.weight": head(state["model.embed_tokens.weight"]).clone()})
    )
    with pytest.raises(
        UserError, match="lm_head.weight is stored and is not .*Set tie_word_embeddings to false to use"
    ):
        load_params(checkpoint, config)


def test_an_untied_config_needs_a_head(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"lm_head\.weight: missing"):
        load_params(checkpoint, read_config(checkpoint))


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_named(saved, tmp_path_factory, fraction):
    folder = shutil.copytree(saved, tmp_path_factory.mktemp("cut") / "checkpoint")
    file = folder / "model.safetensors"
    os.truncate(file, int(fraction * file.stat().st_size))
    with pytest.raises(UserError, match=f"{file}: .*again"):
        load_params(folder, read_config(folder))


@pytest.mark.parametrize(
    "content",
    [
        b"\x00" * 64,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 16) + b'{"a": {"dtype":1',
        *(
            struct.pack("<Q", len(header)) + header + b"\x00" * 8
            for header in (
                b'{"a": 3}',
                b'{"a": {"dtype": "F32", "shape": [2]}}',
                b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
                b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
                b'{"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}',
                b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',  # bytes too many
                b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
                b'"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',  # overlap
                b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
                b'"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
                b'{"a": {"dtype": "I64", "shape": [1], "data_offsets": [8, 0]}}',
                b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}',
                b'{"a": {"dtype": [], "shape": [2], "data_offsets": [0, 8]}}',
                b'{"a": ' + b"[" * 100_000,
            )
        ),
    ],
)
def test_a_broken_file_is_named(checkpoint, content):
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: .*again"):
        load_params(checkpoint, read_config(checkpoint))


def test_pickles_are_refused_by_name(checkpoint):
    config = read_config(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        load_params(checkpoint, config)
    (checkpoint / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        load_params(checkpoint, config)


def test_broken_indices(tmp_path):
    folder = tmp_path / "checkpoint"
    make_checkpoint(folder, shard="50KB")
    config = read_config(folder)
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    name, shard = next(iter(index["weight_map"].items()))

    def expect(message):
        with pytest.raises(UserError, match=message):
            load_params(folder, config)

    def write(weight_map):
        index_file.write_text(json.dumps({"weight_map": weight_map}))

    for content, message in {
        "{": "cannot be read as JSON", "[]": "holds a list, expected a JSON object", "[" * 10_000: "nested too deeply",
        "{}": "not a safetensors index", '{"weight_map": 3}': "'weight_map' holds a number, expected an object",
        '{"weight_map": {"a": 3}}': "no plain name", '{"weight_map": {"a": "a\\u0000.safetensors"}}': "no plain name",
    }.items():  # fmt: skip
        index_file.write_text(content)
        expect(rf"index\.json: .*{message}")
    write({**index["weight_map"], name: "../elsewhere.safetensors"})
    expect("plain name")
    write({**index["weight_map"], name: "lost.safetensors"})
    expect(r"files that are not there: lost\.safetensors")
    write({**index["weight_map"], "model.extra": shard})
    expect("model.extra")
    index_file.unlink()
    expect("copy the index file too")
