"""Reads kubeconfig files without a YAML library: JSON, or the block style that kubectl, kind, gke, eks and aks write.

The reader is strict. What is outside that subset (anchors, tags, flow collections that are not JSON, several documents)
is refused with the line's number. Lines are never quoted in an error: they may hold a token.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

_KEY = re.compile(
    r"""(?P<key>"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s'"#&*!|>%@`{}\[\],?:-][^:#]*?)[ \t]*:(?:[ \t]+(?P<value>.*))?$"""
)
_BLOCK = re.compile(r"(?P<style>[|>])(?P<indent>[1-9]?)(?P<chomp>[+-]?)(?P<indent2>[1-9]?)[ \t]*(?:[ \t]#.*)?$")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPES = {"0": "\0", "a": "\a", "b": "\b", "t": "\t", "\t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r"}
_ESCAPES |= {"e": "\x1b", " ": " ", '"': '"', "/": "/", "\\": "\\"}
_ESCAPES |= {"N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029"}
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class ConfigError(ValueError):
    """A kubeconfig or service account that cannot be used; the text names the file, the line if there is one, and the cause."""


def paths(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The files that kubectl would read: `$KUBECONFIG` (a path list), else `~/.kube/config`. Existing ones only."""
    listed = [path for path in environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    listed = listed or [os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".kube", "config")]
    return [path for path in listed if os.path.isfile(path)]


def read(files: Sequence[str]) -> dict[str, Any]:
    """Merge kubeconfig files as kubectl does: what an earlier file sets, a later one does not change.

    Every entry of `clusters`, `users` and `contexts` gets a key `directory`: relative paths inside it start there.
    """
    merged: dict[str, Any] = {"clusters": {}, "users": {}, "contexts": {}, "current-context": ""}
    for path in files:
        try:
            with open(path, encoding="utf-8") as file:
                document = parse(file.read(), path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"kubeconfig {path} cannot be read: {type(error).__name__}") from error
        for section, single in (("clusters", "cluster"), ("users", "user"), ("contexts", "context")):
            for entry in document.get(section) or []:
                if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                    raise ConfigError(f"kubeconfig {path}: each entry of {section} needs a name")
                body = {**(entry.get(single) or {}), "directory": os.path.dirname(os.path.abspath(path))}
                merged[section].setdefault(entry["name"], body)
        merged["current-context"] = merged["current-context"] or document.get("current-context") or ""
    return merged


def parse(text: str, where: str = "kubeconfig") -> dict[str, Any]:
    """The document as plain data; scalars are strings, booleans or None.

    Raises:
        ConfigError: not JSON and not in the subset; names `where` and the line.
    """
    if text.lstrip().startswith("{"):
        try:
            document = json.loads(text)
        except ValueError as error:
            line = getattr(error, "lineno", 1)
            raise ConfigError(f"{where}, line {line}: starts like JSON but is not") from None
    else:
        document = _Reader(text, where).document()
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: a kubeconfig is a mapping with clusters, users and contexts")
    return document


class _Reader:
    """Recursive descent over lines; `at` is the next line that was not used."""

    def __init__(self, text: str, where: str) -> None:
        self.lines = text.lstrip("\ufeff").replace("\r\n", "\n").split("\n")
        self.where = where
        self.at = 0

    def fail(self, why: str, at: int | None = None) -> ConfigError:
        return ConfigError(f"{self.where}, line {(self.at if at is None else at) + 1}: {why}")

    def document(self) -> Any:
        if self.peek() is not None and self.lines[self.at].rstrip(" \t") == "---":
            self.at += 1
        value = self.block(0) if self.peek() is not None else {}
        if self.peek() is not None and self.lines[self.at].rstrip(" \t") != "...":
            raise self.fail("only one document, and only block style, is read here")
        return value

    def peek(self) -> tuple[int, str] | None:
        """Indentation and text of the next line that says something."""
        while self.at < len(self.lines):
            line = self.lines[self.at]
            text = line.strip(" \t")
            if text and not text.startswith("#"):
                indent = len(line) - len(line.lstrip(" "))
                if line[indent] == "\t":
                    raise self.fail("indented with a tab; use spaces")
                return indent, text
            self.at += 1
        return None

    def block(self, indent: int) -> Any:
        _, text = self.peek() or (0, "")
        return self.sequence(indent) if text == "-" or text.startswith("- ") else self.mapping(indent)

    def mapping(self, indent: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while (line := self.peek()) is not None and line[0] >= indent and line[1] not in ("---", "..."):
            found = _KEY.match(line[1])
            if line[0] > indent or not found:
                raise self.fail("expected `key: value` at the indentation of the lines before")
            key = found["key"]
            key = self.unquoted(key) if key[0] in "\"'" else key
            if key in result:
                raise self.fail("this key was already given")
            result[key] = self.value(found["value"] or "", indent, in_mapping=True)
        return result

    def sequence(self, indent: int) -> list[Any]:
        result = []
        while (line := self.peek()) is not None and line[0] == indent and (line[1] == "-" or line[1][:2] == "- "):
            rest = line[1][1:].lstrip(" \t")
            inner = indent + len(line[1]) - len(rest)
            if _KEY.match(rest) or rest[:2] == "- " or rest == "-":
                self.lines[self.at] = " " * inner + rest
                result.append(self.block(inner))
            else:
                result.append(self.value(rest, indent, in_mapping=False))
        if line is not None and line[0] > indent:
            raise self.fail("unexpected indentation")
        return result

    def value(self, text: str, indent: int, *, in_mapping: bool) -> Any:
        """What follows `key:` or `-` on the current line, and the deeper lines that belong to it."""
        start = self.at
        self.at += 1
        if not text or text.startswith("#"):
            line = self.peek()
            if line is not None and line[0] > indent:
                return self.block(line[0])
            # Go's writers put the dashes of a list under the first letter of its key.
            if in_mapping and line is not None and line[0] == indent and (line[1] == "-" or line[1][:2] == "- "):
                return self.sequence(indent)
            return None
        return self.scalar(text, indent, start)

    def scalar(self, text: str, indent: int, start: int) -> Any:
        if text[0] in "|>":
            return self.block_scalar(text, indent, start)
        if text[0] in "\"'":
            return self.quoted(text, start)
        if text[0] in "{[":
            try:
                return json.loads(text)
            except ValueError:
                raise self.fail("write this in block style, or as JSON on one line", start) from None
        if text[0] in "&*!%@`":
            raise self.fail("anchors, aliases and tags are not read here", start)
        return self.plain(text, indent, start)

    def plain(self, text: str, indent: int, start: int) -> str | bool | None:
        parts = [text]
        while " #" not in parts[-1] and self.at < len(self.lines):
            line = self.lines[self.at]
            if line.strip(" \t") and (
                len(line) - len(line.lstrip(" ")) <= indent or line.lstrip(" \t").startswith("#")
            ):
                break
            parts.append(line.strip(" \t"))
            self.at += 1
        while not parts[-1]:
            parts.pop()
        if any(": " in part or part.endswith(":") for part in (re.split(r"[ \t]#", part)[0] for part in parts)):
            raise self.fail("a value with a colon in it must be quoted", start)
        folded = _fold([re.split(r"[ \t]#", part)[0].rstrip(" \t") for part in parts])
        return _CONSTANTS.get(folded, folded) if len(parts) == 1 else folded

    def quoted(self, text: str, start: int) -> str:
        mark, parts, rest = text[0], [], text[1:]
        closed = re.compile(r'(?:[^"\\]|\\.)*"' if mark == '"' else r"(?:[^']|'')*'(?!')")
        while not (found := closed.match(rest)):
            parts.append(rest)
            if self.at >= len(self.lines):
                raise self.fail("the quote that starts here is not closed", start)
            rest = self.lines[self.at].lstrip(" \t")
            self.at += 1
        if (tail := rest[found.end() :].strip(" \t")) and not tail.startswith("#"):
            raise self.fail("text after the closing quote", start)
        parts.append(rest[: found.end() - 1])
        joined = _fold_quoted(parts, mark)
        try:
            return joined.replace("''", "'") if mark == "'" else _ESCAPE.sub(_unescape, joined)
        except KeyError:
            raise self.fail("unknown escape in a quoted value", start) from None

    def unquoted(self, key: str) -> str:
        return key[1:-1].replace("''", "'") if key[0] == "'" else _ESCAPE.sub(_unescape, key[1:-1])

    def block_scalar(self, header: str, indent: int, start: int) -> str:
        found = _BLOCK.match(header)
        if not found:
            raise self.fail("not a block scalar header (| or >)", start)
        given = found["indent"] or found["indent2"]
        width = indent + int(given) if given else 0
        lines: list[str] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            own = len(line) - len(line.lstrip(" "))
            if line.strip(" \t"):
                width = width or own
                if own < width or own <= indent:
                    break
            lines.append(line[width:] if width else "")
            self.at += 1
        text = "\n".join(lines).rstrip("\n")
        if found["style"] == ">":
            if any(line.startswith((" ", "\t")) for line in lines):
                raise self.fail("more deeply indented lines in a folded (>) value are not read here", start)
            text = _fold(text.split("\n"))
        if found["chomp"] == "-" or not text:
            return text
        trailing = len(lines) - len("\n".join(lines).rstrip("\n").split("\n"))
        return text + "\n" * (1 + trailing if found["chomp"] == "+" else 1)


def _fold(parts: list[str]) -> str:
    """Join lines as YAML does: one line break is a space, each empty line a line break."""
    text, breaks = parts[0], 0
    for part in parts[1:]:
        if not part:
            breaks += 1
            continue
        text += ("\n" * breaks or " ") + part
        breaks = 0
    return text + "\n" * breaks


def _fold_quoted(parts: list[str], mark: str) -> str:
    text, breaks = parts[0], 0
    for number, part in enumerate(parts[1:], 1):
        last = number == len(parts) - 1
        escaped = mark == '"' and breaks == 0 and re.search(r"(?<!\\)(?:\\\\)*\\$", text)
        if not part.strip(" \t") and not last:
            breaks += 1
            continue
        text = text[:-1] if escaped else text.rstrip(" \t") + ("\n" * breaks or " ")
        text += part
        breaks = 0
    return text


def _unescape(found: re.Match[str]) -> str:
    code = found[1]
    return chr(int(code[1:], 16)) if code[0] in "xuU" and len(code) > 1 else _ESCAPES[code]
