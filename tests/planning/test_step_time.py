"""Lengths of responses, bytes of programs, and the time of a step."""

from __future__ import annotations

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmeureka_jax.planning.hlo import ProgramText
from mmeureka_jax.planning.lengths import Lengths
from mmeureka_jax.planning.step_time import Cost
from mmeureka_jax.planning.traffic import bytes_moved


def test_lengths_against_draws():
    lengths = Lengths.with_mean(400, None)
    drawn = lengths.draw((20_000, 8), seed=0)
    assert (drawn.min(), drawn.max(), np.median(drawn)) == (1, 400, lengths.median)
    assert lengths.mean == pytest.approx(drawn.mean(), rel=0.01)
    assert lengths.longest(8) == pytest.approx(drawn.max(1).mean(), rel=0.01)
    assert lengths.running[100] == pytest.approx((drawn > 100).mean(), rel=0.02)
    assert Lengths.with_mean(400, 120.0).mean == pytest.approx(120.0)
    assert sum(lengths.typical(7.5)) == pytest.approx(7.5 * lengths.mean)
    with pytest.raises(ValueError, match="not between 1 and the limit 400"):
        Lengths.with_mean(400, 401.0)


def test_bytes_are_those_of_xla_where_there_is_no_loop():
    def function(x, y):
        return jnp.tanh(x @ y) @ y.T, jnp.sum(x, axis=0)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 256), (256, 512))]
    compiled = jax.jit(function).lower(*shapes).compile()
    own = bytes_moved(ProgramText(compiled.as_text()))
    assert own == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.05)


# A loop over stacked weights: each turn reads one layer's, fetches a part of an array into the chip's memory ahead of
# its use, and writes one row of a stack in place.
STACKED = textwrap.dedent("""\
    HloModule jit_f

    %product (a: f32[8,64], w: f32[5,64,64], i: s32[]) -> f32[8,64] {
      %a = f32[8,64]{1,0:T(8,128)} parameter(0)
      %w = f32[5,64,128]{2,1,0:T(8,128)} parameter(1)
      %i = s32[]{:T(128)} parameter(2)
      %slice = f32[1,64,128]{2,1,0:T(8,128)} dynamic-slice(%w, %i), dynamic_slice_sizes={1,64,128}
      %layer = f32[64,128]{1,0:T(8,128)} bitcast(%slice)
      ROOT %dot = f32[8,128]{1,0:T(8,128)S(1)} convolution(%a, %layer)
    }

    %keep (s: f32[5,8,128], x: f32[8,128], i: s32[]) -> f32[5,8,128] {
      %s = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
      %x = f32[8,128]{1,0:T(8,128)} parameter(1)
      %i = s32[]{:T(128)} parameter(2)
      %row = f32[1,8,128]{2,1,0:T(8,128)} bitcast(%x)
      ROOT %put = f32[5,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%s, %row, %i)
    }

    %condition (c: (s32[], f32[8,128], f32[5,64,128], f32[5,8,128])) -> pred[] {
      %c = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
      %five = s32[]{:T(128)} constant(5)
      %i = s32[]{:T(128)} get-tuple-element(%c), index=0
      ROOT %lt = pred[]{:T(512)} compare(%i, %five), direction=LT
    }

    %body (b: (s32[], f32[8,128], f32[5,64,128], f32[5,8,128])) -> (s32[], f32[8,128]) {
      %b = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
      %i = s32[]{:T(128)S(4)} get-tuple-element(%b), index=0
      %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%b), index=1
      %w = f32[5,64,128]{2,1,0:T(8,128)} get-tuple-element(%b), index=2
      %s = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%b), index=3
      %ahead = ((f32[5,64,128]{2,1,0:T(8,128)}), f32[5,16,128]{2,1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%w), \
slice={[0:5], [0:16], [0:128]}
      %part = f32[5,16,128]{2,1,0:T(8,128)S(1)} slice-done(%ahead)
      %out = f32[8,128]{1,0:T(8,128)S(1)} fusion(%x, %w, %i), kind=kOutput, calls=%product
      %kept = f32[5,8,128]{2,1,0:T(8,128)} fusion(%s, %x, %i), kind=kLoop, calls=%keep
      ROOT %t = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%i, %out)
    }

    ENTRY %main (a: (s32[], f32[8,128], f32[5,64,128], f32[5,8,128])) -> f32[8,128] {
      %a = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
      %while = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%a), condition=%condition, body=%body
      ROOT %out = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while), index=1
    }
    """)


def test_a_loop_reads_a_layer_and_a_part_and_writes_a_row_each_turn():
    activations = 8 * 128 * 4
    layer = 64 * 128 * 4
    product = activations + layer  # its result stays on the chip
    kept = activations + activations  # read, and written in place
    part = 5 * 16 * 128 * 4
    program = ProgramText(STACKED)
    assert bytes_moved(program) == 5 * (product + kept + part)
    assert program.largest_buffers(1)[0].shape == "f32[5,8,128]"  # not what is sliced, which was there


