"""The document of the architecture names what there is, and what there is has a name of its own."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

import pytest

from docs import console

_MEMFS = console.PROJECT / "memfs"
_MODULES = [path for path in sorted(_MEMFS.rglob("*.py")) if path.stem != "__init__"]
_TEXT = (console.PROJECT / "docs/architecture.md").read_text()
_NO_MODULES = {"info.json"}  # a file in the mount


def _names(body: list[ast.stmt]) -> Iterator[str]:
    """What a module or a class defines."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (each.id for each in node.targets if isinstance(each, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _defined() -> dict[str, set[str]]:
    """What each module and each class of memfs defines, by its name."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in _MODULES:
        tree = ast.parse(path.read_text())
        found[path.stem] |= set(_names(tree.body))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name] |= set(_names(node.body))
    return found


def test_every_module_that_is_named_is_there() -> None:
    named = re.findall(r"(?<![\w/.])(?:[a-z_]+/)*[a-z_]+\.py\b", _TEXT)
    assert named
    wrong = [name for name in named if not ((_MEMFS / name).exists() or (console.PROJECT / name).exists())]
    assert wrong == []


def test_every_attribute_that_is_named_is_there() -> None:
    defined = _defined()
    code = " ".join(re.findall(r"```text\n.*?```|`[^`\n]+`", _TEXT, re.DOTALL))
    named = set(re.findall(r"(?<![\w/.$-])([A-Za-z_]+)\.([a-z_]+)(?![\w./-])", code))
    checked = {
        f"{owner}.{name}": name in defined[owner]
        for owner, name in named
        if owner in defined and name != "py" and f"{owner}.{name}" not in _NO_MODULES
    }
    assert "Memory.read_into" in checked
    assert [name for name, right in checked.items() if not right] == []


@pytest.mark.parametrize("kind", ["module", "class"])
def test_no_name_is_that_of_two(kind: str) -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path in _MODULES:
        where = str(path.relative_to(_MEMFS))
        if kind == "module":
            found[path.stem].append(where)
        else:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    found[node.name].append(where)
    assert {name: where for name, where in found.items() if len(where) > 1} == {}
