"""The ledger: every difference between PyTorch and JAX, measured three times, in torch, here and in plain JAX."""
