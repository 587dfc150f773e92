"""The arms in PyTorch: the lecture's program, the same with its data on the device, and the best that we know of."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional

from cifar_jax.errors import InputError
from cifar_jax.studies.benchmark.arm import LEAST_STEPS, Evaluated, Trained
from cifar_jax.studies.benchmark.recipe import Recipe, read_draws, read_splits


def set_up(recipe: Recipe) -> torch.device:
    """Threads, precision and the device; call it before anything else.

    Raises:
      InputError: the run is on a GPU that PyTorch does not see.
    """
    torch.set_num_threads(recipe.threads)
    if recipe.device == "cpu":
        torch.set_float32_matmul_precision("highest")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(f"PyTorch {torch.__version__} sees no GPU here, where JAX does.")
    reduced = recipe.precision == "tensorfloat32"
    torch.set_float32_matmul_precision("high" if reduced else "highest")
    torch.backends.cudnn.allow_tf32 = reduced
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda")


def synchronize(device: torch.device) -> None:
    """Waits until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def create_network(stages: list[list[int]], classes: int, epsilon: float) -> nn.Module:
    """The network, as one would write it in PyTorch, with torch's own initial weights."""
    layers, channels = [], 3
    for widths in stages:
        for width in widths:
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, eps=epsilon),
                nn.ReLU(inplace=True),
            ]  # fmt: skip
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def create_optimizer(network: nn.Module, config: dict, **options) -> torch.optim.Optimizer:
    """The config's optimizer; `options` are those of its implementation, such as `fused`."""
    shared = {"lr": config["lr"], "weight_decay": config["weight_decay"], **options}
    if config["name"] == "sgd":
        return torch.optim.SGD(network.parameters(), momentum=config["momentum"], **shared)
    return torch.optim.Adam(network.parameters(), betas=(config["b1"], config["b2"]), eps=config["eps"], **shared)


class _TorchArm:
    """What the arms in PyTorch have in common."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.device = recipe, set_up(recipe)
        torch.manual_seed(recipe.config["seed"])
        network = create_network(recipe.stages, recipe.classes, recipe.config["norm"]["epsilon"])
        self.network = network.to(self.device)
        self.train_split, self.test_split = read_splits(recipe.images)

    def draw(self, epoch: int) -> None:
        """Nothing: see the arm itself."""

    def autocast(self) -> torch.autocast:
        """Convolutions and products in bfloat16 where the recipe says so; parameters stay float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.recipe.half)

    def peak_device_memory(self) -> int | None:
        """By torch's allocator."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    def origin(self) -> dict:
        """PyTorch's version and what it runs on."""
        cuda = self.device.type == "cuda"
        return {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "precision": torch.get_float32_matmul_precision(),
            **({"cudnn": torch.backends.cudnn.version()} if cuda else {"threads": torch.get_num_threads()}),
        }


