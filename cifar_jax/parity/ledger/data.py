"""Rows D: resizing, scaling, flips, batches and their order."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image

from cifar_jax.data.order import epoch_order, split_batches
from cifar_jax.nn import transforms
from cifar_jax.nn.losses import Metrics, batch_metrics
from cifar_jax.parity.ledger import lecture
from cifar_jax.parity.ledger.layout import nchw, nhwc
from cifar_jax.parity.ledger.page import Picture
from cifar_jax.parity.ledger.row import Measurement, Row, compare


def _images(n: int = 12) -> np.ndarray:
    """Noise, the hardest case for rounding, and some images of only extreme pixels, the hardest for clipping."""
    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)
    images[2 * n // 3 :] = np.where(images[2 * n // 3 :] < 128, 0, 255)
    return images


def _pillow(images: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BICUBIC)) for i in images])


def _jax_resize(images: np.ndarray, size: int) -> np.ndarray:
    shape = (len(images), size, size, 3)
    return np.asarray(jax.jit(lambda x: jax.image.resize(x, shape, "cubic"))(images.astype(np.float32)))


def _resize(naive) -> Measurement:
    images = _images()
    theirs, ours = _pillow(images, 64), jax.jit(transforms.resize, static_argnums=1)(images, 64)
    other = naive(images, 64)
    off = 100 * np.mean(np.abs(other - theirs) > 0.5)
    note = f"{off:.0f} % of the naive pixels are off by more than half a level; they run from {other.min():.0f} "
    return compare(theirs, ours, other, note=f"{note}to {other.max():.0f}")


def _torch_interpolate(images: np.ndarray, size: int) -> np.ndarray:
    tensor = nchw(images.astype(np.float32))
    return nhwc(torch.nn.functional.interpolate(tensor, (size, size), mode="bicubic", align_corners=False))


def _draw_resize() -> Picture:
    """One row of pixels across a black and white edge, as each side enlarges it."""
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, :, 16:] = 255
    sides = (
        _pillow(image, 64),
        np.asarray(jax.jit(transforms.resize, static_argnums=1)(image, 64)),
        _jax_resize(image, 64),
        _torch_interpolate(image, 64),
    )
    names = ("torch: PIL image", "ours", "naive: jax.image.resize", "other: torch tensor, a = -0.75")
    return Picture(
        "A black and white edge, enlarged from 32 to 64", "pixel", "level", list(range(26, 38)),
        {name: side[0, 32, 26:38, 0].astype(float).tolist() for name, side in zip(names, sides, strict=True)},
    )  # fmt: skip


def _scale() -> Measurement:
    """All 256 pixels in [-1, 1], compared in every bit: error in units of 2^-24."""
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    # ToTensor, then Normalize(0.5, 0.5): torch's own tensor operations in torchvision's order.
    theirs = torch.tensor(pixels).to(torch.float32).div(255).sub_(0.5).div_(0.5).numpy()
    ours = jax.jit(lambda x: transforms.to_float(x, normalize=True))(pixels)
    naive = jax.jit(lambda x: (x.astype(jnp.float32) / 255.0 - 0.5) / 0.5)(pixels)
    off = int(np.sum(np.asarray(naive)[..., 0] != theirs[..., 0]))
    return compare(theirs, ours, naive, note=f"{off} of 256 levels differ in the naive version")


def _flips() -> Measurement:
    """A batch of 7 through the CIFAR-10 program's preprocessing; naive: each image with probability 0.5."""
    images = _images(7)
    theirs = lecture.input_preprocess(torch.tensor(images)).numpy()
    transform = transforms.Transform(augment="flip_first_half", normalize=False)
    ours = jax.jit(lambda x, key: transforms.transform_train(x, key, transform))(images, jax.random.key(0))
    chosen = jax.random.bernoulli(jax.random.key(0), 0.5, (7, 1, 1, 1))
    naive = jnp.where(chosen, images[:, :, ::-1], images).astype(jnp.float32) / 255.0
    note = f"mirrored: images 1 to 3 of 7 there, and {(1 + np.flatnonzero(chosen)).tolist()} by a draw for each"
    return compare(theirs, ours, naive, note=note)


def _flip_spread() -> Measurement:
    """Deviation of the number of mirrored images in a batch of 200, over 200 batches."""
    batches, n = 200, 200
    torch.manual_seed(0)
    # torchvision's RandomHorizontalFlip draws this once for each image.
    theirs = np.array([[float(torch.rand(1) < 0.5) for _ in range(n)] for _ in range(batches)]).sum(1).std()
    images = np.zeros((n, 32, 32, 3), np.uint8)
    images[:, :, 0] = 255
    draw = jax.jit(lambda key: transforms.transform_train(jnp.asarray(images), key, transforms.Transform())[:, 0, 0, 0])
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(batches)]
    ours = np.array([np.sum(np.asarray(draw(key)) < 0) for key in keys]).std()
    naive = np.array([n * bool(jax.random.bernoulli(key)) for key in keys]).std()
    return compare(theirs, ours, naive, note="sqrt(200) / 2 = 7.07 where every image is drawn for itself")


