"""Every value that a JAX function computes, with the source line and the module that computed it.

The function is traced to a jaxpr, which is then evaluated equation by equation. Nothing in the user's code changes.

Ports often say `dtype=jnp.float32`. A comparison in double precision would end there, so that single precision inside
the jaxpr is computed as double: a conversion to float32 is left out, and a scalar constant of float32 is taken as the
shortest decimal number that it stands for (0.9, not 0.89999998). float16 and bfloat16 stay what they are.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from cifar_jax.parity.comparison.fingerprints import Fingerprint, fingerprint


class Source(NamedTuple):
    """A line of somebody's file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{os.path.relpath(self.file) if self.file.startswith(os.getcwd()) else self.file}:{self.line}"

    def text(self) -> str:
        """The line itself, without its indentation; empty where the file cannot be read."""
        import linecache

        return linecache.getline(self.file, self.line).strip()


class Value(NamedTuple):
    """One result of one equation, or one argument of the function.

    index: its number, in the order of computation.
    array: the value; None for what is no number, such as a random key, or where memory was to be spared.
    print: its fingerprint; None for what is no number.
    primitive: JAX's operation ("conv_general_dilated"), or "argument".
    dtype: the type in which the port computes it, before anything was raised to double precision.
    source: the user's line; None where no frame outside of the libraries is known.
    scope: path of the Flax module ("ResNet/block1/conv").
    inputs: numbers of the values that it was computed from.
    leaves: names of the arguments that it depends on.
    shape, computed: shape, and the type in which it was computed here.
    """

    index: int
    array: Any
    print: Fingerprint | None
    primitive: str
    dtype: str
    source: Source | None
    scope: str
    inputs: tuple[int, ...]
    leaves: frozenset[str]
    shape: tuple[int, ...]
    computed: Any


class Evaluation(NamedTuple):
    """All values of one call, and which of them are the function's results."""

    values: list[Value]
    outputs: list[int]


_LIBRARY_NAMES = ("jax", "jaxlib", "flax", "optax", "beartype", "jaxtyping")
_LIBRARIES = (
    *(os.sep + os.path.join("site-packages", name) + os.sep for name in _LIBRARY_NAMES),
    os.path.dirname(__file__) + os.sep,
    os.sep + "functools.py",
    os.sep + "contextlib.py",
)


def user_frame(frames: Sequence[tuple[str, int]]) -> Source | None:
    """The innermost frame that lies in none of the libraries, or None."""
    for file, line in frames:
        if not file.startswith("<") and not any(library in file for library in _LIBRARIES):
            return Source(file, line)
    return None


def _source(eqn) -> Source | None:
    traceback = eqn.source_info.traceback
    if traceback is None:
        return None
    return user_frame([(frame.file_name, frame.line_num) for frame in traceback.frames])


def trace(function: Callable, *arguments) -> core.ClosedJaxpr:
    """The jaxpr of a function whose arguments and results are flat lists or trees of arrays."""
    return jax.make_jaxpr(function)(*arguments)


def evaluate(
    closed: core.ClosedJaxpr, arguments: Sequence[Any], names: Sequence[str], *, memory: int = 4 << 30
) -> Evaluation:
    """Evaluates a jaxpr and keeps all values.

    Args:
      closed: as `trace` gives it.
      arguments: one array for each of its inputs.
      names: a name for each argument; values say by `leaves` on which of them they depend.
      memory: bytes of values that are kept as arrays; of what comes after, only fingerprints are.
    """
    record = _Record(memory)
    arguments = [_in_type(each, aval.dtype) for each, aval in zip(arguments, closed.in_avals, strict=True)]
    nodes = []
    for name, argument in zip(names, arguments, strict=True):
        nodes.append(record.add(argument, "argument", str(getattr(argument, "dtype", "")), None, name, (), {name}))
    constants = [
        record.add(each, "constant", str(getattr(each, "dtype", "")), None, "", (), ()) for each in closed.consts
    ]

    def on_value(eqn, scope, source, inputs, outputs):
        known = [node for node in inputs if node is not None]
        leaves = frozenset().union(*(record.values[node].leaves for node in known)) if known else frozenset()
        return [
            record.add(
                output, eqn.primitive.name, str(getattr(var.aval, "dtype", "")), source, scope, tuple(known), leaves
            )
            for var, output in zip(eqn.outvars, outputs, strict=True)
        ], outputs

    _, outputs = run_jaxpr(closed, arguments, nodes, constants, on_value)
    return Evaluation(record.values, outputs)


def _in_type(array, dtype):
    """Integers in the jaxpr's own type, which is narrow where it was traced in single precision."""
    return jnp.asarray(array).astype(dtype) if np.asarray(array).dtype.kind in "iu" else array


