"""The config: every key with its default and what it takes, declared once, and the checks that a run starts with.

Every wrong value is refused, in one sentence, before anything is compiled or written.
"""

import difflib
import json
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

from cifar_jax.data import DATASETS
from cifar_jax.data.order import SAMPLERS
from cifar_jax.devices.sharding import SYNCS
from cifar_jax.errors import InputError
from cifar_jax.nn.batch_norm import RULES
from cifar_jax.nn.models import INITS, NETWORKS, same_depth
from cifar_jax.nn.optimizers import OPTIMIZERS
from cifar_jax.nn.schedules import SCHEDULES
from cifar_jax.nn.transforms import AUGMENTS
from cifar_jax.runs.fields import (
    BELOW_ONE,
    BOOL,
    NOT_NEGATIVE,
    POSITIVE,
    STAGES,
    Field,
    choice,
    integer,
    names_out_of,
    number,
    or_none,
    parse_text,
)


class Key(NamedTuple):
    """A key of the config.

    default: as the lecture's CNN6 with Adam on CIFAR-100 has it. Of a key that is added later, what runs meant before.
    field: what it takes.
    help: what it does.
    """

    default: Any
    field: Field
    help: str


_FRACTION = number("a number from 0 to 1", lambda value: 0 <= value <= 1)
_PATH = Field("a path, or '' to download", lambda value: isinstance(value, str))
_DEVICES = Field("-1 or an integer of at least 1", lambda value: value == -1 or integer(1).accepts(value))

KEYS = {
    "seed": Key(0, integer(0, 2**31 - 1), "draws the initial weights, the order of every epoch and the augmentation"),
    "rng": Key("jax", choice("jax", "torch"), "whose random numbers: torch's are those that PyTorch draws on the CPU"),
    "dtype": Key("float32", choice("float32", "bfloat16", "float64"), "of the computation"),
    "platform": Key("auto", choice("auto", "cpu", "gpu", "tpu"), "auto takes the fastest there is; the others insist"),
    "data.name": Key("cifar100", choice(*DATASETS), "shapes are embedded and need no network"),
    "data.dir": Key("", _PATH, "a folder prepared by TFDS; empty: download into the cache folder"),
    "data.image_size": Key(32, integer(8, 512), "height and width after a bicubic resize"),
    "data.batch_size": Key(200, integer(1), "images a step, over all devices"),
    "data.eval_batch_size": Key(200, integer(1), "images a step in evaluation"),
    "data.limit_train": Key(0, integer(0), "use only the first so many training images; 0 uses all"),
    "data.limit_test": Key(0, integer(0), "use only the first so many test images; 0 uses all"),
    "data.holdout": Key(0, integer(0), "so many training images, the last ones, only measure: holdout_accuracy"),
    "data.placement": Key(
        "auto", choice("auto", "device", "host"), "where the images lie; auto: on the device if they fit"
    ),
    "data.augment": Key(
        "flip", choice(*AUGMENTS), "flip: each image with p = 0.5; flip_first_half: half of each batch"
    ),
    "data.normalize": Key(True, BOOL, "pixels to [-1, 1]; False: to [0, 1]"),
    "data.sampler": Key(
        "shuffle", choice(*SAMPLERS), "shuffle: every image once an epoch; whole_batches drops the rest"
    ),
    "model.name": Key("cnn6", choice(*NETWORKS), "6 or 10 convolutions"),
    "model.stages": Key((), STAGES, "widths of the convolutions between pools; () keeps the lecture's"),
    "model.init": Key("torch", choice(*INITS), "initial weights as PyTorch draws them, or as Flax does"),
    "norm.rule": Key("torch", choice(*RULES), "how BatchNorm keeps its running averages"),
    "norm.momentum": Key(None, or_none(_FRACTION, "the rule's own"), "None is 0.1 (torch, lecture) or 0.99 (flax)"),
    "norm.epsilon": Key(1e-5, POSITIVE, "added to the variance"),
    "norm.sync": Key("global", choice(*SYNCS), "over devices, statistics of the whole batch or of each device's share"),
    "norm.compare": Key(
        (), names_out_of(tuple(RULES), "('lecture', 'flax')"), "rules kept and evaluated beside the run's"
    ),
    "optimizer.name": Key("adam", choice(*OPTIMIZERS), "as PyTorch means them"),
    "optimizer.lr": Key(0.001, POSITIVE, "learning rate"),
    "optimizer.momentum": Key(0.9, BELOW_ONE, "sgd only"),
    "optimizer.weight_decay": Key(0.0, NOT_NEGATIVE, "joins the gradient, in both"),
    "optimizer.b1": Key(0.9, BELOW_ONE, "adam only"),
    "optimizer.b2": Key(0.999, BELOW_ONE, "adam only"),
    "optimizer.eps": Key(1e-8, POSITIVE, "adam only"),
    "train.epochs": Key(30, integer(1), "how long"),
    "train.seeds": Key(1, integer(1, 1000), "so many runs, of seed, seed + 1, ..., each in a folder of its own"),
    "train.checkpoint_every": Key(1, integer(1), "epochs; the last epoch is always saved"),
    "sharding.data": Key(-1, _DEVICES, "devices that share each batch; -1: all there are"),
    "schedule.name": Key("constant", choice(*SCHEDULES), "of the learning rate; it changes between epochs"),
    "schedule.step_size": Key(10, integer(1), "step: calls between two drops"),
    "schedule.gamma": Key(0.5, POSITIVE, "step: factor of each drop"),
    "schedule.t_max": Key(
        None, or_none(integer(1), "schedules other than cosine"), "cosine: calls until the rate is 0"
    ),
    "schedule.calls_per_epoch": Key(1, integer(1, 2), "2 is what the slide does by calling it in train and test phase"),
}

