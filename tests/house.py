"""The house as its imports show it: modules, who imports whom, and the map in README.md made from that."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("trust", "edge", "gateway", "sidecar", "licet")
BEGIN, END = "<!-- map: made by `make map` -->", "<!-- end of map -->"


@dataclass(frozen=True)
class Module:
    """One file. ``imports`` are absolute names as written; ``line`` is the first line of its docstring."""

    name: str
    path: Path
    line: str
    imports: frozenset[str]
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


@cache
def modules() -> dict[str, Module]:
    """All modules of the house by name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            if "node_modules" in path.parts:
                continue
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
            tree = ast.parse(path.read_text("utf-8"))
            doc = (ast.get_docstring(tree) or "").splitlines()
            found[name] = Module(name, path, doc[0] if doc else "", frozenset(_imports(tree)), tree)
    return found


def _imports(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def reading_order(package: str) -> list[Module]:
    """The modules of *package*, each after what it imports from the same package."""
    own = {name: m for name, m in modules().items() if m.package == package}
    ordered: list[Module] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        for imported in sorted(own[name].imports & own.keys()):
            visit(imported)
        ordered.append(own[name])

    for name in sorted(own):
        visit(name)
    return [m for m in ordered if m.line and not (m.path.name == "__init__.py" and m.name.count("."))]


def drawn() -> str:
    """The map as Markdown: each package with its modules in reading order."""
    lines = [BEGIN]
    for package in PACKAGES:
        lines += ["", f"**`{package}/`** {modules()[package].line}", "", "| module | |", "|---|---|"]
        for module in reading_order(package):
            if module.name != package:
                relative = module.path.relative_to(REPOSITORY)
                lines.append(f"| [`{module.name.removeprefix(package + '.')}`]({relative}) | {module.line} |")
    return "\n".join([*lines, END])


def write() -> None:
    """Put the map into README.md."""
    readme = REPOSITORY / "README.md"
    text = readme.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(before + drawn() + after, "utf-8")


if __name__ == "__main__":
    write()
