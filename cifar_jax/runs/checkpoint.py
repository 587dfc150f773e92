"""Saving and restoring a run with Orbax: the newest epoch and the best one are kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from cifar_jax.errors import InputError
from cifar_jax.runs.state import TrainState


def best_epoch(history: list[dict]) -> dict:
    """The row with the highest test accuracy; of equals, the first."""
    return max(history, key=lambda row: row["test_accuracy"])


class _NewestAndBest(checkpoint_managers.PreservationPolicy):
    def should_preserve(self, checkpoints: Sequence, *, context) -> Sequence[bool]:
        newest = max(checkpoint.step for checkpoint in checkpoints)
        best = _best({checkpoint.step: checkpoint.metrics for checkpoint in checkpoints})
        return [checkpoint.step in (newest, best) for checkpoint in checkpoints]


def _best(metrics: Mapping[int, Mapping]) -> int | None:
    """The epoch of the highest test accuracy, of equals the first; None where no epoch was measured."""
    measured = {epoch: row["test_accuracy"] for epoch, row in metrics.items()}
    measured = {epoch: accuracy for epoch, accuracy in measured.items() if accuracy is not None}
    return max(measured, key=lambda epoch: (measured[epoch], -epoch), default=None)


class Checkpoints:
    """The checkpoints of one run, numbered by epoch from 1, in `directory`.

    A run that came from PyTorch starts with a checkpoint that was not measured here, of the epoch that it had reached;
    weights that were never trained are epoch 0.

    Saving goes on in the background; a checkpoint that was not finished is never seen by a later run.

    With `read_only` nothing in the directory changes, not even what a run that is under way has not finished there.
    """

    def __init__(self, directory: Path, *, read_only: bool = False):
        self._directory = directory
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            item_names=("state", "history"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_NewestAndBest(),
                best_fn=lambda metrics: metrics["test_accuracy"],
                keep_checkpoints_without_metrics=True,
                cleanup_tmp_directories=not read_only,  # by a run that was killed while it saved
                create=not read_only,
                read_only=read_only,
            ),
        )

    def newest(self) -> int | None:
        """The last saved epoch, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The saved epoch of the highest test accuracy, or None."""
        return _best({epoch: self._manager.metrics(epoch) for epoch in self._manager.all_steps()})

    def test_accuracy(self, epoch: int) -> float | None:
        """The test accuracy of a saved epoch, in percent; None where it was not measured here."""
        return self._manager.metrics(epoch)["test_accuracy"]

    def save(self, epoch: int, state: TrainState, history: list[dict]) -> None:
        """Saves the state after `epoch`, with the metrics of all epochs so far; none where it came from elsewhere."""
        self._manager.save(
            epoch,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_storable(state)), history=ocp.args.JsonSave(history)
            ),
            metrics={"test_accuracy": history[-1]["test_accuracy"] if history else None},
        )  # fmt: skip

    def restore(self, epoch: int, like: TrainState) -> tuple[TrainState, list[dict]]:
        """The state and the history after `epoch`; `like` gives the state's structure, shapes and types.

        Raises:
          InputError: the checkpoint is damaged or does not fit.
        """
        try:
            restored = self._manager.restore(
                epoch,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(_storable(like)), history=ocp.args.JsonRestore()
                ),
            )  # fmt: skip
        except Exception as error:  # Orbax raises whatever its storage layers do
            raise self._damaged(epoch, error) from error
        state = restored["state"]
        return state.replace(key=jax.random.wrap_key_data(state.key)), restored["history"]

    def restore_variables(self, epoch: int, like: dict) -> dict:
        """What a network needs of the state after `epoch`, without its optimizer's: NumPy arrays, on no device.

        `like` holds "params" and "batch_stats" as shapes; what the checkpoint has beside them is left out.

        Raises:
          InputError: the checkpoint is damaged or does not fit.
        """
        try:
            restored = self._manager.restore(
                epoch,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        like,
                        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like),
                        partial_restore=True,
                    )
                ),
            )["state"]  # fmt: skip
        except Exception as error:  # Orbax raises whatever its storage layers do
            raise self._damaged(epoch, error) from error
        for (path, leaf), wanted in zip(jax.tree.leaves_with_path(restored), jax.tree.leaves(like), strict=True):
            if leaf.shape != wanted.shape:
                raise InputError(
                    f"--workdir must hold checkpoints of its config, got {self._directory / str(epoch)}, where "
                    f"{jax.tree_util.keystr(path, simple=True, separator='.')} is {leaf.shape}, not {wanted.shape}."
                )
        return restored

    def _damaged(self, epoch: int, error: Exception) -> InputError:
        return InputError(
            f"--workdir must hold whole checkpoints, got {self._directory / str(epoch)}, which cannot be read "
            f"({type(error).__name__}); remove that folder to go on from an earlier one."
        )

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _storable(state: TrainState) -> TrainState:
    """The state with its random key as plain numbers, which is how it is stored."""
    return state.replace(key=jax.random.key_data(state.key))
