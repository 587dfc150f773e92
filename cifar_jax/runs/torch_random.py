"""PyTorch's random numbers on the CPU, in NumPy: what the lecture's program draws from `torch.manual_seed(seed)`.

That program builds the network, then trains in epochs, each a pass over a shuffled training DataLoader, with one
`torch.rand(1)` an image where images are flipped, and a pass over a test DataLoader that is not shuffled
(`num_workers=0`). Everything comes from one Mersenne Twister, whose 32-bit outputs NumPy's has too; what PyTorch makes
of them is here. Checked against torch 2.13.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int32, UInt32

# From here on torch.randperm takes 64 bits a draw.
_LARGE_PERMUTATION = (2**32 - 1) // 20


class Generator:
    """`torch.Generator().manual_seed(seed)`; of a seed only the low 32 bits count, as in PyTorch."""

    def __init__(self, seed: int):
        self._twister = np.random.MT19937(0)
        # RandomState is the one that seeds the Twister with a plain number, as PyTorch and its authors do.
        self._twister.state = np.random.RandomState(seed % 2**32).get_state(legacy=False)

    def bits(self, n: int) -> UInt32[np.ndarray, " n"]:
        """The next n outputs of the Twister."""
        return self._twister.random_raw(n).astype(np.uint32)

    def skip(self, n: int) -> None:
        """Passes over n outputs, some hundred million a second."""
        self._twister.random_raw(n, output=False)

    def rand(self, n: int) -> Float[np.ndarray, " n"]:
        """`torch.rand(n)`, float32, and also n times `torch.rand(1)`: 24 bits of one output each."""
        return ((self.bits(n) & 0xFFFFFF) * 2.0**-24).astype(np.float32)

    def rand_double(self, n: int) -> Float[np.ndarray, " n"]:
        """`torch.rand(n, dtype=torch.float64)`: 53 bits of two outputs each."""
        high, low = self.bits(2 * n).astype(np.uint64).reshape(n, 2).T
        return (((high << np.uint64(32)) | low) & np.uint64(2**53 - 1)) * 2.0**-53

    def uniform(self, n: int, bound: float) -> Float[np.ndarray, " n"]:
        """`torch.empty(n).uniform_(-bound, bound)`, float32.

        PyTorch scales with a fused multiply-add where the processor has one (any with AVX2), which rounds once; rounded
        twice, half of the numbers would be off by a bit. Here the product and the sum are exact in double precision.
        """
        low, high = np.float32(-bound), np.float32(bound)
        return (self.rand(n) * np.float64(high - low) + np.float64(low)).astype(np.float32)

    def integer(self) -> int:
        """`torch.empty((), dtype=torch.int64).random_()`: from 0 to below 2^63, of two outputs."""
        high, low = self.bits(2).tolist()
        return (high << 32 | low) % 2**63

    def permutation(self, n: int) -> Int32[np.ndarray, " n"]:
        """`torch.randperm(n)`: a Fisher-Yates shuffle from the front, one output for each place but the last.

        Raises:
          ValueError: n is 214,748,364 or more, where PyTorch draws otherwise.
        """
        if n >= _LARGE_PERMUTATION:
            raise ValueError(f"n must be below {_LARGE_PERMUTATION}, from where PyTorch takes 64 bits a draw, got {n}.")
        places = (np.arange(n - 1) + self.bits(max(n - 1, 0)) % np.arange(n, 1, -1)).tolist()
        order = list(range(n))
        for place, other in enumerate(places):
            order[place], order[other] = order[other], order[place]
        return np.array(order, np.int32)


def draw_params(seed: int, params: Mapping) -> dict:
    """The initial parameters of the network that the program builds first of all.

    Weights are drawn in the order of construction, conv1, conv2, ... and linear, by `kaiming_uniform_(a=sqrt(5))`, the
    linear layer's bias after its weight. BatchNorm draws nothing. Numbers are float32 also where `params` are float64,
    as after `network.double()`.

    Args:
      seed: as given to `torch.manual_seed`.
      params: those of a `cifar_jax.nn.models.CNN`, for their shapes and types; BatchNorm's are passed on.

    Source: torch.nn.Conv2d, torch.nn.Linear, torch.nn.init.kaiming_uniform_.
    """
    generator, drawn = Generator(seed), dict(params)
    for name in _in_order(params):
        kernel = params[name]["kernel"]
        *window, inputs, outputs = kernel.shape
        fan_in = math.prod(window) * inputs
        gain = math.sqrt(2.0 / (1.0 + math.sqrt(5.0) ** 2))
        weight = generator.uniform(kernel.size, math.sqrt(3.0) * (gain / math.sqrt(fan_in)))
        weight = weight.reshape(outputs, inputs, *window)  # OIHW, or OI
        drawn[name] = {"kernel": np.moveaxis(weight, (0, 1), (-1, -2)).astype(kernel.dtype)}
        if "bias" in params[name]:
            bias = params[name]["bias"]
            drawn[name]["bias"] = generator.uniform(bias.size, 1.0 / math.sqrt(fan_in)).astype(bias.dtype)
    return drawn


def count_draws(params: Mapping) -> int:
    """How many outputs of the Twister `draw_params` takes."""
    return sum(array.size for name in _in_order(params) for array in params[name].values())


def _in_order(params: Mapping) -> list[str]:
    """The names of the layers that draw, as the program builds them."""
    convolutions = (name for name in params if name.startswith("conv"))
    return [*sorted(convolutions, key=lambda name: int(name.removeprefix("conv"))), "linear"]


class Epochs(NamedTuple):
    """What the program draws in each epoch, found by position.

    A resumed run draws what the uninterrupted one would have drawn: every epoch starts anew from the seed and passes
    over what came before it. (A PyTorch program draws that only if it saved `torch.get_rng_state()`.) The position
    assumes that the program evaluates after every epoch of training, as the lecture's does.

    seed: as given to `torch.manual_seed`.
    n: number of training images.
    flips: whether each image draws a flip.
    draws_before: outputs taken before the first epoch, by the initial weights.
    """

    seed: int
    n: int
    flips: bool
    draws_before: int

    def draw(self, epoch: int) -> tuple[Int32[np.ndarray, " n"], Bool[np.ndarray, " n"] | None]:
        """The order of the images in an epoch, numbered from 0, and which of them, in that order, are flipped.

        The second is None where no image draws a flip.

        Source: torch.utils.data.DataLoader, RandomSampler; torchvision's RandomHorizontalFlip, `torch.rand(1) < 0.5`.
        """
        # Seeds of the training loader's workers, of its sampler and of the test loader's workers, two outputs each.
        draws_each = 3 * 2 + (self.n if self.flips else 0)
        generator = Generator(self.seed)
        generator.skip(self.draws_before + epoch * draws_each)
        generator.integer()  # a loader draws its workers' seed first, also where it has no workers
        order = Generator(generator.integer()).permutation(self.n)
        return order, generator.rand(self.n) < 0.5 if self.flips else None
