"""CNN6 at 32x32, SGD with StepLR. The lecture: 61.73 % at epoch 21 of 30.

python main.py --config=configs/cnn6_step.py --config.data.dir=FOLDER
"""

from cifar_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.optimizer.name = "sgd"
    config.optimizer.lr = 0.005
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0005
    config.schedule.name = "step"
    config.schedule.step_size = 10
    config.schedule.gamma = 0.5
    return config
