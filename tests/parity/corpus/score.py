"""Runs the corpus and writes how many places and causes were right: python tests/parity/corpus/score.py [--only=TEXT]

--only=TEXT   runs the cases whose names contain the text
--json=FILE   writes the score; results/compare.json holds that of a whole run
"""

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


class Scored(NamedTuple):
    """One case: whether place and cause were right, and what was named.

    named: causes of all faults and layouts, the first one first. place: torch function of the first fault.
    """

    name: str
    planted: bool
    place_right: bool
    first_right: bool
    within_three: bool
    alarm: bool
    named: list[str]
    place: str
    seconds: float
    error: str = ""


def run_case(case) -> Scored:
    """Compares a case's models, and its optimizers and schedules where it has them."""
    import torch

    from cifar_jax.parity.comparison import compare
    from cifar_jax.parity.comparison.updates import compare_optimizers, compare_schedules

    started = time.monotonic()
    torch.manual_seed(0)
    model = case.torch()
    try:
        result = compare(model, case.port(), case.shapes, loss=case.loss)
        if case.optimizers is not None:
            result = result.with_behavior(compare_optimizers(*case.optimizers, model, result.mapping))
        if case.schedules is not None:
            result = result.with_behavior(compare_schedules(*case.schedules, None, case.steps_per_epoch))
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        seconds = time.monotonic() - started
        return Scored(case.name, bool(case.causes), False, False, False, not case.causes, [], "", seconds, message)
    return judge(case, result, time.monotonic() - started)


def judge(case, result, seconds: float) -> Scored:
    """Whether a result says what the case has."""
    serious = [finding for finding in result.findings if finding.severity != "note"]
    named = [finding.cause for finding in serious]
    place = serious[0].where[0].function if serious else ""
    right = [cause in case.causes for cause in named]
    return Scored(
        case.name, bool(case.causes), bool(serious) and (not case.place or place in case.place), any(right[:1]),
        any(right[:3]), not case.causes and not result.equal, named, place, round(seconds, 1),
    )  # fmt: skip


def summary(scored: list[Scored]) -> dict:
    """Shares over all planted mistakes, and false alarms over all correct ports."""
    planted = [each for each in scored if each.planted]
    correct = [each for each in scored if not each.planted]

    def share(values):
        values = list(values)
        return round(sum(values) / max(len(values), 1), 3)

    return {
        "planted": len(planted),
        "correct": len(correct),
        "place_right": share(each.place_right for each in planted),
        "cause_first": share(each.first_right for each in planted),
        "cause_within_three": share(each.within_three for each in planted),
        "false_alarms": sum(each.alarm for each in correct),
        "seconds": round(sum(each.seconds for each in scored), 1),
        "slowest": max((each.seconds for each in scored), default=0),
    }


def main(argv: list[str]) -> int:
    """Runs the cases and prints a line for each."""
    import torch
    from parity.corpus.cases import CASES

    torch.set_num_threads(1)
    flags = dict(each.lstrip("-").partition("=")[::2] for each in argv)
    scored = []
    for case in CASES:
        if flags.get("only", "") not in case.name:
            continue
        scored.append(run_case(case))
        each = scored[-1]
        good = each.first_right and each.place_right if each.planted else not each.alarm
        mark = "ok  " if good else "MISS"
        print(f"{mark} {each.name:28} {each.seconds:5.1f} s  {each.place} {each.named} {each.error}", flush=True)
    figures = summary(scored)
    print(json.dumps(figures))
    if "json" in flags:
        from cifar_jax.runs.provenance import provenance

        content = {**figures, "origin": provenance(), "cases": [each._asdict() for each in scored]}
        Path(flags["json"]).write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
