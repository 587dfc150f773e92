"""Compares a PyTorch module with a Flax module: same weights, same inputs, float64, every value."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from cifar_jax.errors import InputError
from cifar_jax.parity.comparison import provoke
from cifar_jax.parity.comparison.backward import Gradients, compare_gradients, weighted_sum
from cifar_jax.parity.comparison.causes.proposal import FAULT, NOTE
from cifar_jax.parity.comparison.flax_side import Port, explain, open_port
from cifar_jax.parity.comparison.initial import compare_initial
from cifar_jax.parity.comparison.jaxpr_values import evaluate, trace
from cifar_jax.parity.comparison.mapping import WeightMap, find_mapping
from cifar_jax.parity.comparison.precision import as_single, double_precision, native_precision
from cifar_jax.parity.comparison.result import DIFFERENT, EQUAL, NOT_COMPARED, Finding, Layer, Result, Where, gather
from cifar_jax.parity.comparison.statistics import StatisticsResult, compare_statistics
from cifar_jax.parity.comparison.torch_side import Run, run_model
from cifar_jax.parity.comparison.walk import Difference, PortRun, Walk, _Matcher, both_names, errors_of, walk

# Kinds whose change depends on the mode, so that what was found in evaluation is looked for again in training.
_OF_ONE_MODE = ("", "norm_mode", "dropout_mode", "dropout_rate", "dropout_kind", "rounding", "precision")


class _Sides(NamedTuple):
    """Both models at the same weights, with their inputs.

    model: PyTorch's copy in double precision. inputs: its inputs. port, port_inputs: likewise.
    params, stats, flat: the port's arrays; flat has both. start: PyTorch's tensors as they came.
    """

    model: torch.nn.Module
    inputs: list[torch.Tensor]
    port: Port
    port_inputs: tuple[np.ndarray, ...]
    params: dict[str, np.ndarray]
    stats: dict[str, np.ndarray | None]
    flat: dict[str, np.ndarray]
    start: dict[str, np.ndarray]


def compare(
    torch_model: torch.nn.Module,
    flax_module: Any,
    batches: str | Sequence[Any],
    *,
    loss: tuple[Callable, Callable] | None = None,
    call: Mapping[str, Mapping[str, Any]] | None = None,
    torch_call: Mapping[str, Mapping[str, Any]] | None = None,
    mapping: WeightMap | None = None,
    initial: tuple[Callable, Callable] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Result:
    """Compares a PyTorch module with a Flax module, and names what explains each difference.

    Neither model is changed; torch's is copied. Weights are drawn so that differences show, and the same on both sides.

    Args:
      torch_model: the model that the port must equal.
      flax_module: a Linen or an NNX module.
      batches: shapes of the inputs in PyTorch's order ("8,3,32,32"; several as "8,16:int;8,10"), or a list of batches,
        each an array or a tuple of arrays in PyTorch's order; with a loss, the last array of a batch are its labels.
        The first batch is used.
      loss: PyTorch's and the port's loss, each called with (results of the model, labels).
      call, torch_call: keyword arguments of both models by mode, `{"train": {...}, "eval": {...}}`; the port's are
        seen from the names of its arguments where they are called train, deterministic or the like.
      mapping: pairs of parameters, where they are not to be found.
      initial: makes fresh models, PyTorch's and the port's, to compare initial distributions; None leaves that out.
      progress: called with a line now and then.

    Raises:
      InputError: one of the models raises, or there is nothing that could be compared.
    """
    started = time.monotonic()
    with double_precision():
        return _compare(torch_model, flax_module, batches, loss, call, torch_call, mapping, initial, progress, started)


def _compare(torch_model, flax_module, batches, loss, call, torch_call, mapping, initial, progress, started) -> Result:
    model = _double(torch_model)
    arrays, labels = _arrays(batches, model, loss is not None)
    inputs = [_tensor(array) for array in arrays]
    progress("running the PyTorch model")
    first = _guarded_run(model, inputs, call=torch_call)
    _check_repeats(model, inputs, first, torch_call)
    tensors = _tensors_of(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    progress("tracing the port")
    port, port_inputs_ = choose_port(flax_module, arrays, shapes, [tuple(each.shape) for each in first.outputs], call)
    params = provoke.provoking_weights(port.params, 0, positive=False)
    stats = provoke.provoking_weights(port.stats, 1, positive=True)
    flat = {**params, **{path: array for path, array in stats.items() if array is not None}}
    start = _start(model)
    sides = _Sides(model, inputs, port, port_inputs_, params, stats, flat, start)
    if loss is not None and labels is None:
        labels = _labels(loss[0], first)
    losses = _with_labels(loss, labels)
    findings: list[Finding] = []
    progress("running the port")
    evaluation, _, _ = _traced(port, params, stats, port_inputs_, False, losses[1])
    if mapping is None:
        mapping = find_mapping(
            first.calls,
            shapes,
            evaluation.evaluation,
            {path: tuple(each.shape) for path, each in port.params.items()},
            {path: tuple(each.shape) for path, each in port.stats.items()},
            sorted(evaluation.inputs),
            frozenset(name for name, _ in model.named_buffers()),
        )
        _check_counterparts(mapping, shapes, type(torch_model).__name__, type(flax_module).__name__)
    _check_finite(evaluation, type(flax_module).__name__)
    runner = make_runner(sides, evaluation, train=False, call=torch_call, after=losses[0])
    in_evaluation = _walk(runner, evaluation, mapping, sides, False, None, progress)
    findings += [_finding(each) for each in in_evaluation.differences]
    small = _walk_small(sides, in_evaluation, losses, call=torch_call, progress=progress)
    findings += [_finding(each) for each in small]
    training, closed, arguments = _traced(port, params, stats, port_inputs_, True, losses[1])
    runner = make_runner(sides, training, train=True, call=torch_call, after=losses[0])
    known = _kept(in_evaluation, _OF_ONE_MODE)
    in_training = _walk(runner, training, in_evaluation.mapping, sides, True, known, progress)
    findings += [_finding(each) for each in in_training.differences]
    mapping = in_training.mapping
    statistics = compare_statistics(in_training.run.calls, training, mapping)
    findings += [_statistics_finding(each) for each in statistics if each.error > 1e-7]
    gradients = Gradients({}, {}, [])
    if in_training.equal:
        progress("comparing gradients")
        frozen = frozenset(name for name, each in torch_model.named_parameters() if not each.requires_grad)
        gradients = compare_gradients(
            _backward_runner(runner, sides, mapping),
            in_training.changes,
            training,
            closed,
            arguments,
            list(params),
            mapping,
            in_training.calls,
            frozen,
            _gradient_tolerance(findings),
        )
        findings += [_finding(each, "backward") for each in gradients.differences]
    if initial is not None:
        progress("comparing initial distributions")
        findings += _initial_findings(initial, port_inputs_, call, mapping)
    if not findings and not (in_evaluation.equal and in_training.equal):
        where = Where("evaluation", "", "results", None, "", "results", None, float("nan"))
        findings.append(Finding("", "", "", FAULT, (where,)))
    findings += _spec_findings(mapping, first, evaluation, findings, losses[0] is None)
    found = gather(findings)
    faults = [each for each in found if each.severity == FAULT]
    of_spec = [each for each in faults if each.where[0].phase == "spec"]
    equal_forward = in_evaluation.equal and in_training.equal
    return Result(
        type(torch_model).__name__,
        type(flax_module).__name__,
        DIFFERENT if of_spec else EQUAL,
        EQUAL if equal_forward and len(faults) == len(of_spec) else DIFFERENT,
        NOT_COMPARED,
        found,
        _layers(in_evaluation, evaluation, gradients),
        gradients.parameters,
        mapping,
        {
            "torch": sum(p.numel() for p in torch_model.parameters()),
            "flax": sum(math.prod(each.shape) for each in port.params.values()),
        },
        time.monotonic() - started,
        tuple(
            each.reproduction
            for each in [*in_evaluation.differences, *in_training.differences]
            if each.reproduction is not None
        ),
    )


def _walk(runner, run: PortRun, mapping, sides: _Sides, train: bool, changes, progress) -> Walk:
    return walk(runner, run, mapping, train=train, arrays=sides.flat, changes=changes, progress=progress)


def _walk_small(sides: _Sides, found: Walk, losses, *, call, progress) -> list[Difference]:
    """The evaluation again at small activations, beside which an epsilon does not vanish."""
    if not found.equal:
        return []
    scale = 0.03
    small = sides._replace(
        inputs=[each * scale if each.is_floating_point() else each for each in sides.inputs],
        port_inputs=tuple(each * scale if each.dtype.kind == "f" else each for each in sides.port_inputs),
        params={path: None if array is None else array * scale ** (1 / 3) for path, array in sides.params.items()},
    )
    flat = {**small.params, **{path: array for path, array in small.stats.items() if array is not None}}
    small = small._replace(flat=flat)
    run, _, _ = _traced(small.port, small.params, small.stats, small.port_inputs, False, losses[1])
    runner = make_runner(small, run, train=False, call=call, after=losses[0])
    return _walk(
        runner, run, found.mapping, small, False, _kept(found, ("", "rounding", "precision")), progress
    ).differences


def _double(model: torch.nn.Module) -> torch.nn.Module:
    try:
        return copy.deepcopy(model).cpu().double()
    except Exception as error:
        raise InputError(f"The torch model {type(model).__name__} cannot be copied: {explain(error)}") from error


def _tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _start(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """PyTorch's tensors before the port's come in: provoking parameters, for those that have no counterpart."""
    parameters = {name: jax.ShapeDtypeStruct(tuple(each.shape), np.float64) for name, each in model.named_parameters()}
    buffers = {name: each.detach().numpy().copy() for name, each in model.named_buffers()}
    return provoke.provoking_weights(parameters, 3, positive=False) | buffers


def _arrays(batches, model, has_loss: bool) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The inputs of the first batch, and its labels where there is a loss and the batch has them."""
    if isinstance(batches, str):
        return provoke.provoking_inputs(batches, 0, provoke.largest_token(model)), None
    batch = next(iter(batches), None)
    if batch is None:
        raise InputError("batches must have at least one batch, got none.")
    parts = [np.asarray(each) for each in (batch if isinstance(batch, (tuple, list)) else (batch,))]
    parts = [each.astype(np.float64) if each.dtype.kind == "f" else each for each in parts]
    return (parts[:-1], parts[-1]) if has_loss and len(parts) > 1 else (parts, None)


