"""The lecture's two networks: 3x3 convolutions with BatchNorm and ReLU, max pools between, one linear layer."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from cifar_jax.nn.batch_norm import BatchNormRule, stats_dtype, torch_rule
from cifar_jax.nn.layers import BatchNorm, Initializer, max_pool, torch_bias_init, torch_kernel_init

Stages = tuple[tuple[int, ...], ...]

# Widths of the convolutions; a 2x2 max pool stands after each stage.
NETWORKS: dict[str, Stages] = {
    "cnn6": ((64, 64), (128, 128), (256, 256)),
    "cnn10": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512)),
}
INITS = ("torch", "flax")


class CNN(nn.Module):
    """Stages of convolution, BatchNorm, ReLU, each closed by a max pool; then a global average and a linear layer.

    With the lecture's widths and 100 classes: CNN6 has 1,172,004 parameters and 1,792 running statistics, CNN10 has
    7,689,252 and 5,376. Convolutions have no bias, since BatchNorm's mean would take it out again.

    stages: the widths of each stage's convolutions.
    num_classes: number of logits.
    norm_rule: how BatchNorm keeps its running averages.
    norm_compare: further rules by name, whose running averages are kept beside; see `layers.running_stats`.
    norm_axis_name: `axis_name` of BatchNorm, for a batch that is spread over devices.
    epsilon: BatchNorm's.
    init: "torch" for PyTorch's default initial weights, "flax" for Flax's (lecun_normal, zero bias).
    dtype: type of the computation. Parameters are float32, or float64 for float64.
    """

    stages: Stages
    num_classes: int
    norm_rule: BatchNormRule
    epsilon: float = 1e-5
    init_name: str = "torch"
    dtype: DTypeLike = jnp.float32
    norm_compare: tuple[tuple[str, BatchNormRule], ...] = ()
    norm_axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"], *, train: bool, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch classes"]:
        """Logits, in float32 or float64. `mask` is False for rows that only fill up the batch."""
        x = x.astype(self.dtype)
        number = 0
        for widths in self.stages:
            for place, width in enumerate(widths, 1):
                number += 1
                x = self.block(x, number, width, last=place == len(widths), train=train, mask=mask)
        x = jnp.mean(x, axis=(1, 2))
        bias_init = torch_bias_init(x.shape[-1]) if self.init_name == "torch" else nn.initializers.zeros
        logits = nn.Dense(
            self.num_classes, dtype=self.dtype, param_dtype=stats_dtype(self.dtype), kernel_init=self.kernel_init,
            bias_init=bias_init, name="linear",
        )(x)  # fmt: skip
        return logits.astype(stats_dtype(self.dtype))

    @property
    def kernel_init(self) -> Initializer:
        """What draws the weights, of convolutions and of the linear layer."""
        return torch_kernel_init if self.init_name == "torch" else nn.initializers.lecun_normal()

    def block(self, x, number: int, width: int, *, last: bool, train: bool, mask):
        """Convolution, BatchNorm, ReLU and, after the last of a stage, the pool; `number` counts from 1."""
        x = nn.Conv(
            width, (3, 3), padding=1, use_bias=False, dtype=self.dtype, param_dtype=stats_dtype(self.dtype),
            kernel_init=self.kernel_init, name=f"conv{number}",
        )(x)  # fmt: skip
        x = BatchNorm(
            self.norm_rule, self.epsilon, compare=self.norm_compare, axis_name=self.norm_axis_name,
            name=f"norm{number}",
        )(x, train=train, mask=mask)  # fmt: skip
        x = nn.relu(x)
        return self.pool(x) if last else x

    def pool(self, x):
        """What closes a stage. `fused.FusedCNN` computes this and `block` faster."""
        return max_pool(x)


def create_model(
    name: str,
    *,
    norm_rule: BatchNormRule | None = None,
    num_classes: int = 100,
    stages: Stages = (),
    epsilon: float = 1e-5,
    init_name: str = "torch",
    dtype: DTypeLike = jnp.float32,
    norm_compare: tuple[tuple[str, BatchNormRule], ...] = (),
) -> CNN:
    """The network called `name`, "cnn6" or "cnn10".

    `norm_rule` None takes PyTorch's. `stages` replaces the widths, one for each convolution; `()` keeps the lecture's.

    Raises:
      ValueError: an unknown name or initialisation, or stages of another number of convolutions.
    """
    if name not in NETWORKS:
        raise ValueError(f"model.name must be one of {tuple(NETWORKS)}, got {name!r}.")
    if init_name not in INITS:
        raise ValueError(f"model.init must be one of {INITS}, got {init_name!r}.")
    if not same_depth(stages or NETWORKS[name], name):
        raise ValueError(f"model.stages must be () or widths laid out like {name}'s {NETWORKS[name]}, got {stages}.")
    return CNN(
        stages=stages or NETWORKS[name], num_classes=num_classes, norm_rule=norm_rule or torch_rule(), epsilon=epsilon,
        init_name=init_name, dtype=dtype, norm_compare=norm_compare,
    )  # fmt: skip


def same_depth(stages: Sequence[Sequence[int]], name: str) -> bool:
    """Whether `stages` has as many convolutions between pools as the network called `name`."""
    return [len(widths) for widths in stages] == [len(widths) for widths in NETWORKS[name]]
