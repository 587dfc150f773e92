"""What tests of whole runs share: a little synthetic data, and what a run left."""

import itertools

import jax
import numpy as np

from cifar_jax.data.dataset import Split
from cifar_jax.devices.interrupt import Interrupted
from cifar_jax.runs.checkpoint import Checkpoints

LECTURE = [f"{network}_{recipe}" for network in ("cnn6", "cnn10", "cnn10_64") for recipe in ("adam", "step", "cosine")]


def split(rng, n):
    labels = rng.integers(0, 10, n).astype(np.int32)
    images = 20 * labels[:, None, None, None] + rng.integers(0, 60, (n, 32, 32, 3))
    return Split(images.astype(np.uint8), labels)


def saved(workdir, like):
    checkpoints = Checkpoints(workdir / "checkpoints")
    state, history = checkpoints.restore(checkpoints.newest(), like)
    checkpoints.close()
    return jax.device_get(state.replace(key=jax.random.key_data(state.key))), history


def timeless(history):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history]


def stop_in_epoch(epoch, workdir):
    """Asks a run to stop a few looks into an epoch, numbered from 1."""
    looks = itertools.count()

    def check_stop():
        finished = len((workdir / "metrics.jsonl").read_text().splitlines())
        if finished == epoch - 1 and next(looks) == 3:
            raise Interrupted(2)

    return check_stop
