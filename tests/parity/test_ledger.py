"""Every row of the ledger passes, goes red when our side is broken, and stands in the documentation.

All rows run once for the whole file, which takes most of its time: 40 s of one core.
"""

import functools
import importlib
import json
import math
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT

from cifar_jax.data import order
from cifar_jax.marked import fill
from cifar_jax.nn import batch_norm, losses, schedules, transforms
from cifar_jax.nn.batch_norm import BatchNormRule, flax_rule
from cifar_jax.parity import state_dict as state_dict_module
from cifar_jax.runs.torch_random import Epochs

CATALOGUE = (
    "BN1 BN2 BN3 BN4 BN5 BN6 BN7 L1 L2 L3 L4 L5 O1 O2 O3 S1 S2 S3 S4 M1 M2 M3 D1 D2 D3 D4 R1 P1 C1".split()
)  # of the guide; the rows of the same number with a letter are ours
AGREE = {"BN1EF", "BN4", "N1", "L1N", "O2D"}


@pytest.fixture
def ledger(torch):
    """The module of this name in the ledger; all of it needs torch."""
    return lambda name: importlib.import_module(f"cifar_jax.parity.ledger.{name}")


@functools.cache
def run_all():
    from cifar_jax.parity.ledger.catalogue import ROWS
    from cifar_jax.parity.ledger.run import run_rows

    return {outcome.row.id: outcome for outcome in run_rows(ROWS)}


def test_every_row_passes(ledger):
    wrong = {id: (o.verdict, o.measurement) for id, o in run_all().items() if not o.passed}
    assert not wrong
    assert set(CATALOGUE) <= set(run_all())
    assert {id for id, o in run_all().items() if o.verdict == ledger("row").AGREE} == AGREE


def test_our_side_as_the_naive_one_is_a_miss_in_every_row(ledger):
    row = ledger("row")
    for outcome in run_all().values():
        m = outcome.measurement
        as_naive = row.verdict(outcome.row, m._replace(error=m.naive_error))
        assert as_naive == (row.MISS if outcome.row.naive_fails else row.AGREE), outcome.row.id


def test_a_row_that_cannot_fail_is_an_error(ledger):
    row = ledger("row")
    for outcome in run_all().values():
        equal = row.verdict(outcome.row, outcome.measurement._replace(naive_error=0.0))
        assert equal == (row.CANNOT_FAIL if outcome.row.naive_fails else row.AGREE), outcome.row.id
    agree = run_all()["BN4"]
    assert row.verdict(agree.row, agree.measurement._replace(naive_error=math.nan)) == row.UNEXPECTED
    assert row.verdict(agree.row, agree.measurement._replace(error=math.nan)) == row.MISS


