"""Files that are damaged, foreign, newer or hostile give one clear error and run nothing."""

import json
import os
import pickle
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gpvi.approximations import Exact, GaussianProcess, Sites
from gpvi.exceptions import InputError, ModelFileError
from gpvi.kernels import parse_kernel
from gpvi.persistence import load_object, register_class, save_object
from gpvi.persistence._decoder import Decoder
from gpvi.persistence.files import FORMAT_VERSION, _digest, _json

Document = dict[str, Any]
calls: list[str] = ["none yet"]


@register_class
class Trap:
    """Notices every way in which a loader could run code of a class."""

    def __new__(cls) -> "Trap":
        calls.append("__new__")
        return super().__new__(cls)

    def __init__(self) -> None:
        calls.append("__init__")

    def __setattr__(self, name: str, value: Any) -> None:
        calls.append("__setattr__")

    def __setstate__(self, state: Any) -> None:
        calls.append("__setstate__")

    def __reduce__(self) -> Any:
        calls.append("__reduce__")
        return Trap, ()

    @property
    def value(self) -> None:
        calls.append("property")

    @value.setter
    def value(self, value: Any) -> None:
        calls.append("setter")


def model() -> dict[str, Any]:
    """A small posterior with labels, history and a kernel with a prior."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    kernel = gpytorch.kernels.ScaleKernel(
        gpytorch.kernels.PeriodicKernel(period_length_prior=gpytorch.priors.GammaPrior(2.0, 1.0))
    )
    prior = Exact().prior(GaussianProcess(parse_kernel("rbf", 2)), x)
    return {
        "posterior": prior.condition(Sites(x.sum(-1), x[:, 0].square())).detach(),
        "kernel": kernel,
        "classes": np.array(["no", "yes"]),
        "mixed": np.array(["a", None, 1.5], dtype=object),
        "history": [0.5, float("nan"), (1, 2)],
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file with the model."""
    path = tmp_path / "model.gpvi"
    save_object(path, model(), kind="model")
    return path


def test_two_saves_give_identical_bytes(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    value = model()
    save_object(again, value, kind="model")
    assert again.read_bytes() == saved.read_bytes()
    value["posterior"].marginals()  # computes and keeps
    save_object(again, value, kind="model")
    assert again.read_bytes() == saved.read_bytes()


def test_saving_replaces_whole_files_and_leaves_nothing_behind(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()
    with pytest.raises(ModelFileError):
        save_object(saved, {"kernel": gpytorch.kernels.RBFKernel(), "bad": open}, kind="model")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save_object(saved, [1], kind="model")
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]
    save_object(str(saved), [1], kind="list")
    assert load_object(str(saved), kind="list") == [1]
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_files_have_ordinary_permissions(saved: Path) -> None:
    other = saved.with_name("other")
    other.write_bytes(b"")
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_arguments(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent"):
        load_object(tmp_path / "absent", kind="model")
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        save_object(tmp_path / "nowhere" / "m", 1, kind="model")
    for kind in ("", None, 3):
        with pytest.raises(InputError, match="kind must be a string"):
            save_object(saved, 1, kind=kind)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="kind must be a string"):
            load_object(saved, kind=kind)  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match="holds a model, not a GPRegressor"):
        load_object(saved, kind="GPRegressor")


def refusal(path: Path) -> str:
    """Message with which a file is refused: one sentence that names the file."""
    with pytest.raises(ModelFileError) as caught:
        load_object(path, kind="model")
    message = str(caught.value)
    assert message.startswith(str(path)) and message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"PK\x03\x04" * 50,
        bytes(range(256)) * 20,
        b"\xff" * 100,
        (10**15).to_bytes(8, "little") + b"{}",
        pickle.dumps(Trap),
    ],
    ids=["empty", "text", "zip", "bytes", "ones", "huge header", "pickle"],
)
def test_other_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    assert "is not a model saved by gpvi" in refusal(path)


@pytest.mark.parametrize("metadata", [None, {"a": "b"}, {"gpvi": "[]"}, {"gpvi": '{"format":"x"}'}])
def test_ordinary_safetensors_files(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "other", metadata)
    assert "is not a model saved by gpvi" in refusal(tmp_path / "other")


