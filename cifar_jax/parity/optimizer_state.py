"""The state of optimizer and scheduler, from PyTorch's state_dicts to optax's and back.

| here | in PyTorch |
|---|---|
| `TraceState.trace` | `momentum_buffer` of each parameter (SGD) |
| `ScaleByAdamState.mu`, `.nu`, `.count` | `exp_avg`, `exp_avg_sq`, `step` of each parameter (Adam) |
| `ScaleByScheduleState.count` | `last_epoch` of the scheduler, in epochs instead of steps |

PyTorch numbers the parameters in the order of the network's.
"""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from cifar_jax.errors import InputError
from cifar_jax.nn import schedules
from cifar_jax.parity.state_dict import from_state_dict, to_state_dict
from cifar_jax.runs.state import TrainState

_MOMENTS = {
    optax.TraceState: {"trace": "momentum_buffer"},
    optax.ScaleByAdamState: {"mu": "exp_avg", "nu": "exp_avg_sq"},
}
# Options of PyTorch's optimizers that make another algorithm of them; the rest change only how it is computed.
_SWITCHES = ("dampening", "nesterov", "maximize", "amsgrad", "decoupled_weight_decay")


def set_position(opt_state, updates: int):
    """The optimizer's state with its schedule after so many updates."""
    return _replace(opt_state, optax.ScaleByScheduleState, count=updates)


def from_torch(saved: dict[str, Any], opt_state, params, source: str):
    """The optimizer's state with the moments, and Adam's step, of PyTorch's state_dict.

    One of an optimizer that has made no step leaves it as it is, as does SGD's without momentum.

    Raises:
      InputError: something is missing, unused or misshapen.
    """
    names, by_parameter = list(to_state_dict(params)), saved["state"]
    kind = _kind(opt_state)
    if kind is None or not by_parameter:
        return opt_state
    fields = _MOMENTS[kind]
    expected = {*fields.values()} | ({"step"} if kind is optax.ScaleByAdamState else set())
    wrong = [
        f"{', '.join(map(str, by_parameter.get(index, ()))) or 'nothing'} for {name}"
        for index, name in enumerate(names)
        if set(by_parameter.get(index, ())) != expected
        or not all(isinstance(value, np.ndarray) for value in by_parameter[index].values())
    ]
    wrong += [f"something for a parameter {index}" for index in by_parameter if index not in range(len(names))]
    if wrong:
        raise InputError(
            f"{source} must hold {', '.join(sorted(expected))} for each parameter of the network in its optimizer, "
            f"got {'; '.join(wrong)}."
        )

    def tree(key):
        arrays = {name: by_parameter[index][key] for index, name in enumerate(names)}
        return from_state_dict(arrays, params, source=f"The optimizer's {key} in {source}").params

    opt_state = _replace(opt_state, kind, **{field: tree(key) for field, key in fields.items()})
    if "step" in expected:
        counts = {part["step"].item() if part["step"].ndim == 0 else None for part in by_parameter.values()}
        count = counts.pop()
        if counts or count is None or not float(count).is_integer() or count < 0:
            raise InputError(f"{source} must hold one step for all parameters in its optimizer, a whole number.")
        opt_state = _replace(opt_state, kind, count=int(count))
    return opt_state


