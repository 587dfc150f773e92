"""The ledger: every difference between PyTorch and JAX, measured three times, in torch, here and in plain JAX."""

from cifar_jax.parity.ledger.command import main

__all__ = ["main"]