def one_pass(x, mask, axis_name=None):
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    var = jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0)
    return batch_norm.Moments(mean, var, jnp.asarray(x.size // x.shape[-1], x.dtype))


def late(rates, *, steps_per_epoch):
    return lambda count: jnp.asarray(rates)[jnp.maximum(count - 1, 0) // steps_per_epoch]


def single(rates, *, steps_per_epoch):
    return lambda count: jnp.asarray(rates, jnp.float32)[count // steps_per_epoch]


def hand_written(logits, labels):
    p = jnp.exp(logits) / jnp.exp(logits).sum(1, keepdims=True)
    return -jnp.log(jnp.take_along_axis(p, labels[:, None], axis=1))[:, 0]


class OtherSeed(Epochs):
    def draw(self, epoch):
        return Epochs(self.seed + 1, *self[1:]).draw(epoch)


def anything(state_dict, params, batch_stats):
    """Takes any state_dict and loads nothing."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), (params, batch_stats))
    return state_dict_module.Variables(*zeros, 0)


def turned(*trees):
    """Reads the window of a kernel backwards."""
    loaded = read(*trees)
    params = {
        name: {key: leaf[::-1] if key == "kernel" else leaf for key, leaf in leaves.items()}
        for name, leaves in loaded.params.items()
    }
    return loaded._replace(params=params)


moments, init_stats, normalize, metrics, split = (
    batch_norm.batch_moments,
    batch_norm.init_stats,
    batch_norm.normalize,
    losses.batch_metrics,
    order.split_batches,
)
rates, draw_flips, read = schedules.learning_rates, transforms.flip, state_dict_module.from_state_dict
lecun = nn.initializers.lecun_normal()
LEDGER = "cifar_jax.parity.ledger"

# Our own function behind each row, and a plausible mistake in its place. The rows without one compare Flax's own calls
# as the networks make them (L1, L2, P1), or take their functions from rows above and are slow (BN1E, L3F, S1N, N1).
MISTAKES = {
    "BN1": ("cifar_jax.nn.batch_norm.torch_rule", lambda m: BatchNormRule(m, True)),
    "BN1L": ("cifar_jax.nn.batch_norm.lecture_rule", lambda: flax_rule(0.9)),
    "BN1F": ("cifar_jax.nn.batch_norm.flax_rule", lambda m: BatchNormRule(1 - m, False)),
    "BN2": ("cifar_jax.nn.batch_norm.torch_rule", lambda m: BatchNormRule(1 - m, False)),
    "BN3": ("cifar_jax.nn.batch_norm.batch_moments", one_pass),
    "BN4": ("cifar_jax.nn.batch_norm.normalize", lambda *a, epsilon: normalize(*a, epsilon=1e-3)),
    "BN4K": ("cifar_jax.nn.batch_norm.normalize", lambda *a, epsilon: normalize(*a, epsilon=1e-3)),
    "BN5": ("cifar_jax.nn.batch_norm.normalize_batch", lambda x, *a, epsilon, mask, **_: (x, moments(x, mask))),
    "BN6": ("cifar_jax.nn.batch_norm.init_stats", lambda channels, dtype: init_stats(channels, jnp.float32)),
    "BN7": ("cifar_jax.nn.batch_norm.batch_moments", lambda x, mask, *_: moments(x, None)),
    "BN7R": ("cifar_jax.nn.batch_norm.batch_moments", lambda x, mask, *_: moments(x[:16], mask)),
    "BN8": ("cifar_jax.nn.batch_norm.update_stats", lambda stats, *a, rule: stats),
    "BN9": ("cifar_jax.nn.batch_norm.update_stats", lambda stats, *a, rule: stats),
    "L3": ("cifar_jax.nn.layers.torch_kernel_init", lecun),
    "L3B": ("cifar_jax.nn.layers.torch_bias_init", lambda fan_in: nn.initializers.zeros),
    "L4": ("cifar_jax.nn.models.max_pool", lambda x: nn.max_pool(x, (2, 2))),
    "L4T": (
        "cifar_jax.nn.layers.max_pool",
        lambda x: x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4)),
    ),
    "L5": ("flax.linen.relu", lambda x: jnp.maximum(x, 0)),
    "O1": ("cifar_jax.nn.optimizers.sgd", lambda lr, momentum, weight_decay: optax.sgd(lr, momentum)),
    "O2": (
        "cifar_jax.nn.optimizers._bias_correction",
        lambda decay, count, dtype: 1 - jnp.asarray(decay, dtype) ** count.astype(dtype),
    ),
    "O3": ("cifar_jax.nn.optimizers.adam", lambda lr, weight_decay: optax.adamw(lr, weight_decay=weight_decay)),
    "O3D": ("cifar_jax.nn.optimizers.adam", lambda lr, weight_decay: optax.adamw(lr)),
    "S1": ("cifar_jax.nn.schedules.by_step", late),
    "S2": ("cifar_jax.nn.schedules.by_step", late),
    "S2T": ("cifar_jax.nn.schedules.learning_rates", lambda *a, t_max, **o: rates(*a, t_max=30, **o)),
    "S3": ("cifar_jax.nn.schedules.learning_rates", lambda *a, calls_per_epoch, **o: rates(*a, **o)),
    "S3C": ("cifar_jax.nn.schedules.learning_rates", lambda *a, calls_per_epoch, **o: rates(*a, **o)),
    "S4": ("cifar_jax.nn.schedules.by_step", single),
    "M1": (f"{LEDGER}.losses.batch_metrics", lambda x, y: metrics(x, y)._replace(count=jnp.int32(200))),
    "M2": (f"{LEDGER}.losses.check_dataset", lambda dataset: None),
    "M3": (f"{LEDGER}.losses.cross_entropy", hand_written),
    "M3G": (f"{LEDGER}.losses.cross_entropy", hand_written),
    "D1": (
        "cifar_jax.nn.transforms.resize",
        lambda x, size: jax.image.resize(x.astype(jnp.float32), (len(x), size, size, 3), "cubic"),
    ),
    "D2": (f"{LEDGER}.data.split_batches", lambda *a: (split(*a)[0], np.ones((6, 200), bool))),
    "D2C": (
        f"{LEDGER}.data.split_batches",
        lambda o, size: ([o[i : i + size] for i in range(0, len(o), size)], [None] * 6),
    ),
    "D3": (f"{LEDGER}.data.split_batches", lambda o, size, sampler: split(o[::-1], size, sampler)),
    "D3O": (f"{LEDGER}.data.epoch_order", lambda key, epoch, n: order.epoch_order(key, 0, n)),
    "D4": ("cifar_jax.nn.transforms.flip", lambda images, chosen: draw_flips(images, ~chosen)),
    "D4I": ("cifar_jax.nn.transforms.flip", lambda images, chosen: draw_flips(images, chosen[:1].repeat(len(chosen)))),
    "D5": (
        "cifar_jax.nn.transforms.to_float",
        lambda images, normalize: (images.astype(jnp.float32) / 255.0 - 0.5) / 0.5,
    ),
    "R1": ("cifar_jax.runs.torch_random.draw_params", lambda seed, params: params),
    "R1O": ("cifar_jax.runs.torch_random.Epochs", OtherSeed),
    "R1F": ("cifar_jax.runs.torch_random.Epochs", OtherSeed),
    "C1": (f"{LEDGER}.networks.from_state_dict", turned),
    "C1S": (f"{LEDGER}.networks.from_state_dict", anything),
}


@pytest.mark.parametrize("id", MISTAKES)
def test_a_mistake_of_ours_turns_the_row_red(ledger, monkeypatch, id):
    """Also through the row's own path from our function to the verdict."""
    target, mistake = MISTAKES[id]
    (row,) = ledger("catalogue").select([id])
    monkeypatch.setattr(target, mistake)
    (outcome,) = ledger("run").run_rows([row])
    assert outcome.verdict in (ledger("row").MISS, ledger("run").RAISED)
    assert outcome.verdict == ledger("row").MISS, outcome.measurement.note


def test_a_row_that_raises_is_a_miss_and_the_others_run(ledger):
    (good,) = ledger("catalogue").select(["L4"])
    broken, after = ledger("run").run_rows([good._replace(run=lambda: 1 // 0), good])
    assert (broken.verdict, broken.passed, after.passed) == ("RAISES", False, True)
    assert "ZeroDivisionError" in broken.measurement.note
    json.dumps(ledger("run").record(broken), allow_nan=False)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cifar_jax", "ledger", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def main(ledger, *arguments):
    return ledger("command").main(list(arguments))


def test_the_command_writes_json_and_a_page(ledger, tmp_path, capsys):
    files = tmp_path / "rows.json", tmp_path / "rows.html"
    assert main(ledger, "--only=S3,BN5", "--json", str(files[0]), "--html", str(files[1])) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 rows pass" in printed
    assert "raises ValueError" in printed
    written = json.loads(files[0].read_text())
    assert [row["id"] for row in written["rows"]] == ["BN5", "S3"]
    assert written["rows"][1]["verdict"] == "pass"
    assert written["versions"]["torch"]
    assert written["command"].startswith("python ")
    page = files[1].read_text()
    assert page.count("<section") == 2
    assert page.count("<svg") == 1
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"|url\((?!#)|@import|<script', page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_exit_code_1_when_ours_misses(ledger, monkeypatch, capsys):
    monkeypatch.setattr("cifar_jax.nn.schedules.by_step", late)
    assert main(ledger, "--only=S1") == 1
    assert "Wrong: S1 (OURS MISSES)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=BN1,XY7"], "--only must name rows out of BN1, .*, got XY7."),
        (["--only="], "--only must name rows out of"),
        (["--json=/nowhere/rows.json"], "--json must be a file in a folder that exists, got '/nowhere/rows.json'."),
        (["--markdown=missing.md"], "--markdown must be a file that exists, got 'missing.md'."),
        (["--markdown=README.md", "--only=S1"], "--markdown takes all rows, got --only=S1."),
        (["--markdown=pyproject.toml"], "--markdown takes a file with two markers, got 'pyproject.toml'"),
        (["--rows=S1"], "python -m cifar_jax ledger does not take --rows=S1"),
    ],
)
def test_wrong_flags_are_refused_before_anything_runs(ledger, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=message):
        main(ledger, *arguments)


def test_the_command_line_says_it_in_one_sentence(torch):
    done = command("--only=XY7")
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"Error: --only must name rows out of [^\n]*, got XY7\.\n", done.stderr)


def test_the_document_has_the_table_of_this_ledger(ledger):
    run = ledger("run")
    path = ROOT / "docs" / "from-pytorch.md"
    document = path.read_text()
    expected = fill(document, "ledger", run.markdown(list(run_all().values())))
    assert document == expected, "renew it: python -m cifar_jax ledger --markdown=docs/from-pytorch.md"


def test_the_recorded_ledger_has_all_rows_and_all_pass(ledger):
    recorded = json.loads((ROOT / "results" / "ledger.json").read_text())
    assert [row["id"] for row in recorded["rows"]] == list(run_all())
    assert all(row["passed"] for row in recorded["rows"])


def test_the_staircase_example_shows_the_late_drop():
    done = subprocess.run(
        [sys.executable, "examples/optax_staircase.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rows = [[float(number) for number in line.split()] for line in done.stdout.splitlines()[1:]]
    assert [row[1:] for row in rows] == [[0.005] * 4, [0.0025, 0.0025, 0.005, 0.0025], *[[0.0025] * 4] * 2]