def _tensor(array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def _labels(torch_loss: Callable, first: Run) -> np.ndarray:
    """Labels that a loss takes: classes, or numbers between 0 and 1 of the result's shape."""
    output = first.outputs[0].detach()
    rng = np.random.default_rng(2)
    classes = rng.integers(0, output.shape[1] if output.ndim > 1 else 2, (output.shape[0], *output.shape[2:]))
    for labels in (classes, rng.uniform(size=tuple(output.shape))):
        try:
            if torch.isfinite(torch_loss(output, _tensor(labels))).all():
                return labels
        except Exception:
            continue
    raise InputError("--loss must take (results, labels); PyTorch's took neither classes nor numbers as labels.")


def _with_labels(loss, labels):
    if loss is None:
        return None, None
    return (lambda result: loss[0](result, _tensor(labels))), (lambda result: loss[1](result, jnp.asarray(labels)))


def _guarded_run(model, inputs, *, call) -> Run:
    try:
        return run_model(model, inputs, train=False, call=call)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The torch model {type(model).__name__} raised {explain(error)} with inputs of shapes "
            f"{[tuple(each.shape) for each in inputs]}."
        ) from error


def _check_repeats(model, inputs, first: Run, call) -> None:
    again = run_model(model, inputs, train=False, call=call)
    for one, other in zip(first.outputs, again.outputs, strict=True):
        if not torch.isfinite(one).all():
            bad = next(each for each in first.calls if not torch.isfinite(each.output).all())
            raise InputError(
                f"The torch model gives values that are not finite, first in {bad.name} of {bad.module or 'the model'}"
                f" ({bad.source})."
            )
        if not torch.equal(one, other):
            bad = next((a for a, b in zip(first.calls, again.calls, strict=False) if a.print != b.print), None)
            where = f", first in {bad.name} of {bad.module or 'the model'} ({bad.source})" if bad else ""
            raise InputError(f"The torch model gives other results for the same input in evaluation{where}.")


