"""The page of a table with nine configs of five seeds, as text; test_report_browser.py looks at it."""

import html.parser
import json
import re
import subprocess
import sys

import pytest
import report_example
import table_example
from conftest import ROOT

from cifar_jax.errors import InputError
from cifar_jax.studies.table.report import write
from cifar_jax.studies.table.report.command import main
from cifar_jax.studies.table.report.recipes import curve, main_runs
from cifar_jax.studies.table.report.wording import spread

TABLE = table_example.example()


@pytest.fixture(scope="module")
def data():
    return report_example.dataset()


@pytest.fixture(scope="module")
def analyses(data):
    return report_example.analyses(TABLE, data)


@pytest.fixture(scope="module")
def pages(analyses, data):
    """Without pictures and with them."""
    pictures = write._pictures(analyses, {"cifar100": data})
    assert len(pictures) > 20
    return [write.make_page(TABLE, analyses, [], each)[0] for each in (None, pictures)]


class Reader(html.parser.HTMLParser):
    """Ids, addresses, tables as lists of rows, and the text of scripts."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.addresses, self.tables, self.scripts, self._place = [], [], [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.addresses += [value for name, value in attrs if name in ("href", "src", "data", "action", "srcset")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "script":
            self.scripts.append("")
        self._place = tag

    def handle_endtag(self, tag):
        self._place = None

    def handle_data(self, data):
        if self._place == "script":
            self.scripts[-1] += data
        elif self._place in ("td", "th"):
            self.tables[-1][-1][-1] += data


def test_the_page_is_one_file_under_3_mb(pages):
    for page in pages:
        reader = Reader(page)
        assert all(address.startswith(("#", "data:")) for address in reader.addresses)
        assert {address[1:] for address in reader.addresses if address[0] == "#"} <= set(reader.ids)
        assert len(reader.ids) == len(set(reader.ids))
        assert not re.search(r"@import|url\(|<link (?!rel=\"icon\" href=\"data:)", page.split("<script")[0])
        assert len(reader.scripts) == 3
        assert len(page.encode()) < 3_000_000


def test_a_page_for_others_has_no_pictures(pages):
    plain, pictures = pages
    assert "data:image" not in plain
    assert "Pictures are left out of this copy" in plain
    assert len(re.findall('<img src="data:image/png;base64,[^"]*" [^>]*alt="Test image ', pictures)) == 12 * 8
    assert "Pictures are left out" not in pictures


def test_every_cell_stands_in_the_table(pages):
    header, *rows = Reader(pages[0]).tables[0]
    assert header[0] == "recipe"
    assert len(rows) == 9
    for row, cell in zip(rows, TABLE["cells"].values(), strict=True):
        assert row[1] == f"{cell['lecture']:.2f} ({cell['lecture_epoch']})"
        assert row[2] == spread(cell["maximum"])
        assert row[3] == ("" if cell["difference"] is None else f"{cell['difference']:+.2f}")
        assert row[5:7] == [spread(cell["final"]), spread(cell["at_best_holdout"])]
        assert row[8] == str(cell["runs"])
    assert rows[7][2:8] == [""] * 6  # what was not measured stays empty


def test_every_value_of_a_chart_stands_in_a_table(pages, analyses):
    tables = Reader(pages[0]).tables
    curves = next(rows for rows in tables if rows[0][:2] == ["epoch", "Adam, test"])
    for epoch, stat in curve(main_runs(TABLE, "cnn6_adam"), "test_accuracy"):
        assert curves[epoch][:2] == [str(epoch), spread(stat)]
    classes = next(rows for rows in tables if rows[0][:2] == ["class", "superclass"])
    assert len(classes) == 101
    assert classes[1][2] == spread(analyses["cnn6_adam"].by_class[0], 1)
    matrices = [rows for rows in tables if rows[0][0] == "true, answered"]
    assert [len(rows) for rows in matrices] == [21] * len(analyses)
    assert matrices[0][2][1] == f"{analyses['cnn6_adam'].confusion[1, 0]:.1f}"


def test_a_curve_is_of_the_finished_runs_and_of_epochs_that_all_have():
    runs = main_runs(TABLE, "cnn10_64_adam")
    assert [run["seed"] for run in runs] == [0, 3, 4]
    shorter = [runs[0], runs[1] | {"history": runs[1]["history"][:9]}]
    points = curve(shorter, "test_loss")
    assert [epoch for epoch, _ in points] == list(range(1, 10))
    assert points[4][1]["values"] == [run["history"][4]["test_loss"] for run in shorter]


def test_what_is_missing_is_named(pages):
    text = pages[0]
    assert "cnn10_64_adam/seed1: failed after 7 of 30 epochs (The loss became nan in epoch 8" in text
    assert "cnn10_64_step: 10 runs not begun" in text


def test_names_and_messages_cannot_leave_their_place(analyses):
    hostile = '</script><script>alert(1)</script><!-- " & ü'
    renamed = json.loads(json.dumps(TABLE).replace("cnn6_adam", json.dumps(hostile)[1:-1]))
    renamed["cells"][hostile] |= {"network": hostile, "recipe": hostile}
    renamed["runs"][-1]["status"], renamed["runs"][-1]["message"] = "failed", hostile
    renamed["command"] = hostile
    mine = {hostile: analyses["cnn6_adam"], "cnn6_step": analyses["cnn6_step"]}
    page, _ = write.make_page(renamed, mine, [hostile], None)
    reader = Reader(page)
    assert len(reader.scripts) == 3
    specs = json.loads(reader.scripts[0])
    assert hostile in json.dumps(specs["results"], ensure_ascii=False).replace('\\"', '"')
    assert "<script>alert" not in page


@pytest.mark.parametrize("runs", ["none", "one"])
def test_a_table_with_little_in_it(runs):
    table = table_example.example(seeds=1)
    table["runs"] = [
        run if runs == "one" and run["config"] == "cnn6_adam" and not run["holdout"]
        else run | {"history": [], "epochs_done": 0, "status": "unfinished"}
        for run in table["runs"]
    ]  # fmt: skip
    empty = TABLE["cells"]["cnn10_64_step"]
    table["cells"] = {
        name: table["cells"][name] if runs == "one" and name == "cnn6_adam" else empty for name in table["cells"]
    }
    page, charts = write.make_page(table, {}, [], None)
    names = [chart.id for chart in charts]
    expected = ["results", "norm-rules", "accuracy-cnn6-32x32", "loss-cnn6-32x32", "learning-rates"]
    assert names == (expected if runs == "one" else ["results"])
    assert "None" not in page.split("<script")[0]
    assert "nan" not in page.split("<script")[0].split("What is missing")[0]


def test_the_libraries_are_asked_for_in_one_sentence(monkeypatch):
    monkeypatch.setattr(write.importlib.util, "find_spec", lambda name: None if name == "vl_convert" else name)
    with pytest.raises(InputError, match=r"^The report needs Altair and vl-convert, got no vl_convert: pip install"):
        write.require_libraries()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"--table must be given, got nothing"),
        (["--table=x", "--tabel=x"], r"python -m cifar_jax report does not take --tabel=x"),
        (["--table=missing.json"], r"--table must be a table.json written by .*, got 'missing.json' \(FileNotFound"),
        (["--table=pyproject.toml"], r"--table must be a table.json .*, got 'pyproject.toml' \(JSONDecodeError"),
        (["--table=results/ledger.json"], r"--table must be a table.json .*, got 'results/ledger.json' \(KeyError"),
        (["--table=TABLE", "--workdir=nowhere"], r"--workdir must be the folder .*, got 'nowhere'\."),
        (["--table=TABLE", "--out=results"], r"--out must be a file, got 'results'\."),
    ],
)
def test_wrong_flags_are_refused_in_one_sentence(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    with pytest.raises(InputError, match=f"^{message}"):
        main([argument.replace("TABLE", str(tmp_path / "table.json")) for argument in arguments])


def test_the_command_ends_with_code_2_and_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "cifar_jax", "report", "--table=missing.json"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.fullmatch(r"Error: --table must be [^\n]*\n", done.stderr)
    assert done.stdout == ""
