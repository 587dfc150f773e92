"""The lecture's earlier CIFAR-10 program in PyTorch: its sampler, its flip, its softmax and cross-entropy."""

import numpy as np
import torch


class RandomSampler:
    """Hands out batches of a shuffled index, and shuffles again when a whole batch no longer fits.

    Source: the lecture, "Cifar10 load".
    """

    def __init__(self, full_size: int, batch_size: int, generator: np.random.RandomState):
        self.batch_size, self.generator = batch_size, generator
        self.indices = np.arange(full_size)
        self.shuffle()

    def shuffle(self) -> None:
        """A new order, from its start."""
        self.generator.shuffle(self.indices)
        self.start = 0

    def get_random_idx(self) -> np.ndarray:
        """The next batch's positions."""
        if self.start + self.batch_size > len(self.indices):
            self.shuffle()
        chosen = self.indices[self.start : self.start + self.batch_size].copy()
        self.start += self.batch_size
        return chosen


def input_preprocess(x: torch.Tensor) -> torch.Tensor:
    """Pixels `[batch, height, width, 3]` in [0, 1], the first half of the batch mirrored.

    Source: the lecture, "Input transforms".
    """
    x = x.float() / 255.0
    half = x.shape[0] // 2
    x[:half] = torch.flip(x[:half], dims=[2])
    return x


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Probabilities of logits `[batch, classes]`, as the slide writes them: without taking the maximum out first."""
    exponentials = torch.exp(x)
    return exponentials / exponentials.sum(dim=1).unsqueeze(dim=1)


def cross_entropy(probabilities: torch.Tensor, one_hot: torch.Tensor) -> torch.Tensor:
    """Mean of `-log p` of the right class.

    Source: the lecture, "Pytorch CrossEntropyLoss".
    """
    return (-torch.log(probabilities) * one_hot).sum() / probabilities.shape[0]
