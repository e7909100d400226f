"""The installed package is the tree: every folder, every module, nothing else."""

import importlib.metadata
import importlib.util
import pkgutil
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

OUTSIDE = ("kernels", "likelihoods")


def package_folders(source_root: Path) -> dict[str, Path]:
    """Folder of every package, found in the tree by its `__init__.py`."""
    found = {}
    for top in ("gpvi", *OUTSIDE):
        for init in (source_root / top).rglob("__init__.py"):
            name = ".".join(init.parent.relative_to(source_root).parts)
            found[name if top == "gpvi" else f"gpvi.{name}"] = init.parent
    return found


def module_names(source_root: Path) -> set[str]:
    """Full name of every module in the tree that is not itself a package."""
    return {
        f"{package}.{path.stem}"
        for package, folder in package_folders(source_root).items()
        for path in folder.glob("*.py")
        if path.stem != "__init__"
    }


def installed_modules(package: str) -> set[str]:
    """Full name of every module (not package) that the install offers directly below a package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    paths = spec.submodule_search_locations
    return {f"{package}.{info.name}" for info in pkgutil.iter_modules(paths) if not info.ispkg}


@pytest.fixture(scope="module")
def project(source_root: Path) -> dict:
    return tomllib.loads((source_root / "pyproject.toml").read_text())


def test_listed_packages_are_the_folders(source_root: Path, project: dict) -> None:
    setup = project["tool"]["setuptools"]
    folders = package_folders(source_root)
    assert sorted(setup["packages"]) == sorted(folders)
    assert setup["package-dir"] == {"gpvi": "gpvi", **{f"gpvi.{name}": name for name in OUTSIDE}}


def test_no_python_file_outside_a_package(source_root: Path) -> None:
    folders = set(package_folders(source_root).values())
    for top in ("gpvi", *OUTSIDE):
        stray = [p for p in (source_root / top).rglob("*.py") if p.parent not in folders]
        assert not stray, f"folders without __init__.py are not shipped: {stray}"


def test_installed_modules_are_the_files(source_root: Path) -> None:
    installed = set().union(*map(installed_modules, package_folders(source_root)))
    assert installed == module_names(source_root)


def test_version_is_the_installed_one(project: dict) -> None:
    assert importlib.metadata.version("gpvi") == project["project"]["version"]


def test_py_typed_is_shipped() -> None:
    assert files("gpvi").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_top_level_module_of_that_name(name: str, source_root: Path, tmp_path: Path) -> None:
    """`kernels` is the name of another popular package; ours must never answer to it."""
    code = f"import importlib.util as u; s = u.find_spec({name!r}); print(s.origin if s else '')"
    result = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert not result.stdout.strip().startswith(str(source_root / name))
    shipped = importlib.metadata.files("gpvi") or []
    assert not [path for path in shipped if path.parts[0] == name]


def test_every_dependency_has_an_exact_constraint(source_root: Path, project: dict) -> None:
    def bare(requirement: str) -> str:
        name = requirement.split(";")[0]
        for mark in "[<>=!~ ":
            name = name.split(mark)[0]
        return name.lower().replace("_", "-")

    lines = (source_root / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in line and "+" not in line for line in pinned)
    extras = project["project"]["optional-dependencies"].values()
    wanted = {bare(r) for group in (project["project"]["dependencies"], *extras) for r in group}
    missing = wanted - {bare(line) for line in pinned} - {"gpvi"}
    assert not missing, f"constraints.txt lacks {sorted(missing)}"
