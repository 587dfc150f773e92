"""The port of theirs.py to Flax, with one mistake that trains well and costs accuracy: compare finds it."""

import flax.linen as nn
import optax


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x, train):
        """[batch, height, width, channels] to [batch, height / stride, width / stride, self.width]."""

        def norm(x):
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)

        y = nn.Conv(self.width, (3, 3), self.stride, padding="SAME", use_bias=False)(x)
        y = nn.relu(norm(y))
        y = norm(nn.Conv(self.width, (3, 3), padding="SAME", use_bias=False)(y))
        if self.stride != 1 or x.shape[-1] != self.width:
            x = norm(nn.Conv(self.width, (1, 1), self.stride, use_bias=False)(x))
        return nn.relu(y + x)


class ResNet18(nn.Module):
    """[batch, 32, 32, 3] to [batch, 100]."""

    @nn.compact
    def __call__(self, images, train=False):
        """Images to logits."""
        x = nn.Conv(64, (3, 3), padding="SAME", use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x))
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            x = Block(width, stride)(x, train)
            x = Block(width, 1)(x, train)
        return nn.Dense(100)(x.mean((1, 2)))


def optimizer():
    """SGD with momentum and decay, as PyTorch orders them."""
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))
