"""Every kind of page in headless Chromium: it fits and reads, its pictures and links are there, it asks the network for nothing."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, missing
from evidence_manifest import make_evidence, make_strips

from prunekit.report import write_any_report, write_overview

REPORTS = Path(__file__).parents[2] / "reports"
PAGES = ("run", "evidence", "multistage", "curriculum", "index")
WIDTHS = (390, 1440)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"needs a browser, which is not here: {missing()}"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory, full_run):
    """A folder of runs, one of each kind, with the index over them."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(full_run, folder / "run")
    for kind, published in {"multistage": "digits-multistage-on", "curriculum": "fashion-curriculum"}.items():
        shutil.copytree(REPORTS / published, folder / kind)
    (folder / "evidence" / "samples").mkdir(parents=True)
    (folder / "evidence" / "manifest.json").write_text(json.dumps(make_evidence()))
    for name, images in make_strips().items():
        np.savez(folder / "evidence" / "samples" / f"{name}.npz", images=images)
    (folder / "engine").mkdir()
    (folder / "engine" / "speed.md").write_text("# Speed\n")
    for kind in PAGES[:-1]:
        write_any_report(folder / kind)
    write_overview(folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("browser"))
    yield one
    one.close()


def place(site, page):
    return site / "index.html" if page == "index" else site / page / "report" / "index.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_and_reads_at_every_width_in_light_and_dark(browser, site, page, width, dark):
    browser.open(place(site, page), width, dark)
    assert browser.run("return innerWidth") == width
    assert browser.run("return document.documentElement.scrollWidth") <= width
    outside = browser.run(
        "return [...document.querySelectorAll('main *, header *')].filter(e => {"
        "  if (e.closest('[tabindex=\"0\"]') || e.closest('details:not([open])') || e.matches('.skip')) return false;"
        "  const box = e.getBoundingClientRect();"
        "  return box.width && (box.left < -1 || box.right > innerWidth + 1);"
        "}).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    assert [message for message in browser.messages() if "favicon" not in message] == []
    assert contrast(browser, "body") >= 7
    for selector in (".claim", "h1", "h2", "nav a", "figcaption", "td", ".soft", ".small", ".note"):
        assert contrast(browser, selector) >= 4.5, selector
    sizes = browser.run(
        "return [...document.querySelectorAll('p, td, th, figcaption, li, dd')].filter(e => e.offsetParent)"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12


def contrast(browser, selector):
    """WCAG's contrast of an element's text with what is behind it; 21 where there is no such element."""
    return browser.run(
        """
        const element = document.querySelector(arguments[0]);
        if (!element) return 21;
        const numbers = text => text.match(/[\\d.]+/g).map(Number);
        const light = rgb => rgb.slice(0, 3).map(v => v / 255)
          .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        let behind = element, color = [0, 0, 0, 0];
        while (behind && (color.length === 4 && color[3] === 0)) {
          color = numbers(getComputedStyle(behind).backgroundColor);
          behind = behind.parentElement;
        }
        if (color.length === 4 && color[3] === 0) color = [255, 255, 255];
        const [a, b] = [light(numbers(getComputedStyle(element).color)), light(color)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
        """,
        selector,
    )


@pytest.mark.parametrize("page", PAGES)
def test_pictures_are_decoded_and_told_in_words(browser, site, page):
    browser.open(place(site, page), 1440)
    pictures = browser.run(
        "return Promise.all([...document.images].map(i => i.decode().then(() => [i.naturalWidth, i.alt], () => [0, i.alt])))"
    )
    assert all(width > 0 and len(alt) > 20 for width, alt in pictures)
    assert len(pictures) > 0 or page == "index"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere_and_nothing_is_asked_of_the_network(browser, site, page):
    path = place(site, page)
    browser.open(path, 1440)
    links = browser.run("return [...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))")
    ids = set(browser.run("return [...document.querySelectorAll('[id]')].map(e => e.id)"))
    assert links
    for link in links:
        assert not re.match(r"\w+:", link)
        assert link[1:] in ids if link.startswith("#") else (path.parent / link).is_file(), link
    assert (
        browser.run(
            "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
        )
        == []
    )
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES)
def test_a_keyboard_reaches_the_content_and_whatever_scrolls(browser, site, page):
    browser.open(place(site, page), 390)
    browser.press("\ue004")  # Tab
    assert browser.run("return document.activeElement.className") == "skip"
    box = browser.run(
        "const b = document.activeElement.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]"
    )
    assert min(box[0], box[1]) >= 0
    assert min(box[2], box[3]) > 10
    browser.press("\ue007")  # Enter
    assert browser.run("return document.activeElement.id") == "content"
    deaf = browser.run(
        "return [...document.querySelectorAll('*')].filter(e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)"
        " && e.scrollWidth > e.clientWidth + 1 && !(e.tabIndex === 0 && e.getAttribute('aria-label')))"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert deaf == []


@pytest.mark.parametrize("page", PAGES)
def test_headings_go_down_one_level_at_a_time(browser, site, page):
    browser.open(place(site, page), 1440)
    levels = browser.run("return [...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