def _check_finite(run: PortRun, name: str) -> None:
    for number in run.outputs:
        value = run.values[number]
        if value.print is not None and not value.print.finite:
            floating = [each for each in run.on_input() if not each.print.finite]
            first = floating[0] if floating else value
            raise InputError(
                f"The port {name} gives values that are not finite, first in {first.primitive} of "
                f"{first.scope or name} ({first.source})."
            )


def _check_counterparts(mapping: WeightMap, shapes, torch_name: str, flax_name: str) -> None:
    kernels = {name for name, shape in shapes.items() if len(shape) > 1}
    paired = {piece.torch for piece in mapping.pieces} & kernels
    if kernels and len(paired) * 2 < len(kernels):
        missing = sorted(kernels - paired)
        raise InputError(
            f"{flax_name} has counterparts for {len(paired)} of the {len(kernels)} weight tensors of {torch_name}, "
            f"which is too few to compare; without one are {', '.join(missing[:5])}."
        )


def _kept(found: Walk, dropped: Sequence[str]) -> dict:
    """Changes that hold in another run as well, where their causes are none of these."""
    of_this_run = {each.index for each in found.differences if each.cause in dropped}
    return {index: change for index, change in found.changes.items() if index not in of_this_run}


def _finding(each: Difference, phase: str | None = None) -> Finding:
    phase = phase or ("training" if each.train else "evaluation")
    where = Where(
        phase, each.module, each.function, each.source, each.scope, each.primitive, each.port_source, each.error
    )
    return Finding(each.cause, each.says, each.fix, each.severity, (where,))