class _Record:
    def __init__(self, memory: int):
        self.values: list[Value] = []
        self._left = memory

    def add(self, array, primitive, dtype, source, scope, inputs, leaves) -> int:
        number = _as_number(array)
        print_ = None if number is None else fingerprint(number)
        if number is not None:
            self._left -= number.nbytes
            if self._left < 0 and primitive != "argument":
                number = None
        index = len(self.values)
        self.values.append(
            Value(
                index,
                number,
                print_,
                primitive,
                dtype,
                source,
                scope,
                tuple(inputs),
                frozenset(leaves),
                tuple(np.shape(array)),
                getattr(array, "dtype", None),
            )
        )
        return index


def _as_number(array) -> np.ndarray | None:
    dtype = getattr(array, "dtype", None)
    if dtype is None or jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return None
    array = np.asarray(array)
    if array.dtype.kind in "fiub":
        return array
    return array.astype(np.float64) if jnp.issubdtype(dtype, jnp.floating) else None


def run_jaxpr(closed, arguments, nodes, constants, on_value, *, scope: str = "", source: Source | None = None):
    """Evaluates a jaxpr; `on_value` sees the results of each equation, and may replace them.

    Args:
      closed: the jaxpr and its constants.
      arguments: its inputs, arrays or tracers.
      nodes, constants: a number for each input and each constant, as `on_value` gave them out, or None.
      on_value: called with (equation, scope, source, numbers of its inputs, results); gives back the numbers of the
        results and the results.
      scope, source: of the equation that calls this jaxpr.

    Returns:
      The results, and their numbers.
    """
    jaxpr = closed.jaxpr
    env = {}
    for var, value, node in zip(jaxpr.invars, arguments, nodes, strict=True):
        env[var] = (value, node)
    for var, value, node in zip(jaxpr.constvars, closed.consts, constants, strict=True):
        env[var] = (value, node)

    def read(atom):
        return (atom.val, None) if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        pairs = [read(atom) for atom in eqn.invars]
        values, numbers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        inner_scope = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
        inner_source = _source(eqn) or source
        inner = _inlined(eqn, values)
        if inner is not None:
            results, result_numbers = run_jaxpr(
                inner,
                values[len(values) - len(inner.jaxpr.invars) :],
                numbers[len(values) - len(inner.jaxpr.invars) :],
                [None] * len(inner.consts),
                on_value,
                scope=inner_scope,
                source=inner_source,
            )
        else:
            results = _special(eqn, values)
            results = _bind(eqn, values) if results is None else results
            result_numbers, results = on_value(eqn, inner_scope, inner_source, numbers, results)
        for var, value, node in zip(eqn.outvars, results, result_numbers, strict=True):
            env[var] = (value, node)
    pairs = [read(atom) for atom in jaxpr.outvars]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _special(eqn, values) -> list | None:
    """Results of an equation that cannot be bound with the types that its operands have; None for all others."""
    name = eqn.primitive.name
    if name == "scan" and not _types_fit(eqn.params["jaxpr"], values):
        return _unroll(eqn, values)
    if name == "while" and not _types_fit(eqn.params["body_jaxpr"], values):
        return _loop(eqn, values)
    if name == "custom_jvp_call" and not _types_fit(eqn.params["call_jaxpr"], values):
        return [jax.nn.relu(values[0])]  # others are inlined
    return None


def _inlined(eqn, values) -> core.ClosedJaxpr | None:
    """The jaxpr inside of an equation that only calls it: jit and remat; a custom gradient whose types were raised."""
    name = eqn.primitive.name
    if name in ("jit", "pjit", "closed_call", "core_call", "custom_lin"):
        return eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
    if name in ("checkpoint", "remat", "remat2"):
        return core.ClosedJaxpr(eqn.params["jaxpr"], ())
    if name in ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"):
        inner = eqn.params.get("call_jaxpr") or eqn.params.get("fun_jaxpr")
        return None if _types_fit(inner, values) or _is_relu(inner) else inner
    if name == "cond":
        branches = eqn.params["branches"]
        return branches[int(np.clip(np.asarray(values[0]), 0, len(branches) - 1))]
    return None


def _types_fit(closed, values) -> bool:
    """Whether the last operands have the types of a jaxpr's inputs."""
    given = values[len(values) - len(closed.jaxpr.invars) :]
    return all(
        getattr(value, "dtype", None) is None or value.dtype == var.aval.dtype
        for var, value in zip(closed.jaxpr.invars, given, strict=True)
    )


# What turns bits into numbers reads them as they are.
_BITS = ("bitcast_convert_type", "random_bits", "random_seed", "random_wrap", "random_unwrap", "random_fold_in")


