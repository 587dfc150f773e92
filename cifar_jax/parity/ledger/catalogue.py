"""All rows of the ledger, in the order of the catalogue."""

import re

from cifar_jax.errors import InputError
from cifar_jax.parity.ledger import batch_norm, data, layers, losses, networks, optimizers, random_numbers, schedules
from cifar_jax.parity.ledger.row import Row

_FAMILIES = (batch_norm, networks, layers, optimizers, schedules, losses, data, random_numbers)
_ORDER = ("BN", "N", "L", "O", "S", "M", "D", "R", "P", "C")


def _place(row: Row) -> tuple[int, int]:
    """Family and number: BN1 and BN1L stand before BN2, and in the order in which they are written."""
    family, number = re.match(r"([A-Z]+)([0-9]+)", row.id).groups()
    return _ORDER.index(family), int(number)


ROWS: tuple[Row, ...] = tuple(sorted((row for family in _FAMILIES for row in family.ROWS), key=_place))


def select(ids: list[str]) -> tuple[Row, ...]:
    """The rows of these ids in the ledger's order; of none, all.

    Raises:
      InputError: an id that no row has.
    """
    known = {row.id for row in ROWS}
    if unknown := [each for each in ids if each not in known]:
        raise InputError(f"--only must name rows out of {', '.join(row.id for row in ROWS)}, got {', '.join(unknown)}.")
    return tuple(row for row in ROWS if not ids or row.id in ids)
