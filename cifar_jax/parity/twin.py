"""The lecture's side in PyTorch: its network, optimizers and schedulers, as a PyTorch program would write them.

Modules are made in the order in which the network applies them, since torch draws initial weights as it makes them.
"""

from collections.abc import Iterable

import torch
from torch import nn

from cifar_jax.nn.models import NETWORKS, Stages


class BatchNorm2d(nn.Module):
    """The lecture's BatchNorm: `running = momentum * running + (1 - momentum) * batch`, with the biased variance.

    Its numbers are the lecture's. Its names and shapes, `weight`, `bias`, `running_mean` and `running_var` `[channels]`
    and `num_batches_tracked`, are torch's (the slide: gamma and beta, `[1, channels, 1, 1]`, and no counter), so that a
    state_dict is the same under every rule. With momentum 0.99 it follows Flax's rule.

    Source: the lecture, "Implementation - BatchNorm".
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises `x`, `[batch, channels, height, width]`."""
        if self.training:
            var, mean = torch.var_mean(x, dim=(0, 2, 3), unbiased=False)
            with torch.no_grad():
                self.running_mean.copy_(self.momentum * self.running_mean + (1 - self.momentum) * mean)
                self.running_var.copy_(self.momentum * self.running_var + (1 - self.momentum) * var)
                self.num_batches_tracked += 1
        else:
            mean, var = self.running_mean, self.running_var
        x = (x - _per_channel(mean)) / torch.sqrt(_per_channel(var) + self.eps)
        return x if self.weight is None else x * _per_channel(self.weight) + _per_channel(self.bias)


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(1, -1, 1, 1)


class CNN(nn.Module):
    """Stages of convolution, BatchNorm, ReLU, each closed by a 2x2 max pool; then a global average and a linear layer.

    `conv1, norm1, conv2, norm2, ..., linear`, with torch's own initial weights.
    """

    def __init__(self, stages: Stages, num_classes: int, *, rule: str, momentum: float | None, epsilon: float):
        super().__init__()
        self.stages = stages
        number, channels = 0, 3
        for widths in stages:
            for width in widths:
                number += 1
                self.add_module(f"conv{number}", nn.Conv2d(channels, width, 3, padding=1, bias=False))
                self.add_module(f"norm{number}", create_norm(width, rule, momentum=momentum, epsilon=epsilon))
                channels = width
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, classes]` of images `[batch, 3, height, width]`."""
        number = 0
        for widths in self.stages:
            for _ in widths:
                number += 1
                x = torch.relu(self.get_submodule(f"norm{number}")(self.get_submodule(f"conv{number}")(x)))
            x = nn.functional.max_pool2d(x, 2)
        return self.linear(x.mean(dim=(2, 3)))


def create_norm(channels: int, rule: str, *, momentum: float | None = None, epsilon: float = 1e-5) -> nn.Module:
    """The BatchNorm of a rule: torch's own for "torch", the lecture's for "lecture" and "flax".

    `momentum` None is the rule's own: 0.1 (torch, lecture) or 0.99 (flax).
    """
    if momentum is None:
        momentum = {"torch": 0.1, "lecture": 0.1, "flax": 0.99}[rule]
    kind = nn.BatchNorm2d if rule == "torch" else BatchNorm2d
    return kind(channels, eps=epsilon, momentum=momentum)


def create_twin(
    name: str,
    *,
    norm_rule: str = "torch",
    norm_momentum: float | None = None,
    num_classes: int = 100,
    stages: Stages = (),
    epsilon: float = 1e-5,
) -> CNN:
    """The network called `name`, "cnn6" or "cnn10", as `cifar_jax.nn.models.create_model` makes it.

    `stages` replaces its widths; `()` keeps the lecture's. float32; `.double()` makes it float64.
    """
    return CNN(stages or NETWORKS[name], num_classes, rule=norm_rule, momentum=norm_momentum, epsilon=epsilon)


def create_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """torch's SGD for "sgd", its Adam for "adam"; each takes its own of the numbers."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    return torch.optim.Adam(parameters, lr=lr, betas=(b1, b2), eps=eps, weight_decay=weight_decay)


def create_scheduler(
    name: str, optimizer: torch.optim.Optimizer, *, step_size: int = 10, gamma: float = 0.5, t_max: int | None = None
) -> torch.optim.lr_scheduler.LRScheduler:
    """torch's StepLR for "step", its CosineAnnealingLR for "cosine"; "constant" leaves the rate as it is."""
    if name == "step":
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size, gamma)
    if name == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, t_max)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)


def learning_rates(config: dict, *, lr: float, epochs: int, calls_per_epoch: int) -> list[float]:
    """The rate of each epoch, from stepping torch's scheduler; `config` holds `create_scheduler`'s arguments."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = create_scheduler(**config, optimizer=optimizer)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()  # torch warns of a scheduler that goes before its optimizer
        for _ in range(calls_per_epoch):
            scheduler.step()
    return rates


def read_arrays(network: nn.Module) -> dict:
    """The network's state_dict as NumPy arrays of its own, which later training does not change."""
    return {key: tensor.detach().cpu().numpy().copy() for key, tensor in network.state_dict().items()}


def load_arrays(network: nn.Module, state_dict: dict) -> None:
    """Copies a state_dict of NumPy arrays into the network; keys and shapes must be its own."""
    network.load_state_dict({key: torch.tensor(array) for key, array in state_dict.items()})
