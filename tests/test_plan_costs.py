"""Bytes, operations and collectives from the text of compiled programs, counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax.distributed import make_engine
from resflax.plan.collectives import Traffic, count_collectives, device_groups
from resflax.plan.hlo import Instruction, parse_program, type_bytes
from resflax.plan.kernel_costs import bytes_by_kind, count_flops

LOOP = """HloModule m, is_scheduled=true, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %reduced = f32[8,16]{1,0:T(8,128)} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %out = (s32[], f32[8,16]{1,0}) tuple(%i, %reduced)
}

ENTRY %main (x: f32[8,16], w: bf16[2,16]) -> f32[8,16] {
  %x.1 = f32[8,16]{1,0} parameter(0)
  %w = bf16[2,16]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (bf16[2,16]{1,0}, bf16[8,16]{1,0}) all-gather-start(%w), replica_groups=[1,4]<=[4], \
dimensions={0}
  %done = bf16[8,16]{1,0} all-gather-done(%start)
  %token = token[] after-all()
  %send = (f32[8,16]{1,0}, u32[], token[]) send(%x.1, %token), is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send)
  %init = (s32[], f32[8,16]{1,0}) tuple(%zero, %x.1)
  %loop = (s32[], f32[8,16]{1,0}) while(%init), condition=%add, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %result = f32[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""
KERNELS = """HloModule m

%fused (p: bf16[16,32,32,64]) -> bf16[16,32,32,64] {
  %p = bf16[16,32,32,64]{3,2,1,0} parameter(0)
  ROOT %n = bf16[16,32,32,64]{3,2,1,0} negate(%p)
}

ENTRY %main (x: bf16[16,32,32,64], w: bf16[128,3,3,64]) -> bf16[128,3,3,64] {
  %x = bf16[16,32,32,64]{3,2,1,0} parameter(0)
  %w = bf16[128,3,3,64]{3,2,1,0} parameter(1)
  %conv = (bf16[16,16,16,128]{3,2,1,0}, u8[1000]{0}) custom-call(%x, %w), \
window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward"
  %y = bf16[16,16,16,128]{3,2,1,0} get-tuple-element(%conv), index=0
  %f = bf16[16,32,32,64]{3,2,1,0} fusion(%x), kind=kLoop, calls=%fused
  %grad = (bf16[128,3,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%f, %y), \
window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardFilter"
  %a = f32[5,7]{1,0} constant({...})
  %gemm = (f32[5,5]{1,0}, s8[0]{0}) custom-call(%a, %a), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  ROOT %dw = bf16[128,3,3,64]{3,2,1,0} get-tuple-element(%grad), index=0
}
"""
X, Y, W = (2 * n for n in (16 * 32 * 32 * 64, 16 * 16 * 16 * 128, 128 * 9 * 64))


@pytest.mark.parametrize(
    ("type_text", "size"),
    [
        ("f32[]", 4),
        ("pred[3,5]{1,0}", 15),
        ("bf16[128,3]{1,0:T(8,128)(2,1)S(1)}", 768),
        ("s4[8]{0:E(4)}", 4),
        ("f8e4m3fn[7]{0}", 7),
        ("(u32[], token[], /*index=5*/c64[2]{0})", 4 + 0 + 16),
    ],
)
def test_types_have_the_size_of_their_arrays(type_text, size):
    assert type_bytes(type_text) == size


def test_collectives_are_counted_by_kind_and_trip_count():
    found = count_collectives(parse_program(LOOP), [0, 0, 1, 1])
    assert found == {
        "all-reduce": Traffic(3, 3 * 8 * 16 * 4, 1, 8 * 16 * 4),
        "all-gather": Traffic(0, 0, 1, 8 * 16 * 2),
    }
    inside = count_collectives(parse_program(LOOP), [0, 0, 0, 0])
    assert inside["all-gather"] == Traffic(1, 8 * 16 * 2)


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        (", replica_groups={{0,2},{1,3}}, to_apply=%add", [[0, 2], [1, 3]]),
        (", replica_groups=[2,2]<=[4], dimensions={0}", [[0, 1], [2, 3]]),
        (", replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        (", replica_groups=mesh['a'=2,'b'=2] {'a'}, use_global_device_ids=true", [[0, 2], [1, 3]]),
        (", replica_groups=mesh['a'=4], device_ids=([2,2]T(1,0)) {'a':(2)2}", [[0, 2], [1, 3]]),
        (", replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        (", source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        (", replica_groups={}", [[0, 1, 2, 3]]),
    ],
)
def test_device_groups_are_read_in_every_notation(attributes, groups):
    instruction = Instruction("x", "f32[]", "all-reduce", (), attributes)
    assert device_groups(instruction, [0] * 4) == groups


def test_kernels_have_the_bytes_of_operands_and_results():
    kinds = bytes_by_kind(parse_program(KERNELS))
    forward, backward = X + W + Y + 1000, X + Y + W
    gemm = 2 * 5 * 7 * 4 + 5 * 5 * 4
    assert kinds == {"cudnn": forward + backward, "fusion": 2 * X, "cublas": gemm}


def test_flops_are_two_for_each_multiply_add():
    convolution = 2 * (16 * 16 * 16 * 128) * (3 * 3 * 64)
    assert count_flops(parse_program(KERNELS)) == 2 * convolution + 2 * 5 * 5 * 7


def test_fsdp_gathers_inside_slices_and_averages_across():
    """Of eight devices in two slices, with the state sharded over the four of each."""
    engine = make_engine("mesh", jax.devices(), fsdp=4)
    sizes = {"w": jax.ShapeDtypeStruct((64, 256), np.float32)}
    state = engine.put_state(sizes)
    batch = engine.shard_batch({"x": jax.ShapeDtypeStruct((4096, 64), np.float32)})

    def step(state, batch):
        def loss(w):
            return jnp.mean((batch["x"] @ w) ** 2)

        value, gradient = jax.value_and_grad(loss)(state["w"])
        return {"w": state["w"] - gradient}, value

    compiled = engine.compile_train(step).lower(state, batch).compile()
    program = parse_program(compiled.as_text())
    found = count_collectives(program, [0] * 4 + [1] * 4)
    assert found["all-gather"].count == 1
    assert found["all-gather"].bytes == 64 * 256 * 4
    assert found["all-gather"].count_across_slices == 0
    assert found["all-reduce"].count_across_slices >= 1
    # Without the devices' order, a group of four would have devices of both slices.
    mixed = count_collectives(program, [0, 1] * 4)
    assert mixed["all-gather"].count_across_slices == 1
