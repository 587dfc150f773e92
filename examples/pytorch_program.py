"""A plain PyTorch program: the quickstart's run, saved as PyTorch programs save theirs; only the images are ours.

It trains 2 of the 5 epochs; the rest is trained in JAX, and PyTorch takes the result back:

    python examples/pytorch_program.py half.pt --epochs=2
    python -m cifar_jax convert half.pt runs/half --config=configs/quickstart.py --config.rng=torch
    python main.py --config=configs/quickstart.py --config.rng=torch --workdir=runs/half --mode=evaluate
    python main.py --config=configs/quickstart.py --config.rng=torch --workdir=runs/half
    python -m cifar_jax convert runs/half whole.pt
    python examples/pytorch_program.py whole.pt --epochs=5

With --config.rng=torch the epochs trained in JAX shuffle and flip as this program would have gone on to do.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from cifar_jax.data import load_dataset

WIDTHS = (16, 16, 32, 32, 64, 64)
EPOCHS = 5


class CNN6(nn.Module):
    """Six convolutions with BatchNorm and ReLU, a max pool after every second, then a global average and a layer."""

    def __init__(self, widths, num_classes):
        super().__init__()
        channels = 3
        for number, width in enumerate(widths, start=1):
            self.add_module(f"conv{number}", nn.Conv2d(channels, width, 3, padding=1, bias=False))
            self.add_module(f"norm{number}", nn.BatchNorm2d(width))
            channels = width
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x):
        """Logits `[batch, classes]` of images `[batch, 3, height, width]`."""
        for number in range(1, 7):
            x = torch.relu(getattr(self, f"norm{number}")(getattr(self, f"conv{number}")(x)))
            if number % 2 == 0:
                x = nn.functional.max_pool2d(x, 2)
        return self.linear(x.mean(dim=(2, 3)))


class Images(torch.utils.data.Dataset):
    """Normalised images, flipped at random where `flip` says so, and their labels."""

    def __init__(self, images, labels, *, flip, dtype):
        x = torch.tensor(images).permute(0, 3, 1, 2).to(dtype)
        self.x, self.y, self.flip = x.div(255).sub(0.5).div(0.5), torch.tensor(labels).long(), flip

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        x = self.x[index]
        return x.flip(-1) if self.flip and torch.rand(1) < 0.5 else x, self.y[index]


def run(path, *, epochs, batch_size=100, widths=WIDTHS, dtype=torch.float32):
    """Trains up to so many epochs, going on from the file at `path` if there is one, and saves to it; the network."""
    data = load_dataset("shapes")
    torch.manual_seed(0)
    network = CNN6(widths, len(data.class_names)).to(dtype)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0005)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)
    parts, done = {"model": network, "optimizer": optimizer, "scheduler": scheduler}, 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        done = saved["epoch"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    train = torch.utils.data.DataLoader(Images(*data.train, flip=True, dtype=dtype), batch_size, shuffle=True)
    test = torch.utils.data.DataLoader(Images(*data.test, flip=False, dtype=dtype), batch_size)
    if done >= epochs:
        evaluate(network, test, done)
    while done < epochs:
        network.train()
        for x, y in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        scheduler.step()
        done += 1
        evaluate(network, test, done)
    torch.save({**{name: part.state_dict() for name, part in parts.items()}, "epoch": done}, path)
    return network


@torch.no_grad()
def evaluate(network, loader, epoch):
    """Prints loss and accuracy on the test images."""
    network.eval()
    loss = correct = count = 0
    for x, y in loader:
        logits = network(x)
        loss += nn.functional.cross_entropy(logits, y, reduction="sum").item()
        correct += (logits.argmax(dim=1) == y).sum().item()
        count += len(y)
    print(f"epoch {epoch}: test loss {loss / count:.4f}, test accuracy {100 * correct / count:.2f} %", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Trains a narrow CNN6 on the embedded shapes in PyTorch.")
    parser.add_argument("path", type=Path, help="file to save to, and to go on from if it exists")
    parser.add_argument("--epochs", type=int, required=True, help=f"how many of the {EPOCHS} epochs to have done")
    arguments = parser.parse_args()
    run(arguments.path, epochs=arguments.epochs)