# An all-gather that a TPU does piece by piece, one of them while a product is computed (as libtpu 0.0.42 writes it).
IN_PIECES = textwrap.dedent("""\
    HloModule jit_f

    %start (p: f32[16,128]) -> (f32[16,128], f32[64,128], u32[]) {
      %p = f32[16,128]{1,0:T(8,128)} parameter(0)
      %gather.1 = f32[64,128]{1,0:T(8,128)} all-gather(%p), dimensions={0}, frontend_attributes={chain_id="4"}
      ROOT %begun = (f32[16,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}, u32[]{:S(2)}) custom-call(%gather.1)
    }

    %meanwhile (p: f32[16,128], g: f32[64,128], s: u32[], a: f32[8,128], w: f32[128,128]) -> (f32[8,128]) {
      %a = f32[8,128]{1,0:T(8,128)} parameter(3)
      %w = f32[128,128]{1,0:T(8,128)} parameter(4)
      %product = f32[8,128]{1,0:T(8,128)} convolution(%a, %w), dim_labels=bf_io->bf
      %p = f32[16,128]{1,0:T(8,128)} parameter(0)
      %g = f32[64,128]{1,0:T(8,128)} parameter(1)
      %gather.2 = f32[64,128]{1,0:T(8,128)} all-gather(%p), dimensions={0}, frontend_attributes={chain_id="4"}
      %s = u32[]{:S(2)} parameter(2)
      ROOT %t = (f32[8,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}, \
f32[64,128]{1,0:T(8,128)}, u32[]{:S(2)}) tuple(%product, %p, %g, %gather.2, %s)
    }

    %done (p: f32[16,128], g: f32[64,128], s: u32[]) -> f32[64,128] {
      %p = f32[16,128]{1,0:T(8,128)} parameter(0)
      %g = f32[64,128]{1,0:T(8,128)} parameter(1)
      %gather.3 = f32[64,128]{1,0:T(8,128)} all-gather(%p), dimensions={0}, frontend_attributes={chain_id="4"}
      %s = u32[]{:S(2)} parameter(2)
      ROOT %whole = f32[64,128]{1,0:T(8,128)} custom-call(%p, %g, %gather.3, %s)
    }

    ENTRY %main (x: f32[16,128], a: f32[8,128], w: f32[128,128]) -> (f32[8,128], f32[64,128]) {
      %x = f32[16,128]{1,0:T(8,128)} parameter(0)
      %a = f32[8,128]{1,0:T(8,128)} parameter(1)
      %w = f32[128,128]{1,0:T(8,128)} parameter(2)
      %async-collective-start.4 = (f32[16,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}, u32[]{:S(2)}) fusion(%x), \
kind=kCustom, calls=%start
      %x.1 = f32[16,128]{1,0:T(8,128)} get-tuple-element(%async-collective-start.4), index=0
      %g.1 = f32[64,128]{1,0:T(8,128)} get-tuple-element(%async-collective-start.4), index=1
      %s.1 = u32[]{:S(2)} get-tuple-element(%async-collective-start.4), index=2
      %fusion.7 = (f32[8,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}, \
f32[64,128]{1,0:T(8,128)}, u32[]{:S(2)}) fusion(%x.1, %g.1, %s.1, %a, %w), kind=kOutput, calls=%meanwhile
      %out = f32[8,128]{1,0:T(8,128)} get-tuple-element(%fusion.7), index=0
      %x.2 = f32[16,128]{1,0:T(8,128)} get-tuple-element(%fusion.7), index=1
      %g.2 = f32[64,128]{1,0:T(8,128)} get-tuple-element(%fusion.7), index=2
      %s.2 = u32[]{:S(2)} get-tuple-element(%fusion.7), index=4
      %async-collective-done.4 = f32[64,128]{1,0:T(8,128)} fusion(%x.2, %g.2, %s.2), kind=kCustom, calls=%done
      ROOT %both = (f32[8,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}) tuple(%out, %async-collective-done.4)
    }
    """)


def test_a_collective_in_pieces_moves_its_bytes_once():
    gathered = (16 + 64) * 128 * 4
    product = (8 + 128 + 8) * 128 * 4
    assert bytes_moved(ProgramText(IN_PIECES)) == gathered + product


def test_branches_count_by_how_often_they_are_taken():
    def block(x, whole):
        return jax.lax.cond(whole, lambda x: x @ jnp.ones((64, 4096)) @ jnp.ones((4096, 64)), lambda x: x + 1, x), None

    compiled = jax.jit(lambda x, whole: jax.lax.scan(block, x, whole)[0]).lower(jnp.ones((8, 64)), jnp.ones(8, bool))
    program = ProgramText(compiled.compile().as_text())
    every, half, none = (bytes_moved(program, costliest=share) for share in (1.0, 0.5, 0.0))
    assert every > 8 * 4 * 64 * 4096 > none
    assert half == (every + none) / 2


def test_what_can_be_sent_ahead_overlaps():
    cost = Cost(compute=3.0, memory=2.0, ahead=2.5, waited=1.0)
    assert (cost.seconds, cost.binding) == (4.0, "links")
    assert Cost(compute=3.0, ahead=2.5).binding == "compute"
    assert (cost + cost * 2).seconds == 12.0
