"""A program with eight simulated devices, for test_sharding.py: trains the same thing on few and on many.

python many_devices.py OUT.npz; JAX_NUM_CPU_DEVICES and JAX_ENABLE_X64 must be set, which no test can do once jax runs.
"""

import sys

import numpy as np

from cifar_jax.data.dataset import Dataset, Split
from cifar_jax.nn.layers import running_stats
from cifar_jax.parity.state_dict import to_state_dict
from cifar_jax.runs import build as experiment
from cifar_jax.runs import phases, steps
from configs import default

# name: devices, whole epochs, options. A ragged last batch of 10 rows in 15; one that divides by no device count.
RAGGED = {"data.batch_size": 15}
EVEN = {"data.batch_size": 16, "data.limit_train": 64, "rng": "torch"}
RUNS = {
    "ragged1": (1, False, RAGGED),
    "ragged2": (2, False, RAGGED),
    "ragged4": (4, False, {**RAGGED, "data.placement": "host"}),
    "ragged8": (8, True, RAGGED),
    "even1": (1, False, EVEN),
    "even8": (8, False, EVEN),
}
# For PyTorch: batches of 16 over two replicas, none ragged and none flipped; and over eight, of 3 images.
DDP = {
    "data.batch_size": 16,
    "data.limit_train": 64,
    "data.augment": "none",
    "norm.sync": "per_replica",
    "optimizer.name": "sgd",
}
DDP |= {"optimizer.lr": 0.05, "optimizer.weight_decay": 5e-4}
DDP_STEPS = 4


def make_dataset():
    rng = np.random.default_rng(0)

    def split(n):
        labels = rng.integers(0, 10, n).astype(np.int32)
        images = 20 * labels[:, None, None, None] + rng.integers(0, 60, (n, 32, 32, 3))
        return Split(images.astype(np.uint8), labels)

    return Dataset("shapes", split(70), split(25), tuple(f"shade {i}" for i in range(10)), (), ())


def build(devices, options):
    config = default.get_config()
    config.dtype, config.data.name, config.data.eval_batch_size = "float64", "shapes", 10
    config.model.stages = ((4, 4), (4, 4), (8, 8))
    config.sharding.data = devices
    config.update_from_flattened_dict(options)
    dataset = make_dataset()
    limit = config.data.limit_train or 70
    return experiment.build(config, dataset._replace(train=Split(*(array[:limit] for array in dataset.train))))


def run(devices, whole, options):
    """Parameters and statistics after an epoch, its order, and the totals of both phases."""
    x = build(devices, options)
    compiled, order = phases.compile_phases(x, whole=whole), np.asarray(x.draw_epoch(0)[0])
    state, train = phases.train(compiled, x.state, x.draw_epoch(0))
    test = phases.evaluate(compiled.evaluate["test"](state.params, running_stats(state.batch_stats)))
    return {
        **to_state_dict(state.params, running_stats(state.batch_stats)),
        "order": order,
        "losses": np.array([train.loss, test.loss]),
        "counts": np.array([train.count, train.correct, test.count, test.correct]),
    }


def run_ddp():
    """Steps on two replicas, with what PyTorch needs to follow; and one step of 3 images on eight."""
    x = build(2, DDP)
    out = {f"start/{name}": value for name, value in to_state_dict(x.state.params, x.state.batch_stats).items()}
    batches = phases.epoch_batches(x, x.draw_epoch(0))[:DDP_STEPS]
    out["images"] = np.stack([np.asarray(x.train.images)[batch.indices] for batch in batches])
    out["labels"] = np.stack([np.asarray(x.train.labels)[batch.indices] for batch in batches])
    state, parts = x.state, {"model": x.model, "tx": x.tx, "transform": x.transform, "parallel": x.parallel}
    losses = []
    for batch in batches:
        state, metrics = steps.train_step(state, *x.train, batch, **parts)
        losses.append(metrics.loss_sum / metrics.count)
    out |= {f"end/{name}": value for name, value in to_state_dict(state.params, state.batch_stats).items()}
    out["losses"] = np.array(losses)

    x = build(8, {**DDP, "data.batch_size": 3})
    parts = {"model": x.model, "tx": x.tx, "transform": x.transform, "parallel": x.parallel}
    batch = phases.epoch_batches(x, x.draw_epoch(0))[0]
    out["few_images"] = np.asarray(x.train.images)[batch.indices]
    out["few_labels"] = np.asarray(x.train.labels)[batch.indices]
    state, metrics = steps.train_step(x.state, *x.train, batch, **parts)
    out |= {f"few/{name}": value for name, value in to_state_dict(state.params, state.batch_stats).items()}
    out["few_counts"] = np.array([metrics.loss_sum / metrics.count, metrics.count])
    return out


def lower(devices, options):
    """The compiled text of a training step."""
    x = build(devices, options)
    split, batch = next(phases._feed(x, x.train, phases.epoch_batches(x, x.draw_epoch(0))[:1]))
    parts = {"model": x.model, "tx": x.tx, "transform": x.transform, "parallel": x.parallel}
    return steps.train_step.lower(x.state, *split, batch, **parts).compile().as_text()


def main(path):
    out = {f"{name}/{key}": value for name, args in RUNS.items() for key, value in run(*args).items()}
    out |= {f"ddp/{key}": value for key, value in run_ddp().items()}
    # Programs that ran above: where compilations are kept, they are not compiled again.
    out["hlo/none"] = lower(1, RAGGED)
    out["hlo/global"] = lower(8, EVEN)
    out["hlo/masked"] = lower(2, RAGGED)
    out["hlo/host"] = lower(4, RUNS["ragged4"][2])
    out["hlo/per_replica"] = lower(2, DDP)
    np.savez(path, **out)


if __name__ == "__main__":
    main(sys.argv[1])
