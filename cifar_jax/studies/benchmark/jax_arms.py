"""The arms in JAX: Flax as its users write it, and this project."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax.training.train_state import TrainState
from PIL import Image

from cifar_jax.data.dataset import Dataset
from cifar_jax.devices.select import keep_compilations, select_devices
from cifar_jax.nn.layers import running_stats
from cifar_jax.runs import build as experiment
from cifar_jax.runs import phases, torch_random
from cifar_jax.studies.benchmark.arm import LEAST_STEPS, Evaluated, Trained
from cifar_jax.studies.benchmark.recipe import Recipe, read_draws, read_splits


def set_up(recipe: Recipe) -> None:
    """The device, the cache of compiled programs that the environment names, and the precision."""
    select_devices(recipe.device)
    if recipe.device != "cpu" and not recipe.half:
        jax.config.update("jax_default_matmul_precision", recipe.precision)
    if folder := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        keep_compilations(Path(folder))


class _JaxArm:
    """What both have in common."""

    def draw(self, epoch: int) -> None:
        """Nothing."""

    def peak_device_memory(self) -> int | None:
        """By XLA's allocator."""
        statistics = jax.devices()[0].memory_stats()
        return statistics["peak_bytes_in_use"] if statistics and jax.default_backend() != "cpu" else None

    def origin(self) -> dict:
        """JAX's version and what it runs on."""
        return {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "precision": jax.config.jax_default_matmul_precision or "default",
        }


