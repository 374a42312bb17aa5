from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cemg_hf import artefacts
from cemg_hf.artefacts import (
    MANIFEST_NAME,
    DiskFull,
    InUse,
    Manifest,
    claim,
    fingerprint,
    fingerprint_path,
    is_current,
    one_writer,
    portable,
    result_envelope,
    write_folder,
    write_json,
)
from cemg_hf.errors import CEMGError

MANIFEST = Manifest("stage", {"size": 3, "rate": 0.1, "names": ["a"]}, {"data": "f00"}, seed=1)


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_fingerprints_are_equal_exactly_for_equal_parts(first: list[str], second: list[str]) -> None:
    assert (fingerprint(*first) == fingerprint(*second)) == (first == second)
    assert fingerprint(*first) == fingerprint(*(part.encode() for part in first))


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 7])
def test_a_path_stands_for_the_bytes_of_its_file(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert fingerprint("a", tmp_path / "file") == fingerprint("a", content[:size])
    assert fingerprint_path(tmp_path / "file") == fingerprint(content[:size])
    assert fingerprint_path(tmp_path) == fingerprint("file", content[:size])


def write_stage(folder: Path, manifest: Manifest = MANIFEST, **files: str) -> None:
    with write_folder(folder, manifest) as scratch:
        for name, content in files.items():
            (scratch / name).write_text(content)


def fail_half_way(folder: Path, manifest: Manifest) -> None:
    with write_folder(folder, manifest) as scratch:
        (scratch / "half").write_text("x")
        raise RuntimeError("killed")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "output"
    with pytest.raises(RuntimeError, match="killed"):
        fail_half_way(folder, MANIFEST)
    assert not folder.exists()

    write_stage(folder, first="1")
    with pytest.raises(RuntimeError, match="killed"):
        fail_half_way(folder, replace(MANIFEST, seed=2))
    assert (folder / "first").read_text() == "1"
    assert is_current(folder, MANIFEST)

    write_stage(folder, replace(MANIFEST, seed=2), second="2")
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST_NAME, "second"]
    assert [path.name for path in folder.parent.iterdir()] == ["output"]


def test_one_process_at_a_time_writes_a_folder(tmp_path: Path, another_process: Callable[[Path], subprocess.Popen[str]]) -> None:
    @one_writer
    def stage(output: Path) -> str:
        with claim(output):  # a stage within a stage
            return output.name

    other = another_process(tmp_path / "output")
    with pytest.raises(InUse, match="output: another process is writing this folder; wait until it has finished, or write somewhere else"):
        stage(output=tmp_path / "output")
    assert stage(tmp_path / "elsewhere") == "elsewhere"
    other.kill()
    other.wait()
    assert stage(tmp_path / "output") == "output", "what a killed process held is free"
    assert stage(tmp_path / "output") == "output"
    assert not list(tmp_path.iterdir()), "nothing is left of a claim"


def test_processes_that_train_together_do_not_keep_each_other_out(
    tmp_path: Path, another_process: Callable[[Path], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    another_process(tmp_path / "output")
    monkeypatch.setenv("RANK", "1")
    with claim(tmp_path / "output"):
        pass
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InUse), claim(tmp_path / "output"):
        pass


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOLCK, errno.ENOSPC])
def test_what_cannot_be_claimed_can_be_read(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(artefacts.fcntl, "flock", refused)
    with claim(tmp_path / "output"):
        entered = True
    assert entered


def test_a_lock_on_a_file_that_its_holder_removed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, locked = tmp_path / ".output.lock", 0
    flock = artefacts.fcntl.flock

    def slow(descriptor: int, operation: int) -> None:
        nonlocal locked
        locked += 1
        flock(descriptor, operation)
        if locked < 3:  # the one before finishes between opening and locking, once without and once with a successor
            lock.unlink()
            if locked == 2:
                lock.touch()

    monkeypatch.setattr(artefacts.fcntl, "flock", slow)
    with claim(tmp_path / "output"):
        assert locked == 3
    assert not lock.exists()


def test_processes_may_write_the_same_text(tmp_path: Path) -> None:
    program = "import sys\nfrom cemg_hf.artefacts import write_json\nfor _ in range(300): write_json(sys.argv[1], {'a': 1})"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "answer.json")]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert json.loads((tmp_path / "answer.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["answer.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),  # as safetensors and polars say it
    ],
    ids=["no space", "quota", "a library in Rust"],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_an_error_that_names_the_folder_and_keeps_nothing(tmp_path: Path, error: Exception, wrapped: bool) -> None:
    def fill() -> None:
        with write_folder(tmp_path / "output", replace(MANIFEST, seed=2)) as scratch:
            (scratch / "half").write_text("x")
            if not wrapped:
                raise error
            raise RuntimeError("cannot save") from error

    write_stage(tmp_path / "output", first="1")
    with pytest.raises(DiskFull, match=r"output: the disk is full; make room, .* and run the same command again"):
        fill()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert is_current(tmp_path / "output", MANIFEST)


def test_other_errors_of_files_stay_what_they_are(tmp_path: Path) -> None:
    def fail(error: Exception) -> None:
        with write_folder(tmp_path / "output", MANIFEST):
            raise error

    for error in (PermissionError(errno.EACCES, "denied"), FileNotFoundError("No such file or directory (os error 2)"), CEMGError("x")):
        with pytest.raises(type(error)) as raised:
            fail(error)
        assert raised.value is error


