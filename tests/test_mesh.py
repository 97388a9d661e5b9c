"""The mesh on eight fake CPU devices: what is sharded, and that no result depends on it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.groups import assert_updates_equal, parts_of
from helpers.support import PROBLEMS, Lively
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from mmeureka_jax.commands.jax_setup import start_jax
from mmeureka_jax.config.schema import Config, MeshConfig, OptimizerConfig, RLConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.hosts import gather_rows
from mmeureka_jax.mesh import (
    AXES,
    AXIS_RULES,
    batch_divisor,
    in_words,
    make_mesh,
    partition_spec,
    row_shares,
    sampler_mesh,
    to_global,
    tree_shardings,
)
from mmeureka_jax.models.batch import GroupBatch
from mmeureka_jax.process.cpu import NO_YNN, split_cpu, ynn_is_safe
from mmeureka_jax.rl.groups import Targets
from mmeureka_jax.rl.metrics import computed
from mmeureka_jax.rl.objective import policy_objective
from mmeureka_jax.rl.train_state import make_training
from mmeureka_jax.rl.update import CompiledUpdate
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.spread import Spread
from mmeureka_jax.sampling.token_draws import SamplingSettings

MESHES = [(2, 2, 2), (1, 4, 1), (1, 2, 2, 2)]  # (data, fsdp, tensor), and context if it is not 1
PACKING = {(1, 4, 1): 0.0}  # rows of padded responses alone; elsewhere of packed ones too
ROWS = 16
GROUP = 2
LENGTH = 12


def mesh_of(*sizes):
    return make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    lively = Lively(tmp_path_factory.mktemp("checkpoint") / "model", tied=False, layers=2, depth=2)
    lively.policy = replace(lively.policy, remat=False, logits_mb=0.01)  # several blocks of the vocabulary
    lively.params = jax.device_get(lively.params)
    return lively


@pytest.fixture(scope="module")
def part(model):
    names = ("text only", "one window", "several pictures", "odd sizes")
    prompts = model.batch([replace(PROBLEMS[names[i % 4]], id=str(i)) for i in range(ROWS)])
    rng = np.random.default_rng(0)
    shape = (ROWS, GROUP, LENGTH)
    batch = GroupBatch(
        prompts=prompts,
        image_features=None,
        responses=rng.integers(5, 250, shape).astype(np.int32),
        response_mask=np.arange(LENGTH) < np.sort(rng.integers(1, LENGTH + 1, shape[:2]), axis=0)[..., None],
    )
    return batch, Targets(
        old_log_probs=rng.normal(-7, 1, shape).astype(np.float32),
        advantages=rng.normal(size=(*shape[:2], 1)).astype(np.float32).repeat(LENGTH, axis=2),
        fresh=np.ones(ROWS, bool),
    )


class OnMesh:
    """The sampler and three steps of the same policy, on one mesh."""

    def __init__(self, model, part, sizes):
        config = Config(
            rl=RLConfig(loss="cpgd", clip_epsilon_high=5.0, clip_epsilon_low=0.99),
            # With a small `eps` Adam makes steps of what is rounding: gradients of the biases of keys nearly cancel.
            optimizer=OptimizerConfig(3e-4, schedule="constant", warmup_fraction=0.0, eps=1e-3, frozen=()),
        )
        mesh = self.mesh = mesh_of(*sizes)
        with jax.set_mesh(mesh):
            training = make_training(config, 10)
            self.shardings = training.shardings(model.policy, mesh)
            self.start = jax.device_put(training.init(model.policy, model.params), self.shardings)

            self.samples = samples_of(model, self.start.params, part[0].prompts, mesh, GROUP)

            objective = policy_objective(config)
            step = CompiledUpdate(model.policy, objective, training, self.shardings)
            packing = PACKING.get(sizes, 0.8)
            parts = to_global(mesh, parts_of(objective, *part, 2, packing))
            assert [part.batch.width for part in parts] == [None, 16 if packing else None]
            self.update = lambda: three_steps(step, jax.tree.map(jnp.copy, self.start), parts)
            self.state, self.metrics = self.update()


def three_steps(step, state, parts):
    """The state after them, and the metrics of each."""
    rows = []
    for _ in range(3):
        state, metrics = step(state, parts)
        rows.append(computed(gather_rows(metrics)))
    return state, rows


def samples_of(model, params, prompts, mesh, group_size):
    """Several tokens end a response, so that the batch gets smaller on the way."""
    count = len(prompts.tokens)
    settings = SamplingSettings(
        group_size=group_size, max_new_tokens=10, eos_token_ids=(*model.config.eos_token_ids, *range(100, 150)),
        pad_token_id=model.config.pad_token_id,
    )  # fmt: skip
    spread = Spread.of(sampler_mesh(mesh), count, group_size)
    request = spread.request([str(i) for i in range(count)], prompts)
    with jax.set_mesh(spread.mesh):
        drawn, _ = Sampler(model.policy, settings, "rollout").sample(params, request)
    assert len(request.prompts.tokens) == count * spread.copies
    return spread.groups(drawn)


@pytest.fixture(scope="module")
def on_mesh(model, part):
    return functools.cache(lambda *sizes: OnMesh(model, part, sizes))


def by_path(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_three_updates_equal_those_of_one_device(on_mesh, sizes):
    """Parameters, both Adam moments, and metrics of each, to 1e-5."""
    alone, spread = (on_mesh(*of) for of in [(1, 1, 1), sizes])
    assert_updates_equal(*((gather_rows(one.state), one.metrics) for one in (alone, spread)))
    assert len(by_path(alone.state)) > 3 * 30
    assert all(row["optimizer/grad_norm"] > 1e-3 and row["optimizer/skipped"] == 0 for row in alone.metrics)


@pytest.mark.slow
def test_the_update_is_the_same_every_time(on_mesh):
    """What XLA:CPU's YNNPACK kernels get wrong, one time in three: see NO_YNN in mesh.py."""
    spread = on_mesh(2, 2, 2)
    first = gather_rows(spread.state)
    with jax.set_mesh(spread.mesh):
        for _ in range(3):
            jax.tree.map(np.testing.assert_array_equal, gather_rows(spread.update()[0]), first)


