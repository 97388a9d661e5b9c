"""A vocabulary that no mesh divides: padded on the devices, and nowhere else."""

from __future__ import annotations

import json
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from mmeureka_jax.config.schema import CheckpointConfig, MeshConfig, ModelConfig, OptimizerConfig, RandomModelConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.export.convert import convert
from mmeureka_jax.formats import hugging_face
from mmeureka_jax.formats.hugging_face import read_config, save_params, stored_shapes, write_checkpoint
from mmeureka_jax.mesh import make_mesh
from mmeureka_jax.models import decoder_config
from mmeureka_jax.models import policy as policy_module
from mmeureka_jax.models.batch import Images, Prompt
from mmeureka_jax.models.decoder_config import padded_vocabulary
from mmeureka_jax.models.policy import Policy, token_log_probs
from mmeureka_jax.rl.optimizer import make_optimizer
from mmeureka_jax.rl.train_state import TrainState
from mmeureka_jax.runs.checkpoint import Checkpointer, RunState, SavedParams
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings, draw
from mmeureka_jax.setup.policy import open_policy
from mmeureka_jax.setup.random_models import write_tiny_checkpoint

VOCABULARY = 761  # a prime
PADDED = 768


@pytest.mark.parametrize(
    ("size", "padded"), [(92553, 92672), (151674, 151680), (151936, 151936), (152064, 152064), (761, 768), (8, 8)]
)
def test_only_a_vocabulary_that_8_does_not_divide_is_padded(size, padded):
    assert padded_vocabulary(size) == padded


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "with a head"])
def checkpoint(request, tmp_path_factory):
    """A tiny text-only policy whose table ends at `VOCABULARY`."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    sizes = RandomModelConfig(
        family="qwen2", hidden_size=32, intermediate_size=64, num_layers=1, num_heads=4, num_kv_heads=4,
        tie_word_embeddings=request.param,
    )  # fmt: skip
    write_tiny_checkpoint(folder, sizes)
    tensors = load_file(folder / "model.safetensors")
    whole = len(tensors["model.embed_tokens.weight"])
    cut = {name: np.ascontiguousarray(x[:VOCABULARY]) if len(x) == whole else x for name, x in tensors.items()}
    save_file(cut, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": VOCABULARY}))
    return folder


@pytest.fixture
def unpadded(monkeypatch):
    """A context in which nothing is padded."""

    @contextmanager
    def without_padding():
        with monkeypatch.context() as patch:
            patch.setattr(decoder_config, "padded_vocabulary", lambda size: size)
            policy_module._module.cache_clear()
            yield
        policy_module._module.cache_clear()

    return without_padding


def prompts(count=4, length=6):
    lengths = np.full(count, length, np.int32)
    return Prompt(
        tokens=np.random.default_rng(0).integers(100, 700, (count, length)).astype(np.int32),
        positions=np.tile(np.arange(length, dtype=np.int32), (count, 3, 1)),
        length=lengths,
        next_position=lengths,
        image_index=np.full((count, length), -1, np.int32),
        images=Images(
            np.zeros((count, 0, 4, 6), np.float32),
            np.zeros((count, 0, 4, 2), np.int32),
            np.zeros((count, 0, 4), bool),
            np.zeros((count, 0), np.int32),
        ),
    )


def sampled_and_differentiated(checkpoint, tensor):
    """Sampled tokens; log-probabilities and entropies of responses; gradients; parameters and moments after a step."""
    mesh = MeshConfig(tensor=tensor)
    opened = open_policy(checkpoint, ModelConfig(remat="none", logits_mb=0.05), mesh, devices=jax.devices()[:tensor])
    policy = opened.policy
    settings = SamplingSettings(group_size=3, max_new_tokens=5, eos_token_ids=(), pad_token_id=0, shrink=0)
    batch = prompts()
    responses = np.random.default_rng(1).integers(100, 700, (4, 3, 5)).astype(np.int32)

    def loss(params):
        log_probs, entropy = token_log_probs(policy, params, batch, None, responses, temperature=0.7)
        return log_probs.sum(), (log_probs, entropy)

    with jax.set_mesh(opened.mesh):
        params = opened.load_params()
        samples = Sampler(policy, settings, "rollout", 0).sample(params, Request.of("abcd", batch, opened.mesh))[0]
        gradients, scored = jax.jit(jax.grad(loss, has_aux=True))(params)
        optimizer = make_optimizer(
            OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, warmup_fraction=0, eps=1e-2), 10
        )
        updates, state = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
        after = optax.apply_updates(params, updates)
    return samples, scored, gradients, after, optax.tree.get(state, "nu"), params, policy


@pytest.mark.slow
def test_a_mesh_computes_what_one_device_does_without_padding(checkpoint, unpadded, tmp_path):
    with unpadded():
        samples, scored, gradients, after, *_ = sampled_and_differentiated(checkpoint, 1)
        config = read_config(checkpoint)
        save_params(after, config, tmp_path / "expected")
    assert config.text.padded_vocab_size == PADDED
    ours = sampled_and_differentiated(checkpoint, 4)
    np.testing.assert_array_equal(ours[0].tokens, samples.tokens)
    np.testing.assert_allclose(ours[0].log_probs, samples.log_probs, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours[1], scored)
    assert_equal_but_for_zeros(ours[2], gradients, atol=1e-5)
    assert_equal_but_for_zeros(ours[3], after, atol=2e-5)
    zeros = [x for x in jax.tree.leaves(ours[4]) if PADDED in x.shape]
    assert zeros and all(np.all(spare(np.asarray(x)) == 0) for x in zeros)
    save_params(ours[3], config, tmp_path / "out")
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("expected", "out"))
    assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in expected.items()}
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-5)
    save_params(ours[5], config, tmp_path / "unchanged")
    assert (tmp_path / "unchanged" / "model.safetensors").read_bytes() == as_written(checkpoint, tmp_path)


def spare(x):
    return np.moveaxis(x, x.shape.index(PADDED), 0)[VOCABULARY:]


def assert_equal_but_for_zeros(ours, expected, atol):
    def compare(mine, theirs):
        mine = np.asarray(mine)
        if mine.shape != theirs.shape:
            assert np.all(spare(mine) == 0)
            mine = mine[tuple(map(slice, theirs.shape))]
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=atol * max(1.0, np.abs(theirs).max()))

    jax.tree.map(compare, ours, expected)


def as_written(checkpoint, tmp_path):
    """The checkpoint's weights as this package writes them, straight from its file."""
    config = read_config(checkpoint)
    folder = tmp_path / "as written"
    if not folder.exists():
        tensors = load_file(checkpoint / "model.safetensors")
        ordered = [tensors[name] for name in stored_shapes(config)]
        write_checkpoint(ordered, config, folder, source=None, dtype="float32")
    return (folder / "model.safetensors").read_bytes()


