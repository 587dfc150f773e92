"""Networks on sequences and vectors; in torch, and in Linen with a mistake by name."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F


class TorchViT(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 24, 4, 4)
        self.cls = torch.nn.Parameter(torch.zeros(1, 1, 24))
        self.position = torch.nn.Parameter(torch.zeros(1, 17, 24))
        layer = torch.nn.TransformerEncoderLayer(24, 3, 40, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = torch.nn.LayerNorm(24), torch.nn.Linear(24, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.encoder(x))[:, 0])


class ViT(nn.Module):
    mistake: str = ""

    @nn.compact
    def __call__(self, x, train=False):
        is_ = self.mistake.__eq__

        def drop(x):
            return nn.Dropout(0.2 if is_("rate") else 0.1)(x, deterministic=not train)

        def norm():
            return nn.LayerNorm(epsilon=1e-6 if is_("epsilon") else 1e-5, use_bias=not is_("norm_bias"))

        x = nn.Conv(24, (4, 4), (4, 4))(x)
        x = x.reshape(x.shape[0], -1, 24)
        start = self.param("start", nn.initializers.zeros, (1, 1, 24))
        place = self.param("place", nn.initializers.normal(0.02), (1, 17, 24))
        start = jnp.tile(start, (x.shape[0], 1, 1))
        x = jnp.concatenate([x, start] if is_("cls_last") else [start, x], 1)
        x = x if is_("no_position") else x + place
        for _ in range(2):
            y = norm()(x)
            heads = nn.MultiHeadDotProductAttention(
                3, dropout_rate=0.1, broadcast_dropout=is_("shared_mask"), deterministic=not train
            )
            y = drop(heads(y))
            x = y if is_("no_residual") else x + y
            y = nn.Dense(40)(x if is_("no_norm2") else norm()(x))
            y = nn.relu(y) if is_("relu") else nn.gelu(y, approximate=is_("gelu"))
            x = x + drop(nn.Dense(24)(drop(y)))
        x = x if is_("no_final_norm") else norm()(x)
        return nn.Dense(5)(x.mean(1) if is_("mean") else x[:, -1] if is_("last") else x[:, 0])


class TorchDecoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(30, 16)
        self.position = torch.nn.Embedding(12, 16)
        self.norm1, self.norm2, self.norm3 = (torch.nn.LayerNorm(16) for _ in range(3))
        self.qkv, self.project = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)
        self.up, self.down = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)
        self.out = torch.nn.Linear(16, 30, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens):
        n, length = tokens.shape
        x = self.table(tokens) * math.sqrt(16) + self.position(torch.arange(length))
        q, k, v = (part.view(n, length, 4, 4).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(y.transpose(1, 2).reshape(n, length, 16))
        x = x + self.down(F.silu(self.up(self.norm2(x))))
        return self.out(self.norm3(x))


class Decoder(nn.Module):
    mistake: str = ""

    @nn.compact
    def __call__(self, tokens):
        is_ = self.mistake.__eq__
        table = nn.Embed(30, 16)
        n, length = tokens.shape
        x = table(tokens)
        x = x if is_("no_scale") else x * math.sqrt(16)
        x = x + nn.Embed(12, 16)(jnp.arange(length))
        norm = lambda: nn.LayerNorm(epsilon=1e-5)  # noqa: E731
        packed = nn.Dense(48)(norm()(x))
        if is_("by_head"):
            q, k, v = jnp.moveaxis(packed.reshape(n, length, 4, 3, 4), 3, 0)
        else:
            q, k, v = (part.reshape(n, length, 4, 4) for part in jnp.split(packed, 3, -1))
        if is_("qk"):
            q, k = k, q
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k)
        scores = scores if is_("unscaled") else scores / (4 if is_("scaled_twice") else 2)
        diagonal = {"mask_itself": -1, "mask_late": 1}.get(self.mistake, 0)
        mask = jnp.tril(jnp.ones((length, length), bool), diagonal)
        if not is_("no_mask"):
            scores = jnp.where(mask, scores, -1e30)
        weights = jax.nn.softmax(scores, axis=-2 if is_("axis") else -1)
        y = jnp.einsum("nhqk,nkhd->nqhd", weights, v)
        y = y.swapaxes(1, 2) if is_("heads") else y
        x = x + nn.Dense(16)(y.reshape(n, length, 16))
        x = x + nn.Dense(16)(nn.silu(nn.Dense(32)(norm()(x))))
        x = norm()(x)
        return nn.Dense(30, use_bias=False)(x) if is_("untied") else table.attend(x)


class TorchLSTM(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(20, 8)
        self.lstm = torch.nn.LSTM(8, 12, batch_first=True)
        self.head = torch.nn.Linear(12, 4)

    def forward(self, tokens):
        y, _ = self.lstm(self.table(tokens))
        return self.head(y[:, -1])


class TorchPadded(TorchLSTM):
    """The token 0 is padding, whose row stays as it is."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(20, 8, padding_idx=0)


