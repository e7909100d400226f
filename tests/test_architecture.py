"""The layers stay layers: who imports whom, how long files are, what importing gpvi costs."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

# Lower layers never import upper ones; packages with one rank may, as long as no cycle appears.
RANKS = {
    "gpvi.exceptions": 0,
    "gpvi.linalg": 1,
    "gpvi.kernels": 2,
    "gpvi.likelihoods": 2,
    "gpvi.approximations": 3,
    "gpvi.inference": 4,
    "gpvi.strategies": 5,
    "gpvi.models": 5,
    "gpvi.bridge": 5,
    "gpvi.persistence": 6,
    "gpvi.estimators": 7,
    # They read or draw what the layers return, and so stand above them.
    "gpvi.metrics": 8,
    "gpvi.datasets": 8,
    "gpvi.plotting": 9,
}
MAX_LINES = 450


def sources(source_root: Path) -> dict[str, Path]:
    """Every module of the tree by its full name."""
    found = {}
    for top in ("gpvi", "kernels", "likelihoods"):
        for path in sorted((source_root / top).rglob("*.py")):
            parts = path.relative_to(source_root).with_suffix("").parts
            name = ".".join(parts if top == "gpvi" else ("gpvi", *parts))
            found[name.removesuffix(".__init__")] = path
    return found


def unit(module: str) -> str:
    """The package, or the module directly below gpvi, that a module belongs to."""
    return ".".join(module.split(".")[:2])


def imports(path: Path, modules: set[str]) -> Iterator[str]:
    """Every gpvi module that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "gpvi")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            if base.split(".")[0] == "gpvi":
                for alias in node.names:
                    child = f"{base}.{alias.name}"
                    yield child if child in modules else base


@pytest.fixture(scope="module")
def graph(source_root: Path) -> dict[str, set[str]]:
    """Which units each unit imports; the unit `gpvi` is the package's face, `gpvi/__init__.py`."""
    modules = sources(source_root)
    found: dict[str, set[str]] = {unit(name): set() for name in modules}
    for name, path in modules.items():
        found[unit(name)] |= {unit(target) for target in imports(path, set(modules))} - {unit(name)}
    return found


def test_every_package_has_a_layer(graph: dict[str, set[str]], source_root: Path) -> None:
    packages = {unit(n) for n, p in sources(source_root).items() if p.name == "__init__.py"}
    assert packages - {"gpvi"} <= set(RANKS)


def test_lower_layers_never_import_upper_ones(graph: dict[str, set[str]]) -> None:
    wrong = [
        f"{importer} imports {target}"
        for importer, targets in graph.items()
        for target in targets
        if importer in RANKS and target in RANKS and RANKS[target] > RANKS[importer]
    ]
    assert not wrong


def test_nothing_imports_the_face_of_the_package(graph: dict[str, set[str]]) -> None:
    assert not [importer for importer, targets in graph.items() if "gpvi" in targets]


def test_packages_have_no_import_cycle(graph: dict[str, set[str]]) -> None:
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_exceptions_import_nothing_of_ours(graph: dict[str, set[str]]) -> None:
    assert graph["gpvi.exceptions"] == set()


def test_files_stay_short(source_root: Path) -> None:
    written_by_hand = {n: p for n, p in sources(source_root).items() if "._passes_" not in n}
    lengths = {n: len(p.read_text().splitlines()) for n, p in written_by_hand.items()}
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}


def test_no_state_at_module_level(source_root: Path) -> None:
    """No `global` statement, and no empty container at module level that calls could fill."""
    found = []
    for name, path in sources(source_root).items():
        tree = ast.parse(path.read_text())
        found += [f"{name}:{n.lineno}" for n in ast.walk(tree) if isinstance(n, ast.Global)]
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                if ast.unparse(node.value) in {"{}", "[]", "dict()", "list()", "set()"}:
                    found.append(f"{name}:{node.lineno}")
    assert not found


def test_importing_gpvi_stays_light(source_root: Path, tmp_path: Path) -> None:
    """Numba is imported when a compiled engine first runs, optional packages where needed."""
    packages = sorted(n for n, p in sources(source_root).items() if p.name == "__init__.py")
    code = f"import json, sys, {', '.join(packages)}; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert not {"numba", "matplotlib", "sklego"} & set(json.loads(result.stdout))


def test_importing_gpvi_leaves_torch_alone(source_root: Path, tmp_path: Path) -> None:
    """The default dtype, the global generator and the number of threads belong to the user."""
    packages = sorted(n for n, p in sources(source_root).items() if p.name == "__init__.py")
    calls = ("get_default_dtype()", "initial_seed()", "rand(1).item()", "get_num_threads()")
    state = "(" + ", ".join(f"torch.{call}" for call in calls) + ")"
    code = (
        "import torch; torch.manual_seed(3); "
        f"before = {state}; torch.manual_seed(3); import {', '.join(packages)}; "
        f"assert {state} == before"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