def test_ynn_is_off_where_it_is_wrong(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setattr(jax, "__version__", "0.11.2")
    assert not ynn_is_safe()
    monkeypatch.setattr(jax, "__version__", "0.12.0")
    assert ynn_is_safe()
    monkeypatch.setattr(jax, "__version__", "0.10.2")
    start_jax()
    assert NO_YNN in os.environ["XLA_FLAGS"] and ynn_is_safe()


CPU_DEVICES = """
import os
import subprocess
import sys
os.sched_getaffinity = lambda _: {0, 1, 2}
from mmeureka_jax.mesh import make_mesh
from mmeureka_jax.process.cpu import (split_cpu)
from mmeureka_jax.config.schema import MeshConfig
split_cpu(DEVICES)
print(make_mesh(MeshConfig()).size, "multi_thread_eigen=false" in os.environ["XLA_FLAGS"])
"""


@pytest.mark.parametrize(
    ("devices", "outside", "expected"),
    [(1, {}, "1 False"), (2, {}, "2 False"), (3, {}, "3 True"), (3, {"JAX_NUM_CPU_DEVICES": "2"}, "2 False"),
     (3, {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, "4 False")],
)  # fmt: skip
def test_a_cpu_is_as_many_devices_as_the_config_says(devices, outside, expected):
    """In a process of its own, with three cores; what the environment says goes first."""
    names = {"XLA_FLAGS": NO_YNN, "JAX_PLATFORMS": "cpu"} | outside
    code = CPU_DEVICES.replace("DEVICES", str(devices))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | names, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


def test_a_number_of_cpu_devices_that_is_none():
    with pytest.raises(UserError, match=r"mesh\.cpu_devices is 0"):
        split_cpu(0)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_sampled_tokens_equal_one_device(on_mesh, sizes):
    alone = on_mesh(1, 1, 1).samples
    spread = on_mesh(*sizes).samples
    np.testing.assert_array_equal(spread.tokens, alone.tokens)
    np.testing.assert_array_equal(spread.lengths, alone.lengths)
    np.testing.assert_allclose(spread.log_probs, alone.log_probs, atol=1e-4)
    assert len(np.unique(alone.tokens)) > 50


@pytest.fixture(scope="module")
def two_prompts(model, part):
    """Two prompts, and 8 responses to each on one device."""
    prompts = jax.tree.map(lambda x: x[:2], part[0].prompts)
    return prompts, samples_of(model, model.params, prompts, mesh_of(1, 1, 1), 8)


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "copies"), [((1, 2, 2, 2), 2), ((1, 8, 1), 4)], ids=str)
def test_fewer_prompts_than_shards_get_the_tokens_of_one_device(model, two_prompts, sizes, copies):
    """A prompt is there several times, each time for its share of the 8 responses."""
    prompts, alone = two_prompts
    mesh = mesh_of(*sizes)
    assert Spread.of(sampler_mesh(mesh), 2, 8).copies == copies
    params = jax.device_put(model.params, tree_shardings(mesh, model.params, model.policy.param_axes()))
    spread = samples_of(model, params, prompts, mesh, 8)
    assert alone.tokens.shape == (2, 8, 10) and len(np.unique(alone.lengths)) > 3
    np.testing.assert_array_equal(spread.tokens, alone.tokens)
    np.testing.assert_array_equal(spread.lengths, alone.lengths)
    np.testing.assert_array_equal(spread.finished, alone.finished)
    np.testing.assert_allclose(spread.log_probs, alone.log_probs, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_parameters_and_moments_are_really_sharded(model, on_mesh, sizes):
    """The sizes of the pieces that devices hold after an update, against sizes written down here by hand."""
    _, fsdp, tensor = sizes[:3]
    text = model.config.text
    vision = model.config.vision
    width = text.hidden_size
    layers = text.num_layers
    vocabulary = text.vocab_size
    heads = text.num_heads * text.head_dim
    keys = text.num_kv_heads * text.head_dim
    inner = text.intermediate_size
    expected = {
        "['language']['embed_tokens']['embedding']": (vocabulary // tensor, width // fsdp),
        "['language']['lm_head']['kernel']": (width // fsdp, vocabulary // tensor),
        "['language']['layers']['self_attn']['q_proj']['kernel']": (layers, width // fsdp, heads // tensor),
        "['language']['layers']['self_attn']['k_proj']['kernel']": (layers, width // fsdp, keys // tensor),
        "['language']['layers']['self_attn']['v_proj']['bias']": (layers, keys // tensor),
        "['language']['layers']['self_attn']['o_proj']['kernel']": (layers, heads // tensor, width // fsdp),
        "['language']['layers']['mlp']['up_proj']['kernel']": (layers, width // fsdp, inner // tensor),
        "['language']['layers']['mlp']['down_proj']['kernel']": (layers, inner // tensor, width // fsdp),
        "['vision']['blocks']['attn']['qkv']['kernel']": (
            vision.depth, vision.hidden_size // fsdp, 3 * vision.hidden_size,
        ),
        "['vision']['blocks']['mlp']['down_proj']['kernel']": (
            vision.depth, vision.intermediate_size, vision.hidden_size // fsdp,
        ),
        "['vision']['patch_embed']['kernel']": (2, 588, vision.hidden_size // fsdp),
    }  # fmt: skip
    state = on_mesh(*sizes).state
    devices = int(np.prod(sizes))
    for part in (state.trainable, state.optimizer[0].mu, state.optimizer[0].nu):
        leaves = by_path(part)
        for name, shape in expected.items():
            shards = leaves[name].addressable_shards
            assert len(shards) == devices and {shard.data.shape for shard in shards} == {shape}, name
        # What is left whole on every device is small: biases of the embed dimension and norms.
        on_one_device = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves.values())
        total = sum(leaf.nbytes for leaf in leaves.values())
        vision_share = sum(leaf.nbytes for name, leaf in leaves.items() if "vision" in name) / total
        assert on_one_device <= total * ((1 - vision_share) / (fsdp * tensor) + vision_share / fsdp + 0.03)


def test_every_parameter_has_a_rule_for_each_dimension(model):
    shapes = model.policy.abstract_params()
    axes = by_axes(model.policy.param_axes())
    for (path, shape), names in zip(jax.tree_util.tree_leaves_with_path(shapes), axes, strict=True):
        assert len(shape.shape) == len(names), path
        assert all(name is None or name in AXIS_RULES for name in names), path


def by_axes(tree):
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, tuple))


def test_no_rule_uses_a_mesh_axis_that_is_not_there():
    for name in AXIS_RULES:
        axes = partition_spec(name)[0]
        assert axes is None or set([axes] if isinstance(axes, str) else axes) <= set(AXES)


@pytest.mark.parametrize(
    ("sizes", "devices", "expected"),
    [((1, -1, 1), 8, (1, 8, 1)), ((2, -1, 2), 8, (2, 2, 2)), ((-1, 1, 1), 3, (3, 1, 1)), ((1, 1, 2), 2, (1, 1, 2))],
)
def test_the_free_axis_takes_the_devices_left(sizes, devices, expected):
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[:devices])
    assert tuple(mesh.shape[axis] for axis in AXES if axis != "context") == expected
    assert batch_divisor(mesh) == expected[0] * expected[1]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 4, 1), r"\(1, 4, 1, 1\) does not divide the 8 devices .* product is 8"),
        ((3, -1, 1), r"\(3, -1, 1, 1\) does not divide the 8 devices"),
        ((2, 2, 4), r"does not divide the 8 devices"),
        ((-1, -1, 1), "at most one -1"),
        ((0, 8, 1), "must be positive"),
        ((1, -2, 1), "must be positive"),
    ],
)
def test_a_mesh_that_cannot_be_made_says_why(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(*sizes))


@dataclass(frozen=True)
class FakeDevice:
    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_hosts_share_rows_only_where_they_must():
    """Where a block of rows is larger than a host, whatever order the devices come in."""
    devices = [FakeDevice(i, process_index=i % 4) for i in range(16)]
    for context, tensor, share in [(1, 4, 1), (4, 1, 1), (2, 2, 1), (1, 8, 2), (4, 2, 2), (1, 16, 4), (16, 1, 4)]:
        mesh = make_mesh(MeshConfig(context=context, tensor=tensor), devices)
        assert set(mesh.devices.flat) == set(devices)
        shares = row_shares(mesh)
        assert [len(hosts) for hosts in shares.hosts] == [share] * (4 // share)
        for hosts, shards in zip(shares.hosts, shares.shards, strict=True):
            blocks = mesh.devices.reshape(batch_divisor(mesh), -1)[list(shards)]
            assert {device.process_index for device in blocks.flat} == set(hosts)
        sampler = sampler_mesh(mesh)
        assert batch_divisor(sampler) * tensor == 16 and [*sampler.devices.flat] == [*mesh.devices.flat]
        assert row_shares(sampler).count == min(4, 16 // tensor)


@pytest.mark.parametrize("sizes", [{"tensor": 3}, {"context": 6}, {"fsdp": 1, "data": 4, "tensor": 3}], ids=str)
def test_a_host_with_a_part_of_two_blocks_of_rows_is_refused(sizes):
    with pytest.raises(UserError, match="of a block of rows .* and the 4 devices of a host do not divide one another"):
        make_mesh(MeshConfig(**sizes), [FakeDevice(i, process_index=i // 4) for i in range(12)])


def test_shares_of_rows_on_alternating_hosts(monkeypatch):
    """The order of rows is share after share; two shares can be merged."""
    devices = np.asarray([FakeDevice(i, process_index=host) for i, host in enumerate([2, 0, 1, 3, 2, 0, 1, 3])])
    shares = row_shares(Mesh(devices.reshape(4, 1, 2, 1), AXES))
    assert shares.hosts == ((0, 2), (1, 3)) and shares.shards == ((0, 2), (1, 3))
    assert shares.order(8).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert shares.merged(1).hosts == ((0, 2, 1, 3),) and shares.merged(2) == shares
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    assert (shares.index, shares.rank, shares.sharing) == (1, 1, (1, 3))
    assert (shares.merged(1).index, shares.merged(1).rank) == (0, 3)


@dataclass(frozen=True)
class FakeDeviceOfSlice(FakeDevice):
    slice_index: int = 0


@pytest.mark.parametrize("by_slice", [True, False], ids=["slice_index", "process"])
def test_data_goes_over_the_slices(by_slice):
    """As `create_hybrid_device_mesh` arranges them; of CPUs each host is a slice, and two neighbours are one."""
    if by_slice:
        devices = [FakeDeviceOfSlice(i, process_index=i // 2, slice_index=i % 2) for i in range(8)]
        expected = mesh_utils.create_hybrid_device_mesh((2, 2, 1, 1), (2, 1, 1, 1), devices)
    else:
        devices = [FakeDevice(i, process_index=i % 4) for i in range(8)]
        expected = np.asarray([devices[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]).reshape(4, 2, 1, 1)
    mesh = make_mesh(MeshConfig(data=4, slices=2), devices)
    assert mesh.devices.tolist() == expected.tolist()
    for data, slices, message in [(3, 2, "is 3|divide the 8"), (1, 2, "mesh.data = 1 does not"), (8, 8, "are in ")]:
        with pytest.raises(UserError, match=message):
            make_mesh(MeshConfig(data=data, slices=slices), devices)


def test_a_cpu_alone_can_be_slices():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2, slices=2))
    assert [device.id for device in mesh.devices[1].flat] == [4, 5, 6, 7] and in_words(mesh).endswith(
        "context 2 x tensor 1"
    )
    with pytest.raises(UserError, match="mesh.slices = 3"):
        make_mesh(MeshConfig(data=-1, fsdp=1, slices=3))


def test_all_parameters_that_do_not_divide_are_listed(model):
    mesh = mesh_of(1, 1, 7)
    with pytest.raises(UserError) as caught:
        tree_shardings(mesh, model.policy.abstract_params(), model.policy.param_axes())
    text = str(caught.value)
    assert "language/embed_tokens/embedding" in text and "language/layers/mlp/down_proj/kernel (2, 128, 64)" in text
    assert "128 does not divide by tensor = 7" in text and "vision" not in text and "norm" not in text


def test_rows_go_to_the_mesh_and_come_back():
    mesh = mesh_of(2, 2, 2)
    rows = {"a": np.arange(24, dtype=np.int32).reshape(8, 3), "b": np.arange(8) % 2 == 0}
    spread = to_global(mesh, rows)
    assert {shard.data.shape for shard in spread["a"].addressable_shards} == {(2, 3)}
    jax.tree.map(np.testing.assert_array_equal, gather_rows(spread), rows)
