from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cemg_hf.artefacts import InUse, Manifest, write_folder
from cemg_hf.recipes import load_recipe
from cemg_hf.training import stage_store
from cemg_hf.training.deadline import OutOfTime
from cemg_hf.training.stage_store import StageStore


def written(folder: Path, seed: int) -> Path:
    with write_folder(folder, Manifest("encode", {}, {}, seed)) as scratch:
        (scratch / "inner").mkdir()
        (scratch / "inner" / "vectors").write_text(str(seed))
    return folder


def content(folder: Path) -> str:
    return (folder / "inner" / "vectors").read_text()


def test_what_one_run_keeps_the_next_one_takes(tmp_path: Path) -> None:
    store = StageStore.of(load_recipe("sample"), tmp_path / "shared")
    one, other = written(tmp_path / "one", 1), tmp_path / "other"
    assert not store.take("encode", other), "nothing is there yet"
    assert not other.exists()
    store.keep("encode", one)
    assert not store.take("encode", other), "the stage still looks whether it is current"
    assert content(other) == "1"
    assert (one / "inner" / "vectors").samefile(other / "inner" / "vectors")
    written(other, 2)  # a stage that found its sources changed
    assert content(one) == "1", "a rewritten folder leaves the others as they are"
    store.keep("encode", other)
    store.take("encode", one)
    assert content(one) == "2"
    store.keep("finetune", one)
    assert not store.take("finetune", tmp_path / "model")
    assert [folder.name.split("-")[0] for folder in (tmp_path / "shared").iterdir()] == ["encode"]


def test_a_trusted_store_is_not_asked_again(tmp_path: Path) -> None:
    store = StageStore.of(load_recipe("sample"), tmp_path / "shared", trusted=True)
    assert not store.take("encode", tmp_path / "run"), "what is missing has to be made"
    store.keep("encode", written(tmp_path / "one", 1))
    assert store.take("encode", tmp_path / "run")


def test_a_stage_that_another_process_makes_is_waited_for(
    tmp_path: Path, another_process: Callable[[Path], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StageStore.of(load_recipe("sample"), tmp_path / "shared")
    other = another_process(tmp_path / "shared" / store.keys["encode"])
    naps = 0

    def nap(_: float) -> None:
        nonlocal naps
        naps += 1
        if naps == 2:
            written(tmp_path / "shared" / store.keys["encode"], 1)
            other.kill()
            other.wait()

    monkeypatch.setattr(stage_store.time, "sleep", nap)
    with store.turn("tokenize"), store.turn("finetune"):
        assert naps == 0, "other stages wait for nothing"
    with store.turn("encode"):
        store.take("encode", tmp_path / "run")
    assert naps == 2
    assert content(tmp_path / "run") == "1"


def test_an_impatient_run_does_not_wait(tmp_path: Path, another_process: Callable[[Path], subprocess.Popen[str]]) -> None:
    store = StageStore.of(load_recipe("sample"), tmp_path / "shared", patient=False)
    another_process(tmp_path / "shared" / store.keys["encode"])
    with store.turn("prepare"), pytest.raises(InUse), store.turn("encode"):
        pass


def test_nobody_waits_longer_than_the_call_may_take(
    tmp_path: Path, another_process: Callable[[Path], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StageStore.of(load_recipe("sample"), tmp_path / "shared")
    another_process(tmp_path / "shared" / store.keys["encode"])
    monkeypatch.setattr(stage_store, "time_is_up", lambda: True)
    with pytest.raises(OutOfTime, match=f"another process makes {store.keys['encode']}"), store.turn("encode"):
        pass


def test_a_file_system_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    store = StageStore.of(load_recipe("sample"), tmp_path / "shared")
    store.keep("encode", written(tmp_path / "one", 1))
    store.take("encode", tmp_path / "other")
    assert content(tmp_path / "other") == "1"


def test_keys_follow_everything_before_a_stage_and_nothing_after_it() -> None:
    def keys(*assignments: str, system: str = "cemg", seed: int = 1) -> dict[str, str]:
        return dict(StageStore.of(load_recipe("sample", assignments, {"seed": seed}, system), Path("shared")).keys)

    base = keys()
    assert keys("finetune.loop.epochs=1") == base
    assert {stage for stage, key in keys("encode.dimension=8").items() if key != base[stage]} == {"encode", "tokenize"}
    assert {stage for stage, key in keys(system="letter").items() if key != base[stage]} == {"tokenize"}
    assert {stage for stage, key in keys(system="tiger").items() if key != base[stage]} == {"encode", "tokenize"}
    assert not set(keys(seed=2).values()) & set(base.values())
    streams = keys(system="mscgrec")
    for part in ("streams.image_codes=codes", "streams.modalities=[collaborative, text]"):
        assert {stage for stage, key in keys(part, system="mscgrec").items() if key != streams[stage]} == {"tokenize"}
    assert keys("streams.image_codes=one", system="mscgrec") != keys("streams.image_codes=two", system="mscgrec")
    assert keys("streams.decoded=text", system="mscgrec") == streams
