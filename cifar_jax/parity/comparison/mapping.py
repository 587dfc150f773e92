"""Which parameter of the port is which of PyTorch's, and how the weights go from one to the other.

Names and the order of definition say nothing: layers are paired by the order in which the forward passes use them, by
kind and by shape. What the order leaves open is settled by values (see `walk`), and what values leave open is listed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax.errors import InputError
from cifar_jax.parity.comparison.jaxpr_values import Evaluation
from cifar_jax.parity.comparison.layouts import (
    Layout,
    Shape,
    interleaved_columns,
    interleaved_rows,
    layouts,
    packed_rows,
)
from cifar_jax.parity.comparison.torch_side import Call

Rows = tuple[int, int]


class Piece(NamedTuple):
    """One tensor of PyTorch, or some of its rows, and the Flax array that it is.

    torch, rows: PyTorch's name, and the rows of it; None for all.
    flax: path of the Flax array; empty where the port has none of its own and zeros stand for it.
    layout: how the Flax array lies.
    kind: as `layouts` takes it.
    shape, flax_shape: shapes of both sides.
    features: as `layouts` takes them.
    reorder: blocks of rows in another order: ("blocks", groups, order) or ("heads", groups, heads, "rows"); or None.
    adds: another tensor of PyTorch and its rows, whose sum with this one is the Flax array; or None.
    proved: whether equal values on both sides proved this pair; else it rests on order and shape.
    """

    torch: str
    rows: Rows | None
    flax: str
    layout: Layout
    kind: str
    shape: Shape
    flax_shape: Shape
    features: tuple[Shape, ...] = ()
    reorder: tuple | None = None
    adds: tuple[str, Rows | None] | None = None
    proved: bool = False

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The Flax array as these rows of PyTorch's tensor."""
        if not self.flax:
            return np.zeros(self.shape, array.dtype)
        result = self.layout.to_torch(np.asarray(array))
        return result if self.reorder is None else _reorder(self.reorder, self.shape[0])(result)

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """These rows of PyTorch's tensor as the Flax array."""
        if self.reorder is not None:
            order = _reorder(self.reorder, self.shape[0])(np.arange(self.shape[0]))
            array = array[np.argsort(order)]
        return self.layout.to_flax(array, self.flax_shape)

    def where(self) -> str:
        """PyTorch's name with its rows."""
        return self.torch + ("" if self.rows is None else f"[{self.rows[0]}:{self.rows[1]}]")


def _reorder(spec: tuple, rows: int):
    if spec[0] == "blocks":
        return packed_rows(spec[1], spec[2], rows)
    return (interleaved_rows if spec[3] == "rows" else interleaved_columns)(spec[1], spec[2], rows)


