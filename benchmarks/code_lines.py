"""Count the lines of code of the package, without docstrings, comments and blank lines, at any revision.

    python benchmarks/code_lines.py                  # the files in the work tree, one row per folder
    python benchmarks/code_lines.py 2309afe HEAD     # the same for revisions, side by side
    python benchmarks/code_lines.py 2309afe..HEAD    # the commits between them that made the package shorter, and the sums

A line counts if it holds a token of code: all lines of a multi-line string count, unless it is a docstring.

Features were added between revisions, so their difference does not show what simplifying saved. The last form shows it, as far
as commits keep the two apart: a commit that adds a feature makes the package longer, and counts in the other sum.
"""

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "delst_hf"
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(source: str) -> int:
    """Return the number of lines of a module on which there is code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            lines.difference_update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return len(lines)


def sources(revision: str | None) -> dict[str, str]:
    """Return the text of each module of the package, by path, at a revision, or in the work tree for None."""
    if revision is None:
        return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in (ROOT / PACKAGE).rglob("*.py")}
    names = _git("ls-tree", "-r", "--name-only", revision, PACKAGE).splitlines()
    return {name: _git("show", f"{revision}:{name}") for name in names if name.endswith(".py")}


def by_folder(revision: str | None) -> Counter[str]:
    """Return the lines of code of each folder of the package, and of the files at its root together."""
    lines: Counter[str] = Counter()
    for name, source in sources(revision).items():
        parts = Path(name).parts
        lines[parts[1] if len(parts) > 2 else "(root)"] += code_lines(source)
    return lines


def by_commit(between: str) -> list[tuple[int, str]]:
    """Return the lines of code that each commit added (below 0: removed) with its subject, the oldest first."""
    known = {name: code_lines(source) for name, source in sources(between.split("..")[0]).items()}
    added = []
    for commit in _git("log", "--reverse", "--first-parent", "--format=%h %s", between).splitlines():
        name, before = commit.split()[0], sum(known.values())
        for change in _git("diff-tree", "-r", "--no-renames", f"{name}^", name, "--", PACKAGE).splitlines():
            fields, path = change.split("\t")
            if path.endswith(".py"):
                known[path] = _blob_lines(fields.split()[3], known.get(path, 0))
        added.append((sum(known.values()) - before, commit))
    return added


def _blob_lines(blob: str, before: int) -> int:
    if not blob.strip("0"):  # the file is deleted
        return 0
    try:
        return code_lines(_git("cat-file", "blob", blob))
    except (SyntaxError, tokenize.TokenError):  # a commit that a later one repaired
        return before


def _git(*command: str) -> str:
    return subprocess.run(["git", *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def print_commits(between: str) -> None:
    """Print the commits that made the package shorter, the largest first, and the sums."""
    added = by_commit(between)
    shorter = sorted(row for row in added if row[0] < 0)
    print("\n".join(f"{lines:6,}  {commit[:110]}" for lines, commit in shorter))
    saved, longer = sum(lines for lines, _ in shorter), [lines for lines, _ in added if lines > 0]
    print(f"{saved:6,}  by {len(shorter)} commits; +{sum(longer):,} by {len(longer)} others")


def print_folders(revisions: list[str]) -> None:
    """Print the lines of code of each folder, a column per revision."""
    columns = {revision or "here": by_folder(revision) for revision in (revisions or [None])}
    print(f"{'':14}" + "".join(f"{name[:12]:>14}" for name in columns))
    for folder in sorted(set().union(*columns.values())):
        print(f"{folder:14}" + "".join(f"{lines[folder]:14,}" for lines in columns.values()))
    print(f"{'together':14}" + "".join(f"{lines.total():14,}" for lines in columns.values()))


if __name__ == "__main__":
    if ".." in "".join(sys.argv[1:]):
        print_commits(sys.argv[1])
    else:
        print_folders(sys.argv[1:])
