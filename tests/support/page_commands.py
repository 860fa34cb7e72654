"""Commands on the pages: code in a line, and lines of blocks that are indented."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path


def commands(pages: Iterable[Path], programs: Collection[str], names: Mapping[str, str]) -> list[str]:
    """All that begin with one of `programs` and are more than the name of a command, each once, in the order of the pages.

    `names`: what stands for the reader's own, and what to say instead.
    """
    found = (command for page in pages for command in _of_page(page, programs, names))
    return list(dict.fromkeys(found))


def _of_page(page: Path, programs: Collection[str], names: Mapping[str, str]) -> Iterator[str]:
    for line in page.read_text().replace("\\\n", " ").splitlines():
        for span in [line] if line.startswith("    ") else re.findall(r"`([^`\n]+)`", line):
            text = re.sub(r"\s+", " ", span.replace("\\|", "|").partition(" # ")[0]).strip()
            if text.partition(" ")[0] in programs:
                yield re.sub(r"\b[A-Z]{3,}\b", lambda found: names.get(found[0], found[0]), text)