@pytest.mark.parametrize(
    "changed",
    [
        replace(MANIFEST, seed=2),
        replace(MANIFEST, stage="other"),
        replace(MANIFEST, settings={**MANIFEST.settings, "rate": 0.2}),
        replace(MANIFEST, settings={**MANIFEST.settings, "new": None}),
        replace(MANIFEST, inputs={"data": "f01"}),
        replace(MANIFEST, inputs={}),
    ],
)
def test_current_means_the_same_settings_inputs_and_seed(tmp_path: Path, changed: Manifest) -> None:
    assert not is_current(tmp_path / "output", MANIFEST)
    write_stage(tmp_path / "output")
    assert is_current(tmp_path / "output", MANIFEST)
    assert not is_current(tmp_path / "output", changed)
    before = fingerprint_path(tmp_path / "output")
    write_stage(tmp_path / "output", changed)
    assert fingerprint_path(tmp_path / "output") != before


def test_a_stage_folder_is_known_by_what_it_was_made_from(tmp_path: Path) -> None:
    write_stage(tmp_path / "one", result="a")
    write_stage(tmp_path / "two", result="b")
    assert fingerprint_path(tmp_path / "one") == fingerprint_path(tmp_path / "two")


@pytest.mark.parametrize("foreign", ["[1, 2]", '{"name": "my extension"}', "not json"])
def test_a_foreign_manifest_is_just_a_file(tmp_path: Path, foreign: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(foreign)
    (tmp_path / "data").write_text("1")
    assert not is_current(tmp_path, MANIFEST)
    before = fingerprint_path(tmp_path)
    (tmp_path / "data").write_text("2")
    assert fingerprint_path(tmp_path) != before


def test_a_plain_folder_is_known_by_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = fingerprint_path(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert fingerprint_path(tmp_path) != before
    (tmp_path / "b").rename(tmp_path / "a")
    assert fingerprint_path(tmp_path) == before
    with pytest.raises(CEMGError, match="no such file or folder"):
        fingerprint_path(tmp_path / "missing")


def test_the_working_directory_and_links_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_stage(tmp_path / "link", result="1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "result").read_text() == "1"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_stage(Path("."), result="2")  # noqa: PTH201 - what a user types
    assert (tmp_path / "here" / "result").read_text() == "2"


def test_json_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": "ü"})
    with pytest.raises(TypeError):
        write_json(path, {("a", "tuple"): 1})
    assert json.loads(path.read_text()) == {"a": "ü"}
    assert "ü" in path.read_text()


def test_envelope_has_what_scripts_outside_read(tmp_path: Path) -> None:
    envelope = result_envelope({"cemg": {}}, command="cemg run", seeds=[1, 2], seconds=1.234, std={"cemg": {}}, curve=[1])
    required = {"metrics", "std", "command", "commit", "seeds", "versions", "machine", "seconds", "curve"}
    assert set(envelope) == required
    assert "std" not in result_envelope({}, command="", seeds=[1], seconds=0.0)
    assert {"torch", "transformers", "python", "cemg-hf"} <= set(envelope["versions"])
    assert envelope["machine"]["cores"] >= 1
    json.dumps(envelope)


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[..., str]:
    """A git repository in `tmp_path/checkout` that holds cemg_hf/artefacts.py; calling it runs git there."""
    folder = tmp_path / "checkout"
    (folder / "cemg_hf").mkdir(parents=True)
    (folder / "cemg_hf" / "artefacts.py").write_text("first\n")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    return git


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("cemg run beauty --output /opt/runs/final/cemg-42", "cemg run beauty --output cemg-42"),
        ("cemg run beauty --output runs/beauty -k 5", "cemg run beauty --output runs/beauty -k 5"),
        ("x --after 'one, two=/a/new/tokenizer' --b /a/old/model", "x --after 'one, two=new/tokenizer' --b old/model"),
        ("x --set 'p.columns={a: b}' --set e.encoder=/w/minilm", "x --set 'p.columns={a: b}' --set e.encoder=minilm"),
        ("cemg run '/home/me/my shop.yaml' --output /", "cemg run 'my shop.yaml' --output /"),
        ("cemg run 'half a /quote", "cemg run ''\"'\"'half' a quote"),
    ],
)  # fmt: skip
def test_commands_keep_names_and_lose_places(command: str, expected: str) -> None:
    assert portable(command) == expected
    assert portable(expected) == expected or "'half" in command


def test_commit_is_the_packages_own(tmp_path: Path, checkout: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkout"
    head = checkout("rev-parse", "HEAD")
    monkeypatch.setattr(artefacts, "__file__", str(folder / "cemg_hf" / "artefacts.py"))
    assert artefacts.commit() == head
    (folder / "cemg_hf" / "artefacts.py").write_text("second\n")
    assert artefacts.commit() == f"{head}-dirty"

    installed = folder / ".venv" / "cemg_hf"
    installed.mkdir(parents=True)
    monkeypatch.setattr(artefacts, "__file__", str(installed / "artefacts.py"))
    monkeypatch.setattr(artefacts, "_installed_from", lambda: None)
    assert artefacts.commit() == "unknown"  # somebody's repository, but not this package's
    monkeypatch.setattr(artefacts, "_installed_from", lambda: folder)
    assert artefacts.commit() == f"{head}-dirty"
    monkeypatch.setenv("CEMG_COMMIT", "told")
    assert artefacts.commit() == f"{head}-dirty"  # a repository knows better
    monkeypatch.setattr(artefacts, "_installed_from", lambda: tmp_path / "gone")
    assert artefacts.commit() == "told"
    monkeypatch.delenv("CEMG_COMMIT")
    assert artefacts.commit() == "unknown"


def test_commit_without_git_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert artefacts.commit() == "unknown"
