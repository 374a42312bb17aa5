from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cemg_hf.errors import CEMGError
from cemg_hf.settings import assign, expand_path, from_mapping, override, read_yaml


@dataclass
class Inner:
    rate: float = 0.1
    sizes: list[int] = field(default_factory=list)
    mode: Literal["fast", "slow"] = "fast"

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise CEMGError(f"rate: {self.rate} is negative; give 0 or more")


@dataclass
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    optional: Inner | None = None
    limit: int | None = 3
    flag: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)


def test_nested_mappings_become_dataclasses() -> None:
    values = {"name": "x", "inner": {"rate": 1, "sizes": [1, 2]}, "optional": {"mode": "slow"}, "limit": None, "columns": {"a": "b"}}
    made = from_mapping(Outer, values, "here")
    assert made == Outer("x", Inner(1.0, [1, 2]), Inner(mode="slow"), None, False, {"a": "b"})
    assert isinstance(made.inner.rate, float)


def test_scientific_notation_without_a_dot_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("name: x\ninner: {rate: 1e-3}\n")
    assert from_mapping(Outer, read_yaml(tmp_path / "file.yaml"), "file").inner.rate == 0.001


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "iner": {}}, "here: unknown key 'iner'; did you mean 'inner'?"),
        ({"name": "x", "inner": {"rat": 1.0}}, "here: inner: unknown key 'rat'; did you mean 'rate'?"),
        ({"name": "x", "zzz": 1}, "here: unknown key 'zzz'; known keys: name, inner, optional, limit, flag, columns"),
        ({"inner": {}}, "here: key 'name' is required"),
        ({"name": 5}, "here: name: expected str, got 5"),
        ({"name": False}, "here: name: expected str, got False; YAML reads no, off, yes and on as booleans: put the word in quotes"),
        ({"name": "x", "flag": 1}, "here: flag: expected bool, got 1"),
        ({"name": "x", "limit": True}, "here: limit: expected int, got True"),
        ({"name": "x", "limit": 2.5}, "here: limit: expected int, got 2.5"),
        ({"name": "x", "inner": {"rate": "fast"}}, "here: inner: rate: expected float, got 'fast'"),
        ({"name": "x", "inner": {"sizes": 3}}, "here: inner: sizes: expected a list, got 3"),
        ({"name": "x", "inner": {"sizes": [3, "a"]}}, "here: inner: sizes[1]: expected int, got 'a'"),
        ({"name": "x", "inner": {"mode": "warp"}}, "here: inner: mode: expected one of fast, slow, got 'warp'"),
        ({"name": "x", "inner": "text"}, "here: inner: expected settings (key: value), got 'text'"),
        ({"name": "x", "columns": {"a": 1}}, "here: columns.a: expected str, got 1"),
        ({"name": "x", "inner": {"rate": -1.0}}, "here: inner: rate: -1.0 is negative; give 0 or more"),
    ],
)
def test_errors_name_the_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CEMGError) as raised:
        from_mapping(Outer, values, "here")
    assert str(raised.value) == message


KEYS = st.text("abc", min_size=1, max_size=2)
VALUES = st.recursive(st.integers() | st.booleans() | st.none(), lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)


@given(st.dictionaries(KEYS, VALUES, max_size=3), st.lists(KEYS, min_size=1, max_size=3), st.integers())
def test_assign_sets_one_value_and_touches_nothing_else(values: dict[str, Any], path: list[str], value: int) -> None:
    before = repr(values)
    try:
        changed = assign(values, ".".join(path), value, "test")
    except CEMGError:
        place: Any = values
        for key in path[:-1]:
            place = (place or {}).get(key)
            if place is not None and not isinstance(place, dict):
                return  # the path leads through a value, as the error says
        raise
    assert repr(values) == before
    old, new = values, changed
    for key in path[:-1]:
        assert {name: entry for name, entry in new.items() if name != key} == {name: entry for name, entry in old.items() if name != key}
        old, new = old.get(key) or {}, new[key]
    assert new == {**old, path[-1]: value}


def test_override_reads_values_as_yaml_and_later_ones_win() -> None:
    assignments = ["a.x=1", "a.y=[1, two]", "b=null", "c={k: v}", "d=text with = sign", "a.x=2"]
    assert override({"a": {"z": 0}, "b": 5}, assignments) == {
        "a": {"z": 0, "x": 2, "y": [1, "two"]},
        "b": None,
        "c": {"k": "v"},
        "d": "text with = sign",
    }


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("a.x", "--set a.x: expected section.key=value"),
        ("a.x.y=1", "--set a.x.y=1: 'x' holds a value (0), not settings"),
        ("a.y={k: ", "--set a.y={k: : the value is not valid YAML"),
    ],
)
def test_bad_assignments_are_one_line(assignment: str, message: str) -> None:
    with pytest.raises(CEMGError) as raised:
        override({"a": {"x": 0}}, [assignment])
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"a: [1\n", "not valid YAML"), (b"\xff\xfe\x00", "UTF-8"), (b"", "mapping"), (b"- 1\n", "mapping")]
)
def test_unreadable_files_are_one_line_with_the_path(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(CEMGError, match=message) as raised:
        read_yaml(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
    with pytest.raises(CEMGError, match="no such file"):
        read_yaml(tmp_path / "other.yaml")


def test_expand_path_fills_in_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEMG_TEST", "/data")
    monkeypatch.delenv("CEMG_UNSET", raising=False)
    assert expand_path("$CEMG_TEST/a/${CEMG_TEST}", "x") == "/data/a//data"
    assert expand_path("~/a", "x") == str(Path.home() / "a")
    assert expand_path("org/name", "x") == "org/name"
    with pytest.raises(CEMGError, match=r"prepare\.items = .*CEMG_UNSET is not set; export CEMG_UNSET="):
        expand_path("${CEMG_UNSET}/items.csv", "prepare.items")
