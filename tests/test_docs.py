"""The paper-to-code index and the API reference: what they name exists and is explained."""

from __future__ import annotations

import ast
import inspect
import re
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizer

import cemg_hf

ROOT = Path(__file__).resolve().parents[1]
INDEX = (ROOT / "docs" / "paper-to-code.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"\[([\w.-]+)\]\(\.\./(cemg_hf/[\w/.-]+)\)((?: `[\w.]+`)*)", INDEX)


def test_the_index_covers_the_papers() -> None:
    assert re.findall(r"^## (\w+)", INDEX, re.MULTILINE) == ["CEMG", "SASRec", "TIGER", "LETTER", "MMGRec", "MSCGRec", "LIGER"]
    for equation in range(1, 7):
        assert f"eq. {equation}" in INDEX
    rows = [line for line in INDEX.splitlines() if line.startswith("| ") and "](../" not in line]
    assert {line.split(" | ")[0] for line in rows} == {"| Paper"}


@pytest.mark.parametrize(("shown", "path", "names"), ENTRIES, ids=[f"{path.rpartition('/')[2]}{names}" for _, path, names in ENTRIES])
def test_files_and_names_of_the_index_exist(shown: str, path: str, names: str) -> None:
    assert (ROOT / path).is_file()
    assert Path(path).name == shown
    if path.endswith(".py"):
        module = import_module(path.removesuffix(".py").replace("/", "."))
        for name in re.findall(r"`([\w.]+)`", names):
            found = reduce(getattr, name.split("."), module)
            assert inspect.unwrap(found).__module__ == module.__name__, f"{name} is {found.__module__}'s"


def public_functions() -> dict[str, Any]:
    """What a public name is or brings along itself, by its qualified name, and the two methods that models inherit from a mixin."""
    found: dict[str, Any] = {}
    for name in cemg_hf.__all__:
        thing = getattr(cemg_hf, name)
        if inspect.isfunction(thing):
            found[name] = thing
        elif inspect.isclass(thing):
            found |= {f"{name}.{key}": one for key, one in vars(thing).items() if inspect.isfunction(one) and not key.startswith("_")}
    model = cemg_hf.CEMGForConditionalGeneration
    return found | {f"{model.__name__}.{name}": getattr(model, name) for name in ("recommend", "rank")}


def test_every_public_name_is_explained() -> None:
    for name in cemg_hf.__all__:
        assert getattr(cemg_hf, name).__doc__, f"{name} has no docstring of its own"


@pytest.mark.parametrize(("name", "function"), public_functions().items(), ids=list(public_functions()))
def test_public_functions_explain_arguments_and_results(name: str, function: Any) -> None:
    """A docstring everywhere, and where there are three arguments or more `Args:` that names each, and what comes back."""
    owner = getattr(cemg_hf, name.partition(".")[0])
    documented = inspect.getdoc(function)
    inherited = inspect.isclass(owner) and any(function.__name__ in vars(base) for base in owner.__mro__[1:])
    assert documented or inherited
    signature = inspect.signature(function)
    parameters = [parameter for parameter in signature.parameters if parameter not in ("self", "args", "kwargs")]
    if documented is None or len(parameters) < 3 or function.__name__ in vars(PreTrainedTokenizer):
        return
    assert "Args:" in documented
    assert [parameter for parameter in parameters if not re.search(rf"\b{parameter}\b", documented)] == []
    if signature.return_annotation not in (None, "None", inspect.Signature.empty):
        assert re.search(r"Returns?:", documented)


def test_modules_say_what_they_are() -> None:
    silent = [
        path.relative_to(ROOT)
        for path in sorted(ROOT.glob("cemg_hf/**/*.py"))
        if (source := path.read_text(encoding="utf-8")).strip() and ast.get_docstring(ast.parse(source)) is None
    ]
    assert silent == []
