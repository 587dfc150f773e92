"""CNN6 at 32x32, Adam. The lecture: 61.89 % at epoch 27 of 30.

python main.py --config=configs/cnn6_adam.py --config.data.dir=FOLDER
"""

from cifar_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.optimizer.name = "adam"
    config.optimizer.lr = 0.001
    return config
