"""Against files that PyTorch itself wrote, of programs that it ran."""

import copy
import os
import pickle
import re

import jax
import numpy as np
import optax
import pytest
from conftest import ROOT, config_of, run_command
from small_runs import saved

from cifar_jax.errors import InputError
from cifar_jax.nn.transforms import transform_eval
from cifar_jax.parity.state_dict import from_state_dict, to_state_dict
from cifar_jax.parity.torch_file import read_file
from cifar_jax.runs import train
from cifar_jax.runs.build import build, prepare

STEPS = 5  # in an epoch of 70 images in batches of 16
OVERRIDES = (
    "--config=configs/default.py --config.data.name=shapes --config.data.batch_size=16 "
    "--config.data.eval_batch_size=10 --config.model.stages=((4,4),(4,4),(8,8)) --config.train.epochs=3"
).split()
SGD = "--config.optimizer.name=sgd --config.optimizer.lr=0.1 --config.optimizer.weight_decay=0.0005".split()
COSINE = "--config.schedule.name=cosine --config.schedule.t_max=5".split()


@pytest.fixture
def safetensors(torch):
    """Of the same extra as PyTorch, and skipped or missed in the same way."""
    try:
        import safetensors.torch
    except ImportError:
        if os.environ.get("CIFAR_JAX_REQUIRE_TORCH"):
            pytest.fail("safetensors is not installed")
        pytest.skip("safetensors is not installed: pip install '.[torch]'")
    return safetensors.torch


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
    config = config_of(overrides)
    experiment = build(config, prepare(config, folder))
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
    assert run_command("convert", str(there), str(tmp_path / "run"), *overrides) == 0
    assert run_command("convert", str(tmp_path / "run"), str(back)) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("back.pt: the run stands after epoch 2")
    equal(read_file(back), read_file(there))
    program.network.load_state_dict(torch.load(back)["model"])
    program.optimizer.load_state_dict(torch.load(back)["optimizer"])
    # And once more, from ours to ours.
    assert run_command("convert", str(back), str(tmp_path / "again"), *overrides) == 0
    states = [run_of(tmp_path / name, overrides)[0] for name in ("run", "again")]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize("run", ["sgd-cosine", "adam"])
def test_the_optimizer_goes_on_as_in_pytorch(torch, dataset, tmp_path, rng, run):
    """Updates of two epochs, on gradients from elsewhere. 1e-12: double precision."""
    optimizer, schedule, overrides = RUNS[run]
    program = Program(torch, optimizer, schedule, dtype="float64")
    overrides = [*OVERRIDES, *overrides, "--config.dtype=float64", "--config.train.epochs=5"]
    assert run_command("convert", str(program.save(tmp_path / "a.pt")), str(tmp_path / "run"), *overrides) == 0
    state, experiment = run_of(tmp_path / "run", overrides)
    params, opt_state = state.params, state.opt_state
    update = jax.jit(experiment.tx.update)
    for step in range(2 * STEPS, 4 * STEPS):
        if step == 3 * STEPS and program.scheduler:
            program.scheduler.step()
        grads = {name: rng.normal(size=array.shape) for name, array in to_state_dict(params).items()}
        for name, parameter in program.network.named_parameters():
            parameter.grad = torch.tensor(grads[name])
        program.optimizer.step()
        updates, opt_state = update(from_state_dict(grads, params).params, opt_state, params)
        params = optax.apply_updates(params, updates)
    for name, array in to_state_dict(params).items():
        theirs = program.network.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(array, theirs, rtol=0, atol=1e-12)


