"""The report in Chromium without a window: as a reader with a mouse, a keyboard, a phone or a dark screen meets it."""

import os

import pytest
import report_example
import table_example
from chromium import PROGRAM, Page

from cifar_jax.studies.table.report import write

pytestmark = pytest.mark.slow  # seconds, but the same under every version of Python and JAX

CHARTS = "[...document.querySelectorAll('.chart svg')]"
DRAWN = f"{CHARTS}.length === Object.keys(specs).length"
TOOLTIP = "document.querySelector('#vg-tooltip-element.visible')?.innerText"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium. Without it a test is skipped by name, or fails where CIFAR_JAX_REQUIRE_CHROMIUM is set."""
    if PROGRAM is None:
        if os.environ.get("CIFAR_JAX_REQUIRE_CHROMIUM"):
            pytest.fail("Chromium is not installed")
        pytest.skip("Chromium is not installed: apt-get install chromium")
    page = Page(tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The report of nine configs, with pictures."""
    table, data = table_example.example(), report_example.dataset()
    analyses = report_example.analyses(table, data)
    page, charts = write.make_page(table, analyses, [], write._pictures(analyses, {"cifar100": data}))
    assert len(charts) == 12
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page)
    return path


@pytest.fixture
def desktop(browser, path):
    browser.open(path, width=1280, height=900)
    browser.wait(DRAWN)
    return browser


def place(browser, selector, across=0.5, down=0.5):
    """A point in an element, which is brought into the window first."""
    return browser.js(
        f"(() => {{ const element = document.querySelector('{selector}');"
        "element.scrollIntoView({block: 'center'}); const box = element.getBoundingClientRect();"
        f"return [box.x + box.width * {across}, box.y + box.height * {down}]; }})()"
    )


def messages(browser):
    """Whatever reached the console, warnings too, and errors of scripts and the network."""
    kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")
    return [event["params"] for event in browser.events if event["method"] in kinds]


def test_everything_is_drawn_without_a_word_on_the_console_and_without_a_request(desktop, path):
    assert desktop.js("Object.keys(specs).length") == 12
    assert desktop.js(f"{CHARTS}.every(e => e.querySelectorAll('path').length > 9)")
    assert messages(desktop) == []
    requests = {e["params"]["request"]["url"] for e in desktop.events if e["method"] == "Network.requestWillBeSent"}
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    pictures = "[...document.querySelectorAll('[data-recipe]:not([hidden]) img')].map(e => e.naturalWidth)"
    assert desktop.js(pictures) == [32] * 12


POINTS = [
    # A chart, what of it is pointed at (None: anywhere in it), and what is then shown.
    ("accuracy-cnn6-32x32", None, r"SGD, StepLR, test\t\d+\.\d\d ± \d+\.\d\d"),
    ("loss-cnn10-32x32", None, r"Adam, train\t\d+\.\d\d ± \d+\.\d\d"),
    ("learning-rates", None, r"epoch\t\d+\n.*\t0\.001"),
    ("results", ".mark-symbol path", r"recipe\tCNN6, 32x32 · Adam\naccuracy \(%\)\t\d+\.\d\d"),
    ("norm-rules", ".mark-symbol path", r"rule\ttorch"),
    ("classes", ".mark-symbol path", r"class\t\w+\ngroup\t\w+.*\naccuracy \(%\)\t\d+\.\d ± \d+\.\d"),
    ("confusion", ".mark-rect path", r"answered\t\w+.*\n% of the true ones\t\d+\.\d"),
    ("calibration", ".mark-symbol path", r"confidence \(%\)\t\d+\.\d"),
]


def test_pointing_shows_values(desktop):
    for chart, mark, expected in POINTS:
        desktop.move(1, 1)
        if mark is None:
            x, y = place(desktop, f"#chart-{chart} svg", across=0.6)
        else:
            x, y = place(desktop, f"#chart-{chart} svg .mark-group {mark}:not(.role-legend *)")
        desktop.wait(f"!{TOOLTIP}", seconds=5)
        desktop.move(x, y)
        desktop.wait(f"/{expected}/.test({TOOLTIP})", seconds=5)


