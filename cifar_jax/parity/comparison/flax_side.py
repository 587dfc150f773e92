"""A port as a pure function of its parameters, its statistics and its inputs, whether it is Linen or NNX.

Parameters and statistics are flat dicts by path: `{"block1/conv/kernel": array}`. The port's own code runs as it is.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.errors import InputError

Flat = dict[str, Any]

# Arguments of `__call__`, or fields of the module, that ask for training; and those that ask for evaluation.
_TRAIN = ("train", "training", "is_training", "is_train", "train_mode", "trainable")
_EVALUATE = ("deterministic", "use_running_average", "eval", "evaluation", "inference", "eval_mode", "is_eval", "test")


class Port(NamedTuple):
    """A Flax module that can be called.

    kind: "linen" or "nnx".
    params, stats: shapes and types of its parameters, and of all else that it keeps (running statistics).
    run: (params, stats, inputs, key, train) to (results, new statistics).
    create: key to (params, stats) as the port initialises them.
    """

    kind: str
    params: Flat
    stats: Flat
    run: Callable[[Flat, Flat, tuple, jax.Array, bool], tuple[Any, Flat]]
    create: Callable[[jax.Array], tuple[Flat, Flat]]


def open_port(module: Any, inputs: tuple, call: Mapping[str, Mapping[str, Any]] | None = None) -> Port:
    """The port of a Linen or an NNX module.

    Args:
      module: an instance.
      inputs: arrays of the shapes and types that it takes.
      call: keyword arguments of the call by mode, `{"train": {...}, "eval": {...}}`, where they cannot be seen from the
        names of its arguments.

    Raises:
      InputError: the object is neither, or raises where it is called with these inputs.
    """
    from flax import linen, nnx

    if isinstance(module, linen.Module):
        return _linen(module, inputs, call)
    if isinstance(module, nnx.Module):
        return _nnx(module, inputs, call)
    raise InputError(f"The port must be a flax.linen.Module or a flax.nnx.Module, got {type(module).__name__}.")


def mode_arguments(names: Mapping[str, Any] | set[str], train: bool) -> dict[str, bool]:
    """Those of the names that ask for training or evaluation, with their values."""
    found = {name: train for name in _TRAIN if name in names}
    return found | {name: not train for name in _EVALUATE if name in names}


def _arguments(module, call, train: bool) -> dict[str, Any]:
    if call is not None:
        return dict(call["train" if train else "eval"])
    return mode_arguments(inspect.signature(type(module).__call__).parameters, train)


def _linen(module, inputs, call) -> Port:
    fields = {field.name for field in dataclasses.fields(module)} - {"name", "parent"}

    def in_mode(train: bool):
        arguments = _arguments(module, call, train)
        by_field = {} if arguments else mode_arguments(fields, train)
        return (module.clone(**by_field) if by_field else module), arguments

    def initialise(key):
        its_module, arguments = in_mode(False)
        keys = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        variables = dict(its_module.init(keys, *inputs, **arguments))
        params = variables.pop("params", {})
        return flatten(params), flatten(variables)

    def run(params, stats, inputs, key, train):
        its_module, arguments = in_mode(train)
        variables = {"params": unflatten(params), **unflatten(stats)}
        keys = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        # In evaluation too: a port may update its statistics there, which is a fault to name and not to raise.
        mutable = sorted({path.partition("/")[0] for path in stats})
        if mutable:
            outputs, new = its_module.apply(variables, *inputs, rngs=keys, mutable=mutable, **arguments)
            return outputs, {**stats, **flatten(dict(new))}
        return its_module.apply(variables, *inputs, rngs=keys, **arguments), stats

    params, stats = _guarded(lambda: jax.eval_shape(initialise, jax.random.key(0)), module)
    return Port("linen", params, stats, run, jax.jit(initialise))


def _nnx(module, inputs, call) -> Port:
    from flax import nnx

    def split(train: bool):
        (module.train if train else module.eval)()
        graph, params, stats, rest = nnx.split(module, nnx.Param, _is_statistic, ...)
        return graph, *(nnx.to_flat_state(each) for each in (params, stats, rest))

    def flat(state) -> Flat:
        return {"/".join(map(str, path)): variable[...] for path, variable in state}

    def filled(state, arrays):
        return nnx.from_flat_state(
            [(path, variable.replace(arrays["/".join(map(str, path))])) for path, variable in state]
        )

    def fresh(state):
        # Counters of random numbers are changed by a call, and may not be those of another trace.
        return nnx.from_flat_state([(path, variable.replace(variable[...])) for path, variable in state])

    parts = {train: split(train) for train in (True, False)}
    arguments = {train: _arguments(module, call, train) for train in (True, False)}

    def run(params, stats, inputs, key, train):
        graph, its_params, its_stats, rest = parts[train]
        copy = nnx.merge(graph, filled(its_params, params), filled(its_stats, stats), fresh(rest))
        with _scoped(copy):
            outputs = copy(*inputs, **arguments[train])
        _, _, after, _ = nnx.split(copy, nnx.Param, _is_statistic, ...)
        return outputs, (flat(nnx.to_flat_state(after)) if train else stats)

    _, params, stats, _ = parts[False]
    initial = flat(params), flat(stats)
    port = Port(
        "nnx",
        {path: _shape(array) for path, array in initial[0].items()},
        {path: _shape(array) for path, array in initial[1].items()},
        run,
        lambda key: initial,
    )
    _guarded(lambda: jax.eval_shape(lambda: run(*initial, inputs, jax.random.key(0), False)[0]), module)
    return port


def _is_statistic(path, value) -> bool:
    from flax import nnx

    kind = getattr(value, "type", type(value))
    return issubclass(kind, nnx.Variable) and not issubclass(kind, (nnx.Param, nnx.RngState))


def _shape(array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(array), array.dtype)


@contextlib.contextmanager
def _scoped(module) -> Iterator[None]:
    """Names what each NNX submodule computes by its path, as Linen does by itself."""
    from flax import nnx

    paths = {}
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Module) and path:
            paths.setdefault(id(node), "/".join(map(str, path)))
    classes = {type(node) for _, node in nnx.iter_graph(module) if isinstance(node, nnx.Module)}
    originals = {each: each.__dict__["__call__"] for each in classes if "__call__" in each.__dict__}

    def named(original):
        def call(self, *arguments, **keywords):
            path = paths.get(id(self))
            if path is None:
                return original(self, *arguments, **keywords)
            # Scopes nest, and a path is already whole.
            with jax.named_scope(path.rpartition("/")[2]):
                return original(self, *arguments, **keywords)

        return call

    for each, original in originals.items():
        each.__call__ = named(original)
    try:
        yield
    finally:
        for each, original in originals.items():
            each.__call__ = original


def _guarded(call: Callable, module) -> Any:
    """Calls the port's own code; what it raises becomes a sentence that says in which file and line."""
    try:
        return call()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"The port {type(module).__name__} raised {explain(error)}") from error


def explain(error: BaseException) -> str:
    """An exception's kind and first line, with the last line of the user's own file on its way."""
    import traceback

    from cifar_jax.parity.comparison.jaxpr_values import user_frame

    frames = [(frame.filename, frame.lineno or 0) for frame in reversed(traceback.extract_tb(error.__traceback__))]
    where = user_frame([frame for frame in frames if "site-packages" not in frame[0]])
    first = (str(error).strip().splitlines() or [""])[0]
    at = f" at {where} ({where.text()})" if where else ""
    return f"{type(error).__name__}{at}: {first}"


def flatten(tree: Mapping) -> Flat:
    """A nested dict as a flat one by path."""
    flat = {}
    for name, node in tree.items():
        if isinstance(node, Mapping):
            flat.update({f"{name}/{path}": leaf for path, leaf in flatten(node).items()})
        else:
            flat[str(name)] = getattr(node, "value", node) if hasattr(node, "unbox") else node
    return flat


def unflatten(flat: Flat) -> dict:
    """The nested dict of a flat one."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def as_double(array) -> jax.Array:
    """Floating point as float64, integers as they are."""
    array = jnp.asarray(array)
    return array.astype(jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array
