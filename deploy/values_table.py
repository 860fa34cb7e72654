"""The table of values in the chart's README, made from values.yaml with its comments and the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

BEGIN, END = "<!-- values: made by `make render` -->", "<!-- end of values -->"


def comments(text: str) -> dict[str, str]:
    """Dotted key → the comment lines right above it, joined. What is indented in a comment lists the values that a key may have."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"( *)# ?(.*)", line):
            choice = re.match(r"  +(\S+)  +(.*)", match[2])
            above.append(f"`{choice[1]}`: {choice[2]};" if choice else match[2].strip())
        elif match := re.match(r"( *)([A-Za-z0-9]+):", line):
            depth = len(match[1])
            path = [*(part for part in path if part[0] < depth), (depth, match[2])]
            found[".".join(name for _, name in path)] = " ".join(above).rstrip(";")
            above = []
        else:
            above = []
    return found


def leaves(
    values: Mapping[str, Any], schema: Mapping[str, Any], whole: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any]]:
    """The keys that users set, with their defaults: as deep as the schema names keys."""
    for name, value in values.items():
        inner = schema["properties"][name]
        if "$ref" in inner:
            inner = whole["definitions"][inner["$ref"].rpartition("/")[2]]
        if "properties" in inner and isinstance(value, dict):
            yield from leaves(value, inner, whole, f"{path}{name}.")
        else:
            yield path + name, value


def table(values_text: str, schema_text: str) -> str:
    """The table in Markdown: a row for each key.

    Raises:
        ValueError: neither the key nor the one that it is in has a comment.
    """
    said, schema = comments(values_text), json.loads(schema_text)
    rows = ["| key | default | what |", "|---|---|---|"]
    for key, default in leaves(yaml.safe_load(values_text), schema, schema):
        parents = [key.rpartition(".")[0]] if "." in key else []
        texts = [said.get(name, "") for name in (*parents, key)]
        if not any(texts):
            raise ValueError(f"values.yaml says nothing about {key}")
        what = texts[-1] or texts[0]
        rows.append(f"| `{key}` | `{json.dumps(default)}` | {what.replace('|', 'or')} |")
    return "\n".join(rows)


def filled(readme: str, values_text: str, schema_text: str) -> str:
    """The README with the table between its two marks.

    Raises:
        ValueError: a mark is missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{table(values_text, schema_text)}\n\n{END}{after}"
