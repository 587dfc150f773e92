"""What folders say, in every state in which a run may have been left."""

import json

import pytest
from conftest import ROOT

from cifar_jax.files import read_rows, write_whole
from cifar_jax.studies.table.document import dumps
from cifar_jax.studies.table.plan import find_configs, plan
from cifar_jax.studies.table.record import is_done, read_table, unfinished, write_failure

OLD = {"commit": "a", "hardware": {"cores": 2, "devices": ["cpu"]}, "versions": {"jax": "1"}}
NEW = {"commit": "b", "hardware": {"cores": 8, "devices": ["H200"]}, "versions": {"jax": "1"}}


@pytest.fixture
def group(monkeypatch):
    monkeypatch.chdir(ROOT)
    return plan(find_configs("configs/cnn6_adam.py"), [("train.epochs", "2")], seeds=4, holdout=0)[0]


def leave(folder, *, epochs, saved=0, starts=(), torn=""):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"epoch": epoch, "test_accuracy": 10.0 * epoch, "seconds": 1.5} for epoch in range(1, epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    lines = [json.dumps({**origin, "started": time, "epochs_done": 0}) + "\n" for time, origin in starts]
    (folder / "starts.jsonl").write_text("".join(lines))
    if saved:
        (folder / "checkpoints" / str(saved)).mkdir(parents=True)


def test_every_state_of_a_run(group, tmp_path):
    leave(tmp_path / "cnn6_adam/seed0", epochs=2, saved=2, starts=[("2026-01-03", OLD)])
    leave(tmp_path / "cnn6_adam/seed1", epochs=2, saved=1, starts=[("2026-01-01", OLD), ("2026-01-02", NEW)])
    leave(tmp_path / "cnn6_adam/seed2", epochs=1, saved=1, torn='{"epoch": 2, "test_acc')
    write_failure(tmp_path / "cnn6_adam", 0, "of an earlier start")
    write_failure(tmp_path / "cnn6_adam", 2, "diverged")
    table = read_table([group], tmp_path, settings={"seeds": 4}, command="c", commit="b", date="d")
    assert [(run["status"], run["epochs_done"], run["message"], run["origin"]) for run in table["runs"]] == [
        ("done", 2, None, 1),
        ("unfinished", 2, None, 0),
        ("failed", 1, "diverged", None),
        ("unfinished", 0, None, None),
    ]
    assert [run["folder"] for run in table["runs"]] == [f"cnn6_adam/seed{seed}" for seed in range(4)]
    assert table["runs"][0]["seconds"] == 3.0
    assert table["origins"] == [NEW, OLD], "by the last start of each"
    assert (table["hardware"], table["versions"]) == (OLD["hardware"], OLD["versions"])
    assert table["cells"]["cnn6_adam"]["maximum"]["values"] == [20.0]
    assert unfinished(group, tmp_path) == [1, 2, 3]
    assert json.loads(dumps(table)) == table
    assert len(dumps(table).splitlines()) < 40, "a line for each run"


def test_a_checkpoint_that_was_not_finished_is_none(tmp_path):
    leave(tmp_path, epochs=2)
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not is_done(tmp_path, 2)
    (tmp_path / "checkpoints" / "2").mkdir()
    assert is_done(tmp_path, 2)


def test_a_torn_line_is_left_out(tmp_path):
    (tmp_path / "rows").write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_rows(tmp_path / "rows") == [{"a": 1}, {"a": 2}]
    assert read_rows(tmp_path / "none") == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "file", "new \udcff")
    assert (tmp_path / "file").read_text() == "old"


def test_not_a_number_is_never_written():
    with pytest.raises(ValueError, match="JSON"):
        dumps({"mean": float("nan")})
