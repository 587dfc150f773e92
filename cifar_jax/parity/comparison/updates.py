"""Optimizers and schedules: 200 updates from common gradients, and a learning rate for each.

The optimizers run on small stand-ins of the model's parameters, each axis cut to 3, with the names and numbers of axes
that rules of weight decay go by. The gradients are of several sizes, so that clipping shows, and zero at times, so that
decay alone moves the parameters. PyTorch's optimizer is then changed in one way after another, and in two at once.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from cifar_jax.errors import InputError
from cifar_jax.parity.comparison.causes.proposal import FAULT, number
from cifar_jax.parity.comparison.flax_side import explain, unflatten
from cifar_jax.parity.comparison.mapping import WeightMap
from cifar_jax.parity.comparison.precision import double_precision
from cifar_jax.parity.comparison.result import Finding, Where

UPDATES = 200
_SEARCHED = 25
_TOLERANCE = 1e-6


class Variant(NamedTuple):
    """One way in which an optimizer may differ from PyTorch's.

    kind, says, fix: as in `Finding`.
    groups: makes PyTorch's parameter groups into those of the variant.
    make: makes the optimizer from groups; None for PyTorch's own class.
    before: changes gradients and parameters before each update, given (parameters, groups).
    """

    kind: str
    says: str
    fix: str
    groups: Callable[[list[dict]], list[dict]] = lambda groups: groups
    make: Callable[[list[dict]], torch.optim.Optimizer] | None = None
    before: Callable[[list[dict]], None] | None = None


def compare_optimizers(theirs: Callable, ours: Any, model: torch.nn.Module, mapping: WeightMap) -> list[Finding]:
    """Compares a torch optimizer with an optax one, and names what differs.

    Args:
      theirs: called with the model's parameters, or with the model where its argument is called `model`; gives a
        torch.optim.Optimizer.
      ours: an optax.GradientTransformation, or a function without arguments that gives one.
      model: the PyTorch model.
      mapping: pairs of parameters.

    Raises:
      InputError: one of them raises or is of another kind.
    """
    small, leaves = _stand_ins(model, mapping)
    optimizer = _torch_optimizer(theirs, small)
    groups = _groups(optimizer, small)
    gradients = _gradients(small, UPDATES)
    start = {name: each.detach().numpy().copy() for name, each in small.named_parameters()}
    with double_precision():
        port = _run_optax(ours, leaves, start, gradients)
    mine = _run_torch(type(optimizer), groups, start, gradients, None)
    error = _error(mine, port, leaves, start)
    if error <= _TOLERANCE:
        return []
    where = (Where("optimizer", "", type(optimizer).__name__, None, "", "optax", None, error),)
    searched = gradients[:_SEARCHED]
    short = next(each[:_SEARCHED] for each in (port,))

    def fits(variant: Sequence[Variant]) -> bool:
        try:
            found = _run_torch(type(optimizer), groups, start, searched, variant)
        except Exception:  # a combination that torch refuses
            return False
        return _error(found, short, leaves, start) <= _TOLERANCE

    variants = list(_variants(type(optimizer).__name__, groups, port, mine, leaves, start))
    for variant in variants:
        if fits([variant]):
            return [Finding(variant.kind, variant.says, variant.fix, FAULT, where)]
    for pair in itertools.combinations(variants, 2):
        if pair[0].kind != pair[1].kind and fits(pair):
            return [Finding(each.kind, each.says, each.fix, FAULT, where) for each in pair]
    return [Finding("", "", "", FAULT, where)]


class _Small(torch.nn.Module):
    """Stand-ins with the names of the model's parameters."""


