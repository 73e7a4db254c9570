"""Every kind of page in headless Chromium: layout, console, links, pictures, contrast, keyboard, no network."""

from itertools import pairwise
from pathlib import Path

import pytest
from browser import Browser, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"needs a browser, which is not here: {missing()}"),
]

PAGES = {
    "run": "experts/report/index.html",
    "multistage": "stages/report/index.html",
    "curriculum": "curricula/report/index.html",
    "evidence": "evidence/report/index.html",
    "index": "index.html",
}
WIDTHS = (390, 1440)
TAB = "\ue004"
ENTER = "\ue007"

OUTSIDE = """
  const out = [];
  for (const each of document.querySelectorAll('body *')) {
    const box = each.getBoundingClientRect();
    const scrolls = each.closest('.scroll, .skip');
    if ((!scrolls || scrolls === each) && box.width && (box.right > innerWidth + 0.5 || box.left < -0.5) && !each.matches('.skip'))
      out.push(each.outerHTML.slice(0, 90));
  }
  return {page: document.documentElement.scrollWidth, width: innerWidth, out};
"""
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


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(browser, page, width):
    browser.open(page, width)
    unfold(browser)
    found = browser.run(OUTSIDE)
    assert found["width"] == width
    assert found["page"] <= width
    assert found["out"] == []
    assert browser.run(SMALLEST) >= 12
    assert browser.run(SCROLLING) == []  # what scrolls can be reached with the keyboard, and has a name


def test_pictures_are_there_and_told_in_words(browser, page):
    browser.open(page, WIDTHS[0])
    pictures = browser.run(PICTURES)
    assert bool(pictures) == (page.parent.name == "report")
    for picture in pictures:
        assert picture["decoded"]
        assert picture["source"] == "data:image/png;base64,"
        assert len(picture["alt"]) > 20
        assert picture["wide"] > 90
    assert len({picture["alt"] for picture in pictures}) == len(pictures)


def test_links_lead_somewhere(browser, page):
    browser.open(page, WIDTHS[1])
    links = browser.run(LINKS)
    assert links["lost"] == []
    for target in links["files"]:
        assert ":" not in target
        assert (page.parent / target).is_file()


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
    assert (found["paper"] < 0.05) == dark


def test_the_keyboard_shows_where_it_is_and_skips_to_the_results(browser, page):
    browser.open(page, WIDTHS[1])
    browser.press(TAB)
    first = browser.run(FOCUSED)
    assert first["text"] == "Skip to the results"
    assert first["seen"]
    browser.press(TAB)
    second = browser.run(FOCUSED)
    assert second["tag"] == "A"
    assert (second["outline"], second["wide"]) == ("solid", 3)
    assert second["seen"]
    browser.open(page, WIDTHS[1])
    browser.press(TAB)
    browser.press(ENTER)
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