class WeightMap(NamedTuple):
    """Pairs of parameters and statistics of both sides.

    pieces: the pairs. torch_only, flax_only: what has no counterpart.
    unused: what neither forward pass uses, "torch: name" or "flax: path".
    """

    pieces: tuple[Piece, ...]
    torch_only: tuple[str, ...]
    flax_only: tuple[str, ...]
    unused: tuple[str, ...] = ()

    def to_torch(self, flax: Mapping[str, Any], start: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """PyTorch's tensors with the port's values.

        Args:
          flax: the port's parameters and statistics by path.
          start: PyTorch's tensors; those without counterpart keep these values.
        """
        result = {name: np.array(array) for name, array in start.items()}
        for piece in self.pieces:
            target = result[piece.torch]
            value = piece.to_torch(np.asarray(flax[piece.flax]) if piece.flax else np.zeros(0, target.dtype))
            if piece.rows is None:
                result[piece.torch] = value.reshape(target.shape).astype(target.dtype)
            else:
                target[piece.rows[0] : piece.rows[1]] = value
        return result

    def to_flax(self, tensors: Mapping[str, np.ndarray], start: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The port's arrays with PyTorch's values; arrays without counterpart keep those of `start`."""
        result = {path: np.array(array) for path, array in start.items()}
        for piece in self.pieces:
            if not piece.flax:
                continue
            value = _rows(np.asarray(tensors[piece.torch]), piece.rows)
            if piece.adds is not None:
                value = value + _rows(np.asarray(tensors[piece.adds[0]]), piece.adds[1])
            result[piece.flax] = piece.to_flax(value.reshape(piece.shape)).astype(result[piece.flax].dtype)
        return result

    def of(self, name: str) -> list[Piece]:
        """The pieces of one of PyTorch's tensors."""
        return [piece for piece in self.pieces if piece.torch == name]

    def ambiguous(self) -> list[Piece]:
        """Pairs that no values proved, where another array of the port would fit as well."""
        unproved = [piece for piece in self.pieces if piece.flax and not piece.proved]
        return [
            piece
            for piece in unproved
            if any(o is not piece and o.flax_shape == piece.flax_shape and o.shape == piece.shape for o in unproved)
        ]

    def __str__(self) -> str:
        width = max([len(piece.where()) for piece in self.pieces] + [7])
        lines = []
        for piece in self.pieces:
            layout = piece.layout.name if piece.flax else "zeros: the port has one array for both"
            extra = f", {piece.reorder}" if piece.reorder else ""
            extra += f", holds the sum with {piece.adds[0]}" if piece.adds else ""
            lines.append(f"{piece.where():{width}}  {piece.flax or '-'}  {layout}{extra}")
        lines += [f"{name:{width}}  no counterpart in the port" for name in self.torch_only]
        lines += [f"{'-':{width}}  {path}  no counterpart in PyTorch" for path in self.flax_only]
        lines += [f"{'-':{width}}  {name}  not used in the forward pass" for name in self.unused]
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Writes the mapping as JSON."""
        pieces = [
            {**piece._asdict(), "layout": piece.layout.name, "proved": bool(piece.proved)} for piece in self.pieces
        ]
        rest = {"torch_only": self.torch_only, "flax_only": self.flax_only, "unused": self.unused}
        Path(path).write_text(json.dumps({"pieces": pieces, **rest}, indent=1) + "\n")


def load_mapping(path: str | Path) -> WeightMap:
    """Reads a mapping that `save` wrote, or that somebody wrote by hand.

    Raises:
      InputError: the file cannot be read, or names a layout that its shapes do not have.
    """
    try:
        content = json.loads(Path(path).read_text())
        pieces = [_piece(entry) for entry in content["pieces"]]
        rest = {name: tuple(content.get(name, ())) for name in ("torch_only", "flax_only", "unused")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--mapping must be a file that `save` wrote, got {path}: {error!r}.") from error
    return WeightMap(tuple(pieces), **rest)


def _piece(entry: dict) -> Piece:
    shape, flax_shape = tuple(entry["shape"]), tuple(entry["flax_shape"])
    features = tuple(tuple(each) for each in entry.get("features", ()))
    if not entry["flax"]:
        layout = _ZEROS
    else:
        fitting = layouts(entry["kind"], shape, flax_shape, features)
        named = [each for each in fitting if each.name == entry["layout"]]
        if not named:
            names = ", ".join(repr(each.name) for each in fitting) or "none"
            raise InputError(
                f"layout of {entry['torch']} must be one of {names} for shapes {shape} and {flax_shape}, "
                f"got {entry['layout']!r}."
            )
        layout = named[0]
    reorder = entry.get("reorder")
    if reorder is not None:
        reorder = tuple(tuple(each) if isinstance(each, list) else each for each in reorder)
    adds = entry.get("adds")
    return Piece(
        entry["torch"],
        None if entry.get("rows") is None else tuple(entry["rows"]),
        entry["flax"],
        layout,
        entry["kind"],
        shape,
        flax_shape,
        features,
        reorder,
        None if adds is None else (adds[0], None if adds[1] is None else tuple(adds[1])),
        bool(entry.get("proved")),
    )


_ZEROS = Layout("zeros", lambda a: a)


def _rows(array: np.ndarray, rows: Rows | None) -> np.ndarray:
    return array if rows is None else array[rows[0] : rows[1]]


class _Unit(NamedTuple):
    """A tensor of one side, or rows of it, in one of its roles: kernel, scale, bias, mean, var or plain."""

    name: str
    shape: Shape
    rows: Rows | None = None


class _Layer(NamedTuple):
    """Tensors that one call uses together.

    position: when it is first used. kind: as `layouts` takes it. label: gate of a recurrent cell, or empty.
    """

    position: tuple
    kind: str
    units: dict[str, _Unit]
    label: str = ""
    features: tuple[Shape, ...] = ()


def find_mapping(
    calls: Sequence[Call],
    tensors: Mapping[str, Shape],
    evaluation: Evaluation,
    params: Mapping[str, Shape],
    stats: Mapping[str, Shape],
    inputs: Sequence[str],
    constants: frozenset[str] = frozenset(),
) -> WeightMap:
    """Pairs the tensors of both sides by execution order, kind and shape.

    Args:
      calls: PyTorch's forward pass in evaluation.
      tensors: shapes of its parameters and buffers by name.
      evaluation: the port's forward pass in evaluation.
      params, stats: shapes of the port's arrays by path.
      inputs: names of the port's inputs, as `evaluation` spells them.
      constants: PyTorch's buffers; those that are no running statistics need no counterpart.
    """
    flax_layers, flax_unused = _flax_layers(evaluation, params, stats, inputs)
    torch_layers, used = _torch_layers(calls, tensors, flax_layers, constants)
    pairs = _align(torch_layers, flax_layers)
    pieces: list[Piece] = []
    for torch_layer, flax_layer in pairs:
        pieces += _pair_units(torch_layer, flax_layer)
    pieces += _leftover_units(torch_layers, flax_layers, pieces)
    taken_torch = {(piece.torch, piece.rows) for piece in pieces}
    taken_flax = {piece.flax for piece in pieces}
    units = [unit for layer in torch_layers for unit in layer.units.values()]
    torch_only = [unit for unit in units if (unit.name, unit.rows) not in taken_torch]
    pieces += _shared_biases(torch_layers, pieces)
    covered = {(piece.torch, piece.rows) for piece in pieces}
    torch_only = tuple(dict.fromkeys(unit.name for unit in torch_only if (unit.name, unit.rows) not in covered))
    every_flax = [unit.name for layer in flax_layers for unit in layer.units.values()]
    flax_only = tuple(path for path in every_flax if path not in taken_flax)
    counters = tuple(name for name in tensors if name.rpartition(".")[2] == "num_batches_tracked")
    # Parameters that meet no input, such as a deviation that is a result by itself: in their order, by shape.
    idle = [name for name in tensors if name not in used and name not in counters and name not in constants]
    for name in [*idle, *torch_only]:
        for path in flax_unused:
            fitting = layouts("plain", tensors[name], (params | stats)[path])
            if path in params and fitting:
                pieces.append(Piece(name, None, path, fitting[0], "plain", tensors[name], params[path]))
                idle = [each for each in idle if each != name]
                torch_only = tuple(each for each in torch_only if each != name)
                flax_unused.remove(path)
                break
    unused = [f"torch: {name}" for name in idle]
    return WeightMap(tuple(pieces), torch_only, flax_only, tuple(unused + [f"flax: {path}" for path in flax_unused]))


_SLOTS = {
    "conv1d": "conv",
    "conv2d": "conv",
    "conv3d": "conv",
    "conv_transpose1d": "conv_transpose",
    "conv_transpose2d": "conv_transpose",
    "conv_transpose3d": "conv_transpose",
    "linear": "linear",
    "embedding": "embedding",
}
_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
_RECURRENT = {"lstm": "ifgo", "gru": "rzn", "rnn_tanh": "", "rnn_relu": ""}


def _torch_layers(
    calls: Sequence[Call], tensors: Mapping[str, Shape], flax_layers: Sequence[_Layer], constants: frozenset[str]
):
    """PyTorch's layers in order of use, and the names of all tensors that they use."""
    layers: list[_Layer] = []
    used: set[str] = set()
    sizes: dict[int, int] = {}
    for layer in flax_layers:
        for unit in layer.units.values():
            sizes[int(np.prod(unit.shape))] = sizes.get(int(np.prod(unit.shape)), 0) + 1
    labels = {layer.label for layer in flax_layers if layer.label}
    for call in calls:
        names = {slot: name for slot, name in call.parameters.items() if "+" not in name}
        for slot, name in call.parameters.items():
            if "+" in name:
                names |= {f"{slot}{i}": part for i, part in enumerate(name.split("+"))}
        fresh = {slot: name for slot, name in names.items() if name not in used}
        used |= set(fresh.values())
        if not fresh:
            continue
        position = (call.index,)
        if call.name in _RECURRENT:
            layers += _recurrent_layers(call, fresh, tensors, labels)
        elif call.name in _SLOTS and "weight" in fresh:
            kernel = fresh["weight"]
            units = {"kernel": _Unit(kernel, tensors[kernel])}
            if "bias" in fresh:
                units["bias"] = _Unit(fresh["bias"], tensors[fresh["bias"]])
            layer = _Layer(position, _SLOTS[call.name], units, features=_features(calls, call))
            layers += _split(layer, sizes)
        elif call.name in _NORMS:
            roles = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
            units = {roles[slot]: _Unit(name, tensors[name]) for slot, name in fresh.items() if slot in roles}
            layers.append(_Layer(position, "plain", units))
        else:
            for place, name in enumerate(each for each in fresh.values() if each not in constants):
                role = {"mul": "scale", "prelu": "scale", "add": "bias", "matmul": "kernel"}.get(call.name, "plain")
                layers.append(_Layer((*position, place), "plain", {role: _Unit(name, tensors[name])}))
    return layers, used


def _features(calls: Sequence[Call], call: Call) -> tuple[Shape, ...]:
    """Shapes of images that were flattened on the way to a linear layer: the nearest values of more than two axes."""
    found, node, by_index = [], call, {each.index: each for each in calls}
    for _ in range(6):
        if not node.inputs or node.inputs[0] not in by_index:
            break
        node = by_index[node.inputs[0]]
        if node.output.ndim > 2:
            found.append(tuple(node.output.shape[1:]))
            break
    return tuple(found)


def _split(layer: _Layer, sizes: Mapping[int, int]) -> list[_Layer]:
    """A packed projection as several layers, where the port has several arrays for it and none of its size."""
    kernel = layer.units["kernel"]
    rows, size = kernel.shape[0], int(np.prod(kernel.shape))
    if layer.kind != "linear" or sizes.get(size):
        return [layer]
    for groups in (3, 2, 4):
        if rows % groups == 0 and sizes.get(size // groups, 0) >= groups:
            return [_block(layer, rows // groups, group, group) for group in range(groups)]
    return [layer]


def _block(layer: _Layer, rows: int, group: int, order: int, label: str = "") -> _Layer:
    cut = (group * rows, (group + 1) * rows)
    units = {role: _Unit(unit.name, (rows, *unit.shape[1:]), cut) for role, unit in layer.units.items()}
    return layer._replace(position=(*layer.position, order), units=units, label=label)


def _recurrent_layers(call: Call, names: Mapping[str, str], tensors: Mapping[str, Shape], labels: set[str]):
    """Layers of an LSTM, a GRU or an RNN: for each direction, weights of the input and of the state."""
    gates = _RECURRENT[call.name]
    ordered = [
        names[slot] for slot in sorted(names, key=lambda slot: int(slot.rpartition(".")[2] or 0)) if "weight" in slot
    ]
    per_cell = 4 if call.arguments.get("has_biases", True) else 2
    layers = []
    for cell, start in enumerate(range(0, len(ordered), per_cell)):
        its = ordered[start : start + per_cell]
        for place, label in enumerate("ih"):
            units = {"kernel": _Unit(its[place], tensors[its[place]])}
            if per_cell == 4:
                units["bias"] = _Unit(its[place + 2], tensors[its[place + 2]])
            whole = _Layer((call.index, cell, place), "linear", units, f"{label}" if labels else "")
            if any(len(each) == 2 for each in labels) and gates:
                rows = tensors[its[place]][0] // len(gates)
                layers += [_block(whole, rows, i, i, label + gate) for i, gate in enumerate(gates)]
            else:
                layers.append(whole._replace(label=""))
    return layers


_GATE_NAMES = {first + second for first in "ih" for second in "ifgorzn"}
_KERNEL_PRIMITIVES = ("conv_general_dilated", "dot_general", "gather", "scan", "while", "take")


def _flax_layers(
    evaluation: Evaluation, params: Mapping[str, Shape], stats: Mapping[str, Shape], inputs: Sequence[str]
):
    """The port's layers in order of use, and the paths of arrays that its forward pass does not use."""
    first: dict[str, tuple[int, str]] = {}
    names = set(inputs)
    for value in evaluation.values:
        if value.primitive == "argument" or not (value.leaves & names):
            continue
        for leaf in value.leaves - names:
            if leaf not in first:
                operands = [evaluation.values[i] for i in value.inputs]
                own = [each for each in operands if leaf in each.leaves and not each.leaves & names]
                first[leaf] = (value.index, value.primitive if own else "inner")
    unused = [
        path for path in [*params, *stats] if path not in first and np.prod((params | stats)[path], initial=1) > 0
    ]
    parents = {path.rpartition("/")[0] for path in params}
    groups: dict[str, list[str]] = {}
    for path in [*params, *stats]:
        if path in first:
            # Statistics of Linen lie in collections of their own, under the path of their module.
            inner = path.partition("/")[2].rpartition("/")[0]
            owner = inner if path in stats and inner in parents else path.rpartition("/")[0]
            groups.setdefault(owner, []).append(path)
    layers = []
    for parent, paths in groups.items():
        layers += _group(parent, paths, first, params, stats)
    return sorted(layers, key=lambda layer: layer.position), unused


def _group(parent: str, paths: list[str], first, params, stats) -> list[_Layer]:
    roles: dict[str, list[str]] = {}
    for path in paths:
        primitive = first[path][1]
        if path in stats:
            role = "mean" if primitive in ("sub", "add") else "var"
        elif primitive in _KERNEL_PRIMITIVES:
            role = "kernel" if len(params[path]) > 1 else "bias"
        elif primitive in ("mul", "div"):
            role = "scale"
        elif primitive in ("add", "sub", "inner") and len(params[path]) <= 2:
            role = "bias"
        else:
            role = "plain"
        roles.setdefault(role, []).append(path)
    tail = parent.rpartition("/")[2].strip("_")
    label = tail if tail in _GATE_NAMES and any(first[path][1] in ("scan", "while") for path in paths) else ""
    shapes = {**params, **stats}
    single = all(len(each) == 1 for each in roles.values()) and not ("kernel" in roles and "scale" in roles)
    if single and "plain" not in roles:
        units = {role: _Unit(each[0], shapes[each[0]]) for role, each in roles.items()}
        position = min(first[path][0] for path in paths)
        order = ("ih".index(label[0]), "ifgorzn".index(label[1])) if label else ()
        return [_Layer((position, parent.rpartition("/")[0] if label else "", *order), "", units, label)]
    return [
        _Layer((first[path][0], "", place), "", {role: _Unit(path, shapes[path])})
        for role, each in roles.items()
        for place, path in enumerate(each)
    ]


def _fit(torch_layer: _Layer, flax_layer: _Layer) -> float:
    """How well two layers go together; 0 where they do not."""
    if torch_layer.label != flax_layer.label:
        return 0.0
    main = next((role for role in ("kernel", "scale", "plain", "bias", "mean") if role in torch_layer.units), None)
    if main is None:
        return 0.0
    its = flax_layer.units.get(main)
    if its is None and main in ("plain", "bias", "kernel"):
        its = next(
            (flax_layer.units[role] for role in ("plain", "scale", "bias", "kernel") if role in flax_layer.units), None
        )
        if its is None or (main == "bias" and len(torch_layer.units) == 1 and len(flax_layer.units) > 1):
            return 0.0
    if its is None:
        return 0.0
    fitting = layouts(_kind(torch_layer, main), torch_layer.units[main].shape, its.shape, torch_layer.features)
    if not fitting:
        return 0.0
    alike = len(set(torch_layer.units) & set(flax_layer.units)) - 0.5 * len(
        set(torch_layer.units) ^ set(flax_layer.units)
    )
    return 3.0 + (0.5 if fitting[0].usual else 0.0) + 0.25 * alike


def _kind(layer: _Layer, role: str) -> str:
    return layer.kind if role == "kernel" else "plain"


def _align(torch_layers: Sequence[_Layer], flax_layers: Sequence[_Layer]) -> list[tuple[_Layer, _Layer]]:
    """The pairing of both sequences that keeps their order and fits best; then likewise of what is left over."""
    rows, columns = len(torch_layers), len(flax_layers)
    fits = [[_fit(one, other) for other in flax_layers] for one in torch_layers]
    best = np.zeros((rows + 1, columns + 1))
    for i in range(rows - 1, -1, -1):
        for j in range(columns - 1, -1, -1):
            pair = fits[i][j] + best[i + 1, j + 1] if fits[i][j] > 0 else -1.0
            best[i, j] = max(pair, best[i + 1, j], best[i, j + 1])
    pairs, i, j = [], 0, 0
    while i < rows and j < columns:
        if fits[i][j] > 0 and best[i, j] == fits[i][j] + best[i + 1, j + 1]:
            pairs.append((torch_layers[i], flax_layers[j]))
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    if not pairs:
        return []
    # Branches that both sides run in another order are left over; among themselves they have an order again.
    left = [layer for layer in torch_layers if not any(layer is one for one, _ in pairs)]
    free = [layer for layer in flax_layers if not any(layer is other for _, other in pairs)]
    return [*pairs, *_align(left, free)]


def _pair_units(torch_layer: _Layer, flax_layer: _Layer) -> Iterator[Piece]:
    for role, unit in torch_layer.units.items():
        its = flax_layer.units.get(role)
        if its is None and len(torch_layer.units) == 1 and len(flax_layer.units) == 1:
            its = next(iter(flax_layer.units.values()))
        if its is not None and (piece := _pair(torch_layer, role, unit, its)) is not None:
            yield piece


def _pair(layer: _Layer, role: str, unit: _Unit, its: _Unit) -> Piece | None:
    features = layer.features if role == "kernel" else ()
    fitting = layouts(_kind(layer, role), unit.shape, its.shape, features)
    if not fitting:
        return None
    return Piece(unit.name, unit.rows, its.name, fitting[0], _kind(layer, role), unit.shape, its.shape, features)


def _leftover_units(torch_layers, flax_layers, pieces) -> list[Piece]:
    """Biases and the like whose layers were paired without them: in order, those of one role first."""
    taken_torch = {(piece.torch, piece.rows) for piece in pieces}
    taken_flax = {piece.flax for piece in pieces}
    free = [
        (role, unit, len(layer.units) == 1)
        for layer in flax_layers
        for role, unit in layer.units.items()
        if unit.name not in taken_flax
    ]
    found = []
    for same_role in (True, False):
        for layer in torch_layers:
            for role, unit in layer.units.items():
                if (unit.name, unit.rows) in taken_torch:
                    continue
                for candidate in free:
                    its_role, its, lone = candidate
                    if (its_role == role if same_role else lone) and its.shape == unit.shape:
                        found.append(_pair(layer, role, unit, its))
                        taken_torch.add((unit.name, unit.rows))
                        free.remove(candidate)
                        break
    return [piece for piece in found if piece is not None]


def _shared_biases(torch_layers, pieces) -> list[Piece]:
    """Zeros for the second bias of a recurrent layer, where the port has one for both."""
    paired = {(piece.torch, piece.rows): place for place, piece in enumerate(pieces)}
    found = []
    for layer in torch_layers:
        unit = layer.units.get("bias")
        if unit is None or (unit.name, unit.rows) in paired or ("_ih" not in unit.name and "_hh" not in unit.name):
            continue
        swapped = {"_ih": "_hh", "_hh": "_ih"}
        key = "_ih" if "_ih" in unit.name else "_hh"
        partner = (unit.name.replace(key, swapped[key]), unit.rows)
        if partner not in paired:
            continue
        place = paired[partner]
        pieces[place] = pieces[place]._replace(adds=(unit.name, unit.rows))
        found.append(Piece(unit.name, unit.rows, "", _ZEROS, "plain", unit.shape, (0,)))
    return found


def other_orders(mapping: WeightMap, names: Sequence[str]) -> Iterator[tuple[str, WeightMap]]:
    """Mappings in which the tensors of one call lie in another order of elements, each with what it says.

    Args:
      mapping: the one that does not explain the call.
      names: PyTorch's names of the tensors that the call takes.
    """
    places = [place for place, piece in enumerate(mapping.pieces) if piece.torch in names and piece.flax]
    kernels = [place for place in places if len(mapping.pieces[place].shape) > 1]
    for place in kernels:
        piece = mapping.pieces[place]
        for layout in layouts(piece.kind, piece.shape, piece.flax_shape, piece.features):
            if layout.name != piece.layout.name:
                yield layout.name, _with(mapping, {place: piece._replace(layout=layout)})
    yield from _reordered_rows(mapping, places, kernels)


def _with(mapping: WeightMap, changed: Mapping[int, Piece]) -> WeightMap:
    return mapping._replace(pieces=tuple(changed.get(i, piece) for i, piece in enumerate(mapping.pieces)))


def _reordered_rows(mapping: WeightMap, places: Sequence[int], kernels: Sequence[int]):
    import itertools

    if not kernels:
        return
    rows = mapping.pieces[kernels[0]].shape[0]
    same = [p for p in places if mapping.pieces[p].shape[:1] == (rows,) and mapping.pieces[p].rows is None]
    if len(same) < len(places) or mapping.pieces[kernels[0]].kind != "linear":
        return
    recurrent = any("_hh" in mapping.pieces[p].torch for p in kernels)
    packed = [n for n in ((4, 3) if recurrent else (3, 2)) if rows % n == 0]
    for groups in packed:
        for order in itertools.permutations(range(groups)):
            if order != tuple(range(groups)):
                yield (
                    f"blocks of rows in the order {order}",
                    _with(mapping, {p: mapping.pieces[p]._replace(reorder=("blocks", groups, order)) for p in same}),
                )
    if recurrent or rows % 3:
        return
    for heads in range(2, 17):
        if rows % (3 * heads) == 0:
            for how in ("rows", "columns"):
                yield (
                    f"query, key and value of each of {heads} heads side by side",
                    _with(mapping, {p: mapping.pieces[p]._replace(reorder=("heads", 3, heads, how)) for p in same}),
                )


def exchanges(mapping: WeightMap, names: Sequence[str]) -> Iterator[tuple[str, WeightMap]]:
    """Mappings in which a call has the arrays of another, unproved layer of the same shapes, and that one has its."""
    places = [place for place, piece in enumerate(mapping.pieces) if piece.torch in names and piece.flax]
    by_parent: dict[str, dict[str, int]] = {}
    for place, piece in enumerate(mapping.pieces):
        if piece.flax:
            by_parent.setdefault(piece.flax.rpartition("/")[0], {})[piece.flax.rpartition("/")[2]] = place
    parents = {mapping.pieces[place].flax.rpartition("/")[0] for place in places}
    for parent in parents:
        own = {name: place for name, place in by_parent[parent].items() if place in places}
        for other, its in by_parent.items():
            if other in parents or not own.keys() <= its.keys():
                continue
            pairs = [(own[name], its[name]) for name in own]
            if any(
                mapping.pieces[a].shape != mapping.pieces[b].shape
                or mapping.pieces[a].flax_shape != mapping.pieces[b].flax_shape
                or mapping.pieces[b].proved
                for a, b in pairs
            ):
                continue
            changed = {}
            for a, b in pairs:
                one, two = mapping.pieces[a], mapping.pieces[b]
                changed[a] = one._replace(flax=two.flax, layout=two.layout)
                changed[b] = two._replace(flax=one.flax, layout=one.layout)
            yield f"{parent} and {other} exchanged", _with(mapping, changed)


def exchange(mapping: WeightMap, one: Mapping[str, str], other: Mapping[str, str]) -> WeightMap | None:
    """The mapping with the port's arrays of two calls exchanged; None where their shapes or arguments differ.

    Args:
      mapping: the mapping so far.
      one, other: PyTorch's names by argument, of both calls.
    """
    if one.keys() != other.keys() or set(one.values()) & set(other.values()):
        return None
    changed = {}
    for slot in one:
        mine = [place for place, piece in enumerate(mapping.pieces) if piece.torch == one[slot]]
        theirs = [place for place, piece in enumerate(mapping.pieces) if piece.torch == other[slot]]
        if len(mine) != 1 or len(theirs) != 1:
            return None
        a, b = mapping.pieces[mine[0]], mapping.pieces[theirs[0]]
        if a.shape != b.shape or a.flax_shape != b.flax_shape or not a.flax or not b.flax:
            return None
        changed[mine[0]] = a._replace(flax=b.flax, layout=b.layout)
        changed[theirs[0]] = b._replace(flax=a.flax, layout=a.layout)
    return _with(mapping, changed)
