"""Join the pages of the papers into PAPERS.md, with the line of every symbol that they name.

    python MedSegCore/papers/build.py           # writes MedSegCore/PAPERS.md
    python MedSegCore/papers/build.py --check   # fails when it would change

A page names code as `networks/csad.py`: `Encoder`, `CSAD.encoders`. A symbol that is not there is
an error, so that the pages cannot drift away from the code.
"""

import ast
import re
import sys
from pathlib import Path

PAGES = ("csad", "edge_attention", "ummkd", "affinity", "rsanet", "comparators")
CORE = Path(__file__).resolve().parents[1]
TARGET = CORE / "PAPERS.md"
PLACE = re.compile(
    r"`(?P<file>[a-z_0-9]+(?:/[a-z_0-9]+)*\.py)`: "
    r"(?P<symbols>`[\w.]+`(?:(?: \([^)]*\))?(?:,| and) `[\w.]+`)*)"
)
SYMBOL = re.compile(r"`([\w.]+)`")
HEAD = """# The five papers, and where each equation is

One page per paper: which symbol is which equation or figure, what the paper leaves silent and what
was chosen, and every deviation. Links lead to the line. This page is made from `papers/` by
`make papers`; a test keeps it true.

"""


def line_of(tree: ast.Module, symbol: str) -> int | None:
    """The line where `Class.method`, `Class.attribute`, a function or a constant is defined."""
    body: list[ast.stmt] = tree.body
    line = None
    for part in symbol.split("."):
        found = None
        for node in body:
            if _defines(node, part):
                found = node
                break
        if found is None:
            # Attributes are set somewhere in the class's methods.
            for node in body:
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Assign | ast.AnnAssign) and _defines(inner, part):
                        return inner.lineno
            return None
        line, body = found.lineno, getattr(found, "body", [])
    return line


def _defines(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name == name
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    return any(
        (isinstance(t, ast.Name) and t.id == name)
        or (isinstance(t, ast.Attribute) and t.attr == name)
        for t in targets
    )


def linked(page: str, name: str) -> str:
    """The page with a link to its line at every symbol."""

    def place(match: re.Match[str]) -> str:
        path = f"medsegcore/{match['file']}"
        source = CORE / path
        if not source.is_file():
            raise SystemExit(f"{name}: there is no {path}")
        tree = ast.parse(source.read_text(encoding="utf-8"))

        def symbol(found: re.Match[str]) -> str:
            line = line_of(tree, found[1])
            if line is None:
                raise SystemExit(f"{name}: {path} has no {found[1]}")
            return f"[`{found[1]}`:{line}]({path}#L{line})"

        return f"`{match['file']}`: {SYMBOL.sub(symbol, match['symbols'])}"

    return PLACE.sub(place, page)


def build() -> str:
    """The whole of PAPERS.md."""
    pages = []
    for name in PAGES:
        text = (CORE / "papers" / f"{name}.md").read_text(encoding="utf-8")
        # Each page's title becomes a chapter.
        text = re.sub(r"^(#+) ", r"#\1 ", text, flags=re.MULTILINE)
        pages.append(linked(text.strip(), name))
    return HEAD + "\n\n".join(pages) + "\n"


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    text = build()
    if "--check" in sys.argv:
        return int(not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
