"""What is read from the text of compiled programs: against small programs whose collectives are known, and texts."""

from __future__ import annotations

import textwrap
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmeureka_jax.planning.hlo import Buffer, Collective, ProgramText
from mmeureka_jax.planning.replica_groups import devices_together, mesh_axes_of

AXES = {"data": 2, "tensor": 4}


@contextmanager
def jax_settings(**settings):
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def on_mesh(function, *shapes: tuple[int, ...]) -> ProgramText:
    """A function of arrays that each of 2 x 4 devices holds a part of (their first two dimensions), compiled."""
    mesh = Mesh(np.asarray(jax.devices()[:8]).reshape(2, 4), tuple(AXES))
    spec = PartitionSpec("data", "tensor")
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec)) for shape in shapes]
    return ProgramText(jax.jit(mapped).lower(*arguments).compile().as_text())


def summed(program: ProgramText, *unknown_trips: float) -> tuple[dict[tuple, tuple[int, float]], int]:
    """(kind, axes, chips together) -> (bytes each time, count), and loops of unknown trips."""
    found, unknown = program.collectives(AXES, unknown_trips)
    return {(one.kind, one.axes, one.group): (one.bytes, one.count) for one in found}, unknown


def test_nested_loops_multiply():
    def inner(x, _):
        return jax.lax.psum(jnp.sin(x), "tensor") * 0.1, None

    def outer(x, _):
        x = jax.lax.pmax(x * 1.5, "data")
        return jax.lax.scan(inner, x, None, length=7)[0], None

    found, unknown = summed(on_mesh(lambda x: jax.lax.scan(outer, x, None, length=5)[0], (32, 64)))
    assert unknown == 0
    assert found == {
        ("all-reduce", ("data",), 2): (16 * 16 * 4, 5),
        ("all-reduce", ("tensor",), 4): (16 * 16 * 4, 35),
    }


def test_each_kind_has_the_bytes_of_the_whole_array():
    def exchange(x, y, z, w):
        gathered = jax.lax.all_gather(x, "tensor", tiled=True)
        scattered = jax.lax.psum_scatter(y, ("data", "tensor"), tiled=True)
        turned = jax.lax.all_to_all(z, "tensor", 0, 1)
        passed = jax.lax.ppermute(w, "data", [(0, 1), (1, 0)])
        return gathered, scattered, turned, passed

    found, _ = summed(on_mesh(exchange, (2, 4, 3), (64, 4, 3), (8, 4, 3), (2, 4, 5)))
    assert found == {
        ("all-gather", ("tensor",), 4): (4 * 3 * 4, 1),
        ("reduce-scatter", ("data", "tensor"), 8): (32 * 3 * 4, 1),
        ("all-to-all", ("tensor",), 4): (4 * 3 * 4, 1),
        ("collective-permute", ("data",), 2): (5 * 4, 1),
    }


def test_a_loop_of_unknown_trips_is_given_them():
    def body(carry):
        number, x = carry
        _, x = jax.lax.while_loop(lambda c: c[1].sum() < 3.0, inner, (number, x))
        return number + 1, x

    def inner(carry):
        number, x = carry
        return number, jax.lax.psum(jnp.cos(x), ("data", "tensor")) + x

    program = on_mesh(lambda x: jax.lax.while_loop(lambda c: c[1].sum() < 9.0, body, (0, x))[1], (32, 64))
    reduced = ("all-reduce", ("data", "tensor"), 8)
    assert summed(program) == ({reduced: (16 * 16 * 4, 1)}, 2)
    assert summed(program, 10.0) == ({reduced: (16 * 16 * 4, 10)}, 1)
    assert summed(program, 10.0, 16.0) == ({reduced: (16 * 16 * 4, 160)}, 0)


def test_of_branches_the_one_that_sends_most_counts():
    def choose(x):
        return jax.lax.cond(
            jax.lax.axis_index("data") > 5,
            lambda x: x + jax.lax.psum(x, "tensor"),
            lambda x: x + jax.lax.psum(x[:1], "tensor"),
            x,
        )

    found, _ = summed(on_mesh(choose, (4, 4)))
    assert found == {("all-reduce", ("tensor",), 4): (2 * 4, 1)}


