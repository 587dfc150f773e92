"""From a config to everything that a run needs: data, network, optimizer, transforms, a fresh state."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from cifar_jax.data import load_dataset, map_dataset
from cifar_jax.data.cache import cache_folder
from cifar_jax.data.dataset import Dataset, Split, hold_out, take
from cifar_jax.data.order import epoch_order, steps_per_epoch
from cifar_jax.devices.distributed import Job
from cifar_jax.devices.select import describe, fits, keep_compilations, onednn_convolves, select_devices
from cifar_jax.devices.sharding import DataParallel, data_parallel, replicate, replicate_rows
from cifar_jax.errors import InputError
from cifar_jax.nn import optimizers, schedules
from cifar_jax.nn.batch_norm import RULES
from cifar_jax.nn.fused import fuse
from cifar_jax.nn.models import CNN, create_model
from cifar_jax.nn.transforms import Transform
from cifar_jax.runs import torch_random
from cifar_jax.runs.config import flatten, validate, with_seed
from cifar_jax.runs.state import TrainState, create_state
from cifar_jax.runs.workdir import check_workdir

Drawn = tuple[jax.Array, jax.Array | None]


class Experiment(NamedTuple):
    """Everything that a config names, built.

    rates: the learning rate of each epoch.
    train, test: the images, on the device or, with `on_device` False, in host memory.
    holdout: images that were kept from training, likewise; None for none.
    draw_epoch: takes an epoch, numbered from 0, to the order of its images, int32 `[n]`, and, where the steps do not
      draw them, to which of these are flipped, bool `[n]`; the same for an epoch whenever it is asked. By the seed.
    state: where training starts. By the seed.
    parallel: the devices that share each batch; None where there is one.
    """

    model: CNN
    tx: optax.GradientTransformation
    transform: Transform
    rates: np.ndarray
    train: Split
    test: Split
    holdout: Split | None
    on_device: bool
    batch_size: int
    eval_batch_size: int
    sampler: str
    draw_epoch: Callable[[int], Drawn]
    state: TrainState
    parallel: DataParallel | None


def prepare(
    config: ml_collections.ConfigDict,
    workdirs: Mapping[int, Path] | Path,
    job: Job | None = None,
    *,
    read_only: bool = False,
) -> Dataset:
    """Refuses what cannot run, chooses the devices and loads the data. Nothing is compiled or written.

    Args:
      config: every key.
      workdirs: the folder of the run, or of each of several seeds.
      job: the processes that run this together; what one of them refuses, all do.
      read_only: whether the folders are only read, and need not be writable.

    Raises:
      InputError: the first thing that is wrong.
    """
    folders = {config.seed: workdirs} if isinstance(workdirs, Path) else workdirs
    together = contextlib.nullcontext if job is None else job.agreement
    with together({**flatten(config), "data.dir": ""}):  # each process may have the images elsewhere
        validate(config)
        for seed, folder in folders.items():
            check_workdir(folder, with_seed(config, seed), read_only=read_only)
    jax.config.update("jax_enable_x64", config.dtype == "float64")
    print(f"Devices: {describe(select_devices(config.platform))}", flush=True)
    with contextlib.suppress(OSError):  # no home folder: compile every time
        keep_compilations(cache_folder() / "xla")
    if config.dtype == "bfloat16" and jax.default_backend() == "cpu" and not onednn_convolves():
        print("bfloat16 is no faster than float32 here: it takes AVX512_BF16 or AMX, and jax 0.12 or newer", flush=True)
    with together():
        return _load(config)


def _load(config: ml_collections.ConfigDict) -> Dataset:
    data = config.data
    load = load_dataset if jax.process_count() == 1 else map_dataset
    dataset = take(load(data.name, data.dir), data.limit_train, data.limit_test)
    rest, holdout = hold_out(dataset, data.holdout)
    if steps_per_epoch(len(rest.train.labels), data.batch_size, data.sampler) == 0:
        raise InputError(
            f"data.batch_size must be at most the number of training images, {len(rest.train.labels)}, with "
            f"data.sampler={data.sampler}, got {data.batch_size}."
        )
    held = "" if holdout is None else f" and {len(holdout.labels):,} held-out"
    print(
        f"Data: {data.name}, {len(rest.train.labels):,} training{held} and {len(dataset.test.labels):,} test images, "
        f"{len(dataset.class_names)} classes",
        flush=True,
    )
    return dataset


def build_model(config: ml_collections.ConfigDict, num_classes: int) -> CNN:
    """The network that a config names, in its fused form, wherever it is used: training, prediction, export."""
    model, norm = config.model, config.norm
    rule = RULES[norm.rule]
    return fuse(
        create_model(
            model.name,
            norm_rule=rule() if norm.momentum is None else rule(norm.momentum),
            norm_compare=tuple((name, RULES[name]()) for name in norm.compare),
            num_classes=num_classes,
            stages=tuple(tuple(widths) for widths in model.stages),
            epsilon=norm.epsilon,
            init_name=model.init,
            dtype=jnp.dtype(config.dtype),
        )
    )


def build(config: ml_collections.ConfigDict, dataset: Dataset) -> Experiment:
    """Network, optimizer, transforms, data where they belong and a fresh state, from a config that was validated."""
    data, optimizer, schedule = config.data, config.optimizer, config.schedule
    dataset, holdout = hold_out(dataset, data.holdout)
    model = build_model(config, len(dataset.class_names))
    rates = schedules.learning_rates(
        schedule.name, lr=optimizer.lr, epochs=config.train.epochs, step_size=schedule.step_size,
        gamma=schedule.gamma, t_max=schedule.t_max, calls_per_epoch=schedule.calls_per_epoch,
    )  # fmt: skip
    lr = schedules.by_step(
        rates, steps_per_epoch=steps_per_epoch(len(dataset.train.labels), data.batch_size, data.sampler)
    )
    if optimizer.name == "sgd":
        tx = optimizers.sgd(lr, momentum=optimizer.momentum, weight_decay=optimizer.weight_decay)
    else:
        tx = optimizers.adam(
            lr, b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps, weight_decay=optimizer.weight_decay
        )
    splits = (dataset.train, dataset.test, holdout)
    on_device = data.placement == "device" or (data.placement == "auto" and fits(jax.tree.leaves(splits)))
    parallel = data_parallel(select_devices(config.platform), config.sharding.data, config.norm.sync)
    train, test, holdout = replicate_rows(splits, parallel) if on_device else splits
    state, draw_epoch = _start(config, model, tx, len(train.labels), parallel)
    return Experiment(
        model=model,
        tx=tx,
        transform=Transform(data.image_size, data.augment, data.normalize),
        rates=rates,
        train=train,
        test=test,
        holdout=holdout,
        on_device=on_device,
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        sampler=data.sampler,
        draw_epoch=draw_epoch,
        state=state,
        parallel=parallel,
    )


def reseed(experiment: Experiment, config: ml_collections.ConfigDict) -> Experiment:
    """`experiment` as the same config with another seed would build it; both share every compiled program."""
    x = experiment
    state, draw_epoch = _start(config, x.model, x.tx, len(x.train.labels), x.parallel)
    return x._replace(state=state, draw_epoch=draw_epoch)


def _start(
    config: ml_collections.ConfigDict,
    model: CNN,
    tx: optax.GradientTransformation,
    n_train: int,
    parallel: DataParallel | None,
) -> tuple[TrainState, Callable[[int], Drawn]]:
    """What the seed decides: `Experiment.state` and `Experiment.draw_epoch`."""
    data = config.data
    init_key, step_key, order_key = jax.random.split(jax.random.key(config.seed), 3)
    state = create_state(model, tx, init_key=init_key, key=step_key, image_size=data.image_size)
    if config.rng == "torch":
        state = state.replace(params=jax.device_put(torch_random.draw_params(config.seed, state.params)))
        epochs = torch_random.Epochs(
            config.seed, n_train, flips=data.augment == "flip", draws_before=torch_random.count_draws(state.params)
        )

        def draw_epoch(epoch):
            return replicate(epochs.draw(epoch), parallel)
    else:
        order_key = replicate(order_key, parallel)

        def draw_epoch(epoch):
            # The epoch's number is all that an epoch takes from the host.
            return epoch_order(order_key, replicate(np.int32(epoch), parallel), n_train), None

    return state if parallel is None else replicate(state, parallel), draw_epoch