def test_folders(tmp_path: Path) -> None:
    assert "is not a model saved by gpvi" in refusal(tmp_path)


def test_truncated_files(saved: Path) -> None:
    content = saved.read_bytes()
    for length in (100, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        assert "damaged or cut short" in refusal(saved)
    saved.write_bytes(content + b"more")
    assert "damaged or cut short" in refusal(saved)


def test_every_bit_of_the_tensors_counts(saved: Path) -> None:
    content = saved.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for position in range(start, len(content), 97):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        saved.write_bytes(flipped)
        assert "do not have the digest" in refusal(saved)


def mutate(content: bytes, generator: np.random.Generator) -> bytes:
    """One random damage: a flipped bit, a cut, an insertion, a deletion or two swapped blocks."""
    start, stop = sorted(generator.integers(0, len(content), 2))
    # Half of the damage goes to the header, where it is most dangerous.
    if generator.random() < 0.5:
        header = 8 + int.from_bytes(content[:8], "little")
        start, stop = sorted(generator.integers(0, header, 2))
    noise = generator.bytes(int(generator.integers(1, 20)))
    match generator.integers(0, 6):
        case 0:
            return (
                content[:start] + bytes([content[start] ^ (1 << (stop % 8))]) + content[start + 1 :]
            )
        case 1:
            return content[:start]
        case 2:
            return content[:start] + noise + content[start:]
        case 3:
            return content[:start] + content[start + len(noise) :]
        case 4:
            size = int(generator.integers(1, 1 + (stop - start)))
            block, other = content[start : start + size], content[stop : stop + size]
            return (
                content[:start]
                + other
                + content[start + size : stop]
                + block
                + content[stop + size :]
            )
        case _:
            return content[:start] + noise + content[start + len(noise) :]


def test_two_hundred_random_mutations(saved: Path, tmp_path: Path) -> None:
    content, generator = saved.read_bytes(), np.random.default_rng(0)
    del calls[1:]
    refused = 0
    for _ in range(200):
        saved.write_bytes(mutate(content, generator))
        try:
            loaded = load_object(saved, kind="model")
        except ModelFileError:
            refused += 1
            continue
        save_object(tmp_path / "again", loaded, kind="model")
        assert (tmp_path / "again").read_bytes() == content
    assert refused >= 190
    assert calls == ["none yet"]


def forge(path: Path, change: Callable[[Document], None], **header: Any) -> None:
    """Rewrite the document of a file and give it a digest that fits: what an attacker would do."""
    with safe_open(str(path), framework="pt") as file:
        whole = json.loads(file.metadata()["gpvi"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    change(whole["document"])
    whole["digest"] = _digest(whole["document"], tensors)
    save_file(tensors, path, {"gpvi": _json(whole | header)})


def test_newer_versions(saved: Path) -> None:
    forge(saved, lambda document: None, version=FORMAT_VERSION + 1)
    assert f"is in format version {FORMAT_VERSION + 1}" in refusal(saved)
    for version in (0, "1", None, 1.5):
        forge(saved, lambda document: None, version=version)
        assert "damaged" in refusal(saved)


def with_node(node: Any, *others: Any) -> Callable[[Document], None]:
    """Make this node the root of the graph."""

    def change(document: Document) -> None:
        document["graph"] = {"root": {"ref": 0}, "nodes": [node, *others]}

    return change


def instance(name: Any, kind: str = "object", **state: Any) -> Document:
    return {"type": kind, "class": name, "state": state}


FOREIGN = ["os.system", "posix.system", "builtins.eval", "subprocess.Popen", "builtins.object"]


@pytest.mark.parametrize("name", FOREIGN)
def test_names_of_other_code_are_refused(
    name: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "system", lambda command: calls.append(command))
    del calls[1:]
    forge(saved, with_node(instance(name, command="touch x")))
    assert f"needs the class '{name}', which is not registered" in refusal(saved)
    forge(saved, with_node({"type": "named_tuple", "class": name, "items": ["touch x"]}))
    assert f"needs the class '{name}'" in refusal(saved)
    forge(saved, with_node({"type": "function", "name": name}))
    assert f"needs the function '{name}'" in refusal(saved)
    assert calls == ["none yet"]


def test_nothing_of_a_registered_class_runs(saved: Path) -> None:
    trap = object.__new__(Trap)
    vars(trap).update(value=1, other=2)
    save_object(saved, trap, kind="model")
    del calls[1:]
    loaded = load_object(saved, kind="model")
    assert vars(loaded) == {"value": 1, "other": 2}
    assert calls == ["none yet"]


TRAP = f"{Trap.__module__}.Trap"
MALFORMED: dict[str, Document] = {
    "no type": {},
    "unknown type": {"type": "code"},
    "number": 3,  # type: ignore[dict-item]
    "class of classes": instance(["a"]),
    "module as object": instance("gpytorch.kernels.RBFKernel"),
    "object as module": instance(TRAP, "module"),
    "module without parts": instance("gpytorch.kernels.RBFKernel", "module"),
    "tuple class as object": instance("gpvi.linalg.quadrature.QuadratureRule"),
    "short tuple": {
        "type": "named_tuple",
        "class": "gpvi.linalg.quadrature.QuadratureRule",
        "items": [],
    },
    "class as tuple": {"type": "named_tuple", "class": TRAP, "items": []},
    "dangling": {"type": "list", "items": [{"ref": 7}]},
    "negative": {"type": "tuple", "items": [{"ref": -1}]},
    "two keys": {"type": "list", "items": [{"ref": 0, "float": "nan"}]},
    "bare list": {"type": "list", "items": [[]]},
    "unknown value": {"type": "list", "items": [{"eval": "1"}]},
    "own tuple": {"type": "tuple", "items": [{"ref": 0}]},
    "size of text": {"type": "size", "items": ["a"]},
    "no such tensor": {"type": "tensor", "data": "no", "requires_grad": False},
    "wrong order": {"type": "tensor", "data": "x", "requires_grad": False, "order": [0, 0]},
    "long order": {"type": "tensor", "data": "x", "requires_grad": False, "order": [0, 1, 2]},
    "integer gradient": {"type": "tensor", "data": "i", "requires_grad": True},
    "text of floats": {"type": "array", "data": "x", "text": "U"},
    "objects as text": {"type": "array", "data": "u", "text": "O"},
    "characters": {"type": "array", "data": "u", "text": "U"},
    "huge array": {"type": "object_array", "shape": [10**12], "items": [0]},
    "negative array": {"type": "object_array", "shape": [-1], "items": [0]},
    "array of references": {"type": "object_array", "shape": [1], "items": [{"ref": 0}]},
    "set of references": {"type": "set", "items": [{"ref": 0}]},
    "scalar": {"type": "list", "items": [{"scalar": ["object", "00"]}]},
    "short scalar": {"type": "list", "items": [{"scalar": ["float64", "00"]}]},
    "dtype": {"type": "list", "items": [{"dtype": "load"}]},
    "device": {"type": "list", "items": [{"device": "moon"}]},
    "float": {"type": "list", "items": [{"float": "1"}]},
    "accessor": {"type": "accessor", "form": "call", "name": "a"},
    "accessor name": {"type": "accessor", "form": "read", "name": "a.b"},
    "setter of anything": {"type": "accessor", "form": "set", "name": "load_state_dict"},
    "method of nothing": {"type": "method", "owner": 3, "name": "real"},
    "method of a list": {"type": "method", "owner": {"ref": 1}, "name": "append"},
    "method that is a property": {"type": "method", "owner": {"ref": 2}, "name": "value"},
    "method of torch": {"type": "method", "owner": {"ref": 3}, "name": "register_forward_hook"},
}


def plain_module(**parts: Any) -> Document:
    empty: Document = {"parameters": {}, "buffers": {}, "modules": {}, "state": {}}
    rest = {"training": True, "transient_buffers": [], "load_hooks": []}
    return {"type": "module", "class": "torch.nn.Identity"} | empty | rest | parts


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_graphs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    tensors = {
        "x": torch.ones(2, 3),
        "i": torch.ones(2, dtype=torch.int64),
        "u": torch.full((1, 2), 2**31, dtype=torch.uint32),
    }
    others = [{"type": "list", "items": []}, instance(TRAP), plain_module()]
    document: Document = {"kind": "model"}
    with_node(MALFORMED[name], *others)(document)
    whole = {"format": "gpvi object", "version": 1, "digest": _digest(document, tensors)}
    save_file(tensors, path, {"gpvi": _json(whole | {"document": document})})
    assert "cannot be loaded: its contents are malformed" in refusal(path)


@pytest.mark.parametrize(
    "parts",
    [
        {"parameters": {"a": 3}},
        {"buffers": {"a": {"ref": 1}}},
        {"modules": {"a": {"ref": 1}}},
        {"state": {"_forward_hooks": {"ref": 1}}},
        {"load_hooks": 3},
    ],
)
def test_malformed_modules(parts: Document, saved: Path) -> None:
    forge(saved, with_node(plain_module(), {"type": "dict", "items": {}}))
    assert type(load_object(saved, kind="model")) is torch.nn.Identity
    forge(saved, with_node(plain_module(**parts), {"type": "dict", "items": {}}))
    assert "malformed" in refusal(saved)


@pytest.mark.parametrize("graph", [None, [], {}, {"nodes": []}, {"nodes": 3, "root": 1}, "text"])
def test_malformed_documents(graph: Any, saved: Path) -> None:
    forge(saved, lambda document: document.update(graph=graph))
    assert "malformed" in refusal(saved)


JUNK: list[Any] = [None, -1, 10**30, "x", "tuple", [], [["a"]], {}, {"ref": 5}, {"ref": []}]
JUNK += [{"float": []}, {"dtype": {}}, {"device": 3}, {"scalar": 3}, {"scalar": ["str", 3]}]


def test_random_edits_under_a_valid_digest(saved: Path) -> None:
    """Whatever stands where in the document, the answer is an object or our error."""
    with safe_open(str(saved), framework="pt") as file:
        text = file.metadata()["gpvi"]
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    generator, refused = random.Random(0), 0
    for _ in range(300):
        graph = json.loads(text)["document"]["graph"]
        places: list[tuple[Any, Any]] = []
        pending: list[Any] = [graph]
        while pending:
            part = pending.pop()
            keys = list(part) if isinstance(part, dict) else range(len(part))
            places += [(part, key) for key in keys]
            pending += [part[key] for key in keys if isinstance(part[key], dict | list)]
        part, key = generator.choice(places)
        other, other_key = generator.choice(places)
        part[key] = generator.choice([*JUNK, other[other_key]])
        try:
            # An edit may have put a part into itself, which JSON could not spell.
            Decoder(tensors, torch.device("cpu")).decode(json.loads(_json(graph)))
        except ModelFileError:
            refused += 1
        except ValueError as error:
            assert "Circular reference" in str(error)
    assert refused >= 150


def test_recursion_bombs(saved: Path) -> None:
    # 50,000 tuples, each inside the next, need no recursion.
    chain = [{"type": "tuple", "items": [{"ref": n + 1}]} for n in range(50_000)]
    forge(saved, with_node(*chain, {"type": "tuple", "items": [{"ref": 0}]}))
    assert "a tuple that contains itself" in refusal(saved)
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        deep = opening * 100_000 + "1" + closing * 100_000
        save_file({"a": torch.ones(1)}, saved, {"gpvi": deep})
        refusal(saved)
        text = '{"format":"gpvi object","version":1,"digest":"","document":{"graph":' + deep + "}}"
        save_file({"a": torch.ones(1)}, saved, {"gpvi": text})
        refusal(saved)


@pytest.mark.parametrize("shape", [[10**12], [10**6, 10**6, 10**6], [2**62, 4]])
def test_claimed_gigabytes_are_not_allocated(shape: list[int], tmp_path: Path) -> None:
    size = 8 * int(np.prod(np.array(shape, dtype=object)))
    entry = {"dtype": "F64", "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"gpvi": "{}"}, "0": entry}).encode()
    path = tmp_path / "m"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    refusal(path)


def test_large_integers_and_numbers_that_json_lacks(saved: Path) -> None:
    for text in ("NaN", "1" * 10_000, "1e999"):
        whole = '{"format":"gpvi object","version":1,"digest":"","document":{"kind":' + text + "}}"
        save_file({"a": torch.ones(1)}, saved, {"gpvi": whole})
        refusal(saved)
