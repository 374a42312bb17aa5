from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving_samples import small_model

from cemg_hf.errors import CEMGError
from cemg_hf.serving import code_ranker
from cemg_hf.serving.code_ranker import CodeCatalogue, CodeRanker
from cemg_hf.serving.config import ServingConfig
from cemg_hf.serving.ranker import Query
from cemg_hf.training.loading import open_tokenizer


def test_queries_that_differ_in_k_history_and_denied_items_share_a_pass() -> None:
    group = CodeRanker.group
    shared = Query(history=["item1"], k=5)
    assert group(shared) == group(Query(k=20)) == group(Query(exclude_history=True, denied_items=["item2"])) == group(Query(num_beams=20))
    assert len({group(shared), group(Query(k=21)), group(Query(num_beams=30)), group(Query(allowed_items=[]))}) == 4
    assert len({group(shared), group(Query(min_first_codes=2)), group(Query(k=5, min_first_codes=2))}) == 3  # spread over k items


def test_a_catalogue_of_another_model_is_refused_and_the_old_one_stays() -> None:
    ranker = CodeRanker(small_model(), ServingConfig())
    before = ranker.catalogue
    with pytest.raises(ValueError, match="do not belong together"):
        ranker.use(CodeCatalogue(small_model(40).tokenizer))
    assert ranker.catalogue is before
    assert ranker.model.tokenizer is before.tokenizer


def test_lists_spread_over_branches_are_refused_where_new_items_have_beams_of_their_own() -> None:
    spread = Query(k=5, max_per_first_code=2)
    assert CodeRanker(small_model(), ServingConfig()).refused(spread) == {}
    ranker = CodeRanker(small_model(), ServingConfig(new_item_boost=0.0))
    assert list(ranker.refused(spread)) == ["max_per_first_code"]
    assert ranker.refused(Query(num_beams=30)) == {}


def test_files_that_change_while_they_are_read_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    small_model().save_pretrained(folder)
    torn = open_tokenizer(folder)
    tokenizer = open_tokenizer(folder)
    tokenizer.remove_items(["item3"])
    reads: list[Path] = []

    def read(path: Path) -> Any:
        reads.append(path)
        if len(reads) == 1:
            tokenizer.save_pretrained(folder)  # somebody writes between the first file and the last
            return torn
        return open_tokenizer(path)

    monkeypatch.setattr(code_ranker, "open_tokenizer", read)
    assert code_ranker.read_unchanged(folder).catalogue_fingerprint == tokenizer.catalogue_fingerprint
    assert len(reads) == 2

    def never_still(path: Path) -> Any:
        tokenizer.save_pretrained(folder)
        return torn

    monkeypatch.setattr(code_ranker, "open_tokenizer", never_still)
    with pytest.raises(CEMGError, match="change while they are read"):
        code_ranker.read_unchanged(folder)