# Keys that may differ when a run is resumed, because they change no step that has been made.
FREE_ON_RESUME = ("data.dir", "data.placement", "sharding.data", "train.epochs", "train.checkpoint_every")


def default_config() -> ml_collections.ConfigDict:
    """Every key at its default: the lecture's CNN6 with Adam on CIFAR-100."""
    config = ml_collections.ConfigDict()
    for name, key in KEYS.items():
        section, _, last = name.rpartition(".")
        if section and section not in config:
            config[section] = ml_collections.ConfigDict()
        # A plain None would take a value of any type later, and a reference of another key's none.
        kinds = {"norm.momentum": float, "schedule.t_max": int}
        value = config_dict.placeholder(kinds[name]) if key.default is None else key.default
        (config[section] if section else config)[last] = value
    return config


def set_from_text(config: ml_collections.ConfigDict, name: str, text: str) -> None:
    """Sets a key to what a command line says: `--config.NAME=TEXT`. The value before is replaced, whatever it was.

    Raises:
      InputError: there is no such key, or it does not take this.
    """
    if name not in KEYS:
        raise InputError(unknown_key(name))
    key = KEYS[name]
    value = parse_text(text, key.field)
    if not key.field.accepts(value):
        raise InputError(f"{name} must be {key.field.takes}, got {shown(value)}.")
    if isinstance(key.default, float) and value is not None:
        value = float(value)
    section, _, last = name.rpartition(".")
    target = config[section] if section else config
    with target.ignore_type():
        target[last] = value


def shown(value: Any, limit: int = 100) -> str:
    """A value as an error message shows it: as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config's values by dotted key, in `KEYS`' order, as they come back from JSON (tuples as lists)."""
    flat = {}

    def visit(prefix, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{prefix}{key}.", inner)
        else:
            flat[prefix[:-1]] = value

    visit("", json.loads(json.dumps(config.to_dict(), default=str)))
    order = {key: number for number, key in enumerate(KEYS)}
    return dict(sorted(flat.items(), key=lambda item: order.get(item[0], len(order))))


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every key, and the combinations that can be judged without the data.

    Raises:
      InputError: the first wrong field, what it takes and what it got.
    """
    flat = flatten(config)
    for key in flat:
        if key not in KEYS:
            raise InputError(unknown_key(key))
    for key, (_, field, _) in KEYS.items():
        if key not in flat:
            raise InputError(f"{key} must be {field.takes}, got nothing: the config lacks this key.")
        if not field.accepts(flat[key]):
            raise InputError(f"{key} must be {field.takes}, got {shown(flat[key])}.")
    name, stages, size = flat["model.name"], flat["model.stages"], flat["data.image_size"]
    if stages and not same_depth(stages, name):
        raise InputError(f"model.stages must be () or laid out like {name}'s {NETWORKS[name]}, got {stages}.")
    smallest = 2 ** len(NETWORKS[name])
    if size < smallest:
        raise InputError(f"data.image_size must be at least {smallest} for the pools of {name}, got {size}.")
    if flat["schedule.name"] == "cosine" and flat["schedule.t_max"] is None:
        raise InputError("schedule.t_max must be an integer of at least 1 with schedule.name=cosine, got None.")
    if flat["norm.sync"] == "per_replica" and flat["sharding.data"] == -1:
        raise InputError(
            "sharding.data must be the number of devices with norm.sync=per_replica, whose statistics depend on it, "
            "got -1."
        )
    if len({flat["norm.rule"], *flat["norm.compare"]}) <= len(flat["norm.compare"]):
        raise InputError(
            f"norm.compare must be rules other than norm.rule={flat['norm.rule']}, each once, got "
            f"{flat['norm.compare']}."
        )
    if flat["seed"] + flat["train.seeds"] > 2**31:
        raise InputError(
            f"train.seeds must be at most {2**31 - flat['seed']} with seed={flat['seed']}, got {flat['train.seeds']}."
        )
    if flat["rng"] == "torch":
        if flat["data.sampler"] != "shuffle":
            raise InputError(
                f"data.sampler must be shuffle with rng=torch, as PyTorch's DataLoader knows no other, got "
                f"{flat['data.sampler']!r}."
            )
        if flat["model.init"] != "torch":
            raise InputError(f"model.init must be torch with rng=torch, got {flat['model.init']!r}.")


def unknown_key(name: str) -> str:
    """The sentence for a key that does not exist, with the nearest that does where one is near."""
    last = name.rpartition(".")[2]
    near = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.8)
    near = near or [key for key in KEYS if key.rpartition(".")[2] == last]
    near = near or [key for key in KEYS if difflib.get_close_matches(last, [key.rpartition(".")[2]], n=1, cutoff=0.8)]
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{name} is not a config key; python -m cifar_jax train --help lists them all.{hint}"


def first_difference(config: ml_collections.ConfigDict, saved: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key, its value here and its value in `saved` (flat), that bars `config` from resuming that run."""
    flat = flatten(config)
    for key in (*flat, *(key for key in saved if key not in flat)):
        # Statistics of replicas are another training for another number of them.
        free = key in FREE_ON_RESUME and (key, flat["norm.sync"]) != ("sharding.data", "per_replica")
        if not free and flat.get(key) != saved.get(key):
            return key, flat.get(key), saved.get(key)
    return None


def with_seed(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    """The config of one run, of this seed alone."""
    config = config.copy_and_resolve_references()
    config.seed, config.train.seeds = seed, 1
    return config
