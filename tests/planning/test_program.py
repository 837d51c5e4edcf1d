"""Collectives and loops of a program, against a count by hand."""

import pytest

pytest.importorskip("jax")

from align_keras.planning.program import Program
from align_keras.planning.program import transfer_seconds

# Ten turns of a loop, each with an all-reduce; a fusion called twice; one
# computation that nobody calls.
PROGRAM = """\
HloModule step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%fused (p: bf16[8,128]) -> bf16[32,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %g = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%p), dimensions={0}
}

%body (t: (s32[], f32[5,7])) -> (s32[], f32[5,7]) {
  %t = (s32[], f32[5,7]{1,0:T(8,128)}) parameter(0)
  %x = f32[5,7]{1,0:T(8,128)} get-tuple-element(%t), index=1
  %r = (f32[5,7]{1,0:T(8,128)}, s32[3]{0}) all-reduce(%x, %n), to_apply=%sum
  %m = f32[5,7]{1,0} multiply(%x, %x), backend_config={"window_config":\
{"estimated_cycles":"300","iteration_bounds":[]}}
  ROOT %o = (s32[], f32[5,7]{1,0}) tuple(%i, %y)
}

%cond (t: (s32[], f32[5,7])) -> pred[] {
  %n = s32[]{:T(256)} constant(10)
  ROOT %p = pred[] compare(%i, %n), direction=LT
}

%unused (p: f32[100]) -> f32[100] {
  ROOT %r = f32[100]{0} all-reduce(%p), to_apply=%sum
}

ENTRY %main (x: f32[5,7]) -> f32[5,7] {
  %w = (s32[], f32[5,7]{1,0}) while(%t), condition=%cond, body=%body
  %f = bf16[32,128]{1,0} fusion(%p), kind=kCustom, calls=%fused, \
backend_config={"estimated_cycles":"50"}
  %g = bf16[32,128]{1,0} fusion(%q), kind=kCustom, calls=%fused
  %s = (f32[4]{0}, f32[16]{0}) all-gather-start(%y), dimensions={0}
  %d = f32[16]{0} all-gather-done(%s)
  %e = f32[3]{0} reduce-scatter(%z), dimensions={0}, to_apply=%sum
  %c = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%z)
}
"""


def test_collectives_count_in_loops_and_fusions():
    assert Program(PROGRAM).collectives() == [
        {"kind": "all-gather", "count": 3, "bytes": 2 * 32 * 128 * 2 + 16 * 4},
        {"kind": "all-reduce", "count": 10, "bytes": 10 * (35 + 3) * 4},
        {"kind": "collective-permute", "count": 1, "bytes": 24},
        {"kind": "reduce-scatter", "count": 1, "bytes": 12},
    ]


def test_cycles_count_in_loops():
    assert Program(PROGRAM).cycles() == (10 * 300 + 50, 300 + 50)
    known = 'body=%body, backend_config={"known_trip_count":{"n":"4"}}'
    program = PROGRAM.replace("body=%body", known)
    assert Program(program).cycles() == (4 * 300 + 50, 300 + 50)


def test_time_of_collectives():
    """Of a ring of 4, each device sends 3/4 of a gather, twice that to sum."""
    found = [
        {"kind": "all-gather", "count": 1, "bytes": 400},
        {"kind": "all-reduce", "count": 1, "bytes": 400},
        {"kind": "reduce-scatter", "count": 1, "bytes": 100},
    ]
    assert transfer_seconds(found, 4, 100.0) == pytest.approx(3 + 6 + 3)
    assert transfer_seconds([], 1, 100.0) == 0
