"""Correct ports that are written in another way than torch's module, and modules they equal."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch
from parity.corpus import images, sequences


class TorchSmall(torch.nn.Module):
    """A convolution with stride, BatchNorm, and a classifier on flattened features."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 6, 4, 4), torch.nn.BatchNorm2d(6)
        self.head = torch.nn.Linear(6 * 16, 4)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


class Patches(nn.Module):
    """The convolution as a Dense layer over patches, the norm folded to a factor and a shift."""

    @nn.compact
    def __call__(self, x, train=False):
        n = x.shape[0]
        x = x.reshape(n, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, 4, 4, 48)
        x = nn.Dense(6)(x)
        gamma = self.param("gamma", nn.initializers.ones, (6,))
        beta = self.param("beta", nn.initializers.zeros, (6,))
        mean = self.variable("moving", "average", lambda: jnp.zeros(6))
        var = self.variable("moving", "spread", lambda: jnp.ones(6))
        if train:
            m, v = x.mean((0, 1, 2)), x.var((0, 1, 2))
            count = x.size // 6
            mean.value = 0.9 * mean.value + 0.1 * m
            var.value = 0.9 * var.value + 0.1 * v * count / (count - 1)
        else:
            m, v = mean.value, var.value
        factor = gamma * jax.lax.rsqrt(v + 1e-5)
        x = nn.relu(x * factor + (beta - m * factor))
        return nn.Dense(4)(x.reshape(n, -1))


class ChannelsFirst(nn.Module):
    """Takes PyTorch's order of axes, and returns to it before flattening."""

    @nn.compact
    def __call__(self, x, is_training: bool = False):
        x = x.transpose(0, 2, 3, 1)
        x = nn.Conv(6, (4, 4), 4, padding=0)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not is_training, momentum=0.9)(x))
        return nn.Dense(4)(x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1))


class SinglePrecision(nn.Module):
    """Says float32 everywhere, as many ports do."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (4, 4), 4, padding="VALID", dtype=jnp.float32, param_dtype=jnp.float32)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=jnp.float32)(x)
        return nn.Dense(4, dtype=jnp.float32)(nn.relu(x).reshape(x.shape[0], -1))


class Remat(nn.Module):
    """The stem is computed again in the backward pass."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.remat(nn.Conv)(6, (4, 4), (4, 4), padding="VALID")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.DenseGeneral(4, axis=(1, 2, 3))(x)


class OwnCell(nn.Module):
    """An LSTM by hand: gates packed in the order g, i, f, o, one bias."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(20, 8)(tokens)
        w = self.param("w", nn.initializers.lecun_normal(), (8, 48))
        u = self.param("u", nn.initializers.orthogonal(), (12, 48))
        b = self.param("b", nn.initializers.zeros, (48,))

        def step(carry, x):
            h, c = carry
            g, i, f, o = jnp.split(x @ w + h @ u + b, 4, -1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), None

        zero = jnp.zeros((x.shape[0], 12), jnp.float32)
        (h, _), _ = jax.lax.scan(step, (zero, zero), x.swapaxes(0, 1))
        return nn.Dense(4)(h)


class PackedViT(nn.Module):
    """Attention with one packed projection, scores by einsum, patches by Dense, the scale on the queries."""

    @nn.compact
    def __call__(self, x):
        n = x.shape[0]
        x = x.reshape(n, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(n, 16, 48)
        x = nn.Dense(24)(x)
        token = self.param("token", nn.initializers.zeros, (24,))
        places = self.param("places", nn.initializers.zeros, (17, 24))
        x = jnp.concatenate([jnp.broadcast_to(token, (n, 1, 24)), x], 1) + places
        for _ in range(2):
            y = nn.LayerNorm(epsilon=1e-5)(x)
            q, k, v = jnp.split(nn.Dense(72)(y), 3, -1)
            q, k, v = (part.reshape(n, 17, 3, 8) for part in (q / jnp.sqrt(8), k, v))
            y = jnp.einsum("nhqk,nkhd->nqhd", nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k)), v)
            x = x + nn.Dense(24)(y.reshape(n, 17, 24))
            y = nn.LayerNorm(epsilon=1e-5)(x)
            x = x + nn.Dense(24)(nn.gelu(nn.Dense(40)(y), approximate=False))
        return nn.Dense(5)(nn.LayerNorm(epsilon=1e-5)(x)[:, 0])


class StillViT(sequences.TorchViT):
    """The ViT without dropout."""

    def __init__(self):
        super().__init__()
        for module in self.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(module, torch.nn.MultiheadAttention):
                module.dropout = 0.0


class OtherOrder(nn.Module):
    """The ResNet with the shortcut computed first, and layers made in the reverse order."""

    def setup(self):
        self.last = nn.Dense(10)
        self.parts = [images.ResNet()]

    def __call__(self, x, train=False):
        return self.parts[0](x, train)