def _ragged() -> Measurement:
    """Summed loss, correct answers and images of 1,010 images in batches of 200, over the exact ones."""
    rng, n, batch_size = np.random.default_rng(1), 1010, 200
    logits, labels = rng.normal(size=(n, 10)).astype(np.float32), rng.integers(0, 10, n).astype(np.int32)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.tensor(logits), torch.tensor(labels).long()), batch_size=batch_size
    )
    theirs = np.zeros(3)
    for x, y in loader:
        loss = torch.nn.functional.cross_entropy(x.double(), y, reduction="sum").item()
        theirs += [loss, (x.argmax(1) == y).sum().item(), len(y)]
    indices, mask = split_batches(np.arange(n, dtype=np.int32), batch_size)
    compiled = jax.jit(batch_metrics)
    ours = _totals(compiled(logits[row], labels[row], real) for row, real in zip(indices, mask, strict=True))
    whole = range(0, n - n % batch_size, batch_size)
    naive = _totals(compiled(logits[i : i + batch_size], labels[i : i + batch_size]) for i in whole)
    note = f"the naive version counts {naive[2]:.0f} of {n:,} images"
    return compare(np.ones(3), ours / theirs, naive / theirs, note=note)


def _totals(metrics) -> np.ndarray:
    return np.array([[float(value) for value in Metrics(*each)] for each in metrics]).sum(0)


def _compilations() -> Measurement:
    """How many programs one epoch of 1,010 images in batches of 200 compiles."""
    labels = np.arange(1010, dtype=np.int32) % 10
    logits = np.zeros((1010, 10), np.float32)

    def traces(batches) -> int:
        count = 0

        @jax.jit
        def step(*batch):
            nonlocal count
            count += 1
            return batch_metrics(*batch)

        for batch in batches:
            step(*batch)
        return count

    indices, mask = split_batches(np.arange(1010, dtype=np.int32), 200)
    ours = traces((logits[row], labels[row], real) for row, real in zip(indices, mask, strict=True))
    naive = traces((logits[i : i + 200], labels[i : i + 200]) for i in range(0, 1010, 200))
    # torch compiles nothing; one program is what a fixed shape takes.
    return compare(1, ours, naive)