def _bind(eqn, values) -> list:
    name, params = eqn.primitive.name, dict(eqn.params)
    if name == "convert_element_type" and params["new_dtype"] == jnp.float32 and _is(values[0], jnp.float64):
        return [values[0]]
    if name == "reduce_precision" and params["mantissa_bits"] == 23:
        return [values[0]]
    if name not in _BITS:
        values = [raise_float32(value) for value in values]
        raised = any(_is(value, jnp.float64) for value in values)
        for key in ("preferred_element_type", "out_dtype", "new_dtype", "dtype"):
            if params.get(key) == jnp.float32 and (raised or name in ("convert_element_type", "iota")):
                params[key] = np.dtype("float64")
    bound = eqn.primitive.get_bind_params(params)
    # Before jax 0.10 the inner functions came apart from the parameters.
    functions, bound = bound if isinstance(bound, tuple) else ((), bound)
    results = eqn.primitive.bind(*functions, *values, **bound)
    return list(results) if eqn.primitive.multiple_results else [results]


def _is(value, dtype) -> bool:
    return getattr(value, "dtype", None) == dtype


def raise_float32(value):
    """A float32 array in double precision; a single number becomes the shortest decimal that it stands for."""
    if not _is(value, jnp.float32):
        return value
    if np.size(value) == 1 and not isinstance(value, jax.core.Tracer):
        return jnp.full(np.shape(value), float(str(np.asarray(value).reshape(-1)[0])), jnp.float64)
    return jnp.asarray(value).astype(jnp.float64)


def _is_relu(inner: core.ClosedJaxpr) -> bool:
    """Whether this is the body of `jax.nn.relu`, whose gradient at 0 would be lost if it were inlined."""
    eqns = inner.jaxpr.eqns
    while len(eqns) == 1 and eqns[0].primitive.name in ("jit", "pjit"):
        eqns = eqns[0].params["jaxpr"].jaxpr.eqns
    return len(eqns) == 1 and eqns[0].primitive.name == "max" and len(inner.jaxpr.invars) == 1


def _ignored(eqn, scope, source, inputs, outputs):
    return [None] * len(outputs), outputs


def _evaluated(closed: core.ClosedJaxpr, values: Sequence[Any]) -> list:
    """A jaxpr's results, without a record of what is inside."""
    return run_jaxpr(closed, values, [None] * len(values), [None] * len(closed.consts), _ignored)[0]


def _loop(eqn, values) -> list:
    """A while loop in Python, for one whose types were raised."""
    params = eqn.params
    first, second = params["cond_nconsts"], params["body_nconsts"]
    condition, body = values[:first], values[first : first + second]
    carry = values[first + second :]
    while bool(_evaluated(params["cond_jaxpr"], [*condition, *carry])[0]):
        carry = _evaluated(params["body_jaxpr"], [*body, *carry])
    return carry


def _unroll(eqn, values) -> list:
    """A scan as a loop in Python, for one whose types were raised."""
    params = eqn.params
    constants, carries = params["num_consts"], params["num_carry"]
    fixed, carry = values[:constants], list(values[constants : constants + carries])
    columns = values[constants + carries :]
    order = range(params["length"])
    stacked = []
    for step in reversed(order) if params["reverse"] else order:
        row = [column[step] for column in columns]
        results = _evaluated(params["jaxpr"], [*fixed, *carry, *row])
        carry = list(results[:carries])
        stacked.append(results[carries:])
    if params["reverse"]:
        stacked.reverse()
    return [*carry, *(jnp.stack(column) for column in zip(*stacked, strict=True))]


def gradients(
    closed: core.ClosedJaxpr,
    arguments: Sequence[Any],
    values: Sequence[Value],
    wanted: Sequence[int],
    with_respect_to: Sequence[int],
    pull_back: Callable[[list], jax.Array],
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Gradients of a scalar with respect to values inside of a function, and to its arguments.

    Args:
      closed: the function's jaxpr.
      arguments: its inputs.
      values: what `evaluate` recorded of the same jaxpr.
      wanted: numbers of inner values of floating point.
      with_respect_to: places of the arguments that get a gradient.
      pull_back: makes the scalar from the function's results.

    Returns:
      The gradient at each wanted value that has one, and that at each argument, by number and by place.
    """
    arguments = [_in_type(each, aval.dtype) for each, aval in zip(arguments, closed.in_avals, strict=True)]
    first = len(arguments) + len(closed.consts)

    def scalar(taps, differentiated):
        inputs = list(arguments)
        for place, value in differentiated.items():
            inputs[place] = value
        counter = [first]

        def on_value(eqn, scope, source, numbers, outputs):
            given, outputs = [], list(outputs)
            for position in range(len(outputs)):
                number = counter[0]
                counter[0] += 1
                given.append(number)
                if number in taps:
                    outputs[position] = outputs[position] + taps[number]
            return given, outputs

        nodes, constants = list(range(len(arguments))), list(range(len(arguments), first))
        results, _ = run_jaxpr(closed, inputs, nodes, constants, on_value)
        return pull_back(results)

    taps = {n: jnp.zeros(values[n].shape, values[n].computed) for n in wanted}
    differentiated = {place: arguments[place] for place in with_respect_to}
    inner, outer = jax.grad(scalar, argnums=(0, 1))(taps, differentiated)
    return {n: np.asarray(g) for n, g in inner.items()}, {p: np.asarray(g) for p, g in outer.items()}
