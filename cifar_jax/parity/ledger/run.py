"""Runs rows, and writes what came out as text, JSON, HTML or a table in Markdown."""

import math
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cifar_jax.parity.ledger.page import short
from cifar_jax.parity.ledger.row import AGREE, Measurement, Row, passed, verdict

RAISED = "RAISES"


class Outcome(NamedTuple):
    """A row, what it gave, and whether that is right."""

    row: Row
    measurement: Measurement
    verdict: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the verdict is a good one."""
        return passed(self.verdict)


def run_rows(rows: Sequence[Row]) -> Iterator[Outcome]:
    """Runs the rows, one after the other. A row that raises is a miss, and the others still run."""
    for row in rows:
        start = time.perf_counter()
        try:
            measurement = row.run()
            result = verdict(row, measurement)
        except Exception as error:  # whatever a broken function raises
            measurement = Measurement("", "", "", math.nan, math.nan, f"{type(error).__name__}: {error}")
            result = RAISED
        yield Outcome(row, measurement, result, time.perf_counter() - start)


_COLUMNS = (("id", 6), ("torch", 18), ("ours", 18), ("naive", 33), ("error", 8), ("naive err", 9), ("tolerance", 9))


def header() -> str:
    """The names of the columns that `lines` fills."""
    return "  ".join(name.ljust(width) for name, width in _COLUMNS) + "  verdict"


def lines(outcome: Outcome) -> str:
    """One row as text: a line of values, then what they are."""
    row, m = outcome.row, outcome.measurement
    cells = (row.id, m.torch, m.ours, m.naive, short(m.error), short(m.naive_error), f"{row.tolerance:g}")
    first = "  ".join(cell.ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
    rest = f"{row.title}: {row.compared}. Tolerance: {row.reason}." + (f" Also: {m.note}." if m.note else "")
    return "\n".join(
        [f"{first}  {outcome.verdict}", textwrap.fill(rest, 118, initial_indent=" " * 8, subsequent_indent=" " * 8)]
    )


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many rows pass, and the ids of those that do not."""
    wrong = [f"{o.row.id} ({o.verdict})" for o in outcomes if not o.passed]
    agree = sum(o.verdict == AGREE for o in outcomes)
    seconds = sum(o.seconds for o in outcomes)
    text = f"{len(outcomes) - len(wrong)} of {len(outcomes)} rows pass, {agree} of them where nothing differs"
    return f"{text}, in {seconds:.0f} s." + (f" Wrong: {', '.join(wrong)}." if wrong else "")


def record(outcome: Outcome) -> dict:
    """An outcome, ready for JSON; an error that is no finite number becomes text."""
    row, m = outcome.row, outcome.measurement

    def finite(error):
        return error if math.isfinite(error) else str(error)

    return {
        "id": row.id,
        "title": row.title,
        "compared": row.compared,
        "torch": m.torch,
        "ours": m.ours,
        "naive": m.naive,
        "error": finite(m.error),
        "naive_error": finite(m.naive_error),
        "tolerance": row.tolerance,
        "reason": row.reason,
        "naive_fails": row.naive_fails,
        "verdict": outcome.verdict,
        "passed": outcome.passed,
        "note": m.note,
        "seconds": round(outcome.seconds, 2),
        "explanation": row.explanation,
        "wrong": row.wrong,
        "right": row.right,
    }


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The rows as a table that is the same on every machine: noisy errors stand as more than the tolerance."""
    head = "| row | what differs | measured | torch / plain JAX | ours within | the line |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(_markdown_row(each) for each in outcomes)])


def _markdown_row(outcome: Outcome) -> str:
    row, m = outcome.row, outcome.measurement
    if not outcome.passed:
        effect = f"**{outcome.verdict}**"
    elif not row.naive_fails:
        effect = "no difference"
    elif not _is_number(m.torch):
        effect = f"{m.torch} / {m.naive}"
    elif not row.stable:
        effect = f"off by more than {row.tolerance:g}" if row.tolerance else "differs"
    elif not math.isfinite(m.naive_error):
        effect = f"finite / {m.naive}"
    else:
        effect = f"off by {short(m.naive_error)}"
    code = "<br>".join(f"`{line.strip()}`" for line in row.wrong.splitlines())
    cells = (row.id, row.title, row.compared, effect, f"{row.tolerance:g}" if row.tolerance else "equal", code)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
