"""YAML, whoever wrote it: plain values, or a ValueError that shows none of theirs; and ours, written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent
from yaml.nodes import MappingNode, Node, ScalarNode

from fedsb.common.strict_json import DEEPEST, DIGITS, NO_TEXT, Unreadable, check_digits, is_text, too_deep

YAML_CHARACTERS = 1 << 18
"""Largest YAML file; with its aliases written out it may have four times as many."""
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML's safe loader, of libyaml where that was built in: ten times as fast."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML document of plain values: every key once, aliases within bounds.

    Raises:
        ValueError: it is not such a document.
    """
    if len(text) > YAML_CHARACTERS:
        raise Unreadable(f"more than {YAML_CHARACTERS:,} characters")
    try:
        _check_depth(text)
        return _document(text)
    except Unreadable:
        raise
    except yaml.YAMLError as error:
        raise Unreadable(_in_words(error)) from None
    except Exception as error:  # what PyYAML's constructors raise of a tag with a value that it cannot have
        raise Unreadable(f"a value that its type cannot have ({type(error).__name__})") from None


def written_yaml(values: Any) -> str:
    """Plain values as YAML, keys in their order."""
    dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(values, Dumper=dumper, sort_keys=False, allow_unicode=True))


def _check_depth(text: str) -> None:
    """Before anything is composed, which takes a call of the composer for each level."""
    level = 0
    for event in yaml.parse(text, Loader=LOADER):
        level += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if level + isinstance(event, ScalarEvent | AliasEvent) > DEEPEST:
            raise Unreadable(too_deep(DEEPEST))


def _document(text: str) -> Any:
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, "", {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_keys(node: MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and (key.tag, key.value) in seen:
            raise Unreadable(f"line {key.start_mark.line + 1}: the key {key.value[:80]!r} is there twice")
        seen.add((key.tag, str(key.value)))


def _measure(node: Node, key: str, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """(characters, levels) of a value with its aliases written out.

    Args:
        key: its dotted place.
        known: those of nodes seen before; None of one that is being measured.
    """
    if id(node) in known:
        if (size := known[id(node)]) is None:
            raise Unreadable(f"{key}: an alias of what it stands in")
        return size
    known[id(node)] = None
    if isinstance(node, ScalarNode):
        _check_scalar(node, key)
        sizes = [(len(node.value), 0)]
    else:
        sizes = [_measure(inner, name, known) for name, inner in _inside(node, key)]
    characters, levels = 1 + sum(size[0] for size in sizes), 1 + max((size[1] for size in sizes), default=0)
    if characters > 4 * YAML_CHARACTERS or levels > DEEPEST + 1:
        raise Unreadable(f"{key}: with its aliases written out, more than a config can hold")
    known[id(node)] = characters, levels
    return characters, levels


def _inside(node: Node, key: str) -> Iterator[tuple[str, Node]]:
    if not isinstance(node, MappingNode):
        yield from ((key, inner) for inner in node.value)
        return
    _check_keys(node)
    for name, value in node.value:
        below = name.value[:80] if isinstance(name, ScalarNode) else "?"
        yield key, name
        yield f"{key}.{below}" if key else below, value


def _check_scalar(node: ScalarNode, key: str) -> None:
    if node.tag == "tag:yaml.org,2002:int":
        check_digits(node.value, DIGITS, f"{key or 'value'}: ")
    if not is_text(node.value):
        raise Unreadable(f"{key or 'value'}: {NO_TEXT}")


def _in_words(error: yaml.YAMLError) -> str:
    """PyYAML's message without the piece of the file that it shows."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    return f"{where}{problem}"[:300]
