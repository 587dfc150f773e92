"""NNX ports of the VGG, the MLP and the DCGAN generator, with a mistake by name."""

import jax.numpy as jnp
from flax import nnx


class VGG(nnx.Module):
    def __init__(self, mistake="", *, rngs):
        self.mistake = mistake
        momentum = 0.99 if mistake == "momentum" else 0.9
        self.one = nnx.Conv(3, 8, (3, 3), padding=1, rngs=rngs)
        self.two = nnx.Conv(8, 12, (3, 3), padding="VALID" if mistake == "valid" else 1, rngs=rngs)
        self.three = nnx.Conv(12, 12, (3, 3), padding=1, use_bias=mistake != "no_bias", rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(n, momentum=momentum, rngs=rngs) for n in (8, 12, 12)])
        self.hidden, self.out = nnx.Linear(192, 24, rngs=rngs), nnx.Linear(24, 7, rngs=rngs)
        self.drop = nnx.Dropout(0.4, deterministic=False, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norms[0](self.one(x))), (2, 2), (2, 2))
        x = nnx.relu(self.norms[1](self.two(x)))
        if self.mistake == "valid":
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nnx.relu(self.norms[2](self.three(x)))
        x = nnx.avg_pool(x, (2, 2), (2, 2)) if self.mistake == "avg_pool" else nnx.max_pool(x, (2, 2), (2, 2))
        return self.out(self.drop(nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))))


class MLP(nnx.Module):
    def __init__(self, mistake="", *, rngs):
        self.mistake = mistake
        self.c, self.b, self.a = (nnx.Linear(*size, rngs=rngs) for size in ((16, 4), (16, 16), (9, 16)))
        self.norm = nnx.LayerNorm(16, epsilon=1e-6 if mistake == "epsilon" else 1e-5, rngs=rngs)
        self.root = nnx.RMSNorm(16, epsilon=1e-6, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.norm(self.a(x)), approximate=self.mistake == "gelu")
        x = self.root(self.b(x))
        return self.c(nnx.relu(x) if self.mistake == "relu" else nnx.elu(x))


class Generator(nnx.Module):
    def __init__(self, mistake="", *, rngs):
        self.mistake = mistake
        sizes = ((10, 16, 1, "VALID"), (16, 8, 2, "SAME"), (8, 3, 2, "SAME"))
        self.convs = nnx.List(
            [nnx.ConvTranspose(i, o, (4, 4), (s, s), padding=p, use_bias=False, rngs=rngs) for i, o, s, p in sizes]
        )
        self.norms = nnx.List([nnx.BatchNorm(n, momentum=0.9, rngs=rngs) for n in (16, 8)])

    def __call__(self, z):
        x = z.reshape(z.shape[0], 1, 1, -1)
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = norm(conv(x))
            x = nnx.leaky_relu(x, 0.2) if self.mistake == "leaky" else nnx.relu(x)
        x = self.convs[2](x)
        return nnx.sigmoid(x) if self.mistake == "sigmoid" else jnp.tanh(x)