class _StockCNN(nn.Module):
    """The network of Flax's own layers."""

    stages: tuple[tuple[int, ...], ...]
    classes: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train: bool):
        number = 0
        for widths in self.stages:
            for width in widths:
                number += 1
                x = nn.Conv(width, (3, 3), use_bias=False, dtype=self.dtype, name=f"conv{number}")(x)
                x = nn.BatchNorm(
                    use_running_average=not train, momentum=0.9, epsilon=self.epsilon, dtype=self.dtype,
                    name=f"norm{number}",
                )(x)  # fmt: skip
                x = nn.relu(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(self.classes, dtype=self.dtype, name="linear")(x.mean(axis=(1, 2))).astype(jnp.float32)


def _stock_optimizer(config: dict) -> optax.GradientTransformation:
    decay = [optax.add_decayed_weights(config["weight_decay"])] if config["weight_decay"] else []
    if config["name"] == "sgd":
        return optax.chain(*decay, optax.sgd(config["lr"], momentum=config["momentum"]))
    return optax.chain(*decay, optax.adam(config["lr"], b1=config["b1"], b2=config["b2"], eps=config["eps"]))


@jax.jit
def _stock_step(state: TrainState, batch_stats, x, labels):
    def loss_fn(params):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = state.apply_fn(variables, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updates["batch_stats"]

    (loss, new_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), new_stats, loss


@jax.jit
def _stock_score(state: TrainState, batch_stats, x, labels):
    logits = state.apply_fn({"params": state.params, "batch_stats": batch_stats}, x, train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.sum(), (logits.argmax(axis=-1) == labels).sum()


class StockFlax(_JaxArm):
    """J0: NumPy batches made on the host, a jitted step for each, metrics fetched at the end of the epoch."""

    def __init__(self, recipe: Recipe):
        set_up(recipe)
        self.recipe = recipe
        self.train_split, self.test_split = read_splits(recipe.images)
        self.draws = read_draws(recipe.draws)
        model = _StockCNN(
            tuple(map(tuple, recipe.stages)), recipe.classes, recipe.config["norm"]["epsilon"],
            jnp.dtype(recipe.config["dtype"]),
        )  # fmt: skip
        size = recipe.image_size
        init = jax.jit(functools.partial(model.init, train=False))
        variables = init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
        self.batch_stats = variables["batch_stats"]
        self.state = TrainState.create(
            apply_fn=model.apply,
            params=torch_random.draw_params(recipe.config["seed"], variables["params"]),
            tx=_stock_optimizer(recipe.config["optimizer"]),
        )

    def _input(self, images: np.ndarray, flips: np.ndarray | None) -> np.ndarray:
        size = self.recipe.image_size
        if size != images.shape[1]:
            pictures = (Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in images)
            images = np.stack([np.asarray(picture) for picture in pictures])
        if flips is not None:
            images = np.where(flips[:, None, None, None], images[:, :, ::-1], images)
        return (images.astype(np.float32) / 255 - 0.5) / 0.5

    def train(self, epoch: int, on_first_step: Callable[[], None], expired: Callable[[], bool]) -> Trained:
        """A step for each batch."""
        order, flips, n = self.draws.order[epoch], self.draws.flips[epoch], len(self.train_split.labels)
        losses, batch = [], self.recipe.batch_size
        for place in range(0, n, batch):
            rows = order[place : place + batch]
            x = self._input(self.train_split.images[rows], flips[place : place + batch])
            self.state, self.batch_stats, loss = _stock_step(
                self.state, self.batch_stats, x, self.train_split.labels[rows]
            )
            losses.append(loss)
            if len(losses) == 1:
                loss.block_until_ready()
                on_first_step()
            if len(losses) >= LEAST_STEPS and expired():
                break
        losses = np.array(jax.device_get(losses))
        jax.block_until_ready(self.state)
        seen = min(len(losses) * batch, n)
        return Trained(losses, seen, whole=seen == n)

    def evaluate(self) -> Evaluated:
        """A step for each batch."""
        sums, batch, count = [], self.recipe.batch_size, 0
        for place in range(0, len(self.test_split.labels), batch):
            rows = slice(place, place + batch)
            x = self._input(self.test_split.images[rows], None)
            sums.append(_stock_score(self.state, self.batch_stats, x, self.test_split.labels[rows]))
            count += len(x)
        loss, correct = np.array(jax.device_get(sums), np.float64).sum(axis=0)
        return Evaluated(float(loss) / count, 100 * float(correct) / count, count)


class ThisProject(_JaxArm):
    """J1: what `main.py` runs, `phases.compile_phases` of what the config builds, as it chooses for the device."""

    def __init__(self, recipe: Recipe):
        set_up(recipe)
        train, test = read_splits(recipe.images)
        names = tuple(map(str, range(recipe.classes)))
        built = experiment.build(
            ml_collections.ConfigDict(recipe.config), Dataset(recipe.config["data"]["name"], train, test, names, (), ())
        )
        self.experiment, self.state = built, built.state
        compiled = phases.compile_phases(built)
        self.metrics = []

        def train_and_keep_metrics(state, drawn):
            for new_state, metrics in compiled.train(state, drawn):
                self.metrics.append(metrics)
                yield new_state, metrics

        self.phases = compiled._replace(train=train_and_keep_metrics)

    def draw(self, epoch: int) -> None:
        """Draws the epoch's order and flips, which the other arms do not count either."""
        self.drawn = jax.block_until_ready(self.experiment.draw_epoch(epoch))

    def train(self, epoch: int, on_first_step: Callable[[], None], expired: Callable[[], bool]) -> Trained:
        """An epoch as `train.train_and_evaluate` has it; it is never cut short."""
        del epoch, expired
        first = [True]

        def on_images(count):
            if first:
                first.clear()
                on_first_step()

        self.metrics.clear()
        self.state, totals = phases.train(self.phases, self.state, self.drawn, on_images=on_images)
        jax.block_until_ready(self.state)
        losses = [np.ravel(m.loss_sum / m.count) for m in jax.device_get(self.metrics)]
        return Trained(np.concatenate(losses), totals.count, whole=totals.count == len(self.experiment.train.labels))

    def evaluate(self) -> Evaluated:
        """As after every epoch of a run."""
        totals = phases.evaluate(self.phases.evaluate["test"](self.state.params, running_stats(self.state.batch_stats)))
        return Evaluated(totals.loss, totals.accuracy, totals.count)


def measure_ceilings(recipe: Recipe, time_best: Callable, sizes: tuple[int, int]) -> dict[str, float]:
    """FLOP/s of a large product in the recipe's type and byte/s of a large copy, by JAX; see `ceilings`."""
    set_up(recipe)
    side, size = sizes
    keys = jax.random.split(jax.random.key(0), 3)
    a, b = (jax.random.normal(key, (side, side)).astype(recipe.config["dtype"]) for key in keys[:2])
    source = jax.random.normal(keys[2], (size // 4,))
    product, negative = jax.jit(jnp.dot), jax.jit(jnp.negative)  # a copy proper might be done by not doing it
    return {
        "flops_per_second": 2 * side**3 / time_best(lambda: product(a, b).block_until_ready()),
        "bytes_per_second": 2 * size / time_best(lambda: negative(source).block_until_ready()),
    }
