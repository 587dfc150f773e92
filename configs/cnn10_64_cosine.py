"""CNN10 at 64x64, SGD with cosine annealing. The lecture: 69.23 % at epoch 28 of 30.

python main.py --config=configs/cnn10_64_cosine.py --config.data.dir=FOLDER
"""

from cifar_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.model.name = "cnn10"
    config.data.image_size = 64
    config.optimizer.name = "sgd"
    config.optimizer.lr = 0.005
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0005
    config.schedule.name = "cosine"
    config.schedule.t_max = config.train.get_oneway_ref("epochs")
    return config
