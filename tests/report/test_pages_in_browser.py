"""Every kind of page in headless Chromium: layout, console, links, pictures, contrast, keyboard, no network."""

import base64
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, missing
from layout_of_pages import CLIPPED, FAINT, OUTSIDE, OVERLAPPING, SCROLLING_TABLES, WHITE
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"needs a browser, which is not here: {missing()}"),
]

PAGES = {
    "run": "experts/report/index.html",
    "large": "large/report/index.html",
    "multistage": "stages/report/index.html",
    "curriculum": "curricula/report/index.html",
    "evidence": "evidence/report/index.html",
    "index": "index.html",
    "measurements": "measurements.html",
}
WIDTHS = (390, 768, 1440)
TAB, ENTER, ESCAPE, LEFT, RIGHT = "\ue004", "\ue007", "\ue00c", "\ue012", "\ue014"
SCREEN = 844  # height of a phone

PICTURES = """
  return Array.from(document.images, image => ({
    decoded: image.complete && image.naturalWidth > 0, alt: image.alt, source: image.src.slice(0, 22), wide: image.width}));
"""
LINKS = """
  const targets = Array.from(document.querySelectorAll('a[href]'), link => link.getAttribute('href'));
  const lost = target => target.startsWith('#') && document.getElementById(target.slice(1)) === null;
  return {lost: targets.filter(lost), files: targets.filter(target => !target.startsWith('#'))};
"""
ASKED = """
  const parts = Array.from(document.querySelectorAll('[src], [srcset], link[href], object[data], [background]'), each =>
    each.src || each.srcset || each.href || each.data || each.getAttribute('background')).filter(url => !url.startsWith('data:'));
  const styles = Array.from(document.querySelectorAll('style, [style]'), each => each.getAttribute('style') || each.textContent);
  return parts.concat(styles.filter(text => /url\\(|@import/.test(text)));
"""
SCROLLING = """
  const sides = ['auto', 'scroll'];
  return Array.from(document.querySelectorAll('body *')).filter(each =>
    sides.includes(getComputedStyle(each).overflowX) && each.scrollWidth > each.clientWidth
    && !(each.tabIndex === 0 && each.getAttribute('role') === 'region' && each.getAttribute('aria-label'))
  ).map(each => each.outerHTML.slice(0, 90));
"""
CONTRAST = r"""
  const parts = colour => colour.match(/[\d.]+/g).map(Number);
  const light = colour => parts(colour).slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = each => {
    for (; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (parts(colour).length < 4 || parts(colour)[3] > 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const poor = [];
  for (const each of document.querySelectorAll('body *')) {
    if (!Array.from(each.childNodes).some(node => node.nodeType === 3 && node.data.trim())) continue;
    const [one, other] = [light(getComputedStyle(each).color), light(behind(each))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) poor.push(`${each.tagName} ${ratio.toFixed(2)} ${each.textContent.trim().slice(0, 40)}`);
  }
  return {poor, paper: light(behind(document.body))};
"""
SMALLEST = """
  return Math.min(...Array.from(document.querySelectorAll('p, td, th, figcaption, li, dd, a'),
    each => parseFloat(getComputedStyle(each).fontSize)));
"""
FOCUSED = """
  const each = document.activeElement, style = getComputedStyle(each), box = each.getBoundingClientRect();
  return {tag: each.tagName, text: each.textContent, outline: style.outlineStyle, wide: parseFloat(style.outlineWidth), id: each.id,
    seen: box.left >= 0 && box.right <= innerWidth && box.bottom > 0 && box.top < innerHeight};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture(params=PAGES.values(), ids=PAGES.keys(), scope="module")
def page(reports: Path, request: pytest.FixtureRequest) -> Path:
    return reports / request.param


def unfold(browser):
    browser.run("document.querySelectorAll('details').forEach(each => each.open = true)")


def wrong_on(browser) -> list[str]:
    """What is clipped, overlaps or makes the page scroll sideways, in words."""
    found = browser.run(OUTSIDE)
    wide = [f"the page scrolls to {found['page']} px"] if found["page"] > found["width"] else []
    return [*wide, *found["out"], *browser.run(CLIPPED), *browser.run(OVERLAPPING)]


def white_share(browser, place: dict, folder: Path) -> float:
    """Share of a chart's pixels that are nearly white."""
    box = {key: place[key] for key in ("x", "y", "width", "height")}
    shot = browser.protocol(
        "Page.captureScreenshot", captureBeyondViewport=True, format="png", clip={**box, "scale": 1}
    )
    path = folder / "chart.png"
    path.write_bytes(base64.b64decode(shot["data"]))
    with Image.open(path) as image:
        return float((np.asarray(image.convert("RGB")).min(axis=2) > 240).mean())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_clipped_or_overlaps_and_the_page_does_not_scroll_sideways(browser, page, width, dark):
    browser.open(page, width, dark)
    unfold(browser)
    assert browser.run("return innerWidth") == width
    assert wrong_on(browser) == []
    assert browser.run(SMALLEST) >= 12
    assert browser.run(SCROLLING) == []  # what scrolls can be reached with the keyboard, and has a name
    if width == WIDTHS[-1]:
        assert browser.run(SCROLLING_TABLES) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_no_chart_is_white_in_the_dark(browser, page, width, tmp_path):
    browser.open(page, width, dark=True)
    for place in browser.run(WHITE):
        assert white_share(browser, place, tmp_path) < 0.1, place["told"]


