"""One run of the lecture's training loop in PyTorch, a step at a time, with everything in it laid open."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.utils.data import BatchSampler, SequentialSampler

from cifar_jax.parity.twin import read_arrays

Arrays = dict[str, np.ndarray]


class Preprocess(NamedTuple):
    """The lecture's input transform: Pillow's bicubic resize, the mirror, [0, 1], and [-1, 1] with `normalize`."""

    image_size: int
    normalize: bool

    def __call__(self, images: np.ndarray, flips: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        """uint8 `[batch, 32, 32, 3]` to `[batch, 3, size, size]`; the images at True in `flips` are mirrored."""
        pictures = [Image.fromarray(image) for image in images]
        if images.shape[1] != self.image_size:
            size = (self.image_size, self.image_size)
            pictures = [picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures]
        pictures = [ImageOps.mirror(p) if chosen else p for p, chosen in zip(pictures, flips, strict=True)]
        x = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).contiguous()
        x = x.to(dtype).div(255)
        return x.sub(0.5).div(0.5) if self.normalize else x


class TorchStep(NamedTuple):
    """What a step made, in PyTorch's names and layouts; `parameter` and the two after it are those after the update.

    moments: by name ("momentum_buffer"; or "exp_avg" and "exp_avg_sq"), each by parameter.
    """

    lr: float
    input: np.ndarray
    logits: np.ndarray
    loss: float
    gradient: Arrays
    state_dict: Arrays
    moments: dict[str, Arrays]


class TorchSide:
    """A network, its optimizer and scheduler in training mode, and the data.

    calls_per_epoch: how often the scheduler is stepped at an epoch's end.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        preprocess: Preprocess,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        calls_per_epoch: int = 1,
    ):
        self.network, self.optimizer, self.scheduler = network.train(), optimizer, scheduler
        self.preprocess, self.images, self.labels = preprocess, images, labels
        self.calls_per_epoch = calls_per_epoch
        self.dtype = next(network.parameters()).dtype
        self.loss_fn = nn.CrossEntropyLoss()

    def step(self, indices: np.ndarray, flips: np.ndarray) -> TorchStep:
        """One update on the images at `indices`."""
        x = self.preprocess(self.images[indices], flips, self.dtype)
        y = torch.from_numpy(self.labels[indices].astype(np.int64))
        lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.zero_grad()
        logits = self.network(x)
        loss = self.loss_fn(logits, y)
        loss.backward()
        gradient = {name: p.grad.numpy().copy() for name, p in self.network.named_parameters()}
        self.optimizer.step()
        return TorchStep(
            lr=lr,
            input=x.permute(0, 2, 3, 1).numpy(),
            logits=logits.detach().numpy(),
            loss=loss.item(),
            gradient=gradient,
            state_dict=read_arrays(self.network),
            moments=self.moments(),
        )

    def moments(self) -> dict[str, Arrays]:
        """The optimizer's running averages."""
        names = {p: name for name, p in self.network.named_parameters()}
        moments = {}
        for parameter, state in self.optimizer.state.items():
            for moment in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
                if state.get(moment) is not None:
                    moments.setdefault(moment, {})[names[parameter]] = state[moment].numpy().copy()
        return moments

    def end_epoch(self) -> None:
        """Steps the scheduler."""
        for _ in range(self.calls_per_epoch):
            self.scheduler.step()


def epoch_batches(order: np.ndarray, batch_size: int, *, drop_last: bool) -> Iterator[np.ndarray]:
    """The batches of an order, as DataLoader cuts them; the lecture's CIFAR-10 sampler is `drop_last`."""
    for places in BatchSampler(SequentialSampler(order), batch_size, drop_last):
        yield order[places]


def flip_first_half(step: int, count: int) -> np.ndarray:
    """Which of `count` images the lecture's CIFAR-10 program mirrors: the first half of each batch."""
    del step
    return np.arange(count) < count // 2


Flips = Callable[[int, int], np.ndarray]
