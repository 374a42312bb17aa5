from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel

from cemg_hf.hub.export import HANDLER
from cemg_hf.models import cemg

FOLDER = Path(__file__).parents[2] / "model_cards" / "cemg-beauty"


def test_the_published_model_loads_and_writes_items_of_its_catalogue() -> None:
    model = AutoModel.from_pretrained(FOLDER)
    assert model.config.dense_weight > 0
    catalogue = set(model.tokenizer.item_ids)
    assert len(catalogue) == 12_101
    histories = [model.tokenizer.item_ids[:3], [], model.tokenizer.item_ids[100:130]]
    mixed, codes = (model.recommend(histories, k=10, exclude_history=True, dense_weight=weight) for weight in (None, 0))
    for history, *lists in zip(histories, mixed, codes, strict=True):
        for found in lists:
            items = [item.item_id for item in found]
            assert len(set(items)) == 10
            assert set(items) <= catalogue - set(history)
    assert mixed != codes


def test_it_is_small_in_half_precision_and_holds_ids_but_no_texts() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 30e6
    weights = load_file(FOLDER / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.bfloat16}
    assert {path.suffix for path in FOLDER.iterdir()} == {".py", ".json", ".safetensors", ".md", ".yaml", ".txt"}
    assert all(len(item) == 10 for item in json.loads((FOLDER / "item_ids.json").read_text()))


def test_its_code_is_that_of_the_package() -> None:
    sources = [HANDLER, *(path for path in Path(cemg.__file__).parent.glob("*.py") if path.name != "__init__.py")]
    assert {path.name for path in FOLDER.glob("*.py")} == {path.name for path in sources}
    for path in sources:
        assert (FOLDER / path.name).read_text() == path.read_text(), f"{path.name}: export the model again with `cemg export`"
