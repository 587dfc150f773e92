"""All hypotheses about a forward pass, in the order in which they are tried."""

from cifar_jax.parity.comparison.causes import activations, convolutions, losses, norms, pools, structure
from cifar_jax.parity.comparison.causes.proposal import Kind

# What is special to a function comes before what could be said of any.
_ALL = (*losses.KINDS, *norms.KINDS, *convolutions.KINDS, *pools.KINDS, *structure.KINDS, *activations.KINDS)
FORWARD: tuple[Kind, ...] = tuple(
    sorted(_ALL, key=lambda kind: (kind.id not in ("rounding", "precision"), kind.functions is None, _ALL.index(kind)))
)


def concerning(function: str) -> list[Kind]:
    """The hypotheses that concern a torch function, by its name."""
    return [kind for kind in FORWARD if kind.functions is None or function in kind.functions]
