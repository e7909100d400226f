"""Saved estimators predict the same; damaged, foreign and newer files are refused, and run nothing."""

import json
import os
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.exceptions import NotFittedError
from sklearn.gaussian_process import kernels as sklearn_kernels

from gpvi.approximations import InducingPoints
from gpvi.estimators import Fixed, Free, GPClassifier, GPCountRegressor, GPRegressor
from gpvi.exceptions import InputError, ModelFileError
from gpvi.likelihoods import StudentTLikelihood
from gpvi.persistence import register_class, save_object

pytestmark = pytest.mark.filterwarnings("ignore:The fit is not converged")

GENERATOR = np.random.default_rng(0)
X = GENERATOR.uniform(-2, 2, size=(30, 2))
F = np.sin(2 * X[:, 0]) + 0.5 * X[:, 1]
FRAME = pd.DataFrame(X, columns=["width", "height"])
FRAME["city"] = pd.Categorical(np.array(["Bern", "Chur", "Genf"])[GENERATOR.integers(0, 3, 30)])
LABELS = np.array(["low", "mid", "top"])[np.digitize(F, [-0.5, 0.5])]
COUNTS = GENERATOR.poisson(np.exp(F + 1))


@register_class
class TiltedKernel(gpytorch.kernels.RBFKernel):
    """A kernel of a user, known to files."""

    def __init__(self, tilt: float = 2.0, **options: Any) -> None:
        super().__init__(**options)
        self.tilt = tilt

    def forward(self, x1: torch.Tensor, x2: torch.Tensor, **params: Any) -> Any:
        return self.tilt * super().forward(x1, x2, **params)


class UnknownKernel(TiltedKernel):
    """A kernel of a user that nobody registered."""


def fit(cls: type, X: Any, y: Any, *args: Any, fit_options: Any = None, **options: Any) -> Any:
    return cls(**{"max_iter": 3, "random_state": 0, **options}).fit(
        X, y, *args, **fit_options or {}
    )


MODELS: dict[str, Any] = {
    "regression": lambda: fit(GPRegressor, X, F),
    "inducing": lambda: fit(GPRegressor, X, F, approximation="inducing", num_inducing=8),
    "inducing points as an object": lambda: fit(GPRegressor, X, F, approximation=InducingPoints(8)),
    "minibatches": lambda: fit(GPRegressor, X, F, batch_size=10, num_inducing=8),
    "student_t": lambda: fit(GPRegressor, X, F, likelihood="student_t"),
    "likelihood as an object": lambda: fit(GPRegressor, X, F, likelihood=StudentTLikelihood()),
    "GPyTorch's likelihood": lambda: fit(
        GPRegressor, X, F, likelihood=gpytorch.likelihoods.GaussianLikelihood()
    ),
    "float32": lambda: fit(GPRegressor, X, F, dtype="float32"),
    "frame": lambda: fit(GPRegressor, FRAME, F),
    "known noise": lambda: fit(
        GPRegressor, X, F, fit_options={"noise_variance": np.linspace(0, 1, 30)}
    ),
    "weights and missing": lambda: fit(
        GPRegressor,
        X,
        np.where(np.arange(30) == 3, np.nan, F),
        np.arange(30) / 10,
        allow_missing_targets=True,
    ),
    "a user's kernel": lambda: fit(GPRegressor, X, F, kernel=TiltedKernel(3.0)),
    "scikit-learn's kernel": lambda: fit(
        GPRegressor, X, F, kernel=sklearn_kernels.Matern(nu=1.5) + sklearn_kernels.WhiteKernel(0.1)
    ),
    "sum of kernels": lambda: fit(GPRegressor, X, F, kernel="matern32 * periodic + linear + white"),
    "mean": lambda: fit(GPRegressor, X, F, mean=gpytorch.means.LinearMean(2)),
    "control": lambda: fit(
        GPRegressor,
        X,
        F,
        hyperparameters={
            "noise": Fixed(0.1),
            "lengthscale": "dimension_scaled",
            "outputscale": Free(
                initial=0.5, bounds=(0.1, None), prior=gpytorch.priors.GammaPrior(2.0, 1.0)
            ),
        },
    ),
    "two classes": lambda: fit(GPClassifier, X, F > 0),
    "three classes": lambda: fit(GPClassifier, FRAME, LABELS),
    "object labels": lambda: fit(GPClassifier, X, LABELS.astype(object), likelihood="softmax"),
    "counts": lambda: fit(
        GPCountRegressor, X, COUNTS, fit_options={"exposure": np.linspace(1, 3, 30)}
    ),
}