def _stand_ins(model: torch.nn.Module, mapping: WeightMap) -> tuple[torch.nn.Module, dict[str, tuple]]:
    """The model with small parameters, and for each array of the port (torch's name, rows, shape)."""
    small = copy.deepcopy(model).double()
    rng = np.random.default_rng(0)
    leaves: dict[str, tuple] = {}
    for name, parameter in small.named_parameters():
        pieces = [piece for piece in mapping.of(name) if piece.flax]
        blocks = []
        for piece in pieces or [None]:
            shape = tuple(min(n, 3) for n in (parameter.shape if piece is None else piece.shape))
            first = sum(len(block) for block in blocks)
            blocks.append(rng.normal(size=shape))
            if piece is not None:
                rows = None if piece.rows is None else (first, first + shape[0])
                axes = max(len(piece.flax_shape), 1)
                padded = (*shape, *(1,) * (axes - len(shape))) if axes >= len(shape) else (*shape[: axes - 1], -1)
                leaves[piece.flax] = (name, rows, padded)
        parameter.data = torch.from_numpy(np.concatenate(blocks) if len(blocks) > 1 else blocks[0])
        parameter.grad = None
    return small, leaves


def _torch_optimizer(theirs: Callable, small: torch.nn.Module) -> torch.optim.Optimizer:
    import inspect

    try:
        if isinstance(theirs, torch.optim.Optimizer):
            raise TypeError("an instance holds other parameters; give the function that makes it")
        names = list(inspect.signature(theirs).parameters)
        optimizer = theirs(small if names and names[0] in ("model", "module", "net") else list(small.parameters()))
    except Exception as error:
        raise InputError(f"--optimizer: PyTorch's raised {explain(error)}.") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"--optimizer: PyTorch's must give a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    return optimizer


def _groups(optimizer: torch.optim.Optimizer, small: torch.nn.Module) -> list[dict]:
    """The optimizer's groups with names instead of tensors."""
    names = {id(each): name for name, each in small.named_parameters()}
    return [{**group, "params": [names[id(each)] for each in group["params"]]} for group in optimizer.param_groups]


def _gradients(small: torch.nn.Module, count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    sizes = {name: 10 ** rng.uniform(-3, 0.5) for name, _ in small.named_parameters()}
    found = []
    for step in range(count):
        factor = 0.0 if step % 7 == 5 else 10 ** rng.uniform(-1.5, 1)
        found.append(
            {n: factor * sizes[n] * rng.normal(size=tuple(each.shape)) for n, each in small.named_parameters()}
        )
    return found


def _run_torch(kind, groups, start, gradients, variants: Sequence[Variant] | None) -> list[dict[str, np.ndarray]]:
    """Parameters after each update."""
    parameters = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in start.items()}
    its_groups = [{**group, "params": [parameters[n] for n in group["params"]]} for group in groups]
    make = kind
    for variant in variants or ():
        its_groups = variant.groups(its_groups)
        make = variant.make or make
    optimizer = _make(make, its_groups)
    found = []
    for gradient in gradients:
        for name, each in parameters.items():
            each.grad = torch.from_numpy(gradient[name].copy())
        for variant in variants or ():
            if variant.before is not None:
                with torch.no_grad():
                    variant.before(optimizer.param_groups)
        optimizer.step()
        found.append({name: each.detach().numpy().copy() for name, each in parameters.items()})
    return found


def _make(kind, groups: list[dict]) -> torch.optim.Optimizer:
    import inspect

    takes = set(inspect.signature(kind).parameters)
    kept = [{k: v for k, v in group.items() if k == "params" or k in takes} for group in groups]
    kept = [{k: v for k, v in group.items() if k not in ("foreach", "fused", "capturable")} for group in kept]
    return kind(kept, lr=groups[0]["lr"]) if "lr" in takes else kind(kept)


def _run_optax(ours, leaves, start, gradients) -> list[dict[str, np.ndarray]]:
    import optax

    try:
        tx = ours if hasattr(ours, "init") and hasattr(ours, "update") else ours()
        if not (hasattr(tx, "init") and hasattr(tx, "update")):
            raise InputError(f"--optimizer: the port's must be an optax transformation, got {type(tx).__name__}.")

        def tree(arrays):
            return unflatten(
                {
                    path: jnp.asarray(
                        (arrays[name] if rows is None else arrays[name][rows[0] : rows[1]]).reshape(shape)
                    )
                    for path, (name, rows, shape) in leaves.items()
                }
            )

        params = tree(start)
        state = tx.init(params)

        @jax.jit
        def step(gradient, state, params):
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        found = []
        for gradient in gradients:
            params, state = step(tree(gradient), state, params)
            flat = jax.tree_util.tree_flatten_with_path(params)[0]
            found.append({"/".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in flat})
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"--optimizer: the port's raised {explain(error)}.") from error
    return found


