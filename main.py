"""Trains or evaluates what a config file names: python main.py --config=configs/cnn6_adam.py"""

import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_DEFAULT = Path(__file__).parent / "configs" / "default.py"

_CONFIG = config_flags.DEFINE_config_file("config", help_string=f"What to run; {_DEFAULT} unless given.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<config name> unless given.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "Train, or evaluate the run's checkpoints.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Of many processes: HOST:PORT of the first one.")
_PROCESSES = flags.DEFINE_string("processes", None, "Of many processes: how many there are.")
_PROCESS_ID = flags.DEFINE_string("process_id", None, "Of many processes: which one this is, from 0.")


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, with errors in one sentence and exit code 2."""
    if not any(argument.lstrip("-").split("=")[0] == "config" for argument in argv[1:]):
        # Not the flag's own default: ml_collections would apply overrides to that before it reads another --config.
        argv = [argv[0], f"--config={_DEFAULT}", *argv[1:]]
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.to_dict()  # a file that does not exist shows here
    except Exception as error:  # a config file may raise anything
        from cifar_jax.config import explain_flag_error

        _fail(explain_flag_error(argv, error))
    if len(rest) > 1:
        _fail(f"main.py takes flags only, got {rest[1]!r}.")
    return rest


def _fail(message: str, code: int = 2) -> None:
    print(f"Error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


def main(argv: list[str]) -> None:
    """Runs what the flags say; exit codes are 0, 1 (diverged), 2 (wrong input), 130 and 143 (stopped)."""
    del argv
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax logs dozens of lines for each checkpoint
    from cifar_jax.distributed import find_place, joined
    from cifar_jax.errors import DivergedError, InputError
    from cifar_jax.interrupt import Interrupted, interruptible

    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = Path(_WORKDIR.value or Path("runs") / name)
    try:
        place = find_place(_COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value)
        with interruptible() as interrupt, joined(place, interrupt) as job:
            from cifar_jax.train import evaluate_runs, train_runs

            if _MODE.value == "evaluate":
                evaluate_runs(_CONFIG.value, workdir, job=job)
            else:
                train_runs(_CONFIG.value, workdir, check_stop=interrupt.check, job=job)
    except InputError as error:
        _fail(str(error))
    except DivergedError as error:
        _fail(str(error), code=1)
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr, flush=True)
        # Not sys.exit: the runtime would first finish the steps that are under way, which may take a minute.
        sys.stdout.flush()
        os._exit(128 + interrupted.signum)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