def outputs(model: Any) -> list[np.ndarray]:
    """Everything that a model says about its own rows."""
    rows = FRAME if hasattr(model, "feature_names_in_") else X
    found = [model.predict(rows), *model.predict(rows, latent=True, return_cov=True)]
    found.append(model.sample_y(rows, 2, random_state=0))
    if isinstance(model, GPClassifier):
        found += [model.predict_proba(rows), model.classes_]
    else:
        found += [*model.predict(rows, return_std=True), *model.predict_interval(rows)]
    if model.batch_size is None:
        found.append(model.leave_one_out().log_density)
    return found


def equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    def same(a: np.ndarray, b: np.ndarray) -> bool:
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")

    return all(same(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", list(MODELS))
def test_round_trip(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    before = outputs(model)
    model.save(tmp_path / "model.gpvi")
    twin = type(model).load(tmp_path / "model.gpvi")
    assert type(twin) is type(model) and equal(outputs(twin), before)
    assert vars(twin).keys() == vars(model).keys()
    assert twin.elbo_ == model.elbo_ and twin.history_ == model.history_
    assert str(twin.summary()) == str(model.summary())
    assert repr(twin.get_params()["max_iter"]) == repr(model.max_iter)
    twin.save(tmp_path / "again.gpvi")
    assert (tmp_path / "again.gpvi").read_bytes() == (tmp_path / "model.gpvi").read_bytes()
    assert equal(outputs(model), before), "saving changed the model"


@pytest.mark.parametrize(
    "name", ["regression", "control", "three classes", "counts", "a user's kernel"]
)
def test_refit_after_load(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    model.save(tmp_path / "model.gpvi")
    twin = type(model).load(tmp_path / "model.gpvi")
    X, y = {
        "three classes": (FRAME, LABELS),
        "counts": (FRAME[["width", "height"]].to_numpy(), COUNTS),
    }.get(name, (FRAME[["width", "height"]].to_numpy(), F))
    assert equal(outputs(twin.fit(X, y)), outputs(model.fit(X, y)))


def test_options_that_are_not_saved(tmp_path: Path) -> None:
    model = fit(
        GPRegressor,
        X,
        F,
        callbacks=[lambda record: None],
        random_state=np.random.RandomState(0),
        checkpoint=None,
    )
    model.save(tmp_path / "model.gpvi")
    twin = GPRegressor.load(tmp_path / "model.gpvi")
    assert twin.callbacks == () and twin.random_state is None and len(model.callbacks) == 1
    seeded = fit(GPRegressor, X, F, checkpoint=tmp_path / "fit")
    seeded.save(tmp_path / "model.gpvi")
    assert GPRegressor.load(tmp_path / "model.gpvi").checkpoint is None


def test_unregistered_classes_are_refused_by_name(tmp_path: Path) -> None:
    model = fit(GPRegressor, X, F, kernel=UnknownKernel())
    with pytest.raises(ModelFileError, match=r"UnknownKernel"):
        model.save(tmp_path / "model.gpvi")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.gpvi"
    fit(GPRegressor, FRAME, F, approximation="inducing", num_inducing=5).save(path)
    return path


def rewrite(path: Path, change: Any) -> None:
    """Change the JSON document of a file in place."""
    with safe_open(str(path), framework="pt") as file:
        whole = json.loads(file.metadata()["gpvi"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(whole)
    save_file(tensors, path, {"gpvi": json.dumps(whole)})


class TestRefusals:
    def test_before_the_fit(self, tmp_path: Path) -> None:
        with pytest.raises(NotFittedError):
            GPRegressor().save(tmp_path / "model")
        assert os.listdir(tmp_path) == []

    def test_another_estimator(self, saved: Path) -> None:
        with pytest.raises(ModelFileError, match="holds a GPRegressor, not a GPClassifier"):
            GPClassifier.load(saved)

    @pytest.mark.parametrize("size", [0, 1, 8, 100, 3_000, -1, -1_000])
    def test_truncated(self, saved: Path, size: int) -> None:
        saved.write_bytes(saved.read_bytes()[:size])
        with pytest.raises(ModelFileError) as caught:
            GPRegressor.load(saved)
        assert str(saved) in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "content", [b"", b"not a model", pickle.dumps({"a": 1}), b"\x00" * 4_096, b"{}" * 50]
    )
    def test_something_else(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"is not a model saved by gpvi|damaged"):
            GPRegressor.load(path)

    def test_tensors_of_somebody_else(self, tmp_path: Path) -> None:
        save_file({"weight": torch.zeros(3)}, tmp_path / "file")
        with pytest.raises(ModelFileError, match="is not a model saved by gpvi"):
            GPRegressor.load(tmp_path / "file")

    def test_folders_and_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            GPRegressor.load(tmp_path / "absent")
        with pytest.raises(ModelFileError):
            GPRegressor.load(tmp_path)

    def test_a_newer_version(self, saved: Path) -> None:
        rewrite(saved, lambda whole: whole.update(version=whole["version"] + 1))
        with pytest.raises(ModelFileError, match=r"format version 2 and this gpvi reads up to 1"):
            GPRegressor.load(saved)

    def test_a_changed_value(self, saved: Path) -> None:
        rewrite(saved, lambda whole: whole["document"].update(kind="GPCountRegressor"))
        with pytest.raises(ModelFileError, match="digest"):
            GPCountRegressor.load(saved)

    @pytest.mark.parametrize(
        "content", [[1, 2], {"kernel": "rbf"}, {}, {"posterior_": 3, "_model": 5}]
    )
    def test_files_of_the_right_kind_without_an_estimator(
        self, tmp_path: Path, content: Any
    ) -> None:
        save_object(tmp_path / "file", content, kind="GPRegressor")
        with pytest.raises(ModelFileError, match="GPRegressor"):
            GPRegressor.load(tmp_path / "file")

    def test_methods_cannot_be_replaced_by_a_file(self, tmp_path: Path) -> None:
        model = fit(GPRegressor, X, F)
        model.save(tmp_path / "good")
        state = {name: getattr(model, name) for name in vars(model)}
        state |= {"callbacks": (), "predict": 3}
        save_object(tmp_path / "file", state, kind="GPRegressor")
        with pytest.raises(ModelFileError, match="predict"):
            GPRegressor.load(tmp_path / "file")

    def test_devices(self, saved: Path) -> None:
        assert GPRegressor.load(saved, device="cpu").device == "cpu"
        with pytest.raises(InputError, match="device is 'abacus'"):
            GPRegressor.load(saved, device="abacus")


def test_two_hundred_mutations(saved: Path) -> None:
    """Bits flipped, bytes cut out, put in, overwritten: an error of ours, or the identical model."""
    source, original = random.Random(0), saved.read_bytes()
    expected = outputs(GPRegressor.load(saved))
    head = int.from_bytes(original[:8], "little") + 8
    outcomes = {"refused": 0, "identical": 0}
    for number in range(200):
        content = bytearray(original)
        for _ in range(source.choice([1, 1, 2, 5])):
            # Half of the changes go to the header, where the structure is.
            place = source.randrange(head if number % 2 else len(content)) % len(content)
            kind = source.randrange(4)
            if kind == 0:
                content[place] ^= 1 << source.randrange(8)
            elif kind == 1:
                content[place] = source.randrange(256)
            elif kind == 2:
                del content[place : place + source.randrange(1, 50)]
            else:
                content[place:place] = source.randbytes(source.randrange(1, 50))
        saved.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model = GPRegressor.load(saved)
        except ModelFileError:
            outcomes["refused"] += 1
        else:
            assert equal(outputs(model), expected)
            outcomes["identical"] += 1
    assert sum(outcomes.values()) == 200 and outcomes["refused"] > 150


def test_nothing_is_left_beside_the_file(saved: Path) -> None:
    assert os.listdir(saved.parent) == [saved.name]
    model = GPRegressor.load(saved)
    model.kernel = UnknownKernel()
    before = saved.read_bytes()
    with pytest.raises(ModelFileError):
        model.save(saved)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]