def to_torch(state: TrainState, epoch: int, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What a PyTorch program saves after this epoch as optimizer, scheduler (unless it is constant) and epoch."""
    import torch

    from cifar_jax.parity import twin

    names, schedule = list(to_state_dict(state.params)), config.schedule
    parameters = [torch.nn.Parameter(torch.zeros(0)) for _ in names]
    optimizer = twin.create_optimizer(parameters=parameters, **config.optimizer.to_dict())
    content = {"epoch": epoch}
    if schedule.name != "constant":
        scheduler = twin.create_scheduler(
            schedule.name, optimizer, step_size=schedule.step_size, gamma=schedule.gamma, t_max=schedule.t_max
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this optimizer has made no step
            for _ in range(epoch * schedule.calls_per_epoch):
                scheduler.step()
        content["scheduler"] = scheduler.state_dict()
    content["optimizer"] = {**optimizer.state_dict(), "state": _by_parameter(state, names)}
    return content


def _by_parameter(state: TrainState, names: list[str]) -> dict[int, dict[str, np.ndarray]]:
    """PyTorch's state of each parameter; none where the optimizer has made no step or has no moments."""
    kind = _kind(state.opt_state)
    if kind is None:
        return {}
    part = _find(state.opt_state, kind)
    step = {"step": np.asarray(part.count, np.float32)} if kind is optax.ScaleByAdamState else {}
    if not (step["step"] if step else state.step):
        return {}
    arrays = {key: to_state_dict(getattr(part, field)) for field, key in _MOMENTS[kind].items()}
    return {i: {**step, **{key: arrays[key][name] for key in arrays}} for i, name in enumerate(names)}


def next_rate(config: ml_collections.ConfigDict, epoch: int) -> float:
    """The learning rate of the epoch that follows so many finished ones."""
    schedule = config.schedule
    rates = schedules.learning_rates(
        schedule.name, lr=config.optimizer.lr, epochs=epoch + 1, step_size=schedule.step_size, gamma=schedule.gamma,
        t_max=schedule.t_max, calls_per_epoch=schedule.calls_per_epoch,
    )  # fmt: skip
    return float(rates[epoch])


def check_options(saved: dict[str, Any], optimizer: ml_collections.ConfigDict, rate: float, source: str) -> None:
    """Makes sure that PyTorch's state_dict is of the config's optimizer, at this learning rate.

    Raises:
      InputError: it is not; one sentence with all differences.
    """
    groups, by_parameter = saved.get("param_groups"), saved.get("state")
    layout = len(saved) == 2 and isinstance(by_parameter, dict) and isinstance(groups, list)
    if not layout or len(groups) != 1 or not isinstance(groups[0], dict):
        raise InputError(f"{source} must hold an optimizer's state_dict with one group of parameters as optimizer.")
    group = groups[0]
    expected = {"weight_decay": optimizer.weight_decay}
    if optimizer.name == "adam":
        expected |= {"betas": [optimizer.b1, optimizer.b2], "eps": optimizer.eps}
    else:
        expected |= {"momentum": optimizer.momentum}
    expected |= {key: False for key in _SWITCHES if key in group}
    wrong = _differences(group, expected)
    # PyTorch's cosine goes from rate to rate, which leaves 1e-16 of the base rate where ours is 0.
    if not math.isclose(group.get("lr", math.nan), rate, rel_tol=1e-9, abs_tol=1e-9 * optimizer.lr):
        wrong.append(f"lr={group.get('lr')} instead of {rate:g} for the epoch that follows")
    if wrong:
        raise InputError(f"{source} must hold the config's optimizer, {optimizer.name}, got {'; '.join(wrong)}.")


def check_scheduler(saved: dict[str, Any], schedule: ml_collections.ConfigDict, epoch: int, source: str) -> None:
    """Makes sure that PyTorch's state_dict is of the config's scheduler, after so many epochs.

    Raises:
      InputError: it is not; one sentence with all differences.
    """
    if schedule.name == "constant":
        raise InputError(f"{source} must hold no scheduler with schedule.name=constant, got {', '.join(saved)}.")
    options = {
        "step": {"step_size": schedule.step_size, "gamma": schedule.gamma},
        "cosine": {"T_max": schedule.t_max, "eta_min": 0},
    }[schedule.name]
    if wrong := _differences(saved, {**options, "last_epoch": epoch * schedule.calls_per_epoch}):
        raise InputError(f"{source} must hold the config's scheduler, {schedule.name}, got {'; '.join(wrong)}.")


def _differences(saved: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [f"{key}={saved.get(key)} instead of {value}" for key, value in expected.items() if saved.get(key) != value]


def _kind(opt_state) -> type | None:
    """Which part of the optimizer's state holds its moments; None where there are none."""
    return next((kind for kind in _MOMENTS if _find(opt_state, kind) is not None), None)


def _find(opt_state, kind: type):
    parts = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, kind))
    return next((part for part in parts if isinstance(part, kind)), None)


def _replace(opt_state, kind: type, **fields):
    """The optimizer's state with these fields of its part of one kind replaced, each in the type that it had."""

    def replace(part):
        if not isinstance(part, kind):
            return part
        old = {name: getattr(part, name) for name in fields}
        return part._replace(**jax.tree.map(lambda leaf, value: jnp.asarray(value, leaf.dtype), old, fields))

    return jax.tree.map(replace, opt_state, is_leaf=lambda part: isinstance(part, kind))
