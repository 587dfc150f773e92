"""The CIFAR-100 BatchNorm lecture in JAX: same recipe, same seed, same numbers as PyTorch, and faster.

What people import, as `docs/library.md` shows it; the rooms behind it are listed in `docs/design.md`.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from cifar_jax.data import load_dataset
    from cifar_jax.nn.batch_norm import (
        BatchNormRule,
        BatchStats,
        batch_norm,
        flax_rule,
        init_stats,
        lecture_rule,
        torch_rule,
    )
    from cifar_jax.nn.layers import BatchNorm
    from cifar_jax.nn.models import create_model
    from cifar_jax.parity.comparison.engine import compare
    from cifar_jax.runs.config import default_config
    from cifar_jax.runs.config_file import load_config
    from cifar_jax.runs.train import evaluate_run, train_and_evaluate
    from cifar_jax.use.pictures import read_picture
    from cifar_jax.use.trained import load_trained, predict

# Where each name is; loaded when it is first asked for, so that `import cifar_jax` takes no time.
_MODULES = {
    "nn.batch_norm": (
        "BatchNormRule", "BatchStats", "batch_norm", "flax_rule", "init_stats", "lecture_rule", "torch_rule",
    ),
    "nn.layers": ("BatchNorm",),
    "nn.models": ("create_model",),
    "parity.comparison": ("compare",),
    "data": ("load_dataset",),
    "runs.config": ("default_config",),
    "runs.config_file": ("load_config",),
    "runs.train": ("evaluate_run", "train_and_evaluate"),
    "use.pictures": ("read_picture",),
    "use.trained": ("load_trained", "predict"),
}  # fmt: skip
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [  # noqa: RUF022 (in the order in which a reader meets them)
    "batch_norm", "BatchStats", "BatchNormRule", "init_stats", "torch_rule", "flax_rule", "lecture_rule",
    "BatchNorm", "create_model",
    "default_config", "load_config", "load_dataset", "train_and_evaluate", "evaluate_run",
    "load_trained", "predict", "read_picture",
    "compare",
]  # fmt: skip


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
