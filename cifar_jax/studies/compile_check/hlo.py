"""What is in a compiled program: the kernels of its loop, the bytes they move, what travels and what is looked up.

A kernel is an instruction of the optimized module that runs by itself: a fusion, a library call, a copy, a collective.
What is counted is the body of the largest loop, that is a step of an epoch; of a program without one, the program.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

_BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_FREE = (
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "partition-id", "replica-id", "after-all",
    "opt-barrier", "optimization-barrier", "iota",
)  # fmt: skip
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Instruction(NamedTuple):
    """One line of a computation: `%name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    attributes: str

    def attribute(self, key: str) -> str | None:
        """Such as the computation that a fusion `calls`."""
        found = re.search(rf'\b{key}="?%?([\w.\-$]+)', self.attributes)
        return found and found[1]


class Counts(NamedTuple):
    """What one step does.

    kernels: instructions that run by themselves.
    megabytes: what they read and write; of an operand of which a fusion only takes slices or gathers rows, these.
    collectives: how many of each kind.
    transpositions: kernels that only change the order of at least a megabyte.
    looked_up: elements that gathers take one by one, such as labels; a table of pixel values makes it millions.
    """

    kernels: int
    megabytes: float
    collectives: dict[str, int]
    transpositions: int
    looked_up: int


def count(text: str) -> Counts:
    """What the largest loop of a compiled module, or all of it, does each time around."""
    computations, entry = parse(text)
    bodies = [i.attribute("body") for body in computations.values() for i in body if i.opcode == "while"]
    main = max(bodies, key=lambda name: len(computations[name])) if bodies else entry
    inside = list(_flat(computations, main))
    shapes = {i.name: i.shape for i in inside}
    # An asynchronous operation is counted where it starts.
    kernels = [i for i in inside if i.opcode not in _FREE and not i.opcode.endswith(("-done", "-update"))]
    moved = sum(size(i.shape) + _read(i, shapes, computations) for i in kernels)
    collectives = Counter(i.opcode.removesuffix("-start") for i in kernels if i.opcode.startswith(_COLLECTIVES))
    everything = kernels + [part for i in kernels for part in computations.get(i.attribute("calls") or "", [])]
    return Counts(
        kernels=len(kernels),
        megabytes=round(moved / 1e6, 1),
        collectives=dict(sorted(collectives.items())),
        transpositions=sum(_transposes(i, computations) for i in kernels),
        looked_up=sum(elements(i.shape) for i in everything if i.opcode == "gather" and _takes_single(i)),
    )


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a module by name, and the name of the one it starts with."""
    computations, entry, name = {}, "", None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.rstrip().endswith("{"):
            name = re.match(r"[\w.\-]+", line.removeprefix("ENTRY ").lstrip("%"))[0]
            computations[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            name = None
        elif name and " = " in line:
            computations[name].append(_instruction(line.strip()))
    return computations, entry


def size(shape: str) -> int:
    """Bytes of all arrays in a shape such as `(f32[200,10]{1,0}, s32[])`."""
    return sum(_BYTES.get(kind, 4) * _product(dims) for kind, dims in _arrays(shape))


def elements(shape: str) -> int:
    """How many numbers all arrays in a shape hold."""
    return sum(_product(dims) for _, dims in _arrays(shape))


def _arrays(shape):
    return re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)


def _product(dims):
    return math.prod(int(dim) for dim in dims.split(",") if dim)


def _instruction(line):
    name, rest = line.removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].strip()
    opcode = rest.split("(", 1)[0]
    rest = rest[len(opcode) :]
    end = _closing(rest)
    # A parameter's operand is its number.
    operands = re.findall(r"%([\w.\-]+)|^\((\d+)\)$", rest[:end])
    return Instruction(name.lstrip("%"), shape, opcode, [a or b for a, b in operands], rest[end:])


def _closing(text):
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place + 1
    return len(text)


def _flat(computations, name):
    for instruction in computations[name]:
        if instruction.opcode == "call":
            yield from _flat(computations, instruction.attribute("to_apply"))
        else:
            yield instruction


def _read(instruction, shapes, computations):
    inner = computations.get(instruction.attribute("calls") or "", [])
    parameters = {int(i.operands[0]): i.name for i in inner if i.opcode == "parameter"}
    total = 0
    for place, operand in enumerate(instruction.operands):
        whole, names = size(shapes.get(operand, "")), {parameters.get(place)}
        for part in inner:
            if part.opcode in ("bitcast", "copy", "reshape") and names & set(part.operands):
                names.add(part.name)
        users = [part for part in inner if names & set(part.operands) and part.name not in names]
        if users and all(u.opcode in ("slice", "dynamic-slice", "gather") and u.operands[0] in names for u in users):
            whole = min(whole, sum(size(user.shape) for user in users))
        total += whole
    return total


def _transposes(instruction, computations):
    if size(instruction.shape) < 1e6:
        return False
    inner = computations.get(instruction.attribute("calls") or "", [])
    opcodes = {part.opcode for part in inner} - set(_FREE) or {instruction.opcode}
    return opcodes <= {"transpose", "copy", "copy-start", "reshape", "convert"} and bool(
        opcodes & {"transpose", "copy", "copy-start"}
    )


def _takes_single(instruction):
    sizes = re.search(r"slice_sizes=\{([\d,]*)\}", instruction.attributes)
    return sizes is not None and _product(sizes[1]) == 1
