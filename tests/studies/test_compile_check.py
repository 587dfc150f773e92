"""The counts of a compiled program, and the GPU's program itself where its compiler is installed."""

import json

import jax
import jax.numpy as jnp
import pytest

from cifar_jax.errors import InputError
from cifar_jax.studies.compile_check import command, hlo
from cifar_jax.studies.compile_check.command import Program

STEP = """HloModule jit_epoch

%fused (p.0: f32[1000,8], p.1: s32[4,1]) -> f32[4,8] {
  %p.0 = f32[1000,8]{1,0} parameter(0)
  %p.1 = s32[4,1]{1,0} parameter(1)
  ROOT %g = f32[4,8]{1,0} gather(%p.0, %p.1), offset_dims={1}, slice_sizes={1,8}
}

%turn (p.2: f32[512,1024]) -> f32[1024,512] {
  %p.2 = f32[512,1024]{1,0} parameter(0)
  ROOT %t = f32[1024,512]{1,0} transpose(%p.2), dimensions={1,0}
}

%body (state: (s32[], f32[1000,8], f32[512,1024], s32[4,1], f32[256])) -> (s32[], f32[1000,8]) {
  %state = (s32[], f32[1000,8]{1,0}, f32[512,1024]{1,0}, s32[4,1]{1,0}, f32[256]{0}) parameter(0)
  %all = f32[1000,8]{1,0} get-tuple-element(%state), index=1
  %big = f32[512,1024]{1,0} get-tuple-element(%state), index=2
  %rows = s32[4,1]{1,0} get-tuple-element(%state), index=3
  %table = f32[256]{0} get-tuple-element(%state), index=4
  %picked = f32[4,8]{1,0} fusion(%all, %rows), kind=kLoop, calls=%fused
  %turned = f32[1024,512]{1,0} fusion(%big), kind=kLoop, calls=%turn
  %pixels = f32[4]{0} gather(%table, %rows), offset_dims={}, slice_sizes={1}
  %sum-start = f32[4,8]{1,0} all-reduce-start(%picked), to_apply=%add
  %sum = f32[4,8]{1,0} all-reduce-done(%sum-start)
  ROOT %out = (s32[], f32[1000,8]{1,0}) tuple(%step, %all)
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %loop = (s32[], f32[1000,8]{1,0}) while(%start), condition=%more, body=%body
  ROOT %y = f32[2]{0} copy(%x)
}
"""


def test_counts_of_a_step_worked_out_by_hand():
    """Of 1,000 rows the gather reads four; what is not in the loop does not count."""
    picked, turned, pixels, reduced = 2 * 4 * 8 * 4 + 16, 2 * 4 * 512 * 1024, 16 + 256 * 4 + 16, 2 * 4 * 8 * 4
    counts = hlo.count(STEP)
    assert counts == hlo.Counts(
        kernels=4, megabytes=round((picked + turned + pixels + reduced) / 1e6, 1), collectives={"all-reduce": 1},
        transpositions=1, looked_up=4,
    )  # fmt: skip


def test_a_table_of_pixels_shows_in_what_is_looked_up():
    """As `to_float` once had it: with it an epoch looks up each pixel, without it nothing."""
    images, table = jnp.zeros((20, 32, 32, 3), jnp.uint8), jnp.linspace(0, 1, 256)

    def count(function):
        text = jax.jit(lambda images: jax.lax.map(function, images)).lower(images).compile().as_text()
        return hlo.count(text).looked_up

    assert count(lambda image: jnp.take(table, image.astype(jnp.int32), mode="clip")) == 32 * 32 * 3
    assert count(lambda image: image / 255) == 0


# Of one step at batches of 200, as jax 0.12.0.1 compiles it, and a twentieth more.
CEILINGS = {
    Program("h100", "cnn6", "float32", 1, "train_epoch"): {"kernels": 121, "megabytes": 2350, "peak_megabytes": 620},
    Program("h100", "cnn6", "bfloat16", 1, "train_epoch"): {"kernels": 121, "megabytes": 1330, "peak_megabytes": 400},
    Program("h100", "cnn6", "float32", 8, "train_epoch"): {"kernels": 177, "megabytes": 395, "peak_megabytes": 300},
    Program("h100", "cnn6", "float32", 1, "eval_epoch"): {"kernels": 29, "megabytes": 635, "peak_megabytes": 250},
}


@pytest.mark.slow
@pytest.mark.parametrize("program", CEILINGS, ids=str)
def test_the_program_for_an_h100_stays_as_good_as_it_is(program):
    if package := command.missing(program.target):
        pytest.skip(f"{package} is not installed: see python -m cifar_jax compile-check --help")
    row = command.check(program)
    assert row["compiles"], row
    for name, ceiling in CEILINGS[program].items():
        assert row[name] <= ceiling, f"{name} is {row[name]}, above {ceiling}"
    # A layer's moments and the sums of its gradient; all gradients, and the counts.
    assert row["collectives"] == ({} if program.devices == 1 else {"all-gather": 6, "all-reduce": 6 + 2})
    assert row["transpositions"] == 0
    assert row["looked_up"] <= 3 * command.BATCH


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["h200"], "TARGET must be one of h100, a100, v5e, v6e, got h200"),
        (["h100", "--out=/nowhere/out.json"], "--out must be a file in a folder that exists, got '/nowhere/out.json'"),
        (["--fast"], "does not take --fast"),
    ],
)
def test_wrong_arguments_are_refused(argv, message, monkeypatch):
    monkeypatch.setattr(command, "missing", lambda target: None)
    with pytest.raises(InputError, match=message):
        command.main(argv)


def test_a_compiler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(command, "_installed", lambda package: package != "libtpu")
    with pytest.raises(InputError, match="compile-check for v5e needs libtpu; see its --help"):
        command.main(["v5e"])


def test_a_program_that_does_not_compile_is_a_row_and_an_exit_code(monkeypatch, tmp_path):
    """The file has the rows so far whatever comes after."""
    rows = iter([{"compiles": True, "kernels": 1, "megabytes": 1.0}, {"compiles": False, "error": "no such op"}])
    monkeypatch.setattr(command, "missing", lambda target: None)
    monkeypatch.setattr(command, "programs", lambda targets, *, quick: list(CEILINGS)[:2])
    monkeypatch.setattr(command, "check", lambda program: next(rows))
    assert command.main(["h100", f"--out={tmp_path / 'out.json'}"]) == 1
    record = json.loads((tmp_path / "out.json").read_text())
    assert [row["compiles"] for row in record["programs"]] == [True, False]


def test_a_process_that_fails_is_a_row():
    """As a compiler may abort."""
    row = command.check(Program("h100", "cnn5", "float32", 1, "train_epoch"))
    assert not row["compiles"]
    assert row["error"] == "KeyError: 'cnn5'"