def _statistics_finding(each: StatisticsResult) -> Finding:
    where = Where(
        "statistics",
        each.call.module,
        each.call.name,
        each.call.source,
        each.paths[0].rpartition("/")[0].removeprefix("batch_stats/"),
        "",
        None,
        each.error,
    )
    return Finding(each.cause, each.says, each.fix, each.severity, (where,))


def _backward_runner(runner, sides: _Sides, mapping: WeightMap):
    def run(changes):
        for parameter in sides.model.parameters():
            parameter.grad = None
            parameter.requires_grad_(True)
        forward = runner(mapping, changes, (), None, grad=True)
        weighted_sum(forward.outputs).backward()
        found = {
            name: each.grad.numpy().copy() for name, each in sides.model.named_parameters() if each.grad is not None
        }
        return forward, found

    return run


def _initial_findings(initial, inputs, call, mapping: WeightMap) -> list[Finding]:
    make_torch, make_flax = initial
    with native_precision():
        arrays = tuple(as_single(array) for array in inputs)

        def draw_flax(seed):
            return open_port(make_flax(seed), arrays, call).create(jax.random.key(seed))[0]

        def draw_torch(seed):
            torch.manual_seed(seed)
            return {name: each.detach().float().numpy() for name, each in make_torch().named_parameters()}

        results = compare_initial(draw_torch, draw_flax, mapping, 3)
    findings = []
    for families in dict.fromkeys(each.families for each in results):
        alike = [each for each in results if each.families == families]
        first = alike[0]
        where = tuple(Where("initial", each.name, "", None, each.path, "", None, float("nan")) for each in alike)
        says = f"draws from another distribution; first {first.flax} where PyTorch draws {first.torch}"
        fix = "kernel_init and bias_init as PyTorch's reset_parameters"
        findings.append(Finding("initial_distribution", says, fix, FAULT, where))
    return findings


def _gradient_tolerance(findings: Sequence[Finding]) -> float:
    """1e-6; more where the port was found to compute in lower precision, whose gradients are as coarse."""
    causes = {each.cause for each in findings}
    return 0.2 if "precision" in causes else 1e-4 if "rounding" in causes else 1e-6


