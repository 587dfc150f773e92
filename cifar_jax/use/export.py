"""python -m cifar_jax export --workdir=RUN OUT [IMAGE...]: a trained network as a file that runs without this package.

OUT is a StableHLO program as `jax.export` serialises it, for CPU, CUDA and TPU. RGB pixels go in, uint8
`[n, 32, 32, 3]` for any n, and probabilities come out, float32 `[n, classes]`: the run's transforms, its weights and
the softmax are inside. It takes jax and flatbuffers to run it:

    import jax.export, pathlib
    network = jax.export.deserialize(bytearray(pathlib.Path("OUT").read_bytes()))
    probabilities = network.call(images)

OUT.json, beside it, has the names of the classes, the run's config, epoch and starts, the file's sha256 and how it was
checked: before anything is written, it is loaded again and must agree with the network on the pictures IMAGE..., or on
test images of the run's data set where none are given; where these are not at hand, on the embedded shapes.
"""

import contextlib
import functools
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import UInt8

from cifar_jax.command_line import Parser, path
from cifar_jax.data import load_dataset
from cifar_jax.data.cache import cache_folder
from cifar_jax.errors import InputError
from cifar_jax.runs.provenance import provenance
from cifar_jax.use.pictures import read_picture
from cifar_jax.use.trained import Trained, compile_probabilities, load_trained, probabilities

PLATFORMS = ("cpu", "cuda", "tpu")

# By how much a probability may differ, as the same sums round otherwise in another program. On the CPU; elsewhere
# convolutions of float32 may round their input to ten bits.
_TOLERANCE = {"float64": 1e-6, "float32": 1e-5, "bfloat16": 3e-2}
_TOLERANCE_OF_ACCELERATORS = {**_TOLERANCE, "float32": 1e-3}
_CHECKED = 100


class CheckError(RuntimeError):
    """The artifact does not say what the network says; the message gives by how much."""


class Check(NamedTuple):
    """What an artifact was compared on, and the largest difference of a probability."""

    images: str
    largest_difference: float
    tolerance: float


def main(argv: list[str]) -> int:
    """Runs the command; returns 0, or 1 where the artifact differs from the network.

    Raises:
      InputError: something in the arguments, the run or the pictures cannot be used; nothing was written.
    """
    parser = Parser("export", __doc__)
    parser.add_argument("--workdir", type=path, required=True, metavar="RUN", help="the folder of a run")
    parser.add_argument("out", type=path, metavar="OUT", help="a new file")
    parser.add_argument(
        "images", nargs="*", default=[], type=path, metavar="IMAGE", help="pictures to check the export on"
    )
    arguments = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax warns of a checkpoint that is only read
    workdir, out = arguments.workdir, arguments.out
    check_out(out)
    trained = load_trained(workdir)
    images, what = images_to_check(trained, arguments.images)
    artifact = export(trained)
    try:
        check = check_artifact(artifact, trained, images, what)
    except CheckError as error:
        print(f"Error: {error}; nothing was written.", file=sys.stderr)
        return 1
    write(out, artifact, metadata(artifact, trained, workdir, check))
    print(
        f"Wrote {out} ({len(artifact) / 1e6:.1f} MB) and {_beside(out).name}: {trained.config['model.name']} of "
        f"{workdir}, epoch {trained.epoch}\nOn {what} it differs from the network by {check.largest_difference:.1e} at "
        f"most (tolerance {check.tolerance:g})",
        flush=True,
    )
    return 0


def check_out(out: Path) -> None:
    """Makes sure that an artifact and its metadata can be written to `out`, and writes nothing.

    Raises:
      InputError: it exists, or its folder does not or cannot be written to.
    """
    folder = out.absolute().parent
    if out.is_dir():
        raise InputError(f"OUT must be a new file, got {str(out)!r}, which is a folder.")
    for file in (out, _beside(out)):
        if os.path.lexists(file):
            raise InputError(f"OUT must be a new file, got {str(file)!r}, which exists.")
    if not folder.is_dir():
        raise InputError(f"OUT must be a new file in a folder that exists, got {str(out)!r}.")
    try:
        # Asking for permissions is not enough: root has them all, on a read-only file system too.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"OUT must be a new file in a folder that can be written to, got {str(out)!r}: {error.strerror}."
        ) from error


