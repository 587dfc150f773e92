"""Where two forward passes part, and why: place by place, until the results are equal or nothing explains them.

The port is run once. PyTorch's copy is run again and again: at the first place where it computes what the port does not
have, it is changed in one way after another, until it computes what the port has. Then the walk goes on from there.
"""

import contextlib
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from cifar_jax.parity.comparison.causes.catalogue import concerning
from cifar_jax.parity.comparison.causes.proposal import FAULT, LAYOUT, NOTE, Kind, Place, Proposal, given
from cifar_jax.parity.comparison.fingerprints import Index, agree, fingerprint
from cifar_jax.parity.comparison.jaxpr_values import Evaluation, Source, Value
from cifar_jax.parity.comparison.mapping import WeightMap, exchange, exchanges, other_orders
from cifar_jax.parity.comparison.torch_side import Call, Change, Run

# How many calls after a change are looked at, before the whole model is run.
_WINDOW = 8
_MOST_PLACES = 40


class PortRun(NamedTuple):
    """One forward pass of the port.

    evaluation: all its values. outputs: numbers of the model's results. stats: numbers of the new statistics by path.
    inputs: names of the inputs among the values' leaves.
    """

    evaluation: Evaluation
    outputs: list[int]
    stats: dict[str, int]
    inputs: frozenset[str]

    @property
    def values(self) -> list[Value]:
        """All values in the order of computation."""
        return self.evaluation.values

    def on_input(self) -> list[Value]:
        """The numbers that the port computes from its inputs."""
        return [
            value
            for value in self.values
            if value.print is not None and value.primitive != "argument" and value.leaves & self.inputs
        ]

    def masks(self) -> list[np.ndarray]:
        """Boolean arrays of more than one element, such as masks of dropout, whatever they depend on."""
        found = []
        for value in self.values:
            if value.array is not None and value.array.dtype == bool and value.array.size > 1:
                share = value.array.mean()
                if 0 < share < 1:
                    found.append(value.array)
        return found


class Difference(NamedTuple):
    """A place where both sides part.

    order: 1 for the first. index: number of torch's call. train: in training, or in evaluation.
    module, kind, function, source: PyTorch's module and function, and the line of its file.
    scope, primitive, port_source: the port's module, operation and line; empty or None where unknown.
    error: largest difference over the largest value; NaN where the port has no value of the same shape.
    cause: the kind of the change that explains it; empty where none does.
    says, fix: the cause in words, and the line to write; severity: FAULT, LAYOUT or NOTE.
    reproduction: where no cause was found, the call's arguments, torch's result and the port's, by name.
    """

    order: int
    index: int
    train: bool
    module: str
    kind: str
    function: str
    source: Source | None
    scope: str
    primitive: str
    port_source: Source | None
    error: float
    cause: str
    says: str
    fix: str
    severity: str
    reproduction: dict[str, np.ndarray] | None = None


def both_names(call: Call, value: Value | None) -> tuple[str, str, str, Source | None, str, str, Source | None]:
    """What both sides call a place: the fields `module` to `port_source` of a `Difference` or of a `result.Layer`."""
    ours = ("", "", None) if value is None else (value.scope, value.primitive, value.source)
    return call.module, call.kind, call.name, call.source, *ours


class Walk(NamedTuple):
    """What a walk found: the differences, the changes that explain them, the last run, and the mapping as it then is.

    equal: whether, with all changes, the results are equal. calls: which calls have an equal value in the port.
    """

    differences: list[Difference]
    changes: dict[int, Change]
    run: Run
    mapping: WeightMap
    equal: bool
    calls: dict[int, list[int]]


# Runs PyTorch's copy: (mapping, changes, replay, stop_after) to the run.
Runner = Callable[[WeightMap, Mapping[int, Change], Sequence[Call], int | None], Run]


