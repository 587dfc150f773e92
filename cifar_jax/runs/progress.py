"""What a person sees of a run: one line an epoch, and on a terminal a bar within it."""

import sys

from tqdm import tqdm


def epoch_bar(epoch: int, epochs: int, images: int) -> tqdm:
    """A bar over the images of an epoch's two phases; silent unless standard error is a terminal."""
    return tqdm(
        total=images, desc=f"epoch {epoch}/{epochs}", unit=" images", leave=False, disable=not sys.stderr.isatty()
    )


def epoch_line(row: dict, epochs: int, seconds_left: float) -> str:
    """One epoch's metrics in one line.

    >>> row = dict(epoch=2, lr=0.001, train_loss=2.5, train_accuracy=33.3, test_loss=2.25, test_accuracy=40.0,
    ...            seconds=60.0, images_per_second=951.5)
    >>> epoch_line(row, 30, 1680)
    'epoch  2/30  lr 0.001  train 2.5000 33.30 %  test 2.2500 40.00 %  952 images/s  28 min left'
    """
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  lr {row['lr']:.4g}  "
        f"train {row['train_loss']:.4f} {row['train_accuracy']:.2f} %  "
        f"test {row['test_loss']:.4f} {row['test_accuracy']:.2f} %  "
        f"{row['images_per_second']:.0f} images/s  {duration(seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """A time in the two largest units that matter.

    >>> duration(4.26), duration(95), duration(1680), duration(7325)
    ('4.3 s', '1 min 35 s', '28 min', '2 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