def logits_of(run, config):
    """Those that the newest checkpoint of a run gives for the test images, and the images as it saw them."""
    experiment = build(config, prepare(config, run))
    variables = jax.device_put(
        {name: getattr(saved(run, experiment.state)[0], name) for name in ("params", "batch_stats")}
    )
    x = transform_eval(experiment.test.images, experiment.transform, dtype=config.dtype)
    return np.array(jax.jit(lambda x: experiment.model.apply(variables, x, train=False))(x)), np.array(x)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_network_trained_here_gives_the_same_logits_there(torch, safetensors, dataset, tmp_path, suffix):
    """1e-5: sums in float32. In double precision, the test of half a run below."""
    config = config_of([*OVERRIDES, *SGD])
    train.train_and_evaluate(config, tmp_path / "run")
    out = tmp_path / f"net{suffix}"
    assert run_command("convert", str(tmp_path / "run"), str(out)) == 0
    content = read_file(out)
    model = content if suffix == ".safetensors" else content["model"]
    assert model["norm3.num_batches_tracked"] == 3 * STEPS
    network = Program(torch, epochs=0).network.eval()
    network.load_state_dict({key: torch.tensor(array) for key, array in model.items()})
    ours, x = logits_of(tmp_path / "run", config)
    with torch.no_grad():
        theirs = network(torch.tensor(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_network_alone_goes_there_and_back(torch, safetensors, dataset, tmp_path, suffix):
    """Evaluated, trained on and refused where nothing is left to train, as any run."""
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.safetensors"
    model = Program(torch).network.state_dict()
    if suffix == ".pt":
        torch.save(model, there)
    else:
        safetensors.save_file(model, there)
    overrides = [*OVERRIDES, *SGD]
    assert run_command("convert", str(there), str(tmp_path / "run"), *overrides) == 0
    assert run_command("convert", str(tmp_path / "run"), str(back)) == 0
    equal(dict(sorted(read_file(back).items())), dict(sorted(read_file(there).items())))
    config = config_of(overrides)
    assert set(train.evaluate_run(config, tmp_path / "run")) == {"newest"}
    assert train.train_and_evaluate(config, tmp_path / "run").history[0]["epoch"] == 3
    assert set(train.evaluate_run(config, tmp_path / "run")) == {"newest", "best"}
    assert run_command("convert", str(there), str(tmp_path / "done"), *overrides) == 0
    config.train.epochs = 2
    with pytest.raises(InputError, match=r"train.epochs must be more than 2, after which the run in .* got 2"):
        train.train_and_evaluate(config, tmp_path / "done")


@pytest.mark.slow
def test_half_a_run_in_pytorch_continued_here_is_the_whole_run(torch, dataset, tmp_path, monkeypatch):
    """The example's program. 1e-10: double precision over 25 steps."""
    from examples import pytorch_program

    monkeypatch.setattr(pytorch_program, "load_dataset", lambda name: dataset)
    options = {"batch_size": 16, "widths": (4, 4, 4, 4, 8, 8), "dtype": torch.float64}
    half, whole, continued = (tmp_path / f"{name}.pt" for name in ("half", "whole", "continued"))
    pytorch_program.run(half, epochs=2, **options)
    pytorch_program.run(whole, epochs=5, **options)
    overrides = [
        "--config=configs/quickstart.py", "--config.rng=torch", "--config.dtype=float64", "--config.data.batch_size=16",
        "--config.model.stages=((4,4),(4,4),(8,8))", "--config.data.eval_batch_size=10",
    ]  # fmt: skip
    assert run_command("convert", str(half), str(tmp_path / "continued"), *overrides) == 0
    config = config_of(overrides)
    train.train_and_evaluate(config, tmp_path / "continued")
    train.train_and_evaluate(config, tmp_path / "whole")
    assert run_command("convert", str(tmp_path / "continued"), str(continued)) == 0
    assert run_command("convert", str(tmp_path / "whole"), str(tmp_path / "ours.pt")) == 0
    equal(read_file(continued), read_file(whole), tolerance=1e-10)
    equal(read_file(tmp_path / "ours.pt"), read_file(whole), tolerance=1e-10)
    moved = np.abs(read_file(half)["model"]["conv1.weight"] - read_file(whole)["model"]["conv1.weight"])
    assert moved.max() > 1e-3  # or the comparisons above would say little
    network = pytorch_program.run(continued, epochs=5, **options).eval()  # PyTorch takes it back
    ours, x = logits_of(tmp_path / "continued", config)
    with torch.no_grad():
        theirs = network(torch.tensor(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


def damaged(torch, content, name, path):
    """A file with something wrong in it."""
    model, optimizer = content["model"], content["optimizer"]
    if name == "truncated":
        torch.save(content, path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif name == "code":
        torch.save({**content, "optimizer": Code()}, path)
    elif name == "pickled code":
        path.write_bytes(pickle.dumps(Code()))
    elif name == "text":
        path.write_text("These are no weights.")
    elif name == "nothing there":
        pass
    elif name == "half":
        torch.save({**content, "model": {key: a.half() if a.ndim else a for key, a in model.items()}}, path)
    elif name == "bfloat16":
        torch.save({key: array.bfloat16() for key, array in model.items()}, path)
    elif name == "another network":
        from cifar_jax.parity import twin

        torch.save(twin.create_twin("cnn10", stages=((2, 2), (2, 2), (2, 2, 2), (2, 2, 2))).state_dict(), path)
    else:
        changes = {
            "unused part": lambda: content.update(args=1, loss=2),
            "missing and unused": lambda: [model.update(extra=model.pop("conv2.weight")), model.pop("linear.bias")],
            "mid-epoch": lambda: [model.update({k: a - 3}) for k, a in model.items() if "tracked" in k],
            "epoch by index": lambda: content.update(epoch=1),
            "rate": lambda: optimizer["param_groups"][0].update(lr=0.2, momentum=0.8),
            "nesterov": lambda: optimizer["param_groups"][0].update(nesterov=True),
            "two groups": lambda: optimizer["param_groups"].append(optimizer["param_groups"][0]),
            "moments": lambda: [optimizer["state"].pop(3), optimizer["state"][0].update(exp_avg=torch.ones(1))],
            "moment's shape": lambda: optimizer["state"][0].update(momentum_buffer=torch.ones(1)),
            "scheduler": lambda: content["scheduler"].update(T_max=9, last_epoch=1),
        }
        changes[name]()
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("truncated", r"IN must be a file of weights .*which cannot be read \(\w+\): it is damaged"),
        ("code", r"which asks for posix.system, and only tensors and plain numbers are loaded, never code"),
        ("pickled code", r"which cannot be read \(UnpicklingError\): it is damaged or no such file"),
        ("text", r"which cannot be read \(\w+\): it is damaged or no such file"),
        ("nothing there", "which does not exist"),
        ("half", "must hold float32 weights with dtype=float32, got float16"),
        ("bfloat16", "must hold plain tensors of a type that NumPy has, got bfloat16"),
        ("another network", "does not fit the network: unused conv7.weight, .*; conv1.weight must have shape"),
        ("unused part", "or a dict of one as model .*, got a dict of model, optimizer, scheduler, epoch, args, loss"),
        ("missing and unused", "missing conv2.weight, linear.bias; unused extra"),
        ("mid-epoch", "at the end of an epoch, which has 5 steps with data.batch_size=16, got num_batches_tracked=7"),
        ("epoch by index", "finished epochs as epoch, 2 by num_batches_tracked=10 and 5 steps each, got 1"),
        ("rate", r"optimizer, sgd, got momentum=0.8 instead of 0.9; lr=0.2 instead of 0.0654508 for the epoch that"),
        ("nesterov", "got nesterov=True instead of False"),
        ("two groups", "must hold an optimizer's state_dict with one group of parameters as optimizer"),
        ("moments", "momentum_buffer for each .*got momentum_buffer, exp_avg for conv1.weight; nothing for conv2"),
        ("moment's shape", r"momentum_buffer in .* does not fit .*: conv1.weight must have shape \[4, 3, 3, 3\]"),
        ("scheduler", "scheduler, cosine, got T_max=9 instead of 5; last_epoch=1 instead of 2"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_ends_in_one_sentence(
    torch, dataset, tmp_path, monkeypatch, capsys, content, name, message
):
    path = damaged(torch, copy.deepcopy(content), name, tmp_path / "in.pt")
    monkeypatch.chdir(tmp_path)  # where code in a file would leave its mark
    overrides = [*OVERRIDES, *SGD, *COSINE]
    overrides[0] = f"--config={ROOT}/configs/default.py"
    assert run_command("convert", str(path), str(tmp_path / "run"), *overrides) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("Error: ")
    assert re.search(message, error)
    assert {entry.name for entry in tmp_path.iterdir()} <= {"in.pt"}


@pytest.fixture(scope="module")
def content(torch):
    return Program(torch).content()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("a.pt", "OUT must be given, got nothing"),
        (
            "a.pt b.safetensors",
            r"One of IN and OUT must be a file \(.pt, .pth, .safetensors\) and the other",
        ),
        ("none run.pt", "IN must be a file .* or the folder of a run, got 'none'."),
        ("tests run.pt", "--workdir must be a new or empty folder or the folder of a run, got 'tests'"),
        ("tests pyproject/run.pt", "OUT must be a new file in a folder that exists, got 'pyproject/run.pt'."),
        ("tests run.pt --config=configs/default.py", "--config must not be given with a folder"),
        ("a.pt run", "--config must name the config that a.pt belongs to, got nothing."),
        ("a.pt run --config=configs/default.py --config.data.size=3", "data.size is not a config key"),
        ("a.pt run --config=configs/default.py --config.rng=numpy", "rng must be one of jax, torch, got 'numpy'"),
        ("a.pt run --config=none.py", "--config must name a config file or one of .*, got 'none.py'"),
        ("a.safetensors run --config=configs/default.py", "got 'a.safetensors', which does not exist"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    assert run_command("convert", *arguments.split()) == 2
    assert re.search(message, capsys.readouterr().err)
