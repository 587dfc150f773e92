"""Strictness for all tests: shapes are checked at run time, and ranks are never promoted."""

import http.server
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

# Tests run side by side and compare exact numbers, all of them on the CPU.
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile the same few programs again and again, in this process, its neighbours and those that they start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parent.parent / ".pytest_cache" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jaxtyping

jaxtyping.install_import_hook("cifar_jax", "beartype.beartype")

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

jax.config.update("jax_numpy_rank_promotion", "raise")
REAL_DATA = ROOT.parent / "shared" / "tfds"


@pytest.fixture(scope="session")
def torch():
    """PyTorch, the oracle. Without it a test is skipped by name, or fails where CIFAR_JAX_REQUIRE_TORCH is set."""
    try:
        import torch
    except ImportError:
        if os.environ.get("CIFAR_JAX_REQUIRE_TORCH"):
            pytest.fail("PyTorch is not installed")
        pytest.skip("PyTorch is not installed: pip install '.[torch]'")
    torch.set_num_threads(1)
    return torch


@pytest.fixture
def x64():
    """Double precision for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def dataset(rng, monkeypatch):
    """Ten shades of grey; 70 and 25 images, so that the last batches of 16 and 10 are ragged."""
    from small_runs import split

    from cifar_jax.data.dataset import Dataset
    from cifar_jax.runs import build

    names = tuple(f"shade {i}" for i in range(10))
    dataset = Dataset("shapes", split(rng, 70), split(rng, 25), names, (), ())
    monkeypatch.setattr(build, "load_dataset", lambda name, data_dir: dataset)
    return dataset


@pytest.fixture
def config():
    from cifar_jax.runs.config import default_config

    config = default_config()
    config.data.name = "shapes"
    config.data.batch_size = 16
    config.data.eval_batch_size = 10
    config.model.stages = ((4, 4), (4, 4), (8, 8))
    config.train.epochs = 3
    return config


@pytest.fixture
def compilations(caplog):
    """The names of the training and evaluation steps, or epochs, that are compiled from here on."""
    jax.clear_caches()  # or an earlier test's compilations would serve this one
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        yield lambda: [
            record.getMessage().split()[1]
            for record in caplog.records
            if record.getMessage().startswith(("Compiling jit(update", "Compiling jit(score"))
        ]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cifar_jax"


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/www on loopback with byte ranges; `server.cut` and `server.stall` make it misbehave."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = (tmp_path / "www" / self.path.strip("/")).read_bytes()
            offset = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            server.offsets.append(offset)
            self.send_response(416 if offset >= len(body) else 206 if offset else 200)
            self.send_header("Content-Length", str(len(body) - offset))
            self.end_headers()
            if server.stall:
                time.sleep(server.stall)
            self.wfile.write(body[offset : server.cut] if server.cut else body[offset:])

        def log_message(self, *args):
            pass

    (tmp_path / "www").mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.cut, server.stall, server.offsets = None, 0, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def acts(monkeypatch):
    """What each config's worker does under which seed."""
    from table_workers import WORKER

    from cifar_jax.studies.table import launch

    acts = {}

    def command(group, seeds, folder):
        return [
            sys.executable,
            "-c",
            WORKER,
            str(folder),
            json.dumps(list(seeds)),
            json.dumps(acts.get(group.name, {})),
        ]

    monkeypatch.setattr(launch, "worker_command", command)
    return acts


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """The folder, config and data of a small run of eight epochs: ten shades of grey, though of a hundred classes.

    Batches of evaluation hold 10 of the 25 test images, the last one 5. The run keeps another rule's averages as well.
    """
    from cifar_jax.data import class_names
    from cifar_jax.data.dataset import Dataset, Split
    from cifar_jax.runs import build as experiment
    from cifar_jax.runs import train
    from configs import default

    rng = np.random.default_rng(1)

    def split(n):
        labels = rng.integers(0, 10, n).astype(np.int32)
        images = 20 * labels[:, None, None, None] + rng.integers(0, 60, (n, 32, 32, 3))
        return Split(images.astype(np.uint8), labels)

    train_split, test_split = split(70), split(25)
    dataset = Dataset("cifar100", train_split, test_split, class_names("cifar100"), (), ())
    config = default.get_config()
    config.data.batch_size, config.data.eval_batch_size, config.data.dir = 16, 10, "/nowhere"
    config.model.stages = ((4, 4), (4, 4), (8, 8))
    config.norm.compare = ("lecture",)
    config.optimizer.lr = 0.02
    config.train.epochs = 8
    workdir = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "load_dataset", lambda name, data_dir: dataset)
        train.train_and_evaluate(config, workdir)
    return workdir, config, dataset


def run_command(*words) -> int:
    """Runs `python -m cifar_jax WORDS` in this process; gives its exit code."""
    from cifar_jax.__main__ import run
    from cifar_jax.command_line import exit_code

    return exit_code(run, [str(word) for word in words])


def config_of(flags):
    """The config that `--config=...` and `--config.KEY=VALUE` name."""
    from cifar_jax.command_line import Parser
    from cifar_jax.runs.config_flags import add_config, parse

    parser = Parser("test", "")
    add_config(parser, default=None)
    return parse(parser, list(flags)).config