def test_files_hold_the_model_s_own_vocabulary(checkpoint, tmp_path, monkeypatch):
    """Loaded in whole and in parts, saved, and converted to Orbax's format and back."""
    config = read_config(checkpoint)
    expected = as_written(checkpoint, tmp_path)
    for largest in (2**24, 0):
        monkeypatch.setattr(hugging_face, "_SMALL_LEAF_BYTES", largest)
        opened = open_policy(checkpoint, ModelConfig(), MeshConfig(tensor=4), devices=jax.devices()[:4])
        params = opened.load_params()
        table = params["language"]["embed_tokens"]["embedding"]
        assert table.shape == (PADDED, 32) and np.all(np.asarray(table)[VOCABULARY:] == 0)
        save_params(params, config, tmp_path / f"out {largest}")
        assert (tmp_path / f"out {largest}/model.safetensors").read_bytes() == expected
    convert(checkpoint, tmp_path / "orbax")
    convert(tmp_path / "orbax", tmp_path / "back")
    assert (tmp_path / "back/model.safetensors").read_bytes() == expected
    described = json.loads((tmp_path / "orbax/orbax_params.json").read_text())["arrays"]
    assert described["language/embed_tokens/embedding"][1] == [VOCABULARY, 32]
    moved = open_policy(tmp_path / "orbax", ModelConfig(), MeshConfig(tensor=4), devices=jax.devices()[:4])
    jax.tree.map(np.testing.assert_array_equal, moved.load_params(), params)


@pytest.mark.parametrize("top_k", [0, 50])
def test_padding_is_never_sampled_and_has_no_probability(checkpoint, top_k):
    config = read_config(checkpoint)
    size = config.text.hidden_size
    head = jnp.asarray(np.random.default_rng(0).normal(size=(size, PADDED)), jnp.float32).at[:, VOCABULARY:].set(9.0)
    hidden = jnp.ones((64, size))
    for temperature in (1.0, 0.0):
        settings = SamplingSettings(8, 5, (), 0, temperature=temperature, top_k=top_k)
        uniform = jnp.asarray(np.random.default_rng(1).uniform(size=(64, 2)), jnp.float32)
        tokens, log_probs = draw(Policy(config), settings, uniform, hidden, head)
        assert tokens.max() < VOCABULARY
        table = jax.nn.log_softmax(hidden[0] @ head[:, :VOCABULARY])
        np.testing.assert_allclose(log_probs, table[tokens], rtol=1e-4, atol=1e-4)


def test_a_run_from_before_there_was_padding_resumes(tmp_path):
    """On a mesh that its vocabulary did not divide; what is exported of it, and the check of a base, read it too."""
    mesh = make_mesh(MeshConfig(tensor=4), jax.devices()[:4])
    where = NamedSharding(mesh, PartitionSpec("tensor"))
    noise = np.random.default_rng(0).normal(size=(VOCABULARY, 4)).astype(np.float32)

    def state(rows, sharding, updates=None):
        table = jax.device_put(np.pad(noise, ((0, rows - VOCABULARY), (0, 0))), sharding)
        return TrainState(
            updates=jax.device_put(jnp.int32(1), updates),
            trainable={"embedding": table},
            frozen={"head": table},
            optimizer=({"mu": table},),
        )

    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    checkpointer.save(RunState(state(VOCABULARY, None), step=1))
    checkpointer.wait()
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        state(PADDED, where, NamedSharding(mesh, PartitionSpec())),
    )
    restored = checkpointer.restore_latest(target).train
    jax.tree.map(np.testing.assert_array_equal, restored, state(PADDED, where))
    assert restored.trainable["embedding"].sharding == where
    saved = SavedParams(tmp_path)
    exported = saved.restore(1, {"trainable": target.trainable})
    np.testing.assert_array_equal(exported["trainable"]["embedding"], state(PADDED, where).trainable["embedding"])
    saved.verify_base(1, restored.frozen)
    with pytest.raises(UserError, match="no longer the same"):
        saved.verify_base(1, {"head": restored.frozen["head"] + 1})
    checkpointer.close()
    other = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2048, *x.shape[1:]), x.dtype) if x.ndim else x, target)
    with pytest.raises(UserError, match=r"stored float32\[761, 4\], wanted float32\[2048, 4\]"):
        SavedParams(tmp_path).restore(1, {"trainable": other.trainable})
