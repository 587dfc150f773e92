"""The lecture's CNN6 with Adam on CIFAR-100: every key at its default.

python main.py --config=configs/default.py --config.data.dir=FOLDER

The keys, what they take and what they do: python main.py --help
"""

from cifar_jax.runs.config import default_config


def get_config():
    return default_config()