def test_a_number_is_on_the_first_screen_of_a_phone_and_the_result_comes_first(browser, page):
    if page.parent.name != "report":
        pytest.skip("no page of a run")
    browser.open(page, WIDTHS[0])
    assert browser.run("return document.querySelector('.tiles b').getBoundingClientRect().bottom") < SCREEN
    titles = browser.run("return Array.from(document.querySelectorAll('main h2'), each => each.textContent)")
    assert titles[0] == "Result"
    assert all(titles.index(title) > 1 for title in titles if title.startswith("From the base"))


def test_pictures_are_there_and_told_in_words(browser, page):
    browser.open(page, WIDTHS[0])
    pictures = browser.run(PICTURES)
    for picture in pictures:
        assert picture["decoded"]
        assert picture["source"] == "data:image/png;base64,"
        assert len(picture["alt"]) > 20
        assert picture["wide"] > 90
    charts = browser.run(
        "return Array.from(document.querySelectorAll('.drawing svg'), each => each.getAttribute('aria-label'))"
    )
    assert all(len(told) > 40 for told in charts)
    assert bool(pictures or charts)
    assert (
        len({picture["alt"] for picture in pictures}) >= len(pictures) / 2
    )  # the slider and the strip show the same models


def test_a_point_shows_its_figures_when_pointed_at_and_by_the_keyboard(browser, reports):
    browser.open(reports / PAGES["evidence"], WIDTHS[1])
    first_focused(browser)
    focus = "const point = document.querySelector('#pareto .wide .point'); point.focus(); return point.tabIndex"
    shown = "const tip = document.querySelector('.tip'); return tip.hidden ? '' : tip.textContent"
    assert browser.run(focus) == 0
    assert browser.run(shown).startswith("base: 2.500 at 1 of the base's MACs")
    browser.press(RIGHT)
    assert browser.run(shown).startswith("experts 0.8: ")
    browser.press(LEFT)
    assert browser.run(shown).startswith("base: ")
    browser.press(ESCAPE)
    assert browser.run(shown) == ""
    place = browser.run(
        "const mark = document.querySelectorAll('#losses .wide .point')[3]; mark.scrollIntoView({block: 'center'});"
        "const box = mark.getBoundingClientRect(); return [box.left + box.width / 2, box.top + box.height / 2]"
    )
    browser.protocol("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    assert browser.run(shown).startswith("experts 0.8, t 600–799: ")


def test_every_point_can_be_reached_and_is_within_its_chart(browser, reports):
    browser.open(reports / PAGES["evidence"], WIDTHS[0])
    names = browser.run(
        "return Array.from(document.querySelectorAll('#pareto .chart:first-child .narrow .point'), each => each.ariaLabel)"
    )
    assert len(names) == 8
    assert names[0].startswith("base: ")


def test_the_slider_works_by_the_keyboard(browser, page):
    browser.open(page, WIDTHS[0])
    if not browser.run("return document.querySelectorAll('.compare input').length"):
        assert page.name != "index.html" or page.parent.name not in ("experts", "evidence", "stages")
        return
    share = "return getComputedStyle(document.querySelector('.compare')).getPropertyValue('--share')"
    browser.run("document.querySelector('.compare input').focus()")
    assert browser.run(share) == "50%"
    browser.press(RIGHT)
    assert browser.run(share) == "51%"


def test_links_lead_somewhere(browser, page):
    browser.open(page, WIDTHS[1])
    links = browser.run(LINKS)
    assert links["lost"] == []
    for target in links["files"]:
        assert ":" not in target
        name, _, part = target.partition("#")
        assert (page.parent / name).is_file()
        assert not part or f'<section id="{part}"' in (page.parent / name).read_text()
        assert not name.endswith(".md")


def test_nothing_is_fetched_and_the_console_is_silent(browser, page):
    browser.messages()
    browser.open(page, WIDTHS[1])
    unfold(browser)
    assert browser.run(ASKED) == []
    assert browser.messages() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out(browser, page, dark):
    browser.open(page, WIDTHS[1], dark)
    unfold(browser)
    found = browser.run(CONTRAST)
    assert found["poor"] == []
    assert browser.run(FAINT) == []
    assert (found["paper"] < 0.05) == dark


def first_focused(browser) -> dict:
    """What the first key focuses; the browser may still be giving the page its focus, and then takes the key for that."""
    for _ in range(3):
        browser.press(TAB)
        first = browser.run(FOCUSED)
        if first["tag"] != "BODY":
            break
    return first


def test_the_keyboard_shows_where_it_is_and_skips_to_the_results(browser, page):
    browser.open(page, WIDTHS[1])
    first = first_focused(browser)
    assert first["text"] == "Skip to the results"
    assert first["seen"]
    browser.press(TAB)
    second = browser.run(FOCUSED)
    assert second["tag"] == "A"
    assert (second["outline"], second["wide"]) == ("solid", 3)
    assert second["seen"]
    browser.open(page, WIDTHS[1])
    first_focused(browser)
    browser.press(ENTER)
    for _ in range(50):  # a link within the page moves the focus a little later
        if browser.run(FOCUSED)["id"]:
            break
        time.sleep(0.1)
    assert browser.run(FOCUSED)["id"] == "content"
    browser.press(TAB)
    inside = browser.run(FOCUSED)
    assert browser.run("return document.activeElement.closest('main') !== null")
    assert inside["wide"] == 3


def test_headings_go_down_by_one(browser, page):
    browser.open(page, WIDTHS[1])
    levels = browser.run("return Array.from(document.querySelectorAll('h1,h2,h3,h4'), each => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_the_page_says_when_something_is_wrong_to_this_test(browser, tmp_path):
    """What is looked for can be found."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!DOCTYPE html><body style='background:url(paper.png) #fff'><a href='#none'>x</a>"
        "<p style='width:2000px;color:#bbb'>pale and wide</p>"
        "<div style='overflow-x:auto;width:50px'><pre>a line that is longer than its box</pre></div>"
        "<img src='absent.png' alt=''><script>console.error('oh')</script>"
    )
    browser.messages()
    browser.open(bad, 390)
    assert browser.run(OUTSIDE)["out"]
    assert browser.run(SCROLLING)
    assert browser.run(CONTRAST)["poor"]
    assert browser.run(LINKS)["lost"] == ["#none"]
    assert not browser.run(PICTURES)[0]["decoded"]
    assert len(browser.run(ASKED)) == 2
    assert any("oh" in message for message in browser.messages())


SPOILT = {  # what is wrong → content of a page with it, and the words for it
    "a table is cut": ("<div style='overflow:hidden'>{table}</div>", "clipped: "),
    "a table scrolls without a cue": ("<div class=scroll style='overflow-x:auto'>{table}</div>", "clipped: "),
    "a heading is hidden alone": (
        "<table class=wide><thead><tr><th>a<th style=display:none>b<th>c<tbody><tr><td>1<td>2<td>3</table>",
        "cells are not below their headings",
    ),
    "the page scrolls": ("{table}", "the page scrolls to "),
    "a chart is cut": ("<svg width=200 height=40><text x=190 y=20>the base</text></svg>", "outside "),
    "a chart is wide": ("<svg width=3000 height=40><text x=10 y=20>base</text></svg>", "wider than the page"),
    "labels overlap": ("<svg width=200 height=40><text x=10 y=20>base</text><text x=25 y=22>experts</text></svg>", "texts meet: "),
    "a label is on a mark": (
        "<svg width=200 height=40><text x=10 y=20>base</text><rect class=mark x=15 y=8 width=9 height=9 /></svg>",
        "a text meets a mark: base",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "said"), SPOILT.values(), ids=SPOILT.keys())
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_that_is_spoilt_on_purpose_is_found(browser, tmp_path, width, content, said):
    table = f"<table><tr>{'<td style=min-width:60px>1</td>' * 60}</tr></table>"
    page = tmp_path / "spoilt.html"
    page.write_text(
        f"<!DOCTYPE html><meta name=viewport content='width=device-width'><body>{content.format(table=table)}"
    )
    browser.open(page, width)
    assert any(found.startswith(said) for found in wrong_on(browser)), wrong_on(browser)


def test_a_report_whose_table_is_cut_on_purpose_is_found(browser, reports, tmp_path):
    """The same page passes as it is."""
    whole = (reports / PAGES["evidence"]).read_text()
    cut = tmp_path / "cut.html"
    cut.write_text(whole.replace(".scroll {\n  overflow-x: auto;", ".scroll {\n  overflow-x: hidden;"))
    assert cut.read_text() != whole
    browser.open(cut, WIDTHS[0])
    assert any(found.startswith("clipped: ") for found in wrong_on(browser))


def test_a_white_chart_in_the_dark_is_found(browser, tmp_path):
    page = tmp_path / "white.html"
    page.write_text(
        "<!DOCTYPE html><body style='background:#111'><svg width=200 height=99 style='background:#fff'></svg>"
    )
    browser.open(page, WIDTHS[0], dark=True)
    browser.run("document.querySelector('svg').innerHTML = '<text x=9 y=20 fill=#222>dark on dark</text>'")
    assert len(browser.run(FAINT)) == 1
    (place,) = browser.run(WHITE)
    assert white_share(browser, place, tmp_path) > 0.9