def test_values_stay_on_a_phone_and_nothing_is_wider_than_it(browser, path):
    for dark in (False, True):
        browser.open(path, width=390, height=844, dark=dark)
        browser.wait(DRAWN)
        browser.js("document.querySelectorAll('details').forEach(element => { element.open = true; })")
        assert browser.js("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        assert browser.js(f"{CHARTS}.every(e => e.getBoundingClientRect().right <= 375)")
        # A chart that was only shrunk to fit would have letters too small to read.
        assert browser.js(
            f"{CHARTS}.every(e => Math.abs(e.getBoundingClientRect().width - e.viewBox.baseVal.width) < 1)"
        )
        browser.js("document.querySelectorAll('details').forEach(element => { element.open = false; })")
        for across in (0.3, 0.6, 0.95):
            browser.move(1, 1)
            browser.wait(f"!{TOOLTIP}", seconds=5)
            browser.move(*place(browser, "#chart-accuracy-cnn10-32x32 svg", across))
            browser.wait(TOOLTIP, seconds=5)
            box = browser.js(
                "(b => [b.left, b.right])(document.querySelector('#vg-tooltip-element').getBoundingClientRect())"
            )
            assert 0 <= box[0] < box[1] <= 390, across
        assert messages(browser) == []


def test_a_window_that_becomes_narrow_takes_its_charts_along(desktop):
    desktop.resize(390, 844)
    desktop.wait(f"{CHARTS}.every(e => e.viewBox.baseVal.width <= 375)", seconds=10)
    assert desktop.js("document.documentElement.scrollWidth") == 390


def test_dark_mode_changes_the_colours_of_page_and_charts(browser, path):
    colors = {}
    for dark in (False, True):
        browser.open(path, width=1280, height=900, dark=dark)
        browser.wait(DRAWN)
        colors[dark] = browser.js(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
            "...['#chart-accuracy-cnn6-32x32 .role-axis-label text', '#chart-accuracy-cnn6-32x32 .mark-line path',"
            "'#chart-confusion .mark-rect path'].map(selector => document.querySelector(selector)).map("
            "e => getComputedStyle(e).stroke + getComputedStyle(e).fill)]"
        )
    assert all(light != dark for light, dark in zip(colors[False], colors[True], strict=True)), colors
    for page in colors.values():
        assert contrast(page[0], page[1]) > 7, "text must be readable"
        for color in page[2:]:
            assert contrast(page[0], color) > 3, f"{color} on {page[0]}"


def contrast(first, second):
    """The contrast ratio of two CSS colours, of several in one text the last. Source: WCAG 2.2, relative luminance."""

    def luminance(color):
        levels = [int(part) / 255 for part in color[color.rindex("rgb(") + 4 :].split(")")[0].split(",")]
        linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


def test_another_recipe_is_chosen_everywhere(desktop):
    def shown():
        return desktop.js(
            "[...document.querySelectorAll('[data-recipe]:not([hidden])')].map(e => e.dataset.recipe).concat("
            "[...document.querySelectorAll('#chart-classes [aria-roledescription=point]')].map(e => e.ariaLabel)[0])"
        )

    before = shown()
    desktop.js("select.value = 'cnn10_adam'; select.dispatchEvent(new Event('change'))")
    desktop.wait("document.querySelector('[data-recipe=cnn10_adam]:not([hidden])') !== null")
    desktop.wait(f"{before[-1]!r} !== document.querySelector('#chart-classes [aria-roledescription=point]').ariaLabel")
    assert len(before) == 4
    assert shown()[:3] == ["cnn10_adam"] * 3
    assert messages(desktop) == []


def test_the_keyboard_reaches_everything(desktop):
    order = []
    for _ in range(80):
        desktop.press("Tab")
        order.append(desktop.js("(e => e.id || e.ariaLabel || e.innerText || e.tagName)(document.activeElement)"))
        if "The curve of" in order[-1]:
            break
    assert order[0] == "Skip to the table"
    # The first is a table that does not scroll here; what scrolls, Chromium lets the keyboard reach anyhow.
    for name in ("Accuracy under each rule", "CNN6, 32x32: accuracy, by epoch", "recipe", "Classes, every recipe"):
        assert name in order
    desktop.press("Enter")
    assert desktop.js("document.activeElement.parentElement.open")


def test_charts_say_what_they_show_to_those_who_do_not_see_them(desktop):
    labels = desktop.js("[...document.querySelectorAll('.chart')].map(e => e.ariaLabel ?? '')")
    assert len(labels) == 12
    assert all(len(label) > 60 for label in labels)
    assert "CNN6, 32x32 · Adam: " in labels[0]
    assert desktop.js("[...document.images].every(e => e.alt.startsWith('Test image '))")
