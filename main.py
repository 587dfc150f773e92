"""Trains or evaluates what a config file names: python main.py --config=configs/cnn6_adam.py

With --mode=predict it shows pictures to a trained network: python main.py --mode=predict --workdir=RUN IMAGE...
"""

import os
import signal
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_DEFAULT = Path(__file__).parent / "configs" / "default.py"

_CONFIG = config_flags.DEFINE_config_file("config", help_string=f"What to run; {_DEFAULT} unless given.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<config name> unless given.")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate", "predict"], "Train, evaluate the run's checkpoints, or predict IMAGE..."
)
_JSON = flags.DEFINE_boolean("json", False, "Predictions as JSON, one object a line.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Of many processes: HOST:PORT of the first one.")
_PROCESSES = flags.DEFINE_string("processes", None, "Of many processes: how many there are.")
_PROCESS_ID = flags.DEFINE_string("process_id", None, "Of many processes: which one this is, from 0.")


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, with errors in one sentence and exit code 2."""
    given = {argument.lstrip("-").partition("=")[0] for argument in argv[1:] if argument.startswith("-")}
    if "config" not in given:
        # Not the flag's own default: ml_collections would apply overrides to that before it reads another --config.
        argv = [argv[0], f"--config={_DEFAULT}", *argv[1:]]
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.to_dict()  # a file that does not exist shows here
    except Exception as error:  # a config file may raise anything
        from cifar_jax.runs.config import explain_flag_error

        _fail(explain_flag_error(argv, error))
    if _MODE.value == "predict":
        if any(name.partition(".")[0] == "config" for name in given):
            _fail("--config must not be given with --mode=predict, which takes the config of the run in --workdir.")
        if _WORKDIR.value is None:
            _fail("--workdir must be the folder of a run with --mode=predict, got nothing.")
        return rest
    if _JSON.value:
        _fail(f"--json must be given with --mode=predict only, got it with --mode={_MODE.value}.")
    if len(rest) > 1:
        _fail(f"main.py takes flags only, got {rest[1]!r}.")
    return rest


def _fail(message: str, code: int = 2) -> None:
    print(f"Error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


def main(argv: list[str]) -> None:
    """Runs what the flags say.

    Exit codes are 0, 1 (diverged), 2 (wrong input, or a picture that cannot be read), 130 and 143 (stopped).
    """
    if not flags.FLAGS["verbosity"].present:
        # Orbax logs dozens of lines for each checkpoint, and warns of every one that is only read.
        logging.set_verbosity(logging.ERROR if _MODE.value == "predict" else logging.WARNING)
    from cifar_jax.devices.cluster import find_place
    from cifar_jax.devices.distributed import joined
    from cifar_jax.devices.interrupt import Interrupted, interruptible
    from cifar_jax.errors import DivergedError, InputError

    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = Path(_WORKDIR.value or Path("runs") / name)
    try:
        if _MODE.value == "predict":
            from cifar_jax.use.predict import predict_pictures

            paths = [Path(path) for path in argv[1:]]
            with interruptible() as interrupt:
                sys.exit(0 if predict_pictures(workdir, paths, as_json=_JSON.value, check_stop=interrupt.check) else 2)
        place = find_place(_COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value)
        with interruptible() as interrupt, joined(place, interrupt) as job:
            from cifar_jax.runs.train import evaluate_runs, train_runs

            if _MODE.value == "evaluate":
                evaluate_runs(_CONFIG.value, workdir, job=job)
            else:
                train_runs(_CONFIG.value, workdir, check_stop=interrupt.check, job=job)
    except InputError as error:
        _fail(str(error))
    except DivergedError as error:
        _fail(str(error), code=1)
    except BrokenPipeError:  # whoever read the output has ended, as in `| head`
        os._exit(128 + signal.SIGPIPE)
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr, flush=True)
        # Not sys.exit: the runtime would first finish the steps that are under way, which may take a minute.
        sys.stdout.flush()
        os._exit(128 + interrupted.signum)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
