"""Batches spread over devices: the same training on one, two, four and eight, and what travels between them."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT
from many_devices import DDP, DDP_STEPS, RUNS

from cifar_jax.devices.sharding import data_parallel, place, replicate, replicate_rows
from cifar_jax.errors import InputError

# Two programs may add in another order: 1e-10 is what was asked for, and 1e-14 what comes out.
BOUND = 1e-10


def start(*arguments):
    """Compiled without optimisation, which takes half the time."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment |= {"JAX_NUM_CPU_DEVICES": "8", "JAX_ENABLE_X64": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(*processes, timeout=900):
    for process in processes:
        _, err = process.communicate(timeout=timeout)
        assert process.returncode == 0, err


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "out.npz"
    finish(start(ROOT / "tests" / "devices" / "many_devices.py", path))
    return path


@pytest.fixture(scope="module")
def out(path):
    """What many_devices.py came to, as nested dictionaries."""
    nested = {}
    with np.load(path) as arrays:
        for name in arrays.files:
            group, key = name.split("/", 1)
            nested.setdefault(group, {})[key] = arrays[name]
    return nested


@pytest.mark.parametrize("name", [name for name in RUNS if not name.endswith("1")])
def test_an_epoch_gives_the_numbers_of_one_device(out, name):
    """Also of batches that the devices do not divide, and of images that lie on the host."""
    here, there = out[name], out[name.rstrip("0123456789") + "1"]
    np.testing.assert_array_equal(here["order"], there["order"])
    np.testing.assert_array_equal(here["counts"], there["counts"])
    for key in here:
        np.testing.assert_allclose(here[key], there[key], rtol=0, atol=BOUND, err_msg=key)


def test_every_image_counts_once(out):
    for name in RUNS:
        train, _, test, _ = out[name]["counts"]
        assert (train, test) == (64 if name.startswith("even") else 70, 25)


def test_training_goes_somewhere(out):
    """The bound above is met by nothing that stands still, nor by other batches."""
    key = "linear.weight"
    assert np.abs(out["ragged1"][key] - out["even1"][key]).max() > 1e4 * BOUND


def collectives(text):
    """Kind, shapes and line of the collective operations in a compiled program."""
    lines = [
        line for line in str(text).splitlines() if re.search(r" = .* (all|reduce-scatter|collective)-[\w-]+\(", line)
    ]
    parsed = [re.search(r" = (\(.*?\)|\S+) ([\w-]+)\(", line) for line in lines]
    return [(match[2], match[1], line) for match, line in zip(parsed, lines, strict=True)]


def test_one_device_needs_no_collective(out):
    assert collectives(out["hlo"]["none"]) == []
    assert "sharding=" not in str(out["hlo"]["none"])


@pytest.mark.parametrize("name", ["global", "masked", "host"])
def test_what_travels_for_the_whole_batch(out, name):
    """One reduction of all gradients, one of the counts; of each BatchNorm, its moments and the sums of its gradient.

    No image travels, wherever images lie: each device takes its rows from all that it holds, or is sent its own.
    """
    found = collectives(out["hlo"][name])
    norm = [(kind, shape, line) for kind, shape, line in found if re.search(r"op_name=\"[^\":]*norm\d", line)]
    rest = [(kind, shape) for kind, shape, line in found if line not in [line for _, _, line in norm]]
    assert [kind for kind, _ in rest] == ["all-reduce"] * 2
    floats = [shape for _, shape in rest if "f64" in shape]
    assert len(floats) == 1
    # Six convolutions, twelve scales and biases, the linear layer's two and the loss.
    assert floats[0].count("f64[") == 6 + 12 + 2 + 1
    assert [kind for kind, _, line in norm if "transpose" in line] == ["all-reduce"] * 6
    assert [kind for kind, _, line in norm if "transpose" not in line] == ["all-gather"] * 6


