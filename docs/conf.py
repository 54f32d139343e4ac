"""Sphinx settings. Equations become MathML here, so that pages need no script from elsewhere."""

from collections.abc import Iterator
from importlib.metadata import version as installed
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from docutils import nodes
from latex2mathml.converter import convert
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx

from fedsb.compare.config import CompareConfig
from fedsb.config import RunConfig
from fedsb.config.base import Section
from fedsb.deploy.node_config import NodeConfig

project = "fedsb"
author = "the fedsb authors"
copyright = "the fedsb authors, Apache-2.0"
version = release = installed("fedsb")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "fedsb"
html_static_path = ["_static"]
html_css_files = ["extra.css"]
html_show_sphinx = False
html_math_renderer = "mathml"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True
default_role = "code"
suppress_warnings = ["ref.python"]


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def _keys(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fill the pages of the configs with a table for each section."""
    kinds: dict[str, tuple[type[Section], str]] = {
        "run": (RunConfig, ""),
        "compare": (CompareConfig, "compare."),
        "node": (NodeConfig, ""),
    }
    if docname in ("reference/config", "reference/node-config"):
        for mark, (section, prefix) in kinds.items():
            source[0] = source[0].replace(f"<!-- {mark} -->", "\n\n".join(_sections(section, prefix)))


def _sections(section: type[Section], prefix: str) -> Iterator[str]:
    """A table of a section's own keys, then those of the sections in it."""
    rows, inner = [], []
    for name, field in section.model_fields.items():
        parts = [kind for kind in _classes(field.annotation) if issubclass(kind, Section)]
        inner += [(part, f"{prefix}{name}.") for part in parts]
        if not parts:
            text = " ".join((field.description or "").split()).replace("|", "or")
            rows.append(f"| `{prefix}{name}` | {_type(field.annotation)} | {_default(field)} | {text} |")
    if rows:
        kind = section.model_fields.get("kind")
        title = f"{prefix.rstrip('.') or 'top level'}" + (f", kind {_type(kind.annotation)}" if kind else "")
        table = "| key | type | default | |\n|---|---|---|---|\n" + "\n".join(rows)
        yield f"## {title}\n\n{table}"
    for part, path in inner:
        yield from _sections(part, path)


def _classes(annotation: Any) -> list[type]:
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [kind for part in get_args(annotation) for kind in _classes(part)]
    return [annotation] if isinstance(annotation, type) else []


def _type(annotation: Any) -> str:
    """A type as a person writes it."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in get_args(annotation)))
    if get_origin(annotation) is list:
        return f"list of {_type(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "names, each with " + _type(get_args(annotation)[1])
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return ", ".join(f"`{name}`" for name in annotation.model_fields)
    names = {
        Any: "any value",
        type(None): "null",
        int: "int",
        float: "number",
        str: "text",
        bool: "true or false",
    }
    return names.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    if field.default_factory is not None:
        return "none"
    return "null" if field.default is None else f"`{str(field.default).lower()}`"


def _skip(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples are told in the class; Python's own text about them says nothing."""
    return True if str(getattr(member, "__doc__", "")).startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer of equations."""
    app.connect("source-read", _keys)
    app.connect("autodoc-skip-member", _skip)
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
