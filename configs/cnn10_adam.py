"""CNN10 at 32x32, Adam. The lecture: 60.62 % at epoch 23 of 30.

python main.py --config=configs/cnn10_adam.py --config.data.dir=FOLDER
"""

from cifar_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.model.name = "cnn10"
    config.optimizer.name = "adam"
    config.optimizer.lr = 0.001
    return config
