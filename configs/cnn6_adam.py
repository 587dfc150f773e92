"""CNN6 at 32x32, Adam. The lecture: 61.89 % at epoch 27 of 30.

python main.py --config=configs/cnn6_adam.py --config.data.dir=FOLDER
"""

from configs import default


def get_config():
    config = default.get_config()
    config.optimizer.name = "adam"
    config.optimizer.lr = 0.001
    return config
