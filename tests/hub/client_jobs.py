"""What client processes of the local Hub do; run by `local_hub.Clients`, arguments and results are JSON values.

Imports stand inside the jobs: they must come after HF_ENDPOINT, and an environment without the package runs those that do not need it.
"""

from __future__ import annotations

from typing import Any


def versions() -> dict[str, str]:
    import huggingface_hub
    import transformers

    return {"transformers": transformers.__version__.rpartition(".")[0], "huggingface_hub": huggingface_hub.__version__.split(".")[0]}


def publish(arguments: list[str], token: str | None = None, largest: int | None = None) -> dict[str, Any]:
    """`cemg publish …` as the installed command runs it; `token`: of somebody else; `largest`: as for `snapshot`."""
    import contextlib
    import io
    import os
    import resource
    import sys

    from cemg_hf.cli import main

    if token is not None:
        os.environ["HF_TOKEN"] = token
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    output, errors = io.StringIO(), io.StringIO()
    sys.argv = ["cemg", "publish", *arguments]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    wrong = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    return {"status": status, "output": output.getvalue(), "errors": wrong}


def recommend(repo: str, histories: list[list[str]], cache_dir: str, revision: str | None = None, tokenizer: bool = True) -> dict[str, Any]:
    """Pull and recommend with transformers alone; `cemg_hf` cannot be imported. tokenizer: also load it by itself."""
    import sys

    sys.modules["cemg_hf"] = None  # type: ignore[assignment]
    from transformers import AutoModel, AutoTokenizer

    where = {"revision": revision} if revision is not None else {}
    own = AutoTokenizer.from_pretrained(repo, trust_remote_code=True, cache_dir=cache_dir, **where) if tokenizer else None
    model = AutoModel.from_pretrained(repo, trust_remote_code=True, cache_dir=cache_dir, **where)
    return {
        "recommended": model.recommend(histories, k=10, exclude_history=True),
        "module": type(model).__module__.split(".")[0],
        "catalogue": None if own is None else own.catalogue_fingerprint,
        "attached": model.tokenizer.catalogue_fingerprint,
        "rqvae": model.tokenizer.rqvae is not None,
    }


def example(block: str, folder: str, package: bool) -> str:
    """What an example of a card prints where its model lies; without `package`, `cemg_hf` cannot be imported."""
    import contextlib
    import io
    import os
    import sys

    if not package:
        sys.modules["cemg_hf"] = None  # type: ignore[assignment]
    os.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block, {})
    return printed.getvalue()


def tokenize(repo: str, history: list[str], cache_dir: str, revision: str | None = None) -> list[int]:
    import sys

    sys.modules["cemg_hf"] = None  # type: ignore[assignment]
    from transformers import AutoTokenizer

    where = {"revision": revision} if revision is not None else {}
    return AutoTokenizer.from_pretrained(repo, trust_remote_code=True, cache_dir=cache_dir, **where)(history)["input_ids"]


def push_model(folder: str, repo: str, **settings: Any) -> str:
    from cemg_hf import CEMGForConditionalGeneration

    return str(CEMGForConditionalGeneration.from_pretrained(folder).push_to_hub(repo, **settings))


def push_tokenizer(folder: str, repo: str, **settings: Any) -> str:
    from cemg_hf import CEMGTokenizer

    return str(CEMGTokenizer.from_pretrained(folder).push_to_hub(repo, **settings))


def load_data(repo: str, config: str, cache_dir: str) -> dict[str, Any]:
    """Sizes, columns and first rows of every split; pictures as their size."""
    from datasets import load_dataset
    from PIL import Image

    def plain(value: Any) -> Any:
        return {"picture": value.size} if isinstance(value, Image.Image) else value

    loaded = load_dataset(repo, config, cache_dir=cache_dir)
    return {
        split: {
            "rows": len(rows),
            "features": {name: repr(feature) for name, feature in rows.features.items()},
            "first": {name: plain(value) for name, value in rows[0].items()},
        }
        for split, rows in loaded.items()
    }


def push(folder: str, repo: str, kind: str = "model", private: bool = False, branch: str | None = None) -> dict[str, Any]:
    """The files of a folder to a repository."""
    from pathlib import Path

    from cemg_hf.hub.contents import folder_contents
    from cemg_hf.hub.push import push as push_contents

    pushed = push_contents(folder_contents(Path(folder)), repo, kind=kind, private=private, branch=branch, message="push")
    return vars(pushed)


def snapshot(repo: str, cache_dir: str, largest: int | None = None, repo_type: str = "model", anonymous: bool = False) -> str:
    """Download a repository; `largest`: bytes of a file, above which the disk is full (RLIMIT_FSIZE)."""
    import os
    import resource

    if anonymous:
        del os.environ["HF_TOKEN"]

    from huggingface_hub import snapshot_download

    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return snapshot_download(repo, cache_dir=cache_dir, repo_type=repo_type)


def api(method: str, **arguments: Any) -> Any:
    """Any method of `HfApi` whose result is JSON, or is told by its attributes."""
    from huggingface_hub import HfApi

    found = getattr(HfApi(), method)(**arguments)
    if not isinstance(found, (str, int, bool, dict, type(None))) and hasattr(found, "__iter__"):
        return [vars(one) if hasattr(one, "__dict__") else one for one in found]
    return found if isinstance(found, (str, int, bool, dict, type(None))) else {key: str(value) for key, value in vars(found).items()}


def add(repo: str, files: dict[str, str], message: str = "change", **settings: Any) -> str:
    """A commit of texts."""
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(path, text.encode()) for path, text in files.items()]
    return HfApi().create_commit(repo, operations, commit_message=message, **settings).oid


def metric(repo: str, predictions: list[list[str]], references: list[str], k: int) -> dict[str, float]:
    import evaluate

    return evaluate.load(repo, module_type="metric").compute(predictions=predictions, references=references, k=k)


def push_pipeline(folder: str, repo: str, **settings: Any) -> str:
    from transformers import pipeline

    import cemg_hf  # noqa: F401 -- registers the task

    return str(pipeline("next-item-recommendation", model=folder, trust_remote_code=True).push_to_hub(repo, **settings))


def pipe(repo: str, histories: list[list[str]], cache_dir: str, revision: str | None = None) -> list[Any]:
    """The pipeline of a repository, by transformers alone."""
    import sys

    sys.modules["cemg_hf"] = None  # type: ignore[assignment]
    from transformers import pipeline

    where = {"revision": revision} if revision is not None else {}
    recommend = pipeline("next-item-recommendation", model=repo, trust_remote_code=True, model_kwargs={"cache_dir": cache_dir}, **where)
    return recommend(histories, top_k=10, exclude_history=True)


def toolkit(folder: str, bodies: list[Any]) -> dict[str, Any]:
    """What the handler of a model folder answers; the module's name and the search path are those of the Inference Endpoint toolkit."""
    import importlib.util
    import sys

    sys.modules["cemg_hf"] = None  # type: ignore[assignment]
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", f"{folder}/handler.py")
    assert spec is not None
    assert spec.loader is not None
    sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler.EndpointHandler"] = module
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(folder)
    answers = []
    for body in bodies:
        try:
            answers.append(handler(body))
        except Exception as error:
            answers.append({"error": str(error), "kind": type(error).__name__})
    return {"answers": answers, "model": type(handler.pipeline.model).__module__.split(".")[0]}
