"""A narrow CNN6 on the embedded shapes: no network, about a minute on two CPU cores, 98 % or more.

python main.py --config=configs/quickstart.py
"""

from cifar_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.data.name = "shapes"
    config.data.batch_size = 100
    config.model.stages = ((16, 16), (32, 32), (64, 64))
    config.optimizer.name = "sgd"
    config.optimizer.lr = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0005
    config.train.epochs = 5
    config.schedule.name = "cosine"
    config.schedule.t_max = config.train.get_oneway_ref("epochs")
    return config
