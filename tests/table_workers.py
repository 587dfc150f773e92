"""What stands in for the processes that train a table's runs: a small script that acts as it is told."""

import json

# Takes the group's folder, its seeds, and what to do under some of them.
WORKER = """
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process would ignore it
folder, seeds, acts = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
with open(folder / "began", "a") as file:
    print(json.dumps([seeds, time.time()]), file=file)
for seed in seeds:
    run, act = folder / f"seed{seed}", acts.get(str(seed), "train")
    if act == "crash":
        raise RuntimeError("Out of luck")
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "refuse":
        print("Error: platform must be there.", file=sys.stderr)
        sys.exit(2)
    while act == "meet" and len(list(folder.parent.glob("*/began"))) < 2:
        time.sleep(0.01)
    if act == "diverge":
        (folder / "failures").mkdir(exist_ok=True)
        (folder / "failures" / f"seed{seed}.txt").write_text("The loss became nan.")
        continue
    for epoch in range(1, 3):
        (run / "checkpoints" / str(epoch)).mkdir(parents=True, exist_ok=True)
        with open(run / "metrics.jsonl", "a") as file:
            print(json.dumps({"epoch": epoch, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 5.0, "test_loss": 1.0,
                "test_accuracy": 10.0 * epoch + seed, "holdout_accuracy": 5.0, "seconds": 1.0,
                "images_per_second": 9.0}), file=file)
        if act == "hang":
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                (folder / "stopped").touch()
                sys.exit(130)
with open(folder / "ended", "w") as file:
    file.write(str(time.time()))
sys.exit("diverge" in acts.values())
"""


def began(folder):
    return [json.loads(line) for line in (folder / "began").read_text().splitlines()]