class _Pictures(torch.utils.data.Dataset):
    """Images as Pillow's, each resized, flipped at random where `flip` says so, and normalised when it is asked for."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, size: int, *, flip: bool):
        self.images, self.labels, self.size, self.flip = images, labels, size, flip

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        picture = Image.fromarray(self.images[index]).resize((self.size, self.size), Image.Resampling.BICUBIC)
        if self.flip and torch.rand(1) < 0.5:
            picture = ImageOps.mirror(picture)
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return x.sub(0.5).div(0.5), int(self.labels[index])


class LectureProgram(_TorchArm):
    """P0: a DataLoader without workers over Pillow's pictures, a copy to the device and an `.item()` for each batch.

    It draws the order and the flips itself, which are those of `recipe.Draws` as long as every epoch is evaluated.
    """

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        size, options = recipe.image_size, {"batch_size": recipe.batch_size, "drop_last": False}
        self.loaders = {
            "train": torch.utils.data.DataLoader(
                _Pictures(*self.train_split, size, flip=True), shuffle=True, **options
            ),
            "test": torch.utils.data.DataLoader(_Pictures(*self.test_split, size, flip=False), **options),
        }
        self.loss_fn = nn.CrossEntropyLoss()
        self.optimizer = create_optimizer(self.network, recipe.config["optimizer"])

    def train(self, epoch: int, on_first_step: Callable[[], None], expired: Callable[[], bool]) -> Trained:
        """One pass over the training loader."""
        del epoch
        self.network.train()
        losses, correct, images = [], 0, 0
        for inputs, labels in self.loaders["train"]:
            inputs, labels = inputs.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            with self.autocast():
                outputs = self.network(inputs)
                loss = self.loss_fn(outputs, labels)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            correct += (outputs.argmax(dim=1) == labels).sum().item()
            images += len(labels)
            if len(losses) == 1:
                synchronize(self.device)
                on_first_step()
            if len(losses) >= LEAST_STEPS and expired():
                break
        synchronize(self.device)
        return Trained(np.array(losses), images, whole=images == len(self.train_split.labels))

    @torch.no_grad()
    def evaluate(self) -> Evaluated:
        """One pass over the test loader."""
        self.network.eval()
        loss = correct = images = 0
        for inputs, labels in self.loaders["test"]:
            inputs, labels = inputs.to(self.device), labels.to(self.device)
            with self.autocast():
                outputs = self.network(inputs)
                loss += self.loss_fn(outputs, labels).item() * len(labels)
            correct += (outputs.argmax(dim=1) == labels).sum().item()
            images += len(labels)
        return Evaluated(loss / images, 100 * correct / images, images)


class OnDevice(_TorchArm):
    """P1, P1L and P2: the data on the device, batches made there, losses fetched once an epoch.

    channels_last: weights and activations with the channels innermost.
    compiled: preprocessing, network and loss through `torch.compile(mode="max-autotune")`, which on a GPU replays CUDA
      graphs; the optimizer in one fused kernel.
    """

    def __init__(self, recipe: Recipe, *, channels_last: bool, compiled: bool):
        super().__init__(recipe)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network.to(memory_format=self.layout)
        self.optimizer = create_optimizer(
            self.network, recipe.config["optimizer"], **({"fused": True} if compiled else {})
        )
        self.train_data, self.test_data = (self._load(split) for split in (self.train_split, self.test_split))
        self.draws = read_draws(recipe.draws)
        self.graphs = compiled and self.device.type == "cuda"
        wrap = torch.compile(mode="max-autotune") if compiled else lambda function: function
        self.loss, self.score = wrap(self._loss), wrap(self._score)

    def _load(self, split):
        images = (
            torch.from_numpy(split.images).to(self.device).permute(0, 3, 1, 2).contiguous(memory_format=self.layout)
        )
        return images, torch.from_numpy(split.labels).to(self.device, torch.int64)

    def draw(self, epoch: int) -> None:
        """Copies the epoch's batches of order and flips to the device."""
        batch = self.recipe.batch_size
        order = torch.from_numpy(self.draws.order[epoch]).to(self.device, torch.int64)
        flips = torch.from_numpy(self.draws.flips[epoch]).to(self.device)
        # Copies, not views: kernels are compiled for inputs that begin at a whole address.
        self.batches = [(o.clone(), f.clone()) for o, f in zip(order.split(batch), flips.split(batch), strict=True)]
        synchronize(self.device)

    def _input(self, images: torch.Tensor, flips: torch.Tensor | None) -> torch.Tensor:
        """uint8 `[batch, 3, 32, 32]` to what the network sees."""
        x = images.to(torch.float32)
        size = self.recipe.image_size
        if size != images.shape[-1]:
            # As Pillow, which rounds to whole levels after each axis; both at once would miss it by up to 20 levels.
            for shape in ((images.shape[-2], size), (size, size)):
                x = functional.interpolate(x, size=shape, mode="bicubic", antialias=True)
                x = x.add(0.5).floor().clamp(0, 255)
        if flips is not None:
            x = torch.where(flips.view(-1, 1, 1, 1), x.flip(3), x)
        return x.div(255).sub(0.5).div(0.5).contiguous(memory_format=self.layout)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            return self.network(x).to(torch.float32)

    def _loss(self, images: torch.Tensor, labels: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self._logits(self._input(images, flips)), labels)

    def _score(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._logits(self._input(images, None))
        return functional.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(dim=1) == labels).sum()

    def train(self, epoch: int, on_first_step: Callable[[], None], expired: Callable[[], bool]) -> Trained:
        """A step for each batch; the host does not wait for any but the first."""
        del epoch
        self.network.train()
        images, labels = self.train_data
        losses, steps, seen = torch.zeros(len(self.batches), device=self.device), 0, 0
        for rows, flips in self.batches:
            if self.graphs:
                torch.compiler.cudagraph_mark_step_begin()
            # Gathered outside the graph, whose inputs are copied: of a batch, not of the data set.
            loss = self.loss(images[rows], labels[rows], flips)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            losses[steps].copy_(loss.detach())  # the next replay overwrites it
            steps, seen = steps + 1, seen + len(rows)
            if steps == 1:
                synchronize(self.device)
                on_first_step()
            if steps >= LEAST_STEPS and expired():
                break
        synchronize(self.device)
        return Trained(losses[:steps].cpu().numpy(), seen, whole=seen == len(labels))

    def origin(self) -> dict:
        """As every arm's, and of CUDA graphs how many programs went without: 0, or the arm is not what it claims."""
        if not self.graphs:
            return super().origin()
        from torch._dynamo.utils import counters  # the other arms start without the compiler

        return {**super().origin(), "cudagraph_skips": counters["inductor"]["cudagraph_skips"]}

    @torch.no_grad()
    def evaluate(self) -> Evaluated:
        """Sums on the device, fetched once."""
        self.network.eval()
        images, labels = self.test_data
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        correct, count = torch.zeros((), dtype=torch.int64, device=self.device), 0
        for place in range(0, len(labels), self.recipe.batch_size):
            if self.graphs:
                torch.compiler.cudagraph_mark_step_begin()
            rows = slice(place, place + self.recipe.batch_size)
            its_loss, its_correct = self.score(images[rows], labels[rows])
            loss += its_loss
            correct += its_correct
            count += len(labels[rows])
        return Evaluated(loss.item() / count, 100 * correct.item() / count, count)


def measure_ceilings(recipe: Recipe, time_best: Callable, sizes: tuple[int, int]) -> dict[str, float]:
    """FLOP/s of a large product in the recipe's type and byte/s of a large copy, by PyTorch; see `ceilings`."""
    device, (side, size) = set_up(recipe), sizes
    dtype = torch.bfloat16 if recipe.half else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)

    def finished(function):
        function()
        synchronize(device)

    return {
        "flops_per_second": 2 * side**3 / time_best(lambda: finished(lambda: torch.mm(a, b))),
        "bytes_per_second": 2 * size / time_best(lambda: finished(lambda: target.copy_(source))),
    }
