"""Against files that PyTorch itself wrote, of programs that it ran."""

import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_train import dataset as a_dataset  # noqa: F401  (a fixture)
from test_train import saved

from cifar_jax import train
from cifar_jax.errors import InputError
from cifar_jax.parity import convert
from cifar_jax.parity.__main__ import main
from cifar_jax.parity.torch_file import read_file

STEPS = 5  # in an epoch of 70 images in batches of 16
OVERRIDES = (
    "--config=configs/default.py --config.data.name=shapes --config.data.batch_size=16 "
    "--config.data.eval_batch_size=10 --config.model.stages=((4,4),(4,4),(8,8)) --config.train.epochs=3"
).split()
SGD = "--config.optimizer.name=sgd --config.optimizer.lr=0.1 --config.optimizer.weight_decay=0.0005".split()
COSINE = "--config.schedule.name=cosine --config.schedule.t_max=5".split()


@pytest.fixture
def dataset(a_dataset):  # noqa: F811
    return a_dataset


@pytest.fixture(autouse=True)
def one_precision_at_a_time():
    yield
    jax.config.update("jax_enable_x64", False)


def equal(ours, theirs, *, tolerance=0.0):
    """Whether two contents of files are the same, key by key, down to the types, numbers within a tolerance."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            equal(ours[key], theirs[key], tolerance=tolerance)
    elif isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            equal(one, other, tolerance=tolerance)
    elif isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, strict=True)
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=0, abs=tolerance)
    else:
        assert ours == theirs


class Program:
    """A PyTorch program after so many epochs, trained on noise, as it would save itself."""

    def __init__(self, torch, optimizer="sgd", schedule="cosine", epochs=2, dtype="float32", steps=STEPS):
        from cifar_jax.parity import twin

        torch.manual_seed(1)
        self.torch, self.dtype = torch, getattr(torch, dtype)
        self.network = twin.create_twin("cnn6", num_classes=10, stages=((4, 4), (4, 4), (8, 8))).to(self.dtype)
        options = {"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005}, "adam": {"lr": 0.001}}[optimizer]
        self.optimizer = twin.create_optimizer(optimizer, self.network.parameters(), **options)
        self.scheduler = twin.create_scheduler(schedule, self.optimizer, t_max=5) if schedule != "constant" else None
        for _ in range(epochs):
            for _ in range(steps):
                self.step()
            if self.scheduler:
                self.scheduler.step()
        self.epoch = epochs

    def step(self):
        self.network.train()
        self.optimizer.zero_grad()
        loss = self.network(self.torch.randn(3, 3, 16, 16, dtype=self.dtype)).square().mean()
        loss.backward()
        self.optimizer.step()

    def content(self):
        parts = {"model": self.network, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {**{name: part.state_dict() for name, part in parts.items() if part}, "epoch": self.epoch}

    def save(self, path):
        self.torch.save(self.content(), path)
        return path


def run_of(folder, overrides):
    """The state of the run in a folder, and what builds it."""
    _, config = convert.parse(list(overrides))
    experiment = train.build(config, train.prepare(config, folder))
    return saved(folder, experiment.state)[0], experiment


RUNS = {
    "sgd-cosine": ("sgd", "cosine", [*SGD, *COSINE]),
    "sgd-step": ("sgd", "step", [*SGD, "--config.schedule.name=step"]),
    "adam": ("adam", "constant", []),
}


@pytest.mark.parametrize(("run", "dtype"), [("sgd-cosine", "float32"), ("sgd-step", "float64"), ("adam", "float64")])
def test_a_whole_run_goes_there_and_back_bit_for_bit(torch, dataset, tmp_path, capsys, run, dtype):
    optimizer, schedule, overrides = RUNS[run]
    program = Program(torch, optimizer, schedule, dtype=dtype)
    there, back = program.save(tmp_path / "there.pt"), tmp_path / "back.pt"
    overrides = [*OVERRIDES, *overrides, f"--config.dtype={dtype}"]
    assert main(["convert", str(there), str(tmp_path / "run"), *overrides]) == 0
    assert main(["convert", str(tmp_path / "run"), str(back)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("back.pt: the run stands after epoch 2")
    equal(read_file(back), read_file(there))
    program.network.load_state_dict(torch.load(back)["model"])
    program.optimizer.load_state_dict(torch.load(back)["optimizer"])
    # And once more, from ours to ours.
    assert main(["convert", str(back), str(tmp_path / "again"), *overrides]) == 0
    states = [run_of(tmp_path / name, overrides)[0] for name in ("run", "again")]
    jax.tree.map(np.testing.assert_array_equal, *states)
