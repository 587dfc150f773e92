"""The name before version 0.2 of `python -m cifar_jax table`; it still runs."""

from cifar_jax.__main__ import main

if __name__ == "__main__":
    main("table")