def _spec_findings(mapping: WeightMap, first: Run, run: PortRun, findings, compare_outputs: bool) -> list[Finding]:
    found = []
    explained = {"missing_bias", "added_bias", "tied_weights", "left_out", "norm_scale", "other_input"}
    causes = {each.cause for each in findings}
    names = [("torch", name) for name in mapping.torch_only] + [("flax", path) for path in mapping.flax_only]
    if names and not causes & explained:
        where = tuple(
            Where("spec", name * (side == "torch"), "", None, name * (side == "flax"), "", None, float("nan"))
            for side, name in names
        )
        words = {"torch": "has no counterpart of PyTorch's {}", "flax": "has {}, which PyTorch has not"}
        says = "; ".join(words[side].format(name) for side, name in names[:6])
        found.append(Finding("parameters", says + (" and more" if len(names) > 6 else ""), "", FAULT, where))
    if compare_outputs:
        shapes = [tuple(each.shape) for each in first.outputs], [run.values[n].shape for n in run.outputs]
        if len(shapes[0]) != len(shapes[1]) or any(
            sorted(a) != sorted(b) for a, b in zip(*shapes, strict=False) if math.prod(a) != math.prod(b)
        ):
            where = Where("spec", "", "results", None, "", "results", None, float("nan"))
            says = f"gives results of shapes {shapes[1]} where PyTorch gives {shapes[0]}"
            found.append(Finding("results", says, "", FAULT, (where,)))
    return found


def _layers(found: Walk, run: PortRun, gradients: Gradients) -> tuple[Layer, ...]:
    errors = errors_of(found.run, run, found.calls)
    at = {each.index: each for each in found.differences}
    layers = []
    for call in found.run.calls:
        numbers = found.calls.get(call.index, [])
        value = run.values[numbers[-1]] if numbers else None
        if call.index in at:
            state = "explained" if at[call.index].cause else DIFFERENT
            if at[call.index].severity == NOTE:
                state = EQUAL
        else:
            state = EQUAL if numbers else "elsewhere" if found.equal else DIFFERENT
        layers.append(
            Layer(
                *both_names(call, value),
                at[call.index].error if call.index in at else errors.get(call.index),
                gradients.values.get(call.index),
                state,
            )
        )
    return tuple(layers)


def _traced(port, params, stats, inputs, train, loss):
    """One forward pass of the port with all values, its jaxpr, and the arguments of that.

    Args:
      params, stats: its arrays by path; None for what is no floating point, which starts at zero.
      loss: called with the port's results; its value is the result then. May be None.
    """
    floating = [path for path, array in stats.items() if array is not None]
    fixed = {path: jnp.zeros(port.stats[path].shape, port.stats[path].dtype) for path in stats if path not in floating}
    paths = list(params)

    def function(its_params, its_stats, *its_inputs):
        given = {**fixed, **dict(zip(floating, its_stats, strict=True))}
        outputs, new = port.run(dict(zip(paths, its_params, strict=True)), given, its_inputs, jax.random.key(0), train)
        if loss is not None:
            outputs = loss(outputs)
        return jax.tree.leaves(outputs), [new[path] for path in floating]

    arguments = [jnp.asarray(params[path]) for path in paths], [jnp.asarray(stats[path]) for path in floating]
    inputs = [jnp.asarray(each) for each in inputs]
    closed = _trace_either_way(function, *arguments, *inputs)
    names = [*paths, *floating, *(f"input {i}" for i in range(len(inputs)))]
    flat = [*arguments[0], *arguments[1], *inputs]
    evaluation = evaluate(closed, flat, names)
    count = len(evaluation.outputs) - len(floating)
    run = PortRun(
        evaluation,
        evaluation.outputs[:count],
        dict(zip(floating, evaluation.outputs[count:], strict=True)),
        frozenset(names[len(names) - len(inputs) :]),
    )
    return run, closed, flat


