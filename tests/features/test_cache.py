from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cemg_hf.features.cache import Batches, VectorCache, content_key, default_cache_folder


def keys_of(values: list[int]) -> np.ndarray:
    return np.array([content_key(str(value)) for value in values], dtype="S32")


class Recorder:
    """Encodes row i as (value, 2 · value); remembers what it was asked for; fails at a batch when told to."""

    def __init__(self, values: list[int], fail_at: int | None = None, unreadable: frozenset[int] = frozenset()) -> None:
        self.values, self.fail_at, self.unreadable, self.asked = np.asarray(values), fail_at, unreadable, []

    def __call__(self, batches: Batches) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number, rows in enumerate(batches):
            if number == self.fail_at:
                raise KeyboardInterrupt
            self.asked.append(self.values[rows].tolist())
            rows = rows[~np.isin(self.values[rows], list(self.unreadable))]
            yield rows, np.stack([self.values[rows], 2 * self.values[rows]], axis=1).astype(np.float32)


def fill(cache: VectorCache, recorder: Recorder) -> tuple[np.ndarray, np.ndarray]:
    values = recorder.values
    return cache.fill(keys_of(values.tolist()), values.astype(float), 3, 2, recorder)


def test_each_content_is_encoded_once_and_longest_first(tmp_path: Path) -> None:
    values = [5, 3, 5, 9, 1, 3, 7]
    recorder = Recorder(values)
    vectors, known = fill(VectorCache(tmp_path), recorder)
    assert recorder.asked == [[9, 7, 5], [3, 1]]
    np.testing.assert_array_equal(vectors, np.stack([values, 2 * np.asarray(values)], axis=1))
    assert known.all()


def test_second_run_and_other_catalogue_take_from_the_cache(tmp_path: Path) -> None:
    fill(VectorCache(tmp_path), Recorder([5, 3, 9, 1]))
    again = Recorder([1, 9, 3])
    vectors, known = fill(VectorCache(tmp_path), again)
    assert again.asked == []
    assert known.all()
    np.testing.assert_array_equal(vectors[:, 0], [1, 9, 3])
    wider = Recorder([1, 2, 3, 4, 5])
    fill(VectorCache(tmp_path), wider)
    assert sorted(value for batch in wider.asked for value in batch) == [2, 4]


def test_killed_run_resumes_with_the_batches_it_had_left(tmp_path: Path) -> None:
    values = list(range(10))
    whole = Recorder(values)
    expected, _ = fill(VectorCache(tmp_path / "whole"), whole)
    with pytest.raises(KeyboardInterrupt):
        fill(VectorCache(tmp_path / "killed", shard_seconds=0), Recorder(values, fail_at=2))
    resumed = Recorder(values)
    vectors, known = fill(VectorCache(tmp_path / "killed"), resumed)
    assert resumed.asked == whole.asked[2:]
    assert known.all()
    np.testing.assert_array_equal(vectors, expected)


def test_what_cannot_be_encoded_is_unknown_and_tried_again(tmp_path: Path) -> None:
    values = [1, 2, 3, 2]
    vectors, known = fill(VectorCache(tmp_path), Recorder(values, unreadable=frozenset({2})))
    assert known.tolist() == [True, False, True, False]
    assert not vectors[~known].any()
    again = Recorder(values)
    _, known = fill(VectorCache(tmp_path), again)
    assert again.asked == [[2]]
    assert known.all()


def test_broken_shard_is_ignored_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(VectorCache(tmp_path), Recorder([1, 2]))
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:20])
    _, known = fill(VectorCache(tmp_path), Recorder([1, 2]))
    assert known.all()
    assert "is ignored" in caplog.text
    silent = Recorder([1, 2])
    fill(VectorCache(tmp_path), silent)
    assert silent.asked == []


def test_nothing_to_encode(tmp_path: Path) -> None:
    vectors, known = VectorCache(tmp_path).fill(np.array([], dtype="S32"), np.array([]), 4, 2, Recorder([]))
    assert vectors.shape == (0, 2)
    assert known.shape == (0,)


def test_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CEMG_CACHE", str(tmp_path))
    assert default_cache_folder() == tmp_path
    monkeypatch.delenv("CEMG_CACHE")
    assert default_cache_folder().parts[-3:] == (".cache", "cemg_hf", "features")