def _sampler() -> Measurement:
    """Two epochs of 1,000 images in batches of 64, on the same orders: every position of every batch."""
    n, batch_size = 1000, 64
    sampler = lecture.RandomSampler(n, batch_size, np.random.RandomState(0))
    orders, batches = [], []
    for _ in range(2):
        for step in range(n // batch_size):
            batches.append(sampler.get_random_idx())
            if step == 0:
                orders.append(sampler.indices.astype(np.int32))
    ours = [np.asarray(row) for order in orders for row in split_batches(order, batch_size, "whole_batches")[0]]
    # The usual loop keeps the ragged last batch, so that the second epoch begins one batch later.
    naive = [order[i : i + batch_size] for order in orders for i in range(0, n, batch_size)]
    naive = np.concatenate(naive)[: 2 * (n // batch_size) * batch_size].reshape(-1, batch_size)
    note = f"an epoch of {n:,} images in batches of {batch_size} leaves out {n % batch_size}; of 50,000, 16"
    return compare(*(_equal_batches(np.array(batches), np.array(side)) for side in (batches, ours, naive)), note=note)


def _equal_batches(expected: np.ndarray, batches: np.ndarray) -> int:
    return int(np.all(expected == batches, axis=1).sum())


def _order() -> Measurement:
    """Images that ten epochs of a shuffle show at the place where the epoch before showed them, of 1,000."""
    n, epochs = 1000, 10
    generator = torch.Generator().manual_seed(0)
    sampler = torch.utils.data.RandomSampler(range(n), generator=generator)
    theirs = _repeats([np.array(list(sampler)) for _ in range(epochs)])
    key = jax.random.key(0)
    ours = _repeats([np.asarray(epoch_order(key, epoch, n)) for epoch in range(epochs)])
    naive = _repeats([np.asarray(jax.random.permutation(key, n)) for _ in range(epochs)])
    return compare(theirs, ours, naive)


def _repeats(orders: list[np.ndarray]) -> float:
    return float(np.mean([np.sum(a == b) for a, b in itertools.pairwise(orders)]))


ROWS = (
    Row(
        id="D1",
        title="Bicubic resize",
        compared="every pixel of 12 images from 32 to 64, in levels of 255; torch: Pillow, as torchvision calls it",
        explanation=(
            "torchvision resizes PIL images with Pillow: fixed point, rounded and clipped to a byte after each of two "
            "passes. jax.image.resize has the same kernel but neither rounds nor clips, so edges overshoot black and "
            "white."
        ),
        wrong="jax.image.resize(images.astype(jnp.float32), (n, 64, 64, 3), 'cubic')",
        right="transforms.resize(images, 64)",
        tolerance=0,
        reason="whole numbers",
        run=lambda: _resize(_jax_resize),
        picture=_draw_resize,
    ),
    Row(
        id="D1T",
        title="Bicubic resize of tensors",
        compared="every pixel of 12 images from 32 to 64, in levels of 255; torch: Pillow, as torchvision calls it",
        explanation=(
            "PyTorch has two bicubic kernels: a = -0.5 for PIL images, as in the lecture, and a = -0.75 for tensors. "
            "Resizing after ToTensor is another program."
        ),
        wrong="torch.nn.functional.interpolate(images, (64, 64), mode='bicubic')",
        right="transforms.resize(images, 64)",
        tolerance=0,
        reason="whole numbers",
        run=lambda: _resize(_torch_interpolate),
    ),
    Row(
        id="D2",
        title="The last batch",
        compared="summed loss, correct answers and images of 1,010 in batches of 200, over torch's",
        explanation=(
            "A DataLoader with drop_last=False gives a short last batch. Dropping it, as TFDS and Grain pipelines "
            "with drop_remainder=True do, evaluates on a subset: 99 % of the images here, and which ones depends on "
            "the batch size."
        ),
        wrong="dataset.batch(200, drop_remainder=True)",
        right="indices, mask = split_batches(order, 200)  # filled up, and masked in loss, metrics and BatchNorm",
        tolerance=1e-6,
        reason="float32 sums of 200 losses",
        run=_ragged,
    ),
    Row(
        id="D2C",
        title="Programs for the last batch",
        compared="programs compiled for an epoch of 1,010 images in batches of 200",
        explanation=(
            "Every new shape is traced and compiled again: seconds for a real network, at the end of the first epoch. "
            "A padded batch has the shape of the others."
        ),
        wrong="for i in range(0, n, 200):\n    state = train_step(state, images[i : i + 200])",
        right="indices, mask = split_batches(order, 200)",
        tolerance=0,
        reason="a count",
        run=_compilations,
    ),
    Row(
        id="D3",
        title="The CIFAR-10 program's sampler",
        compared="batches of two epochs that are the sampler's, of 30",
        explanation=(
            "The lecture's RandomSampler shuffles again as soon as a whole batch no longer fits: the remainder of each "
            "order is never seen. 50,000 images in batches of 64 are 781 updates instead of 782."
        ),
        wrong="for i in range(0, n, batch_size):\n    batch = order[i : i + batch_size]",
        right="split_batches(order, batch_size, 'whole_batches')",
        tolerance=0,
        reason="whole numbers",
        run=_sampler,
    ),
    Row(
        id="D3O",
        title="A new order every epoch",
        compared="images of 1,000 at the place of the epoch before, mean of ten epochs",
        explanation=(
            "A DataLoader's generator moves on from epoch to epoch. A JAX key does not: the same key gives the same "
            "permutation for ever, unless the epoch is folded in."
        ),
        wrong="order = jax.random.permutation(key, n)  # in every epoch",
        right="order = epoch_order(key, epoch, n)  # fold_in(key, epoch)",
        tolerance=3,
        reason="one is expected; the mean of nine has a deviation of a third",
        run=_order,
        stable=False,
    ),
    Row(
        id="D4",
        title="The CIFAR-10 program's flip",
        compared="pixels in [0, 1] of a batch of 7",
        explanation=(
            "The CIFAR-10 program mirrors the first half of every batch (the smaller half of an odd one); the "
            "CIFAR-100 program mirrors each image with probability 0.5."
        ),
        wrong="jnp.where(jax.random.bernoulli(key, 0.5, (n, 1, 1, 1)), images[:, :, ::-1], images)",
        right="Transform(augment='flip_first_half', normalize=False)",
        tolerance=0,
        reason="the same pixels, divided on the host",
        run=_flips,
    ),
    Row(
        id="D4I",
        title="One draw for each image",
        compared="deviation of the number of mirrored images in a batch of 200",
        explanation=(
            "RandomHorizontalFlip works on one image and draws for each. Written for a batch, one draw mirrors all "
            "images or none."
        ),
        wrong="jax.lax.cond(jax.random.bernoulli(key), lambda x: x[:, :, ::-1], lambda x: x, images)",
        right="flip(images, jax.random.bernoulli(key, 0.5, (n,)))",
        tolerance=2,
        reason="four standard errors of the difference of two such deviations, 200 batches each",
        run=_flip_spread,
        stable=False,
    ),
    Row(
        id="D5",
        title="Pixels to floats",
        compared="256 levels in [-1, 1]",
        explanation=(
            "torchvision divides by 255. XLA turns the division by a constant into a product with its rounded "
            "reciprocal, and many levels come out one bit away. There are only 256: they are worked out on the host "
            "and looked up."
        ),
        wrong="jax.jit(lambda x: (x.astype(jnp.float32) / 255 - 0.5) / 0.5)",
        right="transforms.to_float(images, normalize=True)",
        tolerance=0,
        reason="equal in every bit",
        run=_scale,
        stable=False,
    ),
)
