"""A Hub folder loads without the package: its files stand alone and carry everything they import."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dense_samples import tower
from generator_samples import generator, item_tokenizer, rqvae_parts

from cemg_hf.models import cemg

SOURCES = sorted(path for path in Path(cemg.__file__).parent.glob("*.py"))
HISTORIES = [["item1", "item2", "item3"], [], ["item5"]]

# Runs where `cemg_hf` cannot be imported: argv = model folder, tokenizer folder, a folder to save into.
WITHOUT_PACKAGE = """
import json, sys
sys.modules["cemg_hf"] = None
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

folder, tokenizer_folder, again = sys.argv[1:]
histories = json.loads(sys.stdin.read())
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=True)
models = [auto.from_pretrained(folder, trust_remote_code=True) for auto in (AutoModel, AutoModelForSeq2SeqLM)]
models[0].save_pretrained(again)
models.append(AutoModel.from_pretrained(again, trust_remote_code=True))
inputs = tokenizer(histories, padding=True, return_tensors="pt")
generated = models[0].generate(**inputs, logits_processor=[models[0].prefix_constraint()])
print(json.dumps({
    "classes": [type(thing).__name__ for thing in (config, tokenizer, *models)],
    "modules": [type(thing).__module__.split(".")[0] for thing in (config, tokenizer, *models)],
    "recommended": [model.recommend(histories, k=10) for model in models],
    "towers": [type(model.dense).__module__.split(".")[0] for model in models],
    "generated": [tokenizer.decode_items(sequence)[0] for sequence in generated],
    "codebooks": float(models[1].tokenizer.rqvae.codebooks.double().sum()),
}))
"""


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_files_import_torch_transformers_safetensors_and_siblings_only(source):
    outside = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1
            assert (source.parent / f"{node.module}.py").is_file()
    assert outside - set(sys.stdlib_module_names) <= {"torch", "transformers", "safetensors"}


def test_a_saved_folder_works_where_the_package_cannot_be_imported(tmp_path):
    tokenizer = item_tokenizer(**rqvae_parts())
    model = generator(tokenizer)
    model.set_dense(tower(len(tokenizer.item_ids), layer="ligr"), dense_weight=0.4)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, tmp_path / "model", tmp_path / "tokenizer", tmp_path / "again"],
        input=json.dumps(HISTORIES),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["classes"] == ["CEMGConfig", "CEMGTokenizer", *["CEMGForConditionalGeneration"] * 3]
    assert set(found["modules"]) == {"transformers_modules"}
    expected = [[list(item) for item in row] for row in model.recommend(HISTORIES, k=10)]
    assert found["recommended"] == [expected] * 3
    assert expected != [[list(item) for item in row] for row in model.recommend(HISTORIES, k=10, dense_weight=0)]
    assert found["towers"] == ["transformers_modules"] * 3
    assert found["generated"] == [row[0].item_id for row in model.recommend(HISTORIES, k=1, dense_weight=0)]
    assert found["codebooks"] == pytest.approx(float(tokenizer.rqvae.codebooks.double().sum()), abs=1e-12)
