"""What a comparison found: it prints itself, and writes itself as JSON and as a page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cifar_jax.files import write_whole
from cifar_jax.parity.comparison.causes.proposal import FAULT, LAYOUT, NOTE
from cifar_jax.parity.comparison.jaxpr_values import Source
from cifar_jax.parity.comparison.mapping import WeightMap

EQUAL, DIFFERENT, NOT_COMPARED = "equal", "different", "not compared"


class Where(NamedTuple):
    """A place by both names: PyTorch's module, function and line; the port's scope, operation and line.

    phase: "evaluation", "training", "backward", "statistics", "initial", "optimizer", "schedule" or "spec".
    error: largest difference over the largest value; NaN where there is none to take.
    """

    phase: str
    module: str
    function: str
    source: Source | None
    scope: str
    primitive: str
    port_source: Source | None
    error: float

    def __str__(self) -> str:
        mine = " ".join(filter(None, (self.module, self.function))) or "the model"
        theirs = " ".join(filter(None, (self.scope, self.primitive))) or "the port"
        at = f" ({self.source})" if self.source else ""
        port_at = f" ({self.port_source})" if self.port_source else ""
        error = "" if self.error != self.error else f", error {self.error:.1e}"
        return f"{mine}{at} against {theirs}{port_at}{error}, {self.phase}"


class Finding(NamedTuple):
    """One difference with its cause, and all places where it was found, the first one first.

    cause: name of the hypothesis that explains it ("epsilon"); empty where none does.
    says: what the port does. fix: the line to write in the port.
    severity: "fault": both compute different things. "layout": the same things with weights in another order.
      "note": a difference that is none of the port's making.
    """

    cause: str
    says: str
    fix: str
    severity: str
    where: tuple[Where, ...]

    def __str__(self) -> str:
        if self.cause:
            lines = [f"{self.severity}: {self.cause}: the port {self.says}."]
        else:
            lines = [f"{self.severity}: no hypothesis explains this difference."]
        lines += [f"  at {self.where[0]}"]
        if len(self.where) > 1:
            lines += [f"  and at {len(self.where) - 1} more: {', '.join(_short(each) for each in self.where[1:6])}"]
        if self.where and (source := self.where[0].port_source) is not None and source.text():
            lines += [f"  the port's line: {source.text()}"]
        return "\n".join([*lines, f"  write: {self.fix}"] if self.fix else lines)


def _short(where: Where) -> str:
    return f"{where.module or where.function} ({where.phase})"


class Layer(NamedTuple):
    """One call of torch's forward pass and its counterpart, for the table of layers.

    module, kind, function, source: PyTorch's. scope, primitive, port_source: the port's; empty without counterpart.
    error: in evaluation. gradient: error of the gradient at this value; None where it was not compared.
    state: "equal", "different", "explained" (different by a cause that was found) or "elsewhere" (no equal of its own,
      but later values agree).
    """

    module: str
    kind: str
    function: str
    source: Source | None
    scope: str
    primitive: str
    port_source: Source | None
    error: float | None
    gradient: float | None
    state: str


class Result(NamedTuple):
    """A comparison.

    torch_name, flax_name: of both models.
    spec, numeric, behavioral: EQUAL, DIFFERENT or NOT_COMPARED.
    findings: all differences, faults in the order of the forward pass first, then layouts, then notes.
    layers: every call of the forward pass.
    parameters: error of each parameter's gradient, by torch's name.
    mapping: pairs of parameters, which converts weights both ways.
    counts: parameters of both sides, in numbers. seconds: what it took.
    reproductions: of each difference without a cause, the call's arguments and both results, by name.
    """

    torch_name: str
    flax_name: str
    spec: str
    numeric: str
    behavioral: str
    findings: tuple[Finding, ...]
    layers: tuple[Layer, ...]
    parameters: Mapping[str, float]
    mapping: WeightMap
    counts: Mapping[str, int]
    seconds: float
    reproductions: tuple[Mapping[str, Any], ...] = ()

    @property
    def equal(self) -> bool:
        """Whether both do the same with the weights that the mapping converts."""
        return DIFFERENT not in (self.spec, self.numeric, self.behavioral)

    @property
    def first(self) -> Finding | None:
        """The first fault, or None."""
        return next((finding for finding in self.findings if finding.severity == FAULT), None)

    def __str__(self) -> str:
        head = [
            f"{self.torch_name} (PyTorch) against {self.flax_name} (Flax): {EQUAL if self.equal else DIFFERENT}",
            f"  Spec        {self.spec}: {self.counts['torch']:,} parameters against {self.counts['flax']:,}, "
            f"{len(self.mapping.pieces)} pairs",
            f"  Numeric     {self.numeric}: {self._numeric()}",
            f"  Behavioral  {self.behavioral}",
        ]
        body = [f"{number}. {finding}" for number, finding in enumerate(self.findings, 1)]
        ambiguous = self.mapping.ambiguous()
        if ambiguous:
            body.append("Pairs that order alone suggests: " + ", ".join(f"{p.where()} = {p.flax}" for p in ambiguous))
        return "\n".join([*head, *body, f"{self.seconds:.0f} s"])

    def _numeric(self) -> str:
        errors = [layer.error for layer in self.layers if layer.error is not None]
        forward = f"{sum(layer.state == EQUAL for layer in self.layers)} of {len(self.layers)} values equal"
        if errors:
            forward += f", largest error {max(errors):.1e}"
        if self.parameters:
            forward += (
                f"; gradients of {len(self.parameters)} tensors, largest error {max(self.parameters.values()):.1e}"
            )
        return forward

    def to_json(self) -> dict[str, Any]:
        """All of it as plain objects; not-a-number becomes None."""
        return {
            "torch": self.torch_name,
            "flax": self.flax_name,
            "equal": self.equal,
            "spec": self.spec,
            "numeric": self.numeric,
            "behavioral": self.behavioral,
            "findings": [
                {**finding._asdict(), "where": [_plain(each) for each in finding.where]} for finding in self.findings
            ],
            "layers": [_plain(layer) for layer in self.layers],
            "gradients": dict(self.parameters),
            "mapping": [
                {"torch": piece.where(), "flax": piece.flax, "layout": piece.layout.name, "proved": bool(piece.proved)}
                for piece in self.mapping.pieces
            ],
            "torch_only": list(self.mapping.torch_only),
            "flax_only": list(self.mapping.flax_only),
            "unused": list(self.mapping.unused),
            "ambiguous": [piece.where() for piece in self.mapping.ambiguous()],
            "parameters": dict(self.counts),
            "seconds": round(self.seconds, 1),
        }

    def write_reproductions(self, folder: str | Path) -> list[Path]:
        """Writes a NumPy file for each difference without a cause: the call's arguments and both results."""
        import numpy as np

        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = []
        for number, arrays in enumerate(self.reproductions, 1):
            paths.append(Path(folder) / f"unexplained_{number}.npz")
            np.savez(paths[-1], **arrays)
        return paths

    def write_json(self, path: str | Path) -> None:
        """Writes `to_json` to a file."""
        write_whole(Path(path), json.dumps(self.to_json(), indent=1) + "\n")

    def write_html(self, path: str | Path) -> None:
        """Writes one page that needs no other file: causes on top, then both models layer by layer."""
        from cifar_jax.parity.comparison.page import render

        write_whole(Path(path), render(self))

    def with_behavior(self, found: Sequence[Finding]) -> "Result":
        """The result with what a comparison of optimizers or schedules found."""
        faults = any(finding.severity == FAULT for finding in found) or self.behavioral == DIFFERENT
        return self._replace(behavioral=DIFFERENT if faults else EQUAL, findings=gather([*self.findings, *found]))

    def assert_equal(self) -> None:
        """Raises AssertionError with the printed result unless both sides are equal."""
        if not self.equal:
            raise AssertionError(str(self))


def _plain(record) -> dict[str, Any]:
    def plain(value):
        if isinstance(value, Source):
            return {"file": value.file, "line": value.line, "text": value.text()}
        return None if isinstance(value, float) and value != value else value

    return {name: plain(value) for name, value in record._asdict().items()}


def gather(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """Findings of one cause together, faults first, in the order in which they were found."""
    grouped: dict[tuple, Finding] = {}
    for finding in found:
        # Differences without a cause have nothing in common but the place.
        place = finding.where[0].module, finding.where[0].function
        key = (finding.cause, finding.says, finding.severity) if finding.cause else place
        if key in grouped:
            grouped[key] = grouped[key]._replace(where=grouped[key].where + finding.where)
        else:
            grouped[key] = finding
    order = {FAULT: 0, LAYOUT: 1, NOTE: 2}
    return tuple(sorted(grouped.values(), key=lambda finding: order[finding.severity]))