def test_largest_buffers_have_shapes_and_origins():
    from mmeureka_jax.models.attention import split_heads  # a helper: what calls it is the origin
    from mmeureka_jax.models.layers import RMSNorm

    def normed(x):
        norm = RMSNorm(64, 1e-6)
        return norm(split_heads(x, 64)) @ jnp.ones((64, 2))

    with jax_settings(jax_traceback_in_locations_limit=10):
        text = jax.jit(normed).lower(jax.ShapeDtypeStruct((3, 128), jnp.float32)).compile().as_text()
    largest = ProgramText(text).largest_buffers(20)
    of_norm = next(buffer for buffer in largest if buffer.shape == "f32[3,2,64]")
    assert of_norm.bytes == 3 * 2 * 64 * 4
    assert of_norm.made_by.startswith("RMSNorm (models/layers.py:")
    assert [buffer.bytes for buffer in largest] == sorted((buffer.bytes for buffer in largest), reverse=True)


# A TPU program: no trip counts at its loops, a gather in pieces between other work, a reduce-scatter that is a fusion,
# arrays in tiles and in on-chip memory.
TPU = textwrap.dedent("""\
    HloModule jit_f, is_scheduled=true

    %piece.1 (p: bf16[10,100]) -> bf16[20,100] {
      ROOT %all-gather.1 = bf16[20,100]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups={{0,1},{2,3}}, \
dimensions={0}, frontend_attributes={chain_id="12"}, metadata={op_name="jit(f)/transpose(jvp())/dot_general"}
    }

    %all-reduce-scatter.3 (p: f32[8,256]) -> f32[4,256] {
      %all-reduce.1 = f32[8,256]{1,0:T(8,128)} all-reduce(%p), channel_id=9, replica_groups=[2,2]<=[2,2]T(1,0)
      ROOT %slice.1 = f32[4,256]{1,0:T(4,128)} dynamic-slice(%all-reduce.1, %zero)
    }, execution_thread="sparsecore"

    %condition (c: (s32[], bf16[20,100])) -> pred[] {
      %c = (s32[]{:T(128)}, bf16[20,100]{1,0:T(8,128)(2,1)}) parameter(0)
      %constant.1 = s32[]{:T(128)} constant(28)
      %count = s32[]{:T(128)} get-tuple-element(%c), index=0
      ROOT %lt = pred[]{:T(512)} compare(%count, %constant.1), direction=LT
    }

    %body (b: (s32[], bf16[20,100])) -> (s32[], bf16[20,100]) {
      %b = (s32[]{:T(128)}, bf16[20,100]{1,0:T(8,128)(2,1)}) parameter(0)
      %kernel.1 = bf16[20,100]{1,0:T(8,128)(2,1)S(1)} custom-call(%b), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
    "xprof_metadata":"{}"
    }}, metadata={op_name="jit(f)/pallas_call"}
      %async-collective-start.1 = (bf16[20,100]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) fusion(%b), kind=kCustom, \
calls=%piece.1
      %fusion.2 = (bf16[20,100]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) fusion(%async-collective-start.1), calls=%piece.1
      %async-collective-done.1 = bf16[20,100]{1,0:T(8,128)(2,1)} fusion(%fusion.2), calls=%piece.1
      %fusion.3 = f32[4,256]{1,0:T(4,128)S(1)} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.3
      ROOT %t = (s32[]{:T(128)}, bf16[20,100]{1,0:T(8,128)(2,1)}) tuple(%b, %async-collective-done.1)
    }

    ENTRY %main (a: bf16[20,100]) -> bf16[20,100] {
      %a = bf16[20,100]{1,0:T(8,128)(2,1)} parameter(0)
      %constant.2 = s32[]{:T(128)} constant(4)
      %copy.1 = s32[]{:T(128)} copy(%constant.2)
      %tuple.1 = (s32[]{:T(128)}, bf16[20,100]{1,0:T(8,128)(2,1)}) tuple(%copy.1, %a)
      %while.1 = (s32[]{:T(128)}, /*index=1*/bf16[20,100]{1,0:T(8,128)(2,1)}) while(%tuple.1), \
condition=%condition, body=%body
      ROOT %out = bf16[20,100]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
    }
    """)