def _error(mine, port, leaves, start) -> float:
    """The largest difference of a parameter over the largest movement of that parameter so far."""
    worst = 0.0
    for path, (name, rows, shape) in leaves.items():
        for step, (one, other) in enumerate(zip(mine, port, strict=False)):
            cut = slice(None) if rows is None else slice(*rows)
            movement = np.abs(one[name][cut] - start[name][cut]).max()
            difference = np.abs(
                one[name][cut].reshape(shape) - other[path].reshape(one[name][cut].reshape(shape).shape)
            )
            largest = float(difference.max())
            worst = max(worst, largest / max(float(movement), 1e-12) if largest > 1e-13 else 0.0)
            if not math.isfinite(worst):
                return math.inf
            del step
    return worst


def _with(**new) -> Callable[[list[dict]], list[dict]]:
    return lambda groups: [{**group, **new} for group in groups]


def _variants(name: str, groups: list[dict], port, mine, leaves, start) -> Iterator[Variant]:
    """Changes to try, the likeliest first."""
    group = groups[0]
    decay = group.get("weight_decay", 0.0)
    rate = group["lr"]
    yield from _decay_variants(name, decay)
    if "momentum" in group:
        yield from _momentum_variants(group)
    if "betas" in group:
        yield from _adam_variants(name, group)
    if name == "RMSprop":
        for alpha in (0.9, 0.99, 0.95, 0.999):
            if alpha != group["alpha"]:
                yield Variant(
                    "decay_rate",
                    f"averages squares with {alpha} where PyTorch has {group['alpha']}",
                    f"optax.rmsprop(decay={group['alpha']}, eps_in_sqrt=False)",
                    _with(alpha=alpha),
                )
    for eps in (1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1e-10, 1e-12, 0.0):
        if "eps" in group and eps != group["eps"]:
            yield Variant(
                "optimizer_epsilon",
                f"uses epsilon {eps:g} where PyTorch has {group['eps']:g}",
                f"eps={group['eps']:g}",
                _with(eps=eps),
            )
    if "eps" in group:
        yield Variant(
            "optimizer_epsilon",
            "adds epsilon inside of the root, PyTorch outside",
            "eps_root=0, eps_in_sqrt=False",
            make=_inside_root(name),
        )
    if name == "Adagrad":
        for value in (0.1, 0.0, 1.0):
            yield Variant(
                "accumulator",
                f"starts the sum of squares at {value}",
                f"optax.adagrad(initial_accumulator_value={group['initial_accumulator_value']})",
                _with(initial_accumulator_value=value),
            )
    yield from _clip_variants()
    for factor in _rates(mine, port, leaves, start):
        yield Variant(
            "learning_rate",
            f"moves {number(factor)} times as far: rate {number(rate * factor)} where PyTorch has {number(rate)}",
            f"learning_rate={number(rate)}",
            lambda groups, f=factor: [{**g, "lr": g["lr"] * f} for g in groups],
        )
    others = {
        "SGD": torch.optim.SGD,
        "Adam": torch.optim.Adam,
        "AdamW": torch.optim.AdamW,
        "RMSprop": torch.optim.RMSprop,
        "Adagrad": torch.optim.Adagrad,
        "NAdam": torch.optim.NAdam,
        "RAdam": torch.optim.RAdam,
        "Adamax": torch.optim.Adamax,
    }
    for other, kind in others.items():
        if other != name:
            yield Variant(
                "optimizer_kind", f"is {other} where PyTorch has {name}", f"optax's {name.lower()}", make=kind
            )


