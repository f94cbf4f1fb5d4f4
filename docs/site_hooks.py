"""Add the files outside of docs/ that pages link to as pages of the site: README, changelog, scripts, configurations.

On a code host a link such as `../benchmarks/step.py` opens the file of the repository. The site has no repository, so each
such file becomes a page under `files/`, with its path in the repository; README.md becomes the page `index.md`. A file that
is not Markdown is shown as code. Links are followed from page to page; a link to a missing file stays unchanged, so that
`--strict` refuses it.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}
SOURCES: dict[str, str] = {}  # page -> the file of the repository that it shows
PICTURES = (".png", ".svg")  # lie in docs/, where mkdocs finds them itself
IN_NAVIGATION = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside of docs/ that the navigation names or that a page links to."""
    root = Path(config.config_file_path).parent
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()] + list(IN_NAVIGATION)
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        text = (root / path).read_text(encoding="utf-8")
        SOURCES[_page_of(path)] = path
        if not path.startswith("docs/"):
            files.append(File.generated(config, _page_of(path), content=_as_markdown(path, text)))
        if path.endswith(".md"):
            targets = (_target(path, link) for link, _ in LINK.findall(text))
            waiting += [target for target in targets if (root / target).is_file() and not target.endswith(PICTURES)]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links between files of the repository to the pages that show them."""
    root = Path(config.config_file_path).parent
    here = page.file.src_uri
    path = SOURCES[here]
    if not path.endswith(".md"):
        return markdown

    def replaced(match: re.Match[str]) -> str:
        target = _target(path, match[1])
        if not (root / target).is_file():
            return match[0]
        return f"]({posixpath.relpath(_page_of(target), posixpath.dirname(here) or '.')}{match[2] or ''})"

    return LINK.sub(replaced, markdown)


def _target(path: str, link: str) -> str:
    """Return the path in the repository that a link of a file means; a folder is its README."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return posixpath.join(target, "README.md") if link.endswith("/") else target


def _page_of(path: str) -> str:
    """Return the name of the page, below docs/, that shows a file of the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path.removesuffix('.md')}.md"


def _as_markdown(path: str, text: str) -> str:
    if path.endswith(".md"):
        return text
    return f"# {path}\n\n```{LANGUAGES.get(Path(path).suffix, 'text')}\n{text.rstrip()}\n```\n"
