"""The paper-to-code index and the API reference: what they name exists and is explained."""

from __future__ import annotations

import ast
import inspect
import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

import cemg_hf

ROOT = Path(__file__).resolve().parents[1]
INDEX = (ROOT / "docs" / "paper-to-code.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"\[([\w.-]+)\]\(\.\./(cemg_hf/[\w/.-]+)\)((?: `[\w.]+`)*)", INDEX)


def test_the_index_covers_the_papers() -> None:
    assert re.findall(r"^## (\w+)", INDEX, re.MULTILINE) == ["CEMG", "SASRec", "TIGER", "LETTER", "MMGRec", "LIGER"]
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
            assert reduce(getattr, name.split("."), module) is not None


def test_every_public_name_is_explained() -> None:
    for name in cemg_hf.__all__:
        thing = getattr(cemg_hf, name)
        assert thing.__doc__, f"{name} has no docstring of its own"
        functions = {name: thing} if inspect.isfunction(thing) else {}
        if inspect.isclass(thing):
            functions = {
                f"{name}.{key}": value for key, value in vars(thing).items() if inspect.isfunction(value) and not key.startswith("_")
            }
        for where, function in functions.items():
            documented = inspect.getdoc(function)
            overrides = inspect.isclass(thing) and any(function.__name__ in vars(base) for base in thing.__mro__[1:])
            assert documented or overrides, f"{where} has no docstring"
    for function in (cemg_hf.constrained_beam_search, cemg_hf.CEMGForConditionalGeneration.recommend, cemg_hf.CEMGTokenizer.add_items):
        documented = inspect.getdoc(function) or ""
        assert "Args:" in documented, function.__qualname__
        assert re.search(r"Returns?:", documented), function.__qualname__
        parameters = [name for name in inspect.signature(function).parameters if name not in ("self", "args", "kwargs")]
        unexplained = [name for name in parameters if not re.search(rf"\b{name}\b", documented)]
        assert not unexplained, f"{function.__qualname__}: {unexplained}"


def test_modules_say_what_they_are() -> None:
    silent = [
        path.relative_to(ROOT)
        for path in sorted(ROOT.glob("cemg_hf/**/*.py"))
        if (source := path.read_text(encoding="utf-8")).strip() and ast.get_docstring(ast.parse(source)) is None
    ]
    assert silent == []