def _decay_variants(name: str, decay: float) -> Iterator[Variant]:
    fix = "optax.chain(optax.add_decayed_weights(wd), optax.sgd(lr)), with PyTorch's wd on all parameters"
    if name == "AdamW":
        fix = f"optax.adamw(lr, weight_decay={decay:g})"
    for value in dict.fromkeys((0.0, 1e-4, 1e-2, 5e-4, 1e-3, 1e-5, 5e-3, 0.1, 0.05)):
        if value != decay:
            yield Variant("decay", f"decays by {value:g} where PyTorch has {decay:g}", fix, _with(weight_decay=value))
    swapped = {"Adam": torch.optim.AdamW, "AdamW": torch.optim.Adam}
    if name in swapped:
        says = (
            "decouples the decay from the gradient (AdamW)"
            if name == "Adam"
            else "adds the decay to the gradient (Adam with L2)"
        )
        for value in dict.fromkeys((decay, 1e-4, 1e-2, 0.0)):
            yield Variant(
                "decay_coupling",
                says + ("" if value == decay else f", with {value:g}"),
                "optax.chain(optax.add_decayed_weights(wd), optax.adam(lr))" if name == "Adam" else fix,
                _with(weight_decay=value),
                swapped[name],
            )
    if not decay:
        return

    def masked(rule):
        def change(groups):
            found = []
            for group in groups:
                for keep in (True, False):
                    chosen = [p for p in group["params"] if rule(p) == keep]
                    if chosen:
                        found.append({**group, "params": chosen, "weight_decay": decay if keep else 0.0})
            return found

        return change

    rules = {
        "matrices and kernels alone, not biases and norms": lambda p: p.ndim > 1,
        "biases and norms alone": lambda p: p.ndim <= 1,
    }
    for words, rule in rules.items():
        yield Variant("decay_mask", f"decays {words}", fix, masked(rule))
    yield Variant("decay_mask", "decays all parameters, PyTorch some", fix, _with(weight_decay=decay))
    if name not in ("AdamW",):
        for words, factor in (
            ("decouples the decay: after momentum, times the rate", "lr"),
            ("takes the decay off unscaled by the rate", None),
        ):

            def before(groups, factor=factor):
                for group in groups:
                    for p in group["params"]:
                        p.mul_(1 - decay * (group["lr"] if factor else 1.0))

            yield Variant("decay_coupling", words, fix, _with(weight_decay=0.0), before=before)
    else:

        def unscaled(groups):
            for group in groups:
                for p in group["params"]:
                    p.mul_(1 - decay)

        yield Variant(
            "decay_coupling", "takes the decay off unscaled by the rate", fix, _with(weight_decay=0.0), before=unscaled
        )


def _momentum_variants(group: Mapping[str, Any]) -> Iterator[Variant]:
    own, nesterov, dampening = group["momentum"], group.get("nesterov", False), group.get("dampening", 0)
    fix = f"optax.sgd(lr, momentum={own:g}, nesterov={nesterov})"
    for value in (0.0, 0.9, 0.99, 0.95, 0.8, 0.5, 0.1, 0.999):
        if value != own:
            yield Variant(
                "momentum",
                f"has momentum {value:g} where PyTorch has {own:g}",
                fix,
                lambda groups, v=value: [
                    {**g, "momentum": v, "nesterov": g.get("nesterov", False) and v > 0} for g in groups
                ],
            )
    if own and "nesterov" in group:
        yield Variant(
            "nesterov",
            f"{'has no' if nesterov else 'has'} Nesterov momentum",
            fix,
            _with(nesterov=not nesterov, dampening=0),
        )
        for value in (own, 0.0, 1 - own):
            if value != dampening and not nesterov:
                yield Variant(
                    "dampening",
                    f"dampens new gradients by {value:g} (weight {1 - value:g}) where PyTorch has {dampening:g}",
                    fix,
                    _with(dampening=value),
                )
        yield Variant(
            "dampening",
            f"averages gradients (an exponential mean from zero) with weight {1 - own:g}",
            fix,
            make=_AveragingSGD,
        )


class _AveragingSGD(torch.optim.Optimizer):
    """SGD on m = momentum m + (1 - momentum) g from zero, as optax.ema without correction."""

    def __init__(self, params, lr, momentum=0.9, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].get("m", torch.zeros_like(p))
                g = p.grad + group["weight_decay"] * p
                m = group["momentum"] * m + (1 - group["momentum"]) * g
                self.state[p]["m"] = m
                p -= group["lr"] * m


