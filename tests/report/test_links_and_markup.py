"""Names of folders and recipes are words: on no page do they become links to elsewhere, scripts or markup."""

import re
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest

from prunekit._files import write_json
from prunekit.report import write_overview
from prunekit.report.document import Document, Link, Links, Section
from prunekit.report.rendering import render
from prunekit.report.table import Column, Table, markdown_text

NAMES = ["javascript:alert(1)", "data:text,x", "a b", "50%", "a#b?c", "ünïcode", "//example.org", "x'\"<y>"]


class Hrefs(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for key, value in attrs if key == "href"]


def hrefs(page: str) -> list[str]:
    parser = Hrefs()
    parser.feed(page)
    return parser.found


@pytest.mark.parametrize("name", NAMES)
def test_a_link_leads_to_a_file_beside_the_page_whatever_its_name(name):
    links = Links("Pages", (Link("text", f"{name}/manifest.json"),))
    page = render(Document("title", "claim", (Section("a", "A", (links,)),)))
    (href,) = (href for href in hrefs(page) if not href.startswith("#"))
    parts = urlsplit(href)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
    assert not re.match(r"[\s/]", href)


def test_a_folder_that_is_named_like_a_script_is_no_script_on_the_page_over_all_runs(tmp_path):
    for folder in ("javascript:alert(1)", "apart:from"):
        (tmp_path / folder).mkdir()
    write_json(tmp_path / "javascript:alert(1)" / "manifest.json", {"format": "prunekit-manifest/1"})
    (tmp_path / "apart:from" / "javascript:x.md").write_text("# javascript:alert(2)\n")
    (tmp_path / "apart:from" / "y.md").write_text(
        "# y\n[a](javascript:alert(3)) [b](javascript%3Ax.md) [c](data:x,y) <i>d</i>\n"
    )
    (tmp_path / "apart:from" / "javascript:y.csv").write_text("1\n")
    (tmp_path / "apart:from" / "z.md").write_text(
        "# z\n[e](javascript%3Ay.csv) [f](../../g.md) ![h](//example.org/h.png)\n"
    )
    found = hrefs(write_overview(tmp_path).read_text())
    assert "javascript%3Aalert%281%29/manifest.json" in found
    assert "measurements.html#m0-apart-from-javascript-x" in found
    page = (tmp_path / "measurements.html").read_text()
    inside = hrefs(page)
    assert "apart%3Afrom/javascript%3Ay.csv" in inside
    assert "#m0-apart-from-javascript-x" in inside
    assert "&lt;i&gt;d" in page
    assert "example.org" not in page
    assert all(urlsplit(href).scheme == "" for href in (*found, *inside))
    assert not any(href.endswith(".md") for href in (*found, *inside))


MARKUP = {
    "a | b": r"a \| b",
    "`rm`": r"\`rm\`",
    "<script>": "&lt;script&gt;",
    "[a](javascript:x)": r"\[a\](javascript&#58;x)",
    "![a](x.png)": r"!\[a\](x.png)",
    "line\none": "line one",
    "# heading": r"\# heading",
    "- item": r"\- item",
    "1. item": r"1\. item",
    "https://example.org www.example.org": "https&#58;//example.org www&#46;example.org",
    "_a_ **b** ~~c~~": r"\_a\_ \*\*b\*\* \~\~c\~\~",
    "&amp;": "&amp;amp;",
    "1.5 ± 0.1 (n = 16), data: small": "1.5 ± 0.1 (n = 16), data: small",
}


@pytest.mark.parametrize(("text", "expected"), MARKUP.items())
def test_markdown_shows_text_as_it_is(text, expected):
    assert markdown_text(text) == expected


def test_every_word_of_a_table_in_markdown_is_escaped(tmp_path):
    nasty = "[a](javascript:x) | <b>\n`c`"
    table = Table(nasty, nasty, ({"a": 1},), (Column(nasty, "a", lambda row: nasty),), nasty)
    table.to_markdown(tmp_path / "metrics.md")
    text = (tmp_path / "metrics.md").read_text()
    assert "<b>" not in text
    assert "](" not in text.replace(r"\](", "")
    assert not re.search(r"(?<!\\)`", text)
    assert len(text.split("\n\n")) == 3