def _beside(out: Path) -> Path:
    return out.with_name(out.name + ".json")


def images_to_check(trained: Trained, pictures: Sequence[Path]) -> tuple[UInt8[np.ndarray, "n 32 32 3"], str]:
    """Images to compare on, and what they are."""
    if pictures:
        return np.stack([read_picture(picture) for picture in pictures]), "the given pictures"
    name = trained.config["data.name"]
    # A folder in any case, as nothing should be downloaded for this.
    with contextlib.suppress(InputError, OSError):
        folder = trained.config.get("data.dir") or str(cache_folder() / "tfds")
        images = load_dataset(name, folder).test.images[:_CHECKED]
        return images, f"{len(images)} test images of {name}"
    images = load_dataset("shapes").test.images[:_CHECKED]
    return images, f"{len(images)} embedded shapes"


def export(trained: Trained) -> bytes:
    """The network as a serialised program for all of `PLATFORMS`, of any number of images."""

    def network(images):
        return probabilities(
            trained.variables, images, model=trained.model, transform=trained.transform
        ).astype(jnp.float32)  # fmt: skip

    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, 32, 32, 3"), jnp.uint8)
    return bytes(jax.export.export(jax.jit(network), platforms=PLATFORMS)(images).serialize())


def check_artifact(artifact: bytes, trained: Trained, images: UInt8[np.ndarray, "n 32 32 3"], what: str) -> Check:
    """Loads the artifact and compares it with the network on `images`, in batches of several sizes.

    Raises:
      CheckError: they differ.
    """
    network, loaded = compile_probabilities(trained, _CHECKED), jax.export.deserialize(bytearray(artifact))
    tolerances = _TOLERANCE if jax.default_backend() == "cpu" else _TOLERANCE_OF_ACCELERATORS
    tolerance = tolerances[trained.config["dtype"]]
    differences = [
        np.abs(np.asarray(loaded.call(part)) - network(part)).max()
        for part in np.split(images, range(1, len(images), _CHECKED))
    ]
    largest = float(np.max(differences))
    if not largest <= tolerance:  # NaN too
        raise CheckError(
            f"The artifact must agree with the network to {tolerance:g}, and on {what} differs by {largest:.1e}"
        )
    return Check(what, largest, tolerance)


def metadata(artifact: bytes, trained: Trained, workdir: Path, check: Check) -> dict:
    """What a reader of the artifact needs to know, ready for JSON."""
    starts = workdir / "starts.jsonl"  # a run that came from PyTorch may have none
    return {
        "sha256": hashlib.sha256(artifact).hexdigest(),
        "platforms": PLATFORMS,
        "input": "RGB pixels, uint8 [n, 32, 32, 3], any n",
        "output": "probabilities of class_names in their order, float32 [n, classes]",
        "class_names": trained.class_names,
        "epoch": trained.epoch,
        "test_accuracy": trained.test_accuracy,
        "check": check._asdict(),
        "config": json.loads((workdir / "config.json").read_text()),
        "starts": [json.loads(line) for line in starts.read_text().splitlines()] if starts.exists() else [],
        "exported": provenance(),
    }


def write(out: Path, artifact: bytes, beside: dict) -> None:
    """Writes the artifact and its metadata, each whole or not at all, the artifact last.

    Raises:
      InputError: they cannot be written; neither was.
    """
    with contextlib.ExitStack() as undo:
        try:
            for target, content in ((_beside(out), (json.dumps(beside, indent=1) + "\n").encode()), (out, artifact)):
                partial = target.with_name(target.name + ".partial")
                undo.callback(functools.partial(partial.unlink, missing_ok=True))
                with open(partial, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, target)
                undo.callback(target.unlink)
        except OSError as error:
            raise InputError(
                f"OUT must be a new file that can be written, got {str(out)!r}: {error.strerror}."
            ) from error
        undo.pop_all()
