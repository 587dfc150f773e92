"""The lecture's table of results, each from one run of 30 epochs over all images."""

from typing import NamedTuple

EPOCHS = 30


class Result(NamedTuple):
    """A cell: the maximum test accuracy in percent, and its epoch."""

    network: str
    recipe: str
    accuracy: float
    epoch: int


LECTURE = {
    "cnn6_adam": Result("CNN6, 32x32", "Adam", 61.89, 27),
    "cnn6_step": Result("CNN6, 32x32", "SGD, StepLR", 61.73, 21),
    "cnn6_cosine": Result("CNN6, 32x32", "SGD, cosine", 61.67, 28),
    "cnn10_adam": Result("CNN10, 32x32", "Adam", 60.62, 23),
    "cnn10_step": Result("CNN10, 32x32", "SGD, StepLR", 66.58, 30),
    "cnn10_cosine": Result("CNN10, 32x32", "SGD, cosine", 66.56, 22),
    "cnn10_64_adam": Result("CNN10, 64x64", "Adam", 53.10, 30),
    "cnn10_64_step": Result("CNN10, 64x64", "SGD, StepLR", 68.74, 23),
    "cnn10_64_cosine": Result("CNN10, 64x64", "SGD, cosine", 69.23, 28),
}
