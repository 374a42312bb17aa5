"""A Hub folder loads without the package: its files stand alone and carry everything they import."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import sysconfig
import venv
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
import huggingface_hub, transformers
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

folder, tokenizer_folder, again = sys.argv[1:]
histories = json.loads(sys.stdin.read())
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=True)
models = [auto.from_pretrained(folder, trust_remote_code=True) for auto in (AutoModel, AutoModelForSeq2SeqLM)]
models[0].save_pretrained(again)
models.append(AutoModel.from_pretrained(again, trust_remote_code=True))
inputs = tokenizer(histories, padding=True, return_tensors="pt")
pipes = [
    pipeline("next-item-recommendation", model=folder, trust_remote_code=True, local_files_only=True),
    pipeline(model=folder, trust_remote_code=True),  # the task stands in config.json
]
pipes[0].save_pretrained(again + "-by-pipeline")
pipes.append(pipeline(model=again + "-by-pipeline", trust_remote_code=True))
generated = models[0].generate(**inputs, logits_processor=[models[0].prefix_constraint()])
print(json.dumps({
    "classes": [type(thing).__name__ for thing in (config, tokenizer, *models)],
    "modules": [type(thing).__module__.split(".")[0] for thing in (config, tokenizer, *models)],
    "recommended": [model.recommend(histories, k=10) for model in models],
    "pipelines": [[type(pipe).__module__.split(".")[0], type(pipe).__name__, pipe.task] for pipe in pipes],
    "piped": [pipe(histories, top_k=10) for pipe in pipes],
    "versions": [module.__version__ for module in (torch, transformers, huggingface_hub)],
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


def check_without_package(python: str | Path, folder: Path, **environment: str) -> dict:
    """Saves a model, and holds what `python` recommends from the folder, the package out of its reach, to what the package recommends."""
    tokenizer = item_tokenizer(**rqvae_parts())
    model = generator(tokenizer)
    model.set_dense(tower(len(tokenizer.item_ids), layer="ligr"), dense_weight=0.4)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "tokenizer")
    environment = {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    run = subprocess.run(
        [python, "-c", WITHOUT_PACKAGE, folder / "model", folder / "tokenizer", folder / "again"],
        input=json.dumps(HISTORIES),
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["classes"] == ["CEMGConfig", "CEMGTokenizer", *["CEMGForConditionalGeneration"] * 3]
    assert set(found["modules"]) == {"transformers_modules"}
    expected = [[list(item) for item in row] for row in model.recommend(HISTORIES, k=10)]
    assert_close(found["recommended"], [expected] * 3)
    assert expected != [[list(item) for item in row] for row in model.recommend(HISTORIES, k=10, dense_weight=0)]
    assert found["towers"] == ["transformers_modules"] * 3
    assert found["generated"] == [row[0].item_id for row in model.recommend(HISTORIES, k=1, dense_weight=0)]
    assert found["codebooks"] == pytest.approx(float(tokenizer.rqvae.codebooks.double().sum()), abs=1e-12)
    assert found["pipelines"] == [["transformers_modules", "NextItemRecommendationPipeline", "next-item-recommendation"]] * 3
    assert_close([[[[item["item_id"], item["score"]] for item in row] for row in lists] for lists in found["piped"]], [expected] * 3)
    for item in (item for lists in found["piped"] for row in lists for item in row):
        assert tokenizer.decode_items(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(item["codes"]))) == [item["item_id"]]
    return found


def assert_close(found: list, expected: list) -> None:
    """The same items; scores may differ in the last digits between versions of torch."""
    for lists, wanted in zip(found, expected, strict=True):
        assert [[item for item, _ in row] for row in lists] == [[item for item, _ in row] for row in wanted]
        assert [score for row in lists for _, score in row] == pytest.approx([score for row in wanted for _, score in row], abs=1e-5)


def test_a_saved_folder_works_where_the_package_cannot_be_imported(tmp_path):
    check_without_package(sys.executable, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transformers_release", "hub_generation"), [("transformers==5.17.*", "1"), ("transformers", "2")], ids=["lowest", "newest"]
)
def test_a_saved_folder_works_with_the_lowest_and_the_newest_transformers(tmp_path, transformers_release, hub_generation):
    """Each in an environment of its own, which borrows torch from this one: that is the part that is large. Needs a package index."""
    python = environment_with(transformers_release, tmp_path / "environment")
    _, transformers_version, hub_version = check_without_package(python, tmp_path)["versions"]
    assert hub_version.split(".")[0] == hub_generation
    if transformers_release != "transformers":
        assert transformers_version.startswith("5.17.")


def environment_with(requirement: str, folder: Path) -> Path:
    """Python of a new environment that holds `requirement` and, behind it in the search path, everything installed here."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement]
    done = subprocess.run(install, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    purelib = {"base": str(folder), "platbase": str(folder)}
    site_packages = Path(sysconfig.get_path("purelib", vars=purelib))
    (site_packages / "zz_borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python