def test_text_of_a_tpu_program():
    program = ProgramText(TPU)
    found, unknown = program.collectives({"fsdp": 2, "tensor": 2})
    assert unknown == 0
    assert found == (
        Collective("reduce-scatter", ("fsdp",), 2, 8 * 256 * 4, 24, ""),
        Collective("all-gather", ("tensor",), 2, 20 * 100 * 2, 24, "backward of dot_general"),
    )
    tiled = 24 * 128 * 2  # 20 x 100 in tiles of 8 x 128
    assert program.largest_buffers(1) == [Buffer("bf16[20,100]", tiled, 3, "fusion")]
    assert all("f32[4,256]" not in buffer.shape for buffer in program.largest_buffers(9))  # on the chip


# A GPU program: asynchronous pairs, one of them wrapped, and a source line at the instruction.
GPU = textwrap.dedent("""\
    HloModule jit_f

    %wrapped (p: f32[64,8]) -> f32[16,8] {
      %p = f32[64,8]{1,0} parameter(0)
      ROOT %reduce-scatter.1 = f32[16,8]{1,0} reduce-scatter(%p), channel_id=2, \
replica_groups=[1,4]<=[4], dimensions={0}
    }

    %body (b: f32[16,8]) -> f32[16,8] {
      %b = f32[16,8]{1,0} parameter(0)
      %all-gather-start = (f32[16,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%b), channel_id=1, \
replica_groups=[1,4]<=[4], dimensions={0}, metadata={op_name="jit(f)/while/body/dot_general" \
source_file="/somewhere/mmeureka_jax/models/layers.py" source_line=61}
      %all-gather-done = f32[64,8]{1,0} all-gather-done(%all-gather-start)
      %reduce-scatter-start = ((f32[64,8]{1,0}), f32[16,8]{1,0}) async-start(%all-gather-done), calls=%wrapped
      ROOT %reduce-scatter-done = f32[16,8]{1,0} async-done(%reduce-scatter-start), calls=%wrapped
    }

    %condition (c: f32[16,8]) -> pred[] {
      %c = f32[16,8]{1,0} parameter(0)
      ROOT %p = pred[] custom-call(%c), custom_call_target="more"
    }

    ENTRY %main (a: f32[16,8]) -> f32[16,8] {
      %a = f32[16,8]{1,0} parameter(0)
      ROOT %while.1 = f32[16,8]{1,0} while(%a), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"64"},"known_init_step":{"init":"0","step":"1"}}
    }
    """)


def test_text_of_a_gpu_program():
    found, _ = ProgramText(GPU).collectives({"fsdp": 4})
    assert found == (
        Collective("all-gather", ("fsdp",), 4, 64 * 8 * 4, 64, "models/layers.py:61"),
        Collective("reduce-scatter", ("fsdp",), 4, 64 * 8 * 4, 64, ""),
    )


@pytest.mark.parametrize(
    ("text", "groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", [(0, 1), (2, 3), (4, 5), (6, 7)], ("c",)),
        ("replica_groups=[4,2]<=[8]", [(0, 1), (2, 3), (4, 5), (6, 7)], ("c",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [(0, 4), (1, 5), (2, 6), (3, 7)], ("a",)),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", [(0, 1, 4, 5), (2, 3, 6, 7)], ("a", "c")),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", [(0, 2, 4, 6), (1, 3, 5, 7)], ("a", "b")),
        ("replica_groups=mesh['x'=4,'y'=2] {'x','y'}", [tuple(range(8))], ("a", "b", "c")),
        ("replica_groups=mesh['x'=8] {'x':(2)2}", [(0, 2), (1, 3), (4, 6), (5, 7)], ("b",)),
        ("replica_groups={}", [tuple(range(8))], ("a", "b", "c")),
        ("source_target_pairs={{0,4},{4,0},{1,5},{5,1},{2,2}}", [(2,), (0, 4), (1, 5)], ("a",)),
        ("replica_groups={{0,3},{1,2}}", [(0, 3), (1, 2)], ()),  # along no whole axis
    ],
)
def test_groups_of_devices(text, groups, axes):
    found = devices_together(f"%x), channel_id=1, {text}, dimensions={{0}}", 8)
    assert sorted(found) == sorted(groups)
    assert mesh_axes_of(found, {"a": 2, "b": 2, "c": 2}) == axes