def _trace_either_way(function: Callable, *arguments) -> Any:
    """The port's jaxpr in double precision; in single precision where the port insists on it.

    A scan whose carry starts as `jnp.zeros(n, jnp.float32)` cannot be traced in double precision. What is evaluated is
    raised to double precision later (see `jaxpr_values`).
    """
    try:
        return trace(function, *arguments)
    except InputError:
        raise
    except Exception:
        with native_precision():
            single = jax.tree.map(as_single, arguments)
            try:
                return trace(function, *single)
            except Exception as error:
                raise InputError(f"The port raised {explain(error)}") from error


def port_inputs(inputs: Sequence[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
    """PyTorch's inputs in the orders of axes that a port may want, the usual one first."""

    def options(array):
        if array.dtype.kind == "f" and array.ndim >= 4:
            return {"last": np.moveaxis(array, 1, -1), "same": array}
        if array.dtype.kind == "f" and array.ndim == 3:
            return {"same": array, "last": np.moveaxis(array, 1, -1), "turned": np.swapaxes(array, 0, 1)}
        if array.ndim == 2 and array.dtype.kind != "f":
            return {"same": array, "turned": array.T}
        return {"same": array}

    each = [options(np.asarray(array)) for array in inputs]
    kinds = dict.fromkeys([kind for option in each for kind in option])
    usual = tuple(next(iter(option.values())) for option in each)
    found = [usual]
    for kind in kinds:
        candidate = tuple(option.get(kind, next(iter(option.values()))) for option in each)
        if not any(all(a is b for a, b in zip(candidate, other, strict=True)) for other in found):
            found.append(candidate)
    return found


def choose_port(module, inputs: Sequence[np.ndarray], tensors: Mapping[str, tuple], outputs: Sequence[tuple], call):
    """The port, and PyTorch's inputs in the order of axes that it wants.

    The order is the one in which most parameters have a size that PyTorch has too, and in which the results have
    PyTorch's sizes.
    """
    best, failure = None, None
    for candidate in port_inputs(inputs):
        try:
            with native_precision():
                arrays = tuple(as_single(array) for array in candidate)
                port = open_port(module, arrays, call)
                results = _result_shapes(port, arrays)
        except InputError as error:
            failure = failure or error
            continue
        sizes = sorted(math.prod(shape) for shape in tensors.values())
        score = 0
        for each in port.params.values():
            if math.prod(each.shape) in sizes:
                sizes.remove(math.prod(each.shape))
                score += 1
        score += sum(
            sorted(a) == sorted(b.shape) and a[0] == b.shape[0]
            for a, b in zip(outputs, results, strict=False)
            if a and b.shape
        )
        if best is None or score > best[0]:
            best = (score, port, candidate)
    if best is None:
        raise failure
    return best[1], best[2]


def _result_shapes(port: Port, arrays: tuple) -> list[jax.ShapeDtypeStruct]:
    def call(params, stats, *its):
        return jax.tree.leaves(port.run(params, stats, its, jax.random.key(0), False)[0])

    try:
        return jax.eval_shape(call, dict(port.params), dict(port.stats), *arrays)
    except Exception as error:
        raise InputError(f"The port raised {explain(error)}") from error


def make_runner(sides: _Sides, port_run: PortRun, *, train: bool, call, after: Callable | None):
    """Runs PyTorch's copy with the port's weights, as `walk` takes it."""
    tensors = _tensors_of(sides.model)
    matcher, masks = _Matcher(port_run), port_run.masks()
    loaded: list[tuple[WeightMap, dict]] = []

    def runner(mapping: WeightMap, changes, replay, stop_after, *, grad: bool = False) -> Run:
        if not loaded or loaded[0][0] is not mapping:
            loaded[:] = [(mapping, mapping.to_torch(sides.flat, sides.start))]
        with torch.no_grad():
            for name, array in loaded[0][1].items():
                tensors[name].copy_(torch.from_numpy(np.asarray(array)))
        return run_model(
            sides.model,
            sides.inputs,
            train=train,
            grad=grad,
            changes=changes,
            masks=masks,
            known=matcher.knows,
            stop_after=stop_after,
            replay=replay,
            call=call,
            after=after,
        )

    return runner