def walk(
    runner: Runner,
    port: PortRun,
    mapping: WeightMap,
    *,
    train: bool,
    arrays: Mapping[str, np.ndarray],
    changes: Mapping[int, Change] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Walk:
    """Finds all differences of a forward pass, each with its cause where a hypothesis explains it.

    Args:
      runner: runs PyTorch's copy.
      port: the port's run.
      mapping: pairs of parameters; what order left open is settled here.
      train: whether this is training.
      arrays: the port's parameters by path.
      changes: changes that are known from before.
      progress: told what happens.
    """
    matcher = _Matcher(port)
    changes = dict(changes or {})
    differences: list[Difference] = []
    run = runner(mapping, changes, (), None)
    while True:
        state = matcher.match(run)
        mapping = _prove(mapping, run, state)
        roots = state.roots()
        if not roots or len(differences) >= _MOST_PLACES:
            return Walk(
                differences,
                changes,
                run,
                mapping,
                not roots and bool(run.outputs) and not state.wrong_outputs,
                state.matched,
            )
        root = run.calls[roots[0]]
        progress(f"{root.module or 'the model'}: {root.name} differs; trying what could explain it")
        trial = _Trial(runner, matcher, run, state, root, mapping, changes)
        found = _settle(trial, arrays, train)
        if found is None:
            differences.append(_difference(len(differences) + 1, train, trial, None, None))
            return Walk(differences, changes, run, mapping, False, state.matched)
        proposal, mapping, run, trial = found
        changes |= dict(proposal.changes)
        if proposal.severity != NOTE or proposal.kind != "mapping":
            differences.append(_difference(len(differences) + 1, train, trial, proposal, run))


class _State(NamedTuple):
    """Which calls of a run have an equal value in the port, and which results do not."""

    run: Run
    matched: dict[int, list[int]]
    wrong_outputs: list[int]

    def bad(self) -> set[int]:
        """Calls without an equal on the way to a wrong result."""
        found: set[int] = set()
        todo = [self.run.produced_by[i] for i in self.wrong_outputs if self.run.produced_by[i] >= 0]
        forced = set(todo)
        while todo:
            index = todo.pop()
            if index in found or index < 0 or (index in self.matched and index not in forced):
                continue
            found.add(index)
            todo += list(self.run.calls[index].inputs)
        return found

    def roots(self) -> list[int]:
        """Bad calls whose inputs are all good, first ones first.

        Of a run that ended early, calls without an equal whose inputs have equals, and from which none follows.
        """
        if not self.run.outputs:
            return self._last_unmatched()
        bad = self.bad()
        return sorted(i for i in bad if not any(each in bad for each in self.run.calls[i].inputs))

    def _last_unmatched(self) -> list[int]:
        helps: set[int] = set()
        for call in reversed(self.run.calls):
            if call.index in self.matched or call.index in helps:
                helps |= set(call.inputs)
        return [
            call.index
            for call in self.run.calls
            if call.index not in self.matched
            and call.index not in helps
            and all(i < 0 or i in self.matched or i in helps for i in call.inputs)
        ]


class _Matcher:
    """Finds the port's equal of each of torch's values."""

    def __init__(self, port: PortRun):
        self.port = port
        self.values = port.on_input()
        self._index = Index((value.index, value.print) for value in self.values)

    def find(self, call: Call) -> list[int]:
        return self._index.find(call.print)

    def knows(self, print_) -> bool:
        return bool(self._index.find(print_))

    def match(self, run: Run) -> _State:
        matched = {}
        for call in run.calls:
            if numbers := self.find(call):
                matched[call.index] = numbers
        wrong = []
        for place, output in enumerate(run.outputs):
            if place >= len(self.port.outputs):
                break
            value = self.port.values[self.port.outputs[place]]
            if value.print is None or not same_result(output.detach().numpy(), value):
                wrong.append(place)
        return _State(run, matched, wrong)


def same_result(output: np.ndarray, value: Value) -> bool:
    """Whether a result of torch is a value of the port, element by element in one of the usual orders of axes."""
    if value.print is None or not agree(fingerprint(output), value.print):
        return False
    if value.array is None:
        return True
    return any(_close(output, other) for other in as_torch(value.array, output.shape))


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    scale = max(float(np.abs(one).max(initial=0)), 1e-300)
    return bool(np.abs(one - other).max(initial=0) <= 1e-6 * scale)


def as_torch(array: np.ndarray, shape: Sequence[int]) -> list[np.ndarray]:
    """An array of the port in a shape of torch's, by moving axes and by joining or cutting neighbours.

    The usual way comes first: channels from the last axis to the second. Nothing where the sizes differ.
    """
    shape = tuple(shape)
    if array.size != math.prod(shape):
        return []
    axes = range(array.ndim)
    orders = [tuple(axes)]
    if array.ndim >= 3:
        orders.insert(0, (0, array.ndim - 1, *range(1, array.ndim - 1)))
    if array.ndim <= 5:
        orders += [order for order in itertools.permutations(axes) if order not in orders]
    found, shapes = [], set()
    for order in orders:
        moved = tuple(array.shape[axis] for axis in order)
        real = tuple(axis for axis in order if array.shape[axis] > 1)
        if real not in shapes and _joins(moved, shape):
            shapes.add(real)
            found.append(array.transpose(order).reshape(shape))
    return found or [array.reshape(shape)]


def _joins(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether one shape becomes the other by joining neighbouring axes, or the other way round."""
    ends = [set(itertools.accumulate((n for n in each if n > 1), operator.mul)) for each in (one, other)]
    return ends[0] <= ends[1] or ends[1] <= ends[0]


class _Trial:
    """One place, and how far PyTorch's copy gets with a change at it."""

    def __init__(
        self, runner, matcher: _Matcher, run: Run, state: _State, root: Call, mapping, changes, last: int | None = None
    ):
        self.runner, self.matcher, self.run, self.state = runner, matcher, run, state
        self.root, self.mapping, self.changes = root, mapping, changes
        self.seen = {n for index, numbers in state.matched.items() for n in numbers if index < root.index}
        # The call at which the difference showed: the root itself, or one after it.
        self.last, self.counts = (root.index, True) if last is None else (last, False)
        self.is_output = self.last in [run.produced_by[i] for i in state.wrong_outputs]

    def gain(self, run: Run, *, count_root: bool = True) -> int | float:
        """How many values that follow from the root found their first equal; infinity where all of them did."""
        after, gained, missed = {self.root.index}, 0, 0
        for call in run.calls:
            if call.index > self.root.index and after & set(call.inputs):
                after.add(call.index)
            if call.index not in after or (call.index in self.state.matched and call.index != self.root.index):
                continue
            if call.index == self.root.index and not count_root:
                continue
            if set(self.matcher.find(call)) - self.seen:
                gained += 1
            else:
                missed += 1
        return gained if missed or not gained else math.inf

    def fits(self, changes: Mapping[int, Change]) -> bool:
        """Whether the changed call alone, on the recorded arguments, gives a value that only the port has."""
        arguments = {**self.root.arguments, **{name: t.clone() for name, t in self.root.before.items()}}
        with torch.no_grad():
            result = changes[self.root.index](self.root, arguments)
        result = result[0] if isinstance(result, (tuple, list)) else result
        numbers = self.matcher.find(self.root._replace(print=fingerprint(result.detach().numpy())))
        return bool(set(numbers) - self.seen)

    def attempt(
        self,
        changes: Mapping[int, Change],
        mapping: WeightMap | None = None,
        *,
        count_root: bool = True,
        start: int | None = None,
    ) -> int | float:
        """The gain of a change in the next few calls; 0 where the changed copy cannot run."""
        stop = None if self.is_output else self.last + _WINDOW
        run = self._run(changes, mapping, stop, start)
        if run is None or self._loses(run, min([self.root.index if start is None else start, *changes])):
            return 0
        if self.is_output:
            return math.inf if run.outputs and self._outputs_right(run) else 0
        return self.gain(run, count_root=count_root)

    def whole(
        self, changes: Mapping[int, Change], mapping: WeightMap | None = None, *, start: int | None = None
    ) -> Run | None:
        """The whole run with a change, or None where it cannot run."""
        return self._run(changes, mapping, None, start)

    def _run(self, changes: Mapping[int, Change], mapping: WeightMap | None, stop: int | None, first=None):
        start = min([self.root.index if first is None else first, *changes])
        try:
            return self.runner(mapping or self.mapping, {**self.changes, **changes}, self.run.calls[:start], stop)
        except Exception:  # a change that the model cannot take
            return None

    def _loses(self, run: Run, start: int) -> bool:
        """Whether a call before the root had an equal and has none now."""
        between = run.calls[start : self.root.index]
        return any(call.index in self.state.matched and not self.matcher.find(call) for call in between)

    def _outputs_right(self, run: Run) -> bool:
        now = self.matcher.match(run)
        mine = [i for i in self.state.wrong_outputs if self.run.produced_by[i] == self.last]
        return not set(mine) & set(now.wrong_outputs)

    def candidates(self, *, any_size: bool = False) -> list[Value]:
        """Values of the port without an equal in torch that come after the root's inputs."""
        known = {n for numbers in self.state.matched.values() for n in numbers}
        starts = [min(self.state.matched[i]) for i in self.root.inputs if i in self.state.matched]
        start = max(starts, default=-1)
        size = self.root.output.numel()
        return [
            value
            for value in self.matcher.values
            if value.index > start
            and value.index not in known
            and value.array is not None
            and (any_size or value.array.size == size)
            and value.array.dtype.kind == "f"
        ][:12]


def _settle(trial: _Trial, arrays, train: bool):
    """What explains a place: another mapping, a hypothesis, or the port's own values; with the run that follows."""
    names = [part for name in trial.root.parameters.values() for part in name.split("+")]
    place = _place(trial, arrays, train)
    kinds = concerning(trial.root.name)
    return (
        _best_mapping(trial, other_orders(trial.mapping, names))
        or _exchanged_siblings(trial)
        or _best_hypothesis(trial, place, [kind for kind in kinds if kind.functions is not None])
        or _at_earlier_calls(trial, _silent_before(trial), arrays, train)
        or _best_mapping(trial, exchanges(trial.mapping, names))
        or _best_hypothesis(trial, place, [kind for kind in kinds if kind.functions is None])
        # A call just before it may have an equal that the port does not use, such as the last state of a scan.
        or _at_earlier_calls(trial, [i for i in trial.root.inputs if i >= 0], arrays, train)
        or _port_values(trial)
    )


def _place(trial: _Trial, arrays, train: bool) -> Place:
    candidates = [(v, array) for v in trial.candidates() for array in as_torch(v.array, trial.root.output.shape)]
    return Place(
        trial.root,
        trial.run.calls,
        [array for _, array in candidates],
        [value.dtype for value, _ in candidates],
        trial.matcher.port.masks(),
        {path: arrays[path] for path in trial.mapping.flax_only if path in arrays},
        {name: tensor for each in trial.run.calls for name, tensor in _parameters(each)},
        train,
    )


def _parameters(call: Call):
    for slot, name in call.parameters.items():
        if isinstance(tensor := call.arguments.get(slot), torch.Tensor) and "+" not in name:
            yield name, tensor.detach().numpy()


def _best_mapping(trial: _Trial, options):
    best = None
    for says, mapping in options:
        gain = trial.attempt({}, mapping, count_root=trial.counts)
        if gain > (best[0] if best else 0):
            best = (gain, says, mapping)
        if gain == math.inf:
            break
    run = trial.whole({}, best[2]) if best is not None else None
    return None if run is None else (_mapping_proposal(trial, best[1], best[2]), best[2], run, trial)


def _best_hypothesis(trial: _Trial, place: Place, kinds):
    """The first kind of hypothesis that explains the place, with the change that explains most.

    First those whose changed call gives a value of the port; only then those that show further on.
    """
    proposals: list[tuple[Kind, list[Proposal]]] = []
    for kind in kinds:
        found: list[Proposal] = []
        # A hypothesis that does not fit this call's arguments proposes nothing.
        with contextlib.suppress(ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError):
            found.extend(kind.propose(place))
        proposals.append((kind, found))
        direct = [proposal for proposal in found if proposal.at is not None or _fits(trial, proposal)]
        if (chosen := _most(trial, direct)) is not None:
            return chosen
    for _, found in proposals:
        if (chosen := _most(trial, found)) is not None:
            return chosen
    return None


def _exchanged_siblings(trial: _Trial):
    """The weights of two alike layers on one input exchanged, whose order says nothing about which is which."""
    if trial.root.parameters:
        return None
    near, todo = [], [(i, 0) for i in trial.root.inputs]
    while todo:
        index, depth = todo.pop()
        if index < 0 or depth > 4:
            continue
        call = trial.run.calls[index]
        if call.parameters:
            near.append(call)
        else:
            todo += [(i, depth + 1) for i in call.inputs]
    for one in near:
        for other in trial.run.calls:
            alike = other.name == one.name and other.index != one.index and _same_input(trial, one, other)
            mapping = exchange(trial.mapping, one.parameters, other.parameters) if alike else None
            if mapping is None:
                continue
            start = min(one.index, other.index)
            if trial.attempt({}, mapping, start=start):
                run = trial.whole({}, mapping, start=start)
                if run is not None:
                    says = f"{one.module} and {other.module} exchanged"
                    return Proposal("mapping", says, "nothing", {}, NOTE), mapping, run, trial
    return None


def _same_input(trial: _Trial, one: Call, other: Call) -> bool:
    values = [trial.run.calls[each.inputs[0]].print if each.inputs[0] >= 0 else each.inputs[0] for each in (one, other)]
    return values[0] == values[1]


def _fits(trial: _Trial, proposal: Proposal) -> bool:
    try:
        return trial.root.index in proposal.changes and trial.fits(proposal.changes)
    except Exception:  # a change that does not fit this call's arguments
        return False


def _most(trial: _Trial, proposals: Sequence[Proposal]):
    best = None
    for proposal in proposals:
        gain = trial.attempt(proposal.changes, count_root=trial.counts)
        if gain > (best[0] if best else 0):
            best = (gain, proposal)
        if gain == math.inf:
            break
    run = trial.whole(best[1].changes) if best is not None else None
    return None if run is None else (best[1], trial.mapping, run, trial)


def _at_earlier_calls(trial: _Trial, earlier: Sequence[int], arrays, train: bool):
    """A change at one of some earlier calls, whose equal in the port does not prove that they agree."""
    for index in earlier:
        call = trial.run.calls[index]
        there = _Trial(
            trial.runner,
            trial.matcher,
            trial.run,
            trial.state,
            call,
            trial.mapping,
            trial.changes,
            last=trial.root.index,
        )
        names = [part for name in call.parameters.values() for part in name.split("+")]
        if names and (chosen := _best_mapping(there, other_orders(there.mapping, names))) is not None:
            return chosen
        place = _place(there, arrays, train)
        for kind in concerning(call.name):
            if kind.functions is None:
                continue
            found: list[Proposal] = []
            with contextlib.suppress(ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError):
                found.extend(kind.propose(place))
            if (chosen := _most(there, found)) is not None:
                return chosen
    return None


def _silent_before(trial: _Trial) -> list[int]:
    """Calls before the root that keep the elements they take, or whose elements the port has in another order."""
    todo, seen, found = list(trial.root.inputs), set(), []
    matched = trial.state.matched
    while todo:
        index = todo.pop()
        if index < 0 or index in seen or index not in matched:
            continue
        seen.add(index)
        call = trial.run.calls[index]
        before = {n for i in call.inputs for n in matched.get(i, ())}
        # A packed projection is cut right after it.
        if call.name == "linear" and trial.root.name in (
            "chunk",
            "split",
            "unflatten",
            "view",
            "reshape",
            "__getitem__",
        ):
            found.append(index)
        elif set(matched[index]) <= before or not _same_order(trial, index):
            found.append(index)
            todo += list(call.inputs)
    return sorted(found)


def _same_order(trial: _Trial, index: int) -> bool:
    output = trial.run.calls[index].output.numpy()
    for number in trial.state.matched[index]:
        array = trial.matcher.port.values[number].array
        if array is None or any(_close(output, other) for other in as_torch(array, output.shape)):
            return True
    return False


def _mapping_proposal(trial: _Trial, says: str, mapping: WeightMap) -> Proposal:
    names = [part for name in trial.root.parameters.values() for part in name.split("+")]
    pieces = [piece for name in names for piece in mapping.of(name)]
    if any(piece.reorder for piece in pieces):
        return Proposal("packed_order", f"has {says}", "convert the weights with the mapping printed here", {}, LAYOUT)
    if "exchanged" in says:
        return Proposal("mapping", says, "nothing", {}, NOTE)
    if "flipped" in says:
        kind = "kernel_flip"
    elif "rows in the order" in says or any(
        "rows in the order" in p.layout.name for p in trial.mapping.pieces if p.torch in names
    ):
        kind = "flatten_order"
    else:
        kind = "layout"
    return Proposal(
        kind, f"keeps the weights as {says}", "convert the weights with the mapping printed here", {}, LAYOUT
    )


def _port_values(trial: _Trial):
    """The port's own value instead of torch's, so that what comes after can be compared."""
    shape = trial.root.output.shape
    seen = []
    for value in [*trial.candidates(), *trial.candidates(any_size=True)]:
        options = as_torch(value.array, shape)
        if not options and value.array.ndim == len(shape):
            options = [np.moveaxis(value.array, -1, 1)] if value.array.ndim >= 3 else [value.array]
        for array in options:
            change = {trial.root.index: given(array)}
            gain = trial.attempt(change, count_root=False)
            if gain:
                seen.append((gain, change))
        if seen and value.array.size == trial.root.output.numel():
            break
    if not seen:
        return None
    change = max(seen, key=lambda each: each[0])[1]
    run = trial.whole(change)
    return None if run is None else (Proposal("", "", "", change), trial.mapping, run, trial)


def _prove(mapping: WeightMap, run: Run, state: _State) -> WeightMap:
    names: set[str] = set()
    for call in run.calls:
        if call.index in state.matched:
            names |= {part for name in call.parameters.values() for part in name.split("+")}
    pieces = tuple(p._replace(proved=True) if p.torch in names else p for p in mapping.pieces)
    return mapping._replace(pieces=pieces)


def _difference(order: int, train: bool, trial: _Trial, proposal: Proposal | None, run: Run | None) -> Difference:
    root = trial.root if proposal is None or proposal.at is None else trial.run.calls[proposal.at]
    value = _counterpart(trial, run)
    error = _error(root, value)
    return Difference(
        order,
        root.index,
        train,
        *both_names(root, value),
        error,
        proposal.kind if proposal else "",
        proposal.says if proposal else "",
        proposal.fix if proposal else "",
        proposal.severity if proposal else FAULT,
        None if proposal is not None and proposal.cause_known() else _reproduction(root, value),
    )


def _reproduction(call: Call, value: Value | None) -> dict[str, np.ndarray]:
    tensors = {name: each.detach().numpy() for name, each in call.arguments.items() if isinstance(each, torch.Tensor)}
    found = {
        f"argument {name}": array for name, array in (tensors | {n: t.numpy() for n, t in call.before.items()}).items()
    }
    found["torch"] = call.array
    if value is not None and value.array is not None:
        found["flax"] = value.array
    return found


def _counterpart(trial: _Trial, run: Run | None) -> Value | None:
    """The port's value at this place: the equal of the changed call, or the first value without an equal."""
    if run is not None:
        for call in run.calls[trial.root.index :]:
            numbers = set(trial.matcher.find(call)) - trial.seen
            if numbers and (call.index == trial.root.index or trial.root.index in call.inputs):
                return trial.matcher.port.values[min(numbers)]
    candidates = trial.candidates() or trial.candidates(any_size=True)
    return candidates[0] if candidates else None


def _error(call: Call, value: Value | None) -> float:
    if value is None or value.array is None or value.array.size != call.output.numel():
        return float("nan")
    output = call.output.numpy()
    scale = max(float(np.abs(output).max(initial=0)), 1e-300)
    return min(float(np.abs(output - other).max(initial=0)) for other in as_torch(value.array, output.shape)) / scale


def errors_of(run: Run, port: PortRun, matched: Mapping[int, Iterable[int]]) -> dict[int, float]:
    """Largest difference over the largest value, for each call that has an equal in the port."""
    found: dict[int, Any] = {}
    for index, numbers in matched.items():
        for number in numbers:
            error = _error(run.calls[index], port.values[number])
            if not np.isnan(error):
                found[index] = min(found.get(index, np.inf), error)
    return found
