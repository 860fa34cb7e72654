"""Links of the pages for the site: what they name in the repository but not in docs/ becomes the name of a file that is there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


class DeadLinkError(ValueError):
    """A page links to a file that the repository does not have."""


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """mkdocs calls it for each page. Raises DeadLinkError."""
    return rewritten(markdown, page.file.src_uri)


def rewritten(markdown: str, page: str) -> str:
    """The text of a page (`page`: its path below docs/), as the site can show it.

    Raises:
        DeadLinkError: a link leads to no file.
    """

    def replace(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(ROOT / "docs" / Path(page).parent / match["target"]))
        if not path.exists():
            raise DeadLinkError(f"docs/{page}: {match['target']} does not exist")
        if path.is_relative_to(ROOT / "docs") and path.is_file():
            return match[0]
        return f"{match['text']} (`{path.relative_to(ROOT)}` in the repository)"

    return _LINK.sub(replace, markdown)
