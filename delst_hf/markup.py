"""Untrusted text in Markdown, YAML and HTML: shown literally, and never interpreted as markup.

Labels, names, tissues and sources come from files that anybody may have written. Cards are filled by `fill`, which escapes
whatever is not `Markdown` already, and their headers are written by a YAML library. Pages are built by `element`, which escapes
whatever is not `Html` already.
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

_CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
# Characters that open HTML or Markdown, the next column of a table, a link, code or a placeholder, or escape the next one.
_ACTIVE = {char: f"&#{ord(char)};" for char in "|`[]{}\\*~"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Html(str):
    """Text that is HTML already and is not escaped again."""


def as_html(value: object) -> Html:
    """Return a value as HTML that only shows it: safe between tags and within a quoted attribute.

    Example:
        >>> as_html("a < b"), as_html(Html("<b>a</b>"))
        ('a &lt; b', '<b>a</b>')
    """
    if isinstance(value, Html):
        return value
    return Html(html.escape(shown(str(value), keep="\n"), quote=True))


def joined(parts: Iterable[object]) -> Html:
    """Return parts as HTML, concatenated."""
    return Html("".join(map(as_html, parts)))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """Return an element of HTML; children and values of attributes are escaped unless they are `Html`.

    Args:
        tag: Name of the element.
        *children: Content of the element.
        **attributes: In their names a final underscore is dropped (``class_``), and other underscores become hyphens.

    Example:
        >>> element("p", "a < b", class_="soft")
        '<p class="soft">a &lt; b</p>'
    """
    names = {name: name.removesuffix("_").replace("_", "-") for name in attributes}
    told = "".join(f' {names[name]}="{as_html(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{told}>{joined(children)}</{tag}>")


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""


def cell(value: object) -> Markdown:
    """Return a value as one line of Markdown that only shows it: safe in a cell of a table, a list or a sentence.

    Args:
        value: Anything; `Markdown` passes unchanged.

    Examples:
        >>> cell("a | <b>{x}")
        'a &#124; &lt;b&gt;&#123;x&#125;'
    """
    if isinstance(value, Markdown):
        return value
    return Markdown("".join(_ACTIVE.get(char, char) for char in shown(str(value))))


def row(*cells: object) -> Markdown:
    """Return a line of a Markdown table.

    Examples:
        >>> row("toy_A1", 36)
        '| toy_A1 | 36 |'
    """
    return Markdown("| " + " | ".join(map(cell, cells)) + " |")


def lines(parts: Sequence[str]) -> Markdown:
    """Return several lines of Markdown."""
    return Markdown("\n".join(map(cell, parts)))


def fenced(text: str, language: str = "") -> Markdown:
    """Return a block of code whose fence is longer than any run of backticks in the text.

    Examples:
        >>> fenced("a: 1", "yaml").splitlines()
        ['```yaml', 'a: 1', '```']
    """
    text = shown(text, keep="\n")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}{language}\n{text.strip()}\n{fence}")


def fill(template: str, facts: Mapping[str, object]) -> str:
    """Replace the placeholders ``{name}`` of a template by facts, each escaped by `cell`; those without a fact stay.

    Examples:
        >>> fill("{label} of {slide}", {"label": "{slide}"})
        '&#123;slide&#125; of {slide}'
    """
    return _PLACEHOLDER.sub(lambda found: cell(facts[found[1]]) if found[1] in facts else found[0], template)


def placeholders(text: str) -> list[str]:
    """Return the names of the placeholders ``{name}`` in a text, each once."""
    return list(dict.fromkeys(_PLACEHOLDER.findall(text)))


def shown(text: str, keep: str = "") -> str:
    """Return a text with line breaks, other control characters and marks of writing direction replaced by spaces.

    Args:
        text: Any text.
        keep: Control characters that stay.

    Example:
        >>> shown("a\\nb")
        'a b'
    """
    if text.isprintable():  # most texts are
        return text
    return "".join(" " if char not in keep and unicodedata.category(char) in _CONTROLS else char for char in text)


class _Dumper(yaml.SafeDumper):
    """A dumper that writes strings with line breaks or control characters on one line, in double quotes."""


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = all(unicodedata.category(char) not in _CONTROLS for char in text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style=None if plain else '"')


_Dumper.add_representer(str, _string)
_Dumper.add_representer(Markdown, _string)


def yaml_header(values: Mapping[str, Any]) -> str:
    """Return the header of a README: YAML between two lines ``---``, whatever the values hold.

    Examples:
        >>> yaml_header({"license": "mit"}).splitlines()
        ['---', 'license: mit', '---']
    """
    text = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, width=2**20)
    return f"---\n{text}---\n"