def _adam_variants(name: str, group: Mapping[str, Any]) -> Iterator[Variant]:
    b1, b2 = group["betas"]
    fix = f"b1={b1:g}, b2={b2:g}"
    for value in (0.9, 0.5, 0.0, 0.95, 0.8, 0.99):
        if value != b1:
            yield Variant("betas", f"has b1 {value:g} where PyTorch has {b1:g}", fix, _with(betas=(value, b2)))
    for value in (0.999, 0.99, 0.95, 0.98, 0.9, 0.9999):
        if value != b2:
            yield Variant("betas", f"has b2 {value:g} where PyTorch has {b2:g}", fix, _with(betas=(b1, value)))
    yield Variant("betas", "exchanges b1 and b2", fix, _with(betas=(b2, b1)))
    if "amsgrad" in group:
        yield Variant(
            "amsgrad",
            f"{'leaves out' if group['amsgrad'] else 'uses'} AMSGrad",
            f"amsgrad={group['amsgrad']}",
            _with(amsgrad=not group["amsgrad"]),
        )
    yield Variant(
        "bias_correction", "does not correct the moments' bias", "optax.scale_by_adam()", make=_uncorrected(name)
    )


class _OwnAdam(torch.optim.Optimizer):
    """Adam, AdamW and RMSprop with epsilon inside of the root, or without the correction of the bias."""

    def __init__(
        self, params, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, alpha=0.99, *, correct=True, inside=False,
        decoupled=False, rms=False, momentum=0.0, adagrad=False, initial_accumulator_value=0.0,
    ):  # fmt: skip
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "alpha": alpha,
                "momentum": momentum,
                "initial_accumulator_value": initial_accumulator_value,
            },
        )
        self._correct, self._inside, self._decoupled, self._rms, self._adagrad = (
            correct,
            inside,
            decoupled,
            rms,
            adagrad,
        )

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    first = group["initial_accumulator_value"] if self._adagrad else 0.0
                    state.update(m=torch.zeros_like(p), v=torch.full_like(p, first), t=0)
                state["t"] += 1
                g = p.grad
                if self._decoupled:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                else:
                    g = g + group["weight_decay"] * p
                if self._adagrad:
                    state["v"] = state["v"] + g * g
                    p -= group["lr"] * g / (state["v"] + group["eps"]).sqrt()
                    continue
                decay = group["alpha"] if self._rms else b2
                state["v"] = decay * state["v"] + (1 - decay) * g * g
                m = g if self._rms else b1 * state["m"] + (1 - b1) * g
                state["m"] = state["m"] if self._rms else m
                v = state["v"]
                if self._correct and not self._rms:
                    m, v = m / (1 - b1 ** state["t"]), v / (1 - b2 ** state["t"])
                root = (v + group["eps"]).sqrt() if self._inside else v.sqrt() + group["eps"]
                update = m / root
                if self._rms and group["momentum"]:
                    state["m"] = group["momentum"] * state["m"] + update
                    update = state["m"]
                p -= group["lr"] * update


def _inside_root(name: str) -> Callable:
    return _own(name, inside=True, correct=True)


def _uncorrected(name: str) -> Callable:
    return _own(name, inside=False, correct=False)


def _own(name: str, **options) -> Callable:
    kept = {"decoupled": name == "AdamW", "rms": name == "RMSprop", "adagrad": name == "Adagrad", **options}

    def make(
        params,
        lr,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        alpha=0.99,
        momentum=0.0,
        initial_accumulator_value=0.0,
    ):
        return _OwnAdam(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            alpha,
            momentum=momentum,
            initial_accumulator_value=initial_accumulator_value,
            **kept,
        )

    return make


def _clip_variants() -> Iterator[Variant]:
    for bound in (1.0, 0.5, 0.1, 5.0, 10.0, 2.0, 0.25):

        def by_norm(groups, bound=bound):
            # Not clip_grad_norm_, which adds 1e-6 to the norm.
            gradients = [p.grad for group in groups for p in group["params"]]
            norm = math.sqrt(sum(float((g * g).sum()) for g in gradients))
            for g in gradients:
                g.mul_(min(1.0, bound / max(norm, 1e-300)))

        def by_value(groups, bound=bound):
            torch.nn.utils.clip_grad_value_([p for group in groups for p in group["params"]], bound)

        def each(groups, bound=bound):
            for group in groups:
                for p in group["params"]:
                    p.grad.mul_(min(1.0, bound / max(float(p.grad.norm()), 1e-300)))

        yield Variant(
            "clipping",
            f"clips the gradients' norm at {bound:g}, PyTorch's optimizer does not",
            "no clip_by_global_norm",
            before=by_norm,
        )
        yield Variant(
            "clipping",
            f"clips each gradient entry at {bound:g}, PyTorch's optimizer does not",
            "no optax.clip",
            before=by_value,
        )
        yield Variant(
            "clipping",
            f"clips each tensor's gradient at {bound:g}, PyTorch's optimizer does not",
            "no clip_by_block_rms or the like",
            before=each,
        )