def test_what_travels_for_replicas(out):
    """Gradients, statistics and the loss in one reduction, the counts in another."""
    shapes = [shape for _, shape, _ in collectives(out["hlo"]["per_replica"])]
    assert len(shapes) == 2
    assert sorted(shape.count("f64[") for shape in shapes) == [0, 6 + 12 + 2 + 12 + 1]


def test_replicas_are_pytorchs_distributed_data_parallel(torch, path, out, tmp_path):
    """1e-10 over four steps in double precision, where 1e-15 a step is rounding."""
    program, target = ROOT / "tests" / "devices" / "torch_ddp.py", tmp_path / "torch.npz"
    finish(*(start(program, rank, tmp_path / "meeting", path, target) for rank in (0, 1)))
    theirs, ours = np.load(target), out["ddp"]
    assert len(theirs["losses"]) == DDP_STEPS
    np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=0, atol=BOUND)
    names = [name for name in theirs.files if name.startswith("end/") and "num_batches" not in name]
    assert len(names) == 6 + 24 + 2
    for name in names:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=BOUND, err_msg=name)


def take_torch_step(torch, ours, images, labels, shares):
    """A step of the DDP recipe in one process: each share normalised by itself, each image weighing the same."""
    from cifar_jax.parity.lockstep.torch_side import Preprocess
    from cifar_jax.parity.twin import create_optimizer, create_twin, load_arrays, read_arrays

    network = create_twin("cnn6", num_classes=10, stages=((4, 4), (4, 4), (8, 8))).double()
    load_arrays(network, {key.removeprefix("start/"): ours[key] for key in ours if key.startswith("start/")})
    optimizer = create_optimizer(
        "sgd", network.parameters(), lr=DDP["optimizer.lr"], momentum=0.9, weight_decay=DDP["optimizer.weight_decay"]
    )
    x = Preprocess(32, normalize=True)(images, np.zeros(len(images), bool), torch.float64)
    y = torch.from_numpy(labels.astype(np.int64))
    losses, buffers = [], None
    for share in shares:
        losses.append(torch.nn.functional.cross_entropy(network(x[share]), y[share], reduction="sum"))
        buffers = buffers or {k: v for k, v in read_arrays(network).items() if "running" in k}
    loss = sum(losses) / len(images)
    loss.backward()
    optimizer.step()
    return loss.item(), {**read_arrays(network), **buffers}


def test_a_batch_of_three_images_on_eight_replicas(torch, out):
    """Five devices have no image; the others' statistics, gradients and loss are as if these were not there."""
    ours = out["ddp"]
    loss, arrays = take_torch_step(
        torch, ours, ours["few_images"][:3], ours["few_labels"][:3], [slice(i, i + 1) for i in range(3)]
    )
    np.testing.assert_allclose(ours["few_counts"], [loss, 3], rtol=0, atol=BOUND)
    for name, value in arrays.items():
        if "num_batches" not in name:
            np.testing.assert_allclose(ours[f"few/{name}"], value, rtol=0, atol=BOUND, err_msg=name)


def test_replicas_are_not_the_whole_batch(torch, out):
    """The bound above is missed by the first step with the statistics of all images."""
    ours = out["ddp"]
    loss, _ = take_torch_step(torch, ours, ours["images"][0], ours["labels"][0], [slice(None)])
    assert abs(loss - ours["losses"][0]) > 1e4 * BOUND
    loss, _ = take_torch_step(torch, ours, ours["images"][0], ours["labels"][0], [slice(0, 8), slice(8, 16)])
    assert abs(loss - ours["losses"][0]) < BOUND


def test_too_many_devices_are_refused():
    (device,) = jax.devices()
    with pytest.raises(InputError, match="sharding.data must be -1 or at most the number of devices, 1, got 2"):
        data_parallel([device], 2)
    assert data_parallel([device], -1) is None


def test_one_device_holds_what_it_is_given():
    arrays = (np.arange(3), np.arange(6).reshape(3, 2))
    for placed in (place(arrays, None), replicate(arrays, None), replicate_rows(arrays, None)):
        jax.tree.map(np.testing.assert_array_equal, placed, arrays)