class LSTM(nn.Module):
    mistake: str = ""

    @nn.compact
    def __call__(self, tokens):
        is_ = self.mistake.__eq__
        x = nn.Embed(20, 8)(tokens)
        if is_("scale"):
            x = x * math.sqrt(8)
        if is_("padding"):
            x = x * (tokens != 0)[..., None]
        options = {"activation_fn": nn.relu} if is_("activation") else {}
        y = nn.RNN(nn.OptimizedLSTMCell(12, **options), reverse=is_("reverse"), keep_order=True)(x)
        y = y.mean(1) if is_("mean") else y.max(1) if is_("max") else y[:, 0] if is_("first") else y[:, -1]
        return nn.Dense(4)(y)


class TorchGRU(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = torch.nn.GRU(6, 10, bidirectional=True)
        self.head = torch.nn.Linear(20, 3)

    def forward(self, x):
        y, _ = self.gru(x)
        return self.head(y.mean(0))


class GRU(nn.Module):
    """Inputs are [time, batch, width], as torch's."""

    mistake: str = ""

    @nn.compact
    def __call__(self, x):
        is_ = self.mistake.__eq__

        def direction(x, name, reverse):
            kernels = nn.initializers.lecun_normal()
            w = self.param(f"{name}_in", kernels, (6, 30))
            u = self.param(f"{name}_state", kernels, (10, 30))
            b = self.param(f"{name}_b", nn.initializers.zeros, (30,))
            c = self.param(f"{name}_c", nn.initializers.zeros, (30,))

            def step(h, x):
                xr, xz, xn = jnp.split(x @ w + b, 3, -1)
                hr, hz, hn = jnp.split(h @ u + c, 3, -1)
                r, z = nn.sigmoid(xr + hr), nn.sigmoid(xz + hz)
                new = jnp.tanh(xn + r * h @ u[:, 20:] + c[20:]) if is_("reset") else jnp.tanh(xn + r * hn)
                h = z * new + (1 - z) * h if is_("update") else (1 - z) * new + z * h
                return h, h

            return jax.lax.scan(step, jnp.zeros((x.shape[1], 10), x.dtype), x, reverse=reverse)[1]

        forth, back = direction(x, "forth", False), direction(x, "back", not is_("both_forward"))
        y = jnp.concatenate([back, forth] if is_("order") else [forth, back], -1)
        return nn.Dense(3)(y.sum(0) if is_("sum") else y[-1] if is_("last") else y.mean(0))


class TorchMLP(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(9, 16), torch.nn.LayerNorm(16), torch.nn.GELU(), torch.nn.Linear(16, 16),
            torch.nn.RMSNorm(16, eps=1e-6), torch.nn.ELU(), torch.nn.Linear(16, 4),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


class MLP(nn.Module):
    mistake: str = ""

    @nn.compact
    def __call__(self, x):
        is_ = self.mistake.__eq__
        x = nn.gelu(nn.LayerNorm(epsilon=1e-5)(nn.Dense(16)(x)), approximate=is_("gelu"))
        x = nn.Dense(16)(x)
        x = nn.LayerNorm(epsilon=1e-6, use_bias=False)(x) if is_("layer_norm") else nn.RMSNorm(epsilon=1e-6)(x)
        x = nn.celu(x, 2.0) if is_("celu") else nn.silu(x) if is_("silu") else nn.elu(x)
        return nn.Dense(4)(x)