def _rates(mine, port, leaves, start) -> list[float]:
    """The factor between both movements after the first update, and usual ones."""
    found = []
    for path, (name, rows, _shape) in leaves.items():
        cut = slice(None) if rows is None else slice(*rows)
        move = (mine[0][name][cut] - start[name][cut]).reshape(-1)
        other = port[0][path].reshape(-1) - start[name][cut].reshape(-1)
        if np.abs(move).max() > 1e-14:
            found.append(float((move * other).sum() / (move * move).sum()))
            break
    return [*(f for f in found if math.isfinite(f) and abs(f - 1) > 1e-9 and f), 10.0, 0.1, 2.0, 0.5, -1.0]


def compare_schedules(theirs: Callable, ours: Any, optimizer: Callable | None, steps_per_epoch: int) -> list[Finding]:
    """Compares learning rates update by update.

    Args:
      theirs: takes an optimizer and gives torch's scheduler, whose step() is called after every epoch.
      ours: the port's schedule, update to learning rate, or a function without arguments that gives it.
      optimizer: makes torch's optimizer from parameters; None for SGD with a rate of 0.1.
      steps_per_epoch: updates in an epoch.
    """
    epochs = max(-(-UPDATES // steps_per_epoch), 60)
    per_epoch = _torch_rates(theirs, optimizer, epochs * steps_per_epoch + 2)
    updates = range(epochs * steps_per_epoch)
    mine = np.array([per_epoch[update // steps_per_epoch] for update in updates])
    with double_precision():
        port = _port_rates(ours, updates)
    error = float(np.abs(mine - port).max() / max(np.abs(mine).max(), 1e-300))
    if error <= 1e-6:
        return []
    first = int(np.argmax(np.abs(mine - port) > 1e-6 * np.abs(mine).max()))
    where = (Where("schedule", "", f"update {first}", None, "", f"update {first}", None, error),)
    fine = _fine_rates(theirs, optimizer, np.array(updates) / steps_per_epoch)
    for kind, says, fix, rates in _schedule_variants(per_epoch, fine, steps_per_epoch, len(updates)):
        if np.abs(rates - port).max() <= 1e-6 * max(np.abs(rates).max(), 1e-300):
            return [Finding(kind, says, fix, FAULT, where)]
    ratio = port / np.where(mine == 0, 1, mine)
    if np.ptp(ratio) <= 1e-6 * abs(ratio[0]):
        factor = number(float(ratio[0]))
        return [Finding("schedule_rate", f"is {factor} times PyTorch's everywhere", "the same base rate", FAULT, where)]
    return [Finding("", "", "", FAULT, where)]


def _torch_rates(theirs, make, count: int) -> np.ndarray:
    import warnings

    parameters = [torch.nn.Parameter(torch.zeros(2, 2))]
    try:
        optimizer = make(parameters) if make else torch.optim.SGD(parameters, lr=0.1)
        scheduler = theirs(optimizer)
        rates = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a scheduler that steps before its optimizer
            for _ in range(count):
                rates.append(optimizer.param_groups[0]["lr"])
                scheduler.step()
    except Exception as error:
        if "total steps" in str(error):
            return np.array([*rates, *[rates[-1]] * (count - len(rates))])
        raise InputError(f"--schedule: PyTorch's raised {explain(error)}.") from error
    return np.array(rates)


def _fine_rates(theirs, make, epochs: np.ndarray) -> np.ndarray | None:
    """PyTorch's formula at fractions of an epoch; None for a scheduler that has none."""
    parameters = [torch.nn.Parameter(torch.zeros(2, 2))]
    scheduler = theirs(make(parameters) if make else torch.optim.SGD(parameters, lr=0.1))
    formula = getattr(scheduler, "_get_closed_form_lr", None)
    if formula is None and isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        formula = scheduler.get_lr
    rates = []
    try:
        for epoch in epochs:
            scheduler.last_epoch = float(epoch)
            rates.append(float(formula()[0]))
    except Exception:  # no formula, or one that takes whole epochs only
        return None
    return np.array(rates)


def _port_rates(ours, updates: range) -> np.ndarray:
    try:
        try:
            float(ours(0))
            schedule = ours
        except TypeError:
            schedule = ours()
        rates = jax.vmap(lambda update: jnp.asarray(schedule(update), jnp.float64))(jnp.arange(len(updates)))
    except Exception:
        try:
            return np.array([float(schedule(update)) for update in updates])
        except Exception as error:
            raise InputError(f"--schedule: the port's raised {explain(error)}.") from error
    return np.asarray(rates)


def _schedule_variants(per_epoch: np.ndarray, fine: np.ndarray | None, n: int, count: int):
    """(kind, says, fix, learning rate of each update) for what people get wrong."""
    u = np.arange(count)

    def at(places):
        return per_epoch[np.clip(places, 0, len(per_epoch) - 1)]

    fix = "count in updates: boundaries of PyTorch's epochs times steps_per_epoch"
    if n > 1:
        yield "schedule_unit", "changes with every update where PyTorch changes with every epoch", fix, at(u)
        says = "changes within an epoch, PyTorch between epochs"
        drop = int(np.argmax(per_epoch != per_epoch[0]))
        if drop and per_epoch[drop] > 0:
            yield "schedule_unit", says, fix, per_epoch[0] * (per_epoch[drop] / per_epoch[0]) ** (u / (n * drop))
        if fine is not None:
            yield "schedule_unit", says, fix, fine
            held = fine.copy()
            held[int(np.argmin(fine)) :] = fine.min()
            yield "schedule_unit", says + ", and stays at the lowest rate", fix, held
    for shift in (1, -1, 2, -2):
        words = f"{abs(shift)} update{'s' if abs(shift) > 1 else ''} {'late' if shift > 0 else 'early'}"
        yield "schedule_shift", f"changes {words}", fix, at((u - shift) // n)
    for shift in (1, -1):
        if n > 1:
            words = "late" if shift > 0 else "early"
            yield "schedule_shift", f"changes an epoch {words}", fix, at(u // n - shift)
    late = np.where(u // n == 0, 0.0, at(u // n - 1))
    yield "warm_up", "starts at 0, and is an epoch late from there", "the same first factor", late
    for factor in (2, 3):
        yield (
            "schedule_unit",
            f"moves {factor} times as fast (step() called {factor} times for each epoch)",
            fix,
            at(factor * (u // n)),
        )
    yield (
        "schedule_missing",
        "stays at the first rate",
        "give the schedule to the optimizer",
        np.full(count, per_epoch[0]),
    )
    lowest = int(np.argmin(per_epoch[: max(count // n, 1)]))
    held = np.where(u // n >= lowest, per_epoch[lowest], at(u // n))
    yield "schedule_end", "stays at the lowest rate, PyTorch climbs again", "a schedule with PyTorch's period", held
    peak = int(np.argmax(per_epoch[: max(count // n, 1)]))
    if peak > 0:
        warm = np.where(u // n < peak, per_epoch[peak] * (u // n + 1) / (peak + 1), at(u // n))
        yield "warm_up", "warms up from 1 / (n + 1), PyTorch from another start", "the same first factor", warm
        zero = np.where(u // n < peak, per_epoch[peak] * (u // n) / peak, at(u // n))
        yield "warm_up", "warms up from 0, PyTorch from another start", "the same first factor", zero
        first = np.where(u // n < peak, per_epoch[peak] * (u // n + 1) / peak, at(u // n))
        yield "warm_up", "warms up from 1 / n, PyTorch from another start", "the same first factor", first
        yield (
            "warm_up",
            "does not warm up",
            "optax.warmup_... or join_schedules",
            np.where(u // n < peak, per_epoch[peak], at(u // n)),
        )
