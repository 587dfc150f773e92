"""A process of two that run PyTorch's DistributedDataParallel, for test_sharding.py.

python torch_ddp.py RANK FILE IN.npz OUT.npz; FILE is where the two find each other, and rank 0 writes OUT.
"""

import sys

import numpy as np
import torch
import torch.distributed

from cifar_jax.parity.lockstep.torch_side import Preprocess
from cifar_jax.parity.twin import create_optimizer, create_twin, load_arrays, read_arrays


def main(rank, rendezvous, source, target):
    torch.set_num_threads(1)
    data = np.load(source)
    network = create_twin("cnn6", num_classes=10, stages=((4, 4), (4, 4), (8, 8))).double()
    start = {key.removeprefix("ddp/start/"): data[key] for key in data.files if key.startswith("ddp/start/")}
    load_arrays(network, start)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    parallel = torch.nn.parallel.DistributedDataParallel(network)
    optimizer = create_optimizer("sgd", network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    preprocess, losses = Preprocess(32, normalize=True), []
    for images, labels in zip(data["ddp/images"], data["ddp/labels"], strict=True):
        own = slice(rank * len(labels) // 2, (rank + 1) * len(labels) // 2)
        x = preprocess(images[own], np.zeros(len(labels) // 2, bool), torch.float64)
        loss = torch.nn.functional.cross_entropy(parallel(x), torch.from_numpy(labels[own].astype(np.int64)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        torch.distributed.all_reduce(mean)
        losses.append(mean.item() / 2)
    if rank == 0:
        np.savez(target, losses=losses, **{f"end/{key}": value for key, value in read_arrays(network).items()})
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
