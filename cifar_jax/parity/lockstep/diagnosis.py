"""From where and how two runs part to the rows of the ledger that could explain it.

`observe` reduces a comparison from common states to a set of facts; `RULES` says which facts speak for which row.
Neither knows what was done to either side.
"""

import math
import re
from typing import NamedTuple

import numpy as np

from cifar_jax.parity.lockstep.record import Record, Witness, outside

# From here on two directions count as the same; rounding of the numbers compared leaves 0.99 and more.
_PARALLEL = 0.9

# Draws from one distribution: of 30 values, the deviation is within a factor of 1.4 nearly always.
_SPREAD = 1.4


class Setting(NamedTuple):
    """What a config says that matters here.

    after_pool: numbers of the norms that are the first after a max pool.
    """

    optimizer: str
    schedule: str
    resized: bool
    dtype: str
    after_pool: tuple[int, ...]


class Suggestion(NamedTuple):
    """A row of the ledger, and how it would explain what was seen."""

    row: str
    text: str


class Rule(NamedTuple):
    """A row is suggested where all of `needs` and none of `without` are facts; each of `hints` lifts it one place."""

    row: str
    text: str
    needs: tuple[str, ...]
    without: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


# Facts: a quantity's name means that it is outside its tolerance at the first step that is. The others are named in
# `observe`. Causes come before their effects, so a rule excludes what would come before its own cause.
_BEFORE_LOGITS = ("images", "input")
_BEFORE_UPDATE = ("images", "input", "logits", "loss", "gradient", "lr")
RULES = (
    Rule("L3", "initial weights of another distribution", ("weights",), ("weights moved",), ("weights spread",)),
    Rule("R1", "initial weights of another random generator", ("weights",), ("weights moved",), ("weights alike",)),
    Rule("C1", "weights are torch's, but in another layout", ("weights moved",)),
    Rule("L2", "a linear layer's rows in another order", ("weights moved",)),
    Rule("S4", "the learning rate is rounded to float32", ("lr", "lr is float32")),
    Rule("S1", "the learning rate drops a step late", ("lr", "lr is late"), (), ("step",)),
    Rule("S2", "the learning rate changes within an epoch, not between epochs", ("lr", "lr moves within epochs"), (),
         ("cosine",)),
    Rule("S3", "the scheduler is stepped twice in an epoch on one side", ("lr", "lr is of other epochs")),
    Rule("S1", "a step schedule of another form", ("lr",), (), ("step",)),
    Rule("S2", "a cosine of another form, such as one that stays at 0", ("lr",), (), ("cosine",)),
    Rule("S3", "another number of scheduler calls", ("lr",)),
    Rule("D3", "the sampler drops the images that fill no whole batch", ("images are missing",), (), ("only ragged",)),
    Rule("D2", "padded rows count as images", ("images are too many",), (), ("only ragged",)),
    Rule("R1", "another order of the images", ("images are others",)),
    Rule("D4", "other images of the batch are mirrored", ("input is mirrored",), ("images",)),
    Rule("R1", "other random draws of the mirrored images", ("input is mirrored",), ("images",)),
    Rule("D1", "another resize", ("input", "resized"), ("images", "input is mirrored")),
    Rule("D1", "another transform of the pixels", ("input",), ("images", "input is mirrored", "resized")),
    Rule("BN7", "padded rows join the batch's statistics", ("logits", "only ragged"), _BEFORE_LOGITS),
    Rule("D2", "padded rows of the last batch are not left out", ("logits", "only ragged"), _BEFORE_LOGITS),
    Rule("BN3", "the batch's variance cancels: one pass instead of two", ("logits", "first var"),
         (*_BEFORE_LOGITS, "first mean", "only ragged")),
    Rule("BN3", "the batch's variance cancels where the mean is large: one pass instead of two", ("logits", "float32"),
         (*_BEFORE_LOGITS, "first mean", "only ragged", "agrees up to a pool", "statistics agree")),
    Rule("L4", "another max pool: everything agrees up to the first", ("logits", "agrees up to a pool"),
         _BEFORE_LOGITS),
    Rule("BN4", "another epsilon: the first norm's statistics agree, not what comes after it", ("logits",),
         (*_BEFORE_LOGITS, "first mean", "first var", "agrees up to a pool", "statistics agree"), ("only second",)),
    Rule("L2", "a linear layer's rows in another order: every norm agrees", ("logits", "statistics agree"),
         _BEFORE_LOGITS),
    Rule("P1", "products of lower precision: the first convolution is off by 1e-4 or more", ("logits", "rounded"),
         (*_BEFORE_LOGITS, "only ragged")),
    Rule("L1", "another padding: the first convolution differs", ("logits", "first mean"),
         (*_BEFORE_LOGITS, "only ragged")),
    Rule("P1", "products of another precision", ("logits",), _BEFORE_LOGITS),
    Rule("M3", "a softmax that overflows before its logarithm", ("loss",), ("logits", *_BEFORE_LOGITS)),
    Rule("M1", "the loss is another mean of the batch", ("loss",), ("logits", *_BEFORE_LOGITS)),
    Rule("L5", "another gradient of the ReLU at 0", ("gradient",), ("logits", "loss", *_BEFORE_LOGITS),
         ("last norm's bias",)),
    Rule("L4", "the max pool shares a gradient among equal values", ("gradient",),
         ("logits", "loss", *_BEFORE_LOGITS), ("last norm's bias agrees",)),
    Rule("BN1", "the running averages keep another share of the old one", ("running_mean",),
         (*_BEFORE_UPDATE, "statistics are float32"),
         ("same share",)),
    Rule("BN2", "the running variance is n/(n-1) of the other: biased against unbiased", ("running_var",),
         (*_BEFORE_UPDATE, "running_mean")),
    Rule("BN6", "statistics kept in another type", ("statistics are float32",), ("images", "input")),
    Rule("O3", "AdamW: the decay moves the weights past the moments", ("parameter along weights", "adam"),
         _BEFORE_UPDATE),
    Rule("O3", "AdamW: the decay does not join the gradient", ("moment along weights", "adam"), _BEFORE_UPDATE),
    Rule("O1", "weight decay is missing, or joins after the momentum", ("moment along weights",), _BEFORE_UPDATE,
         ("sgd",)),
    Rule("O1", "weight decay of another strength, or not times the learning rate", ("parameter along weights",),
         _BEFORE_UPDATE, ("sgd",)),
    Rule("O2", "Adam's bias correction: every update is off by one factor", ("parameter along update", "adam"),
         (*_BEFORE_UPDATE, "moment")),
    Rule("O2", "Adam's denominator or bias correction", ("parameter", "adam"), (*_BEFORE_UPDATE, "moment")),
    Rule("O1", "another momentum or weight decay", ("moment", "sgd"), _BEFORE_UPDATE),
    Rule("O3", "other moments of Adam, or decay that does not join the gradient", ("moment", "adam"), _BEFORE_UPDATE),
    Rule("M1", "the epoch's loss is the mean of batch means, not of images", ("epoch_loss",),
         ("loss", *_BEFORE_LOGITS)),
)  # fmt: skip


