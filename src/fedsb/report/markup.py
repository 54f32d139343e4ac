"""HTML parts. Whatever is called `text` is plain and gets escaped here; children are HTML already."""

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import quote

from fedsb.common.printable import printable
from fedsb.report.canvas import Plot


class Column(NamedTuple):
    """A table column; `numeric` ones are set flush right."""

    title: str
    numeric: bool = True


class Card(NamedTuple):
    title: str
    value: str
    note: str = ""


def tag(name: str, *children: str, **attributes: str) -> str:
    """An element. `class_` stands for class, `aria_label` for aria-label."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"' for key, value in attributes.items()
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"


def _escaped(text: str) -> str:
    """Neither HTML nor what turns the direction of writing or cannot be seen."""
    return html.escape(printable(text, None, keep="\n\t"))


class Html(str):
    """HTML that is ready: `plain` lets it through."""


def plain(text: object) -> str:
    return text if isinstance(text, Html) else _escaped(str(text))


def link(text: str, path: str) -> Html:
    """A link to a file by its relative path; whatever else a path may say, it cannot name a scheme."""
    return Html(tag("a", plain(text), href=quote(path.lstrip("/"))))


def paragraph(text: str, class_: str = "") -> str:
    return tag("p", plain(text), class_=class_) if class_ else tag("p", plain(text))


def table(
    title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], *, strong: bool = False
) -> str:
    """A table in a container of its own that scrolls; `strong` sets off the last row, a total."""
    head = "".join(tag("th", plain(column.title), scope="col", **_align(column)) for column in columns)
    body = [_row(columns, row) for row in rows]
    if strong and body:
        body[-1] = body[-1].replace("<tr>", '<tr class="total">', 1)
    inner = tag("table", tag("thead", tag("tr", head)), tag("tbody", *body))
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=title)


def _row(columns: Sequence[Column], row: Sequence[str]) -> str:
    first, *others = zip(columns, row, strict=True)
    cells = [tag("th", plain(first[1]), scope="row", **_align(first[0]))]
    cells += [tag("td", plain(text), **_align(column)) for column, text in others]
    return tag("tr", *cells)


def _align(column: Column) -> dict[str, str]:
    return {"class_": "number"} if column.numeric else {}


def pairs(rows: Iterable[tuple[str, str]], class_: str = "pairs") -> str:
    """A list of names and values."""
    return tag("dl", *(tag("div", tag("dt", plain(a)), tag("dd", plain(b))) for a, b in rows), class_=class_)


def cards(items: Iterable[Card]) -> str:
    return tag("div", *(_card(item) for item in items), class_="cards")


def _card(item: Card) -> str:
    note = tag("div", plain(item.note), class_="note") if item.note else ""
    return tag(
        "div",
        tag("div", plain(item.title), class_="what"),
        tag("div", plain(item.value), class_="value"),
        note,
        class_="card",
    )


def section(anchor: str, level: int, title: str, *children: str) -> str:
    return tag("section", tag(f"h{level}", plain(title)), *children, id=anchor)


def details(title: str, *children: str, class_: str = "more") -> str:
    return tag("details", tag("summary", plain(title)), *children, class_=class_)


def plots(items: Iterable[Plot]) -> str:
    return tag("div", *(_figure(item) for item in items), class_="plots")


def _figure(plot: Plot) -> str:
    keys = [
        tag("li", tag("span", plain(k.glyph), class_=k.paint, aria_hidden="true"), plain(k.name))
        for k in plot.keys
    ]
    legend = tag("ul", *keys, class_="legend") if keys else ""
    note = paragraph(plot.note, "note") if plot.note else ""
    image = tag("div", plot.svg, role="img", aria_label=plot.alt, class_="image")
    return tag("figure", tag("figcaption", plain(plot.title)), legend, image, note)
