"""The house: imports point one way, no circle, no arrow up, no room too big (README, "The house")."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from conftest import BUNDLE

import nnunet_integration

ROOMS = (  # each may import those before it
    "run",
    "tumour",
    "cases",
    "networks",
    "diffusion",
    "training",
    "metrics",
    "synthesis",
    "evaluation",
    "pages",
    "nnunet_integration",
    "commands",
)
CLOSED = {"nnunet_integration": {"networks", "diffusion", "training", "synthesis"}}  # what a room must not know
LINES = 450  # of a file, without a reason in its head
BIGGEST = 0.25  # share of all lines that one room may hold
PACKAGES = {"sbldm": BUNDLE / "sbldm", "nnunet_integration": Path(nnunet_integration.__file__).parent}


def modules() -> dict[str, Path]:
    """All modules of the product by their dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """Of a module; what lies beside the rooms is the command line."""
    own = module.split(".")[1:2]
    return module.split(".")[0] if module.startswith("nnunet") else own[0] if own and own[0] in ROOMS else "commands"


def imported(module: str, everywhere: bool = True) -> Iterator[str]:
    """Modules of ours that one imports: at its head, or in functions too."""
    tree = ast.parse(MODULES[module].read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in whole]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name in MODULES and name != module)


def test_imports_point_one_way() -> None:
    """From a room to those before it, wherever in a file they stand."""
    up = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imported(module)
        if ROOMS.index(room(other)) > ROOMS.index(room(module)) or room(other) in CLOSED.get(room(module), ())
    ]
    assert not up


def test_what_is_imported_is_there() -> None:
    """Late imports too, which nothing would miss before a user comes by."""
    missing = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
                names = {alias.name for alias in node.names}
                modules_in = {name for name in names if f"{node.module}.{name}" in MODULES}
                missing += [f"{module}: {node.module}.{name}" for name in names - modules_in - defined(node.module)]
    assert not missing


def defined(module: str) -> set[str]:
    """Names at the head of a module of ours; none where there is no such module."""
    found: set[str] = set()
    for node in ast.parse(MODULES[module].read_text()).body if module in MODULES else ():
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        else:
            found |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return found


def test_no_circle() -> None:
    """Not even of two files in one room; what is imported late, inside a function, counts too."""
    order = TopologicalSorter({module: set(imported(module)) for module in MODULES})
    assert len(list(order.static_order())) == len(MODULES)


def test_no_room_is_too_big() -> None:
    """The biggest holds less than a quarter, and a long file says why it is one."""
    lines = {module: path.read_text().splitlines() for module, path in MODULES.items()}
    sizes = dict.fromkeys(ROOMS, 0)
    for module, own in lines.items():
        sizes[room(module)] += len(own)
    assert max(sizes.values()) < BIGGEST * sum(sizes.values()), sizes
    long = [f"{m}: {len(own)}" for m, own in lines.items() if len(own) > LINES and "One file" not in "".join(own[:30])]
    assert not long