def diagnose(record: Record, setting: Setting) -> list[Suggestion]:
    """The rows that could explain `record`, a comparison from common states; the best explanation first."""
    facts = observe(record, setting)
    ranked = {}
    for rule in RULES:
        if facts.issuperset(rule.needs) and facts.isdisjoint(rule.without):
            score = len(rule.needs) + len(facts.intersection(rule.hints))
            if score > ranked.get(rule.row, (0, ""))[0]:
                ranked[rule.row] = (score, rule.text)
    best = sorted(ranked.items(), key=lambda item: -item[1][0])  # stable: equals keep the table's order
    return [Suggestion(row, text) for row, (_, text) in best]


def observe(record: Record, setting: Setting) -> set[str]:
    """The facts of a comparison."""
    facts = {setting.optimizer, setting.schedule, setting.dtype} | ({"resized"} if setting.resized else set())
    if max(record.weights.values()) > record.tolerance["weights"]:
        spread = "weights spread" if record.spread > _SPREAD else "weights alike"
        return facts | {"weights", spread} | ({"weights moved"} if record.same_values else set())
    facts |= _rate_facts(record)
    if record.witness is not None:
        found = outside(record.witness.step, record.tolerance)
        facts |= {quantity for quantity, _, _ in found}
        wrong = [step for step in record.steps if outside(step, record.tolerance)]
        if all(step.ragged for step in wrong) and any(not step.ragged for step in record.steps):
            facts.add("only ragged")
        facts |= _witness_facts(record.witness, {tensor for _, tensor, _ in found}, facts, setting)
    return facts


