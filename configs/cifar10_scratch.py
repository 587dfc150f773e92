"""The lecture's earlier CIFAR-10 program: its sampler, its flip and its pixels, on CNN6.

It shuffles again when a whole batch no longer fits, flips the first half of each batch and leaves pixels in [0, 1].
The lecture's text shows neither its network nor its optimizer; these are the later program's.

    python main.py --config=configs/cifar10_scratch.py --config.data.dir=FOLDER
"""

from cifar_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.data.name = "cifar10"
    config.data.batch_size = 64
    config.data.augment = "flip_first_half"
    config.data.normalize = False
    config.data.sampler = "whole_batches"
    config.optimizer.name = "sgd"
    config.optimizer.lr = 0.005
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0005
    return config
