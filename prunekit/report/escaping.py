"""Words that come from elsewhere, such as a recipe's description, as they may stand in a page of Markdown."""

import html
import re

__all__ = ["in_markdown"]


def in_markdown(text: str) -> str:
    r"""The text as plain words on one line: no markup, no HTML, no links under other words than their address.

    Example:
        >>> in_markdown("<b>a</b> `c`")
        '&lt;b&gt;a&lt;/b&gt; \\`c\\`'
    """
    words = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~]|^[#+-])", r"\\\1", words)