def _rate_facts(record: Record) -> set[str]:
    errors, ours, theirs = record.rate_errors(), record.our_rates.astype(np.float64), record.their_rates
    wrong = np.flatnonzero(errors > record.tolerance["lr"])
    if not len(wrong):
        return set()
    facts, close = {"lr"}, 1e-6 * record.base_lr

    def same(a, b):
        return bool(np.all(np.abs(a - b) <= close))

    if np.all(np.abs(ours - theirs) <= 2**-23 * np.abs(theirs)):
        return facts | {"lr is float32"}
    by_epoch, their_epoch = ours.reshape(-1, record.steps_per_epoch), theirs[:: record.steps_per_epoch]
    if same(ours[wrong], ours[wrong - 1]) and same(ours[wrong], theirs[wrong - 1]):
        facts.add("lr is late")
    elif not same(by_epoch, by_epoch[:, :1]):
        facts.add("lr moves within epochs")
    else:
        ours, half = by_epoch[:, 0], (len(their_epoch) + 1) // 2
        if half > 1 and (same(ours[:half], their_epoch[::2]) or same(ours[::2], their_epoch[:half])):
            facts.add("lr is of other epochs")
    return facts


def _witness_facts(witness: Witness, tensors: set[str], found: set[str], setting: Setting) -> set[str]:
    ours, theirs = witness.ours, witness.theirs
    errors = witness.step.errors
    if ours is None:
        return {"images are missing"}
    if math.isinf(errors["images"]["indices"]):
        more = len(ours.indices) - witness.step.images
        return {"images are too many" if more > 0 else "images are missing" if more < 0 else "images are others"}
    facts = set()
    if errors["images"]["batches"]:
        facts.add("images are too many")
    if "input" in found and _is_mirrored(ours.input, theirs.input):
        facts.add("input is mirrored")
    facts |= _norm_facts(tensors, setting)
    if any(a.dtype == np.float32 != theirs.state_dict[k].dtype for k, a in ours.state_dict.items()):
        facts.add("statistics are float32")
    if setting.dtype == "float32" and {"first mean"} <= facts and 1e-4 < errors["logits"]["logits"] < 0.1:
        facts.add("rounded")
    last = max((t for t in theirs.gradient if re.fullmatch(r"norm\d+\.bias", t)), key=_number)
    facts.add("last norm's bias" if last in tensors else "last norm's bias agrees")
    means = [key for key in theirs.state_dict if key.endswith("running_mean")]
    moved = [theirs.state_dict[k] - witness.before[k] for k in means]
    if _parallel([ours.state_dict[k] - theirs.state_dict[k] for k in means], moved):
        facts.add("same share")
    return facts | _update_facts(witness)


def _norm_facts(tensors: set[str], setting: Setting) -> set[str]:
    """Where among the layers the batch's statistics begin to differ."""
    first = {
        kind: min((_number(t) for t in tensors if re.fullmatch(rf"norm\d+\.running_{kind}", t)), default=None)
        for kind in ("mean", "var")
    }
    facts = {f"first {kind}" for kind, number in first.items() if number == 1}
    begins = min((number for number in first.values() if number), default=None)
    if begins is None:
        facts.add("statistics agree")
    if begins == 2:
        facts.add("only second")
    if begins in setting.after_pool:
        facts.add("agrees up to a pool")
    return facts


def _update_facts(witness: Witness) -> set[str]:
    """Which way a wrong update points. Only matrices: the vectors start at 0 or 1, which says little."""
    ours, theirs, before = witness.ours, witness.theirs, witness.before
    names = list(theirs.gradient)
    matrices = [name for name in names if before[name].ndim > 1]
    weights = [before[name] for name in matrices]
    facts = set()
    first = {"momentum_buffer", "exp_avg"} & set(ours.moments) & set(theirs.moments)
    if any(_parallel([ours.moments[m][k] - theirs.moments[m][k] for k in matrices], weights) for m in first):
        facts.add("moment along weights")
    if _parallel([ours.state_dict[k] - theirs.state_dict[k] for k in matrices], weights):
        facts.add("parameter along weights")
    if _parallel(
        [ours.state_dict[k] - theirs.state_dict[k] for k in names], [theirs.state_dict[k] - before[k] for k in names]
    ):
        facts.add("parameter along update")
    return facts


def _is_mirrored(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether the images that differ are each other's mirror images."""
    different = np.abs(ours - theirs).max(axis=(1, 2, 3)) > 1e-6
    return bool(np.abs(ours[different][:, :, ::-1] - theirs[different]).max(initial=0.0) <= 1e-6)


def _parallel(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    """Whether `a`, all tensors as one vector, points along `b` or against it."""
    a, b = (np.concatenate([x.ravel() for x in tensors]).astype(np.float64) for tensors in (a, b))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return bool(lengths > 0 and abs(float(a @ b)) > _PARALLEL * lengths)


def _number(tensor: str) -> int:
    return int(re.search(r"\d+", tensor)[0])
