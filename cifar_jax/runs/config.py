"""Validation: every wrong value is refused, in one sentence, before anything is compiled or written."""

import difflib
import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections
from absl import flags

from cifar_jax.data import DATASETS
from cifar_jax.data.order import SAMPLERS
from cifar_jax.devices.sharding import SYNCS
from cifar_jax.errors import InputError
from cifar_jax.nn.batch_norm import RULES
from cifar_jax.nn.models import INITS, NETWORKS, same_depth
from cifar_jax.nn.optimizers import OPTIMIZERS
from cifar_jax.nn.schedules import SCHEDULES
from cifar_jax.nn.transforms import AUGMENTS

# Keys that may differ when a run is resumed, because they change no step that has been made.
FREE_ON_RESUME = ("data.dir", "data.placement", "sharding.data", "train.epochs", "train.checkpoint_every")


class Field(NamedTuple):
    """What a key takes, in words and as a test."""

    takes: str
    accepts: Callable[[Any], bool]


def _choice(*names: str) -> Field:
    return Field("one of " + ", ".join(names), lambda value: isinstance(value, str) and value in names)


def _integer(low: int, high: int | None = None) -> Field:
    takes = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"

    def accepts(value):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and low <= value and (high is None or value <= high)

    return Field(takes, accepts)


def _number(takes: str, accepts: Callable[[float], bool]) -> Field:
    def test(value):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value) and accepts(value)

    return Field(takes, test)


def _or_none(field: Field, none: str) -> Field:
    return Field(f"{field.takes}, or None for {none}", lambda value: value is None or field.accepts(value))


def _are_rules(value) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) and name in RULES for name in value)


def _is_stages(value) -> bool:
    def widths(stage):
        return isinstance(stage, list | tuple) and stage and all(_integer(1).accepts(width) for width in stage)

    return isinstance(value, list | tuple) and all(widths(stage) for stage in value)


_POSITIVE = _number("a finite number above 0", lambda value: value > 0)
_NOT_NEGATIVE = _number("a finite number of at least 0", lambda value: value >= 0)
_BELOW_ONE = _number("a number from 0 to below 1", lambda value: 0 <= value < 1)
_BOOL = Field("True or False", lambda value: isinstance(value, bool))

FIELDS = {
    "seed": _integer(0, 2**31 - 1),
    "rng": _choice("jax", "torch"),
    "dtype": _choice("float32", "bfloat16", "float64"),
    "platform": _choice("auto", "cpu", "gpu", "tpu"),
    "data.name": _choice(*DATASETS),
    "data.dir": Field("a path, or '' to download", lambda value: isinstance(value, str)),
    "data.image_size": _integer(8, 512),
    "data.batch_size": _integer(1),
    "data.eval_batch_size": _integer(1),
    "data.limit_train": _integer(0),
    "data.limit_test": _integer(0),
    "data.holdout": _integer(0),
    "data.placement": _choice("auto", "device", "host"),
    "data.augment": _choice(*AUGMENTS),
    "data.normalize": _BOOL,
    "data.sampler": _choice(*SAMPLERS),
    "model.name": _choice(*NETWORKS),
    "model.stages": Field("() or widths such as ((16, 16), (32, 32), (64, 64))", _is_stages),
    "model.init": _choice(*INITS),
    "norm.rule": _choice(*RULES),
    "norm.momentum": _or_none(_number("a number from 0 to 1", lambda value: 0 <= value <= 1), "the rule's own"),
    "norm.epsilon": _POSITIVE,
    "norm.sync": _choice(*SYNCS),
    "norm.compare": Field(f"() or rules such as ('lecture', 'flax'), out of {', '.join(RULES)}", _are_rules),
    "optimizer.name": _choice(*OPTIMIZERS),
    "optimizer.lr": _POSITIVE,
    "optimizer.momentum": _BELOW_ONE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.b1": _BELOW_ONE,
    "optimizer.b2": _BELOW_ONE,
    "optimizer.eps": _POSITIVE,
    "schedule.name": _choice(*SCHEDULES),
    "schedule.step_size": _integer(1),
    "schedule.gamma": _POSITIVE,
    "schedule.t_max": _or_none(_integer(1), "schedules other than cosine"),
    "schedule.calls_per_epoch": _integer(1, 2),
    "sharding.data": Field("-1 or an integer of at least 1", lambda value: value == -1 or _integer(1).accepts(value)),
    "train.epochs": _integer(1),
    "train.seeds": _integer(1, 1000),
    "train.checkpoint_every": _integer(1),
}


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config's values by dotted key, in `FIELDS`' order, as they come back from JSON (tuples as lists)."""
    flat = {}

    def visit(prefix, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{prefix}{key}.", inner)
        else:
            flat[prefix[:-1]] = value

    visit("", json.loads(json.dumps(config.to_dict(), default=str)))
    order = {key: place for place, key in enumerate(FIELDS)}
    return dict(sorted(flat.items(), key=lambda item: order.get(item[0], len(order))))


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every key, and the combinations that can be judged without the data.

    Raises:
      InputError: the first wrong field, what it takes and what it got.
    """
    flat = flatten(config)
    for key in flat:
        if key not in FIELDS:
            raise InputError(unknown_key(key))
    for key, field in FIELDS.items():
        if key not in flat:
            raise InputError(f"{key} must be {field.takes}, got nothing: the config lacks this key.")
        if not field.accepts(flat[key]):
            raise InputError(f"{key} must be {field.takes}, got {flat[key]!r}.")
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


def unknown_key(key: str) -> str:
    """The sentence for a key that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(key, FIELDS, n=1) or difflib.get_close_matches(
        key.split(".")[-1], [name.split(".")[-1] for name in FIELDS], n=1
    )
    hint = next((f" Did you mean {name}?" for name in FIELDS if near and name.endswith(near[0])), "")
    return f"{key} is not a config key; configs/default.py lists them all.{hint}"


def explain_flag_error(argv: list[str], error: Exception) -> str:
    """One sentence for whatever the flag parser said of `argv`, in the words of `FIELDS` where a key is to blame."""
    for argument in argv[1:]:
        override = re.fullmatch(r"--?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
        if override and override[1] not in FIELDS:
            return unknown_key(override[1])
    blamed = re.search(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
    if blamed and blamed[1] in FIELDS:
        return f"{blamed[1]} must be {FIELDS[blamed[1]].takes}, got {blamed[2]!r}."
    reason = " ".join(str(error).split())
    if isinstance(error, flags.Error):
        return reason
    path = next((argument.partition("=")[2] for argument in argv if re.match("--?config=", argument)), "")
    return f"--config must name a Python file with get_config(), got {path!r}: {type(error).__name__}: {reason}."


def first_difference(config: ml_collections.ConfigDict, saved: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key, its value here and its value in `saved` (flat), that bars `config` from resuming that run."""
    flat = flatten(config)
    for key in (*flat, *(key for key in saved if key not in flat)):
        # Statistics of replicas are another training for another number of them.
        free = key in FREE_ON_RESUME and (key, flat["norm.sync"]) != ("sharding.data", "per_replica")
        if not free and flat.get(key) != saved.get(key):
            return key, flat.get(key), saved.get(key)
    return None
