"""What a trained network sees in a user's own pictures.

    python -m cifar_jax predict --workdir=RUN IMAGE...

IMAGE is a picture or a folder of pictures. Of a folder, files that are no pictures, by content and name, are named and
skipped. A picture that cannot be read is an error, and the others go on.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from cifar_jax.command_line import Parser, path
from cifar_jax.devices.interrupt import interruptible
from cifar_jax.errors import InputError
from cifar_jax.use.pictures import UnknownFormatError, read_picture
from cifar_jax.use.trained import Trained, compile_probabilities, load_trained

_SHOWN = 5


class Picture(NamedTuple):
    """A picture that was read, or an error in its place."""

    file: str
    image: UInt8[np.ndarray, "32 32 3"] | None
    error: str | None


class Prediction(NamedTuple):
    """The probability of each class of a picture, or an error in its place."""

    file: str
    probabilities: Float[np.ndarray, " classes"] | None
    error: str | None


def main(argv: list[str]) -> int:
    """Predicts as the command line says; returns 2 where a picture could not be read, else 0.

    Raises:
      InputError: nothing can be predicted.
      Interrupted: as the signal asked.
    """
    parser = Parser("predict", __doc__)
    parser.add_argument(
        "images", nargs="*", default=[], type=path, metavar="IMAGE", help="pictures and folders of pictures"
    )
    parser.add_argument("--workdir", type=path, required=True, metavar="RUN", help="the folder of a run")
    parser.add_argument("--json", action="store_true", help="one object a line, with the probability of every class")
    arguments = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax warns of a checkpoint that is only read
    with interruptible() as interrupt:
        whole = predict_pictures(
            arguments.workdir, arguments.images, as_json=arguments.json, check_stop=interrupt.check
        )
    return 0 if whole else 2


def predict_pictures(
    workdir: Path,
    paths: Sequence[Path],
    *,
    as_json: bool = False,
    check_stop: Callable[[], None] = lambda: None,
) -> bool:
    """Prints what the network of the run in `workdir` sees in pictures, as soon as each batch of them is read.

    Args:
      workdir: the folder of a run; see `load_trained` for which epoch.
      paths: pictures and folders of pictures.
      as_json: one object a line, with the probability of every class, rather than text with the likeliest.
      check_stop: called before each picture; may raise to stop.

    Returns:
      Whether every picture could be read.

    Raises:
      InputError: nothing can be predicted, as the folder holds no trained network or no picture is named.
    """
    if not paths:
        raise InputError("IMAGE must name a picture or a folder of pictures, got nothing.")
    trained, whole = load_trained(workdir), True
    if not as_json:
        print(_heading(trained, workdir), flush=True)
    for prediction in predict_files(trained, paths, check_stop=check_stop):
        if prediction.error is not None:
            whole = False
            _tell(f"Error: {prediction.error}")
        if as_json:
            print(json.dumps(_to_json(prediction, trained.class_names)), flush=True)
        elif prediction.error is None:
            print(_to_text(prediction, trained.class_names), flush=True)
    return whole


def predict_files(
    trained: Trained, paths: Sequence[Path], *, check_stop: Callable[[], None] = lambda: None
) -> Iterator[Prediction]:
    """Predictions in the order of `paths`.

    Pictures are read and run in batches as large as those in which the run was evaluated, so that thousands of them
    fit into memory and get the very bits of an evaluation; fewer pictures than that go into one smaller batch, which
    may round otherwise.
    """
    listed = [_list(image) for image in paths]
    count = sum(len(argument.files) for argument in listed)
    batch_size = min(trained.config["data.eval_batch_size"], 1 << max(count - 1, 0).bit_length())
    pictures, run = _read(listed, check_stop), None
    while batch := list(itertools.islice(pictures, batch_size)):
        images = [picture.image for picture in batch if picture.image is not None]
        if images and run is None:
            run = compile_probabilities(trained, batch_size)
        rows = iter(run(np.stack(images)) if images else ())
        for file, image, error in batch:
            yield Prediction(file, None if image is None else next(rows), error)


class _Listed(NamedTuple):
    """An IMAGE of the command line, and the files that it stands for."""

    path: Path
    files: list[Path]
    is_folder: bool
    error: str = "it holds no picture"


def _list(listed: Path) -> _Listed:
    try:
        return _Listed(listed, sorted(listed.iterdir()), True) if listed.is_dir() else _Listed(listed, [listed], False)
    except OSError as error:
        return _Listed(listed, [], True, f"it cannot be read: {error.strerror}")


def _read(listed: Sequence[_Listed], check_stop: Callable[[], None]) -> Iterator[Picture]:
    """Each file's picture or error; files of a folder that are no pictures are named and left out."""
    for image, files, is_folder, error in listed:
        empty = True
        for file in files:
            check_stop()
            name = _printable(file)
            if is_folder and file.is_dir():
                _tell(f"Skipped {name}: a folder in a folder")
                continue
            try:
                picture = Picture(name, read_picture(file), None)
            except UnknownFormatError as unknown:
                if is_folder:
                    _tell(f"Skipped {name}: Pillow does not recognise it as a picture")
                    continue
                picture = Picture(name, None, str(unknown))
            except InputError as wrong:
                picture = Picture(name, None, str(wrong))
            empty = False
            yield picture
        if empty:
            message = f"IMAGE must be a picture or a folder of pictures, got {str(image)!r}: {error}."
            yield Picture(_printable(image), None, message)


def _heading(trained: Trained, workdir: Path) -> str:
    accuracy = trained.test_accuracy
    measured = "" if accuracy is None else f", {accuracy:.2f} % on the test images of {trained.config['data.name']}"
    return f"{trained.config['model.name']} of {_printable(workdir)}, epoch {trained.epoch}{measured}"


def _to_text(prediction: Prediction, class_names: Sequence[str]) -> str:
    likeliest = np.argsort(-prediction.probabilities, kind="stable")[:_SHOWN]
    shown = ", ".join(f"{class_names[label]} {100 * prediction.probabilities[label]:.2f} %" for label in likeliest)
    return f"{prediction.file}: {shown}"


def _to_json(prediction: Prediction, class_names: Sequence[str]) -> dict:
    if prediction.error is not None:
        return {"file": prediction.file, "error": prediction.error}
    return {
        "file": prediction.file,
        "class": class_names[int(np.argmax(prediction.probabilities))],
        "probabilities": dict(zip(class_names, prediction.probabilities.tolist(), strict=True)),
    }


def _printable(file: Path) -> str:
    """The path; of a name that is no UTF-8, the other bytes as escapes."""
    return str(file).encode(errors="backslashreplace").decode()


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
