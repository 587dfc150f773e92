"""Every key there is. As it stands: the lecture's CNN6 with Adam on CIFAR-100.

python main.py --config=configs/default.py --config.data.dir=FOLDER
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    config.seed = 0  # draws the initial weights, the order of every epoch and the augmentation
    config.rng = "jax"  # whose random numbers: jax, or torch for those that PyTorch draws from this seed on the CPU
    config.dtype = "float32"  # of the computation: float32, bfloat16, or float64 (slow, for comparisons)
    config.platform = "auto"  # auto takes the fastest there is; cpu, gpu or tpu insist

    config.data = data = ml_collections.ConfigDict()
    data.name = "cifar100"  # cifar100, cifar10, or shapes (embedded: needs no network)
    data.dir = ""  # a folder prepared by TFDS; empty: download into the cache folder
    data.image_size = 32  # height and width after a bicubic resize
    data.batch_size = 200
    data.eval_batch_size = 200
    data.limit_train = 0  # use only the first so many images; 0 uses all
    data.limit_test = 0
    data.holdout = 0  # so many of the training images, the last ones, only measure: the rows' holdout_accuracy
    data.placement = "auto"  # where the images lie: device, host (each batch travels), or auto: device if they fit
    data.augment = "flip"  # flip: each image with p = 0.5; flip_first_half: half of each batch; none
    data.normalize = True  # pixels to [-1, 1]; False: to [0, 1]
    data.sampler = "shuffle"  # shuffle: every image once an epoch; whole_batches: drops the remainder

    config.model = model = ml_collections.ConfigDict()
    model.name = "cnn6"  # cnn6 or cnn10
    model.stages = ()  # widths such as ((16, 16), (32, 32), (64, 64)); () keeps the lecture's
    model.init = "torch"  # initial weights as PyTorch draws them, or as flax does

    config.norm = norm = ml_collections.ConfigDict()
    norm.rule = "torch"  # how BatchNorm keeps its running averages: torch, flax or lecture
    norm.momentum = config_dict.placeholder(float)  # None: the rule's own, 0.1 (torch, lecture) or 0.99 (flax)
    norm.epsilon = 1e-5
    norm.sync = "global"  # over many devices, statistics of the whole batch; per_replica: of each device's share
    norm.compare = ()  # rules whose running averages are kept and evaluated beside, such as ("lecture", "flax")

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = "adam"  # adam or sgd
    optimizer.lr = 0.001
    optimizer.momentum = 0.9  # sgd only
    optimizer.weight_decay = 0.0  # joins the gradient, in both
    optimizer.b1 = 0.9  # adam only, as the next two
    optimizer.b2 = 0.999
    optimizer.eps = 1e-8

    config.train = train = ml_collections.ConfigDict()
    train.epochs = 30
    train.seeds = 1  # so many runs, of seed, seed + 1, ..., each in a folder of its own
    train.checkpoint_every = 1  # epochs; the last epoch is always saved

    config.sharding = sharding = ml_collections.ConfigDict()
    sharding.data = -1  # devices that share each batch; -1: all there are

    config.schedule = schedule = ml_collections.ConfigDict()
    schedule.name = "constant"  # constant, step or cosine
    schedule.step_size = 10  # step: calls between two drops
    schedule.gamma = 0.5  # step: factor of each drop
    schedule.t_max = config_dict.placeholder(int)  # cosine: calls until the rate is 0
    schedule.calls_per_epoch = 1  # 2 is what the lecture's slide does by calling it in the train and the test phase

    return config
