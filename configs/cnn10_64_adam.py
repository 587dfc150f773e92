"""CNN10 at 64x64, Adam. The lecture: 53.10 % at epoch 30 of 30.

python main.py --config=configs/cnn10_64_adam.py --config.data.dir=FOLDER
"""

from cifar_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.model.name = "cnn10"
    config.data.image_size = 64
    config.optimizer.name = "adam"
    config.optimizer.lr = 0.001
    return config
