"""Image networks: ResNet, VGG, MobileNet, DenseNet, UNet, DCGAN; in torch, and in Linen with a mistake by name."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F


class TorchBlock(torch.nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.conv2 = torch.nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(width)
        self.shortcut = None
        if stride != 1 or width_in != width:
            self.shortcut = torch.nn.Sequential(
                torch.nn.Conv2d(width_in, width, 1, stride, bias=False), torch.nn.BatchNorm2d(width)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.shortcut is None else self.shortcut(x)
        return F.relu(y)


class TorchResNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.blocks = torch.nn.Sequential(TorchBlock(8, 8, 1), TorchBlock(8, 16, 2), TorchBlock(16, 16, 1))
        self.head = torch.nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.head(self.blocks(x).mean((2, 3)))


class ResNet(nn.Module):
    mistake: str = ""

    @nn.compact
    def __call__(self, images, train=False):
        is_ = self.mistake.__eq__
        average = not train
        if is_("running_in_training"):
            average = True
        if is_("batch_in_evaluation"):
            average = False
        norm = partial(
            nn.BatchNorm, use_running_average=average, epsilon=1e-3 if is_("epsilon") else 1e-5,
            momentum=0.99 if is_("momentum") else 0.1 if is_("momentum_swapped") else 0.9,
        )  # fmt: skip
        conv = partial(nn.Conv, use_bias=is_("added_bias"))
        x = images * 2 if is_("input_scale") else images
        dtype = jnp.bfloat16 if is_("half") else None
        x = nn.relu(norm()(conv(8, (3, 3), padding=1, dtype=dtype)(x)))
        for place, (width, stride) in enumerate(((8, 1), (16, 2), (16, 1))):
            deep = place == 1
            residual = x
            if is_("residual_act") and deep:
                residual = jnp.tanh(residual)
            if is_("stopped") and deep:
                residual = jax.lax.stop_gradient(residual)
            if residual.shape[-1] != width:
                residual = conv(width, (1, 1), stride)(residual)
                if not is_("no_shortcut_norm"):
                    residual = norm()(residual)
            dilation = 2 if is_("dilation") and place == 2 else 1
            padding = "SAME" if is_("same") else dilation
            first, second = (1, stride) if is_("stride_second") else (stride, 1)
            y = conv(width, (3, 3), first, padding=padding, kernel_dilation=dilation)(x)
            y = norm()(y)
            y = {"relu6": nn.relu6, "no_relu": lambda x: x}.get(self.mistake, nn.relu)(y)
            y = conv(width, (3, 3), second, padding=1)(y)
            if not (is_("no_norm2") and deep):
                y = norm()(y)
            if is_("residual_order") and deep:
                x = nn.relu(y) + residual
            elif is_("no_residual") and deep:
                x = nn.relu(y)
            elif is_("no_last_relu") and deep:
                x = y + residual
            else:
                x = nn.relu(y + residual)
        x = {"max_head": x.max((1, 2)), "sum_head": x.sum((1, 2))}.get(self.mistake, x.mean((1, 2)))
        x = nn.Dense(10, use_bias=not is_("no_head_bias"))(x)
        return nn.softmax(x) if is_("softmax") else x


class TorchVGG(torch.nn.Module):
    def __init__(self):
        super().__init__()
        layers, width_in = [], 3
        for width in (8, 0, 12, 12, 0):
            if width:
                layers += [torch.nn.Conv2d(width_in, width, 3, padding=1), torch.nn.BatchNorm2d(width), torch.nn.ReLU()]
                width_in = width
            else:
                layers.append(torch.nn.MaxPool2d(2))
        self.features = torch.nn.Sequential(*layers)
        self.classifier = torch.nn.Sequential(
            torch.nn.Linear(12 * 4 * 4, 24), torch.nn.ReLU(), torch.nn.Dropout(0.4), torch.nn.Linear(24, 7)
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


class VGG(nn.Module):
    mistake: str = ""

    def setup(self):
        is_ = self.mistake.__eq__
        pad = {"valid": "VALID", "circular": "CIRCULAR"}.get(self.mistake, 1)
        self.out = nn.Dense(7)
        self.hidden = nn.Dense(24)
        self.third = nn.Conv(12, (3, 3), padding=1, use_bias=not is_("no_bias"))
        self.second = nn.Conv(12, (3, 3), padding=pad)
        self.first = nn.Conv(8, (3, 3), padding=1)
        self.norms = [nn.BatchNorm(momentum=0.9) for _ in range(3)]
        self.drop = nn.Dropout(0.6 if is_("rate") else 0.4)

    def __call__(self, x, *, deterministic=True):
        is_ = self.mistake.__eq__

        def stage(conv, norm, x):
            return nn.relu(norm(conv(x), use_running_average=deterministic))

        def pool(x):
            if is_("avg_pool"):
                return nn.avg_pool(x, (2, 2), (2, 2))
            if is_("window"):
                return nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
            return nn.max_pool(x, (2, 2), (2, 2))

        x = pool(stage(self.first, self.norms[0], x))
        x = stage(self.second, self.norms[1], x)
        if is_("valid"):
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = pool(stage(self.third, self.norms[2], x))
        if is_("chw"):
            x = x.transpose(0, 3, 1, 2)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(self.hidden(x))
        off = {"never_drops": True, "always_drops": False}.get(self.mistake, deterministic)
        return self.out(self.drop(x, deterministic=off))


class TorchMobile(torch.nn.Module):
    def __init__(self):
        super().__init__()

        def block(width_in, width, stride, hidden):
            return torch.nn.Sequential(
                torch.nn.Conv2d(width_in, hidden, 1, bias=False), torch.nn.BatchNorm2d(hidden), torch.nn.ReLU6(),
                torch.nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), torch.nn.BatchNorm2d(hidden),
                torch.nn.ReLU6(), torch.nn.Conv2d(hidden, width, 1, bias=False), torch.nn.BatchNorm2d(width),
            )  # fmt: skip

        self.stem = torch.nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.stem_norm = torch.nn.BatchNorm2d(8)
        self.first, self.second, self.third = block(8, 8, 1, 16), block(8, 12, 2, 16), block(12, 12, 1, 24)
        self.squeeze, self.excite = torch.nn.Conv2d(12, 4, 1), torch.nn.Conv2d(4, 12, 1)
        self.head = torch.nn.Linear(12, 5)

    def forward(self, x):
        x = F.hardswish(self.stem_norm(self.stem(x)))
        x = x + self.first(x)
        x = self.second(x)
        x = x + self.third(x)
        gate = F.adaptive_avg_pool2d(x, 1)
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(gate))))
        return self.head(F.adaptive_avg_pool2d(x * gate, 1).flatten(1))


class Mobile(nn.Module):
    mistake: str = ""

    @nn.compact
    def __call__(self, x, train=False):
        is_ = self.mistake.__eq__
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        conv = partial(nn.Conv, use_bias=False)
        act = nn.relu if is_("relu") else nn.relu6

        def block(x, width, stride, hidden):
            y = act(norm()(conv(hidden, (1, 1))(x)))
            padding = "SAME" if is_("same") else 1
            y = conv(hidden, (3, 3), stride, padding=padding, feature_group_count=hidden)(y)
            y = norm()(conv(width, (1, 1))(act(norm()(y))))
            return act(y) if is_("bottleneck_act") else y

        x = norm()(conv(8, (3, 3), 2, padding=1)(x))
        x = nn.silu(x) if is_("silu") else nn.hard_swish(x)
        x = x + block(x, 8, 1, 16)
        x = block(x, 12, 2, 16)
        x = x + block(x, 12, 1, 24)
        gate = x.max((1, 2), keepdims=True) if is_("gate_max") else x.mean((1, 2), keepdims=True)
        gate = nn.Conv(12, (1, 1))(nn.relu(nn.Conv(4, (1, 1))(gate)))
        gate = nn.sigmoid(gate) if is_("sigmoid") else nn.hard_sigmoid(gate)
        x = x if is_("no_gate") else x + gate if is_("gate_sum") else x * gate
        return nn.Dense(5)(x.mean((1, 2)))


class TorchDense(torch.nn.Module):
    def __init__(self):
        super().__init__()

        def layer(width):
            return torch.nn.Sequential(
                torch.nn.BatchNorm2d(width), torch.nn.ReLU(), torch.nn.Conv2d(width, 4, 3, padding=1, bias=False)
            )

        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.one, self.two = layer(8), layer(12)
        self.transition = torch.nn.Sequential(
            torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 1, bias=False),
            torch.nn.AvgPool2d(3, 2, 1),
        )  # fmt: skip
        self.three, self.norm, self.head = layer(8), torch.nn.BatchNorm2d(12), torch.nn.Linear(12, 6)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.one(x)], 1)
        x = torch.cat([x, self.two(x)], 1)
        x = self.transition(x)
        x = torch.cat([x, self.three(x)], 1)
        return self.head(F.relu(self.norm(x)).mean([2, 3]))


class DenseNet(nn.Module):
    mistake: str = ""

    @nn.compact
    def __call__(self, x, train=False):
        is_ = self.mistake.__eq__

        def norm(x):
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        def layer(x):
            y = nn.Conv(4, (3, 3), use_bias=False)(nn.relu(norm(x)))
            return jnp.concatenate([y, x] if is_("order") else [x, y], -1)

        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = layer(layer(x))
        x = nn.Conv(8, (1, 1), use_bias=False)(nn.relu(norm(x)))
        padding = ((1, 1), (1, 1))
        if is_("not_counted"):
            x = nn.avg_pool(x, (3, 3), (2, 2), padding, count_include_pad=False)
        elif is_("max_pool"):
            x = nn.max_pool(x, (3, 3), (2, 2), padding)
        elif is_("pool_same"):
            x = nn.avg_pool(x, (3, 3), (2, 2), "SAME")
        else:
            x = nn.avg_pool(x, (3, 3), (2, 2), padding)
        x = norm(layer(x))
        x = x if is_("no_relu") else nn.relu(x)
        return nn.Dense(6)(x.mean((1, 2)))


class TorchUNet(torch.nn.Module):
    def __init__(self):
        super().__init__()

        def double(width_in, width):
            return torch.nn.Sequential(
                torch.nn.Conv2d(width_in, width, 3, padding=1), torch.nn.GroupNorm(4, width), torch.nn.SiLU(),
                torch.nn.Conv2d(width, width, 3, padding=1), torch.nn.InstanceNorm2d(width, affine=True),
                torch.nn.LeakyReLU(0.2),
            )  # fmt: skip

        self.down1, self.down2, self.bottom = double(3, 8), double(8, 12), double(12, 16)
        self.up2 = torch.nn.ConvTranspose2d(16, 12, 3, 2, 1, output_padding=1)
        self.join2, self.join1 = double(24, 12), double(20, 8)
        self.out = torch.nn.Conv2d(8, 2, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        low = self.bottom(F.max_pool2d(two, 2))
        y = self.join2(torch.cat([two, self.up2(low)], 1))
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        return self.out(self.join1(torch.cat([one, y], 1)))


class UNet(nn.Module):
    mistake: str = ""

    @nn.compact
    def __call__(self, x):
        is_ = self.mistake.__eq__

        def double(x, width):
            x = nn.Conv(width, (3, 3))(x)
            x = nn.GroupNorm(2 if is_("groups") else 4, epsilon=1e-6 if is_("epsilon") else 1e-5)(x)
            x = nn.gelu(x) if is_("gelu") else nn.silu(x)
            x = nn.Conv(width, (3, 3))(x)
            x = nn.GroupNorm(None, group_size=1, epsilon=1e-5)(x)
            return nn.leaky_relu(x, 0.01 if is_("slope") else 0.2)

        one = double(x, 8)
        two = double(nn.max_pool(one, (2, 2), (2, 2)), 12)
        low = double(nn.max_pool(two, (2, 2), (2, 2)), 16)
        padding = "SAME" if is_("transposed_same") else ((1, 2), (1, 2))
        y = nn.ConvTranspose(12, (3, 3), (2, 2), padding=padding, transpose_kernel=not is_("unflipped"))(low)
        y = double(jnp.concatenate([y, two] if is_("order") else [two, y], -1), 12)
        shape = (y.shape[0], 2 * y.shape[1], 2 * y.shape[2], y.shape[3])
        y = jax.image.resize(y, shape, {"nearest": "nearest", "cubic": "cubic"}.get(self.mistake, "linear"))
        if is_("skip_left_out"):
            one = jnp.zeros_like(one)
        return nn.Conv(2, (1, 1))(double(jnp.concatenate([one, y], -1), 8))


class TorchGenerator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.main = torch.nn.Sequential(
            torch.nn.ConvTranspose2d(10, 16, 4, 1, 0, bias=False), torch.nn.BatchNorm2d(16), torch.nn.ReLU(True),
            torch.nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(True),
            torch.nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), torch.nn.Tanh(),
        )  # fmt: skip

    def forward(self, z):
        return self.main(z.view(z.shape[0], -1, 1, 1))


class Generator(nn.Module):
    mistake: str = ""

    @nn.compact
    def __call__(self, z, train=False):
        is_ = self.mistake.__eq__
        x = z.reshape(z.shape[0], 1, 1, -1)
        for width, stride, padding in ((16, 1, "VALID"), (8, 2, "SAME"), (3, 2, "SAME")):
            if is_("padding") and width == 3:
                padding = ((3, 1), (3, 1))
            x = nn.ConvTranspose(width, (4, 4), (stride, stride), padding, use_bias=is_("bias") and width == 3)(x)
            if width > 3:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.8 if is_("momentum") else 0.9)(x)
                x = nn.leaky_relu(x, 0.2) if is_("leaky") else nn.relu(x)
        return nn.sigmoid(x) if is_("sigmoid") else x if is_("no_tanh") else jnp.tanh(x)
