"""Everything a user can get wrong ends in one line that says where and what to do, or in a skip that is counted and reported."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml
from command_samples import BARE, NUM_ITEMS, TRUNCATED, UNKNOWN, Command, save_model, save_network, small_recipe, write_shop

ITEM_IDS = [f"item-{row:02d}" for row in range(NUM_ITEMS)]


@pytest.fixture
def cemg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write_shop(tmp_path / "shop")
    return tmp_path / "shop"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, ITEM_IDS)
    return folder


def fails(cemg: Command, *arguments: object) -> str:
    """The one error line of a command that must fail."""
    outcome = cemg(*arguments)
    assert outcome.status == 2, outcome
    assert len(outcome.error_lines) == 1, outcome.errors
    assert "Traceback" not in outcome.errors + outcome.output
    assert outcome.errors.splitlines()[-1] == outcome.error_lines[0], "nothing may follow the error"
    return outcome.error_lines[0]


# ---- data ---------------------------------------------------------------------------------------------------------------------


def test_an_empty_file(cemg: Command, shop: Path, tmp_path: Path) -> None:
    (shop / "interactions.csv").write_bytes(b"")
    message = fails(cemg, "run", shop / "shop.yaml", "--output", tmp_path / "run")
    assert f"{shop / 'interactions.csv'}: the file is empty" in message

    (shop / "interactions.csv").write_text("user_id,item_id,timestamp\n")
    assert "empty (no rows)" in fails(cemg, "run", shop / "shop.yaml", "--output", tmp_path / "run")


def test_a_missing_file(cemg: Command, tmp_path: Path) -> None:
    message = fails(cemg, "run", "own-data", "--interactions", tmp_path / "none.csv", "--output", tmp_path / "run")
    assert f"{tmp_path / 'none.csv'}: no such file" in message


def test_a_missing_column(cemg: Command, shop: Path, tmp_path: Path) -> None:
    pl.read_csv(shop / "interactions.csv").drop("timestamp").write_csv(shop / "interactions.csv")
    message = fails(cemg, "prepare", shop / "shop.yaml", "--output", tmp_path / "dataset")
    assert "interactions.csv: column timestamp is missing (present: user_id, item_id)" in message
    assert "columns: {timestamp: your_column}" in message


def test_a_value_that_cannot_be_read(cemg: Command, shop: Path, tmp_path: Path) -> None:
    table = pl.read_csv(shop / "interactions.csv", infer_schema=False)
    rows = pl.int_range(table.height)
    table.with_columns(timestamp=pl.when(rows == 4).then(pl.lit("soon")).otherwise("timestamp")).write_csv(shop / "interactions.csv")
    message = fails(cemg, "prepare", shop / "shop.yaml", "--output", tmp_path / "dataset")
    assert "interactions.csv: column timestamp, row 5:" in message
    assert "'soon'" in message


def test_all_users_below_the_k_core(cemg: Command, shop: Path, tmp_path: Path) -> None:
    message = fails(cemg, "run", shop / "shop.yaml", "--output", tmp_path / "run", "--set", "prepare.min_interactions=1000")
    assert "min_interactions: 1000" in message
    assert "lower it" in message
    assert not (tmp_path / "run" / "dataset").exists()


def test_skips_are_counted_and_reported(cemg: Command, shop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An unknown item id in the interactions, a truncated JPEG, and an item with neither text nor image do not stop a run."""
    with caplog.at_level(logging.WARNING):
        outcome = cemg("run", shop / "shop.yaml", "--output", tmp_path / "run", "--until", "encode")
    assert outcome.status == 0
    statistics = json.loads((tmp_path / "run" / "dataset" / "statistics.json").read_text())
    assert statistics["unknown_item_interactions"] == 1
    assert statistics["items_without_content"] == 1
    report = json.loads((tmp_path / "run" / "features" / "report.json").read_text())
    assert report["modalities"]["image"]["unreadable"] == 1
    assert list(report["modalities"]["image"]["unreadable_items"]) == [TRUNCATED]
    assert report["modalities"]["image"]["masked"] == 2
    assert report["first_items_without_content"] == [BARE]
    warned = "\n".join(record.getMessage() for record in caplog.records)
    assert f"skipped 1 of {statistics['interactions'] + 1} interactions" in warned
    assert repr(UNKNOWN) in warned
    assert f"1 items have an unreadable image and are masked (first: {TRUNCATED}" in warned
    assert f"1 items have neither text nor image (first: {BARE})" in warned


# ---- recipes and settings -----------------------------------------------------------------------------------------------------


def test_a_misspelt_key(cemg: Command, shop: Path, tmp_path: Path) -> None:
    settings = small_recipe(shop)
    settings["finetun"] = settings.pop("finetune")
    (shop / "shop.yaml").write_text(yaml.safe_dump(settings))
    message = fails(cemg, "run", shop / "shop.yaml", "--output", tmp_path / "run")
    assert message == "error: shop.yaml: unknown key 'finetun'; did you mean 'finetune'?"
    message = fails(cemg, "run", "sample", "--output", tmp_path / "run", "--set", "encode.txt.encoder=tfidf")
    assert message == "error: sample.yaml: encode: unknown key 'txt'; did you mean 'text'?"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["beuty"], "beuty: no such recipe file"),
        (["sample", "--until", "tokenise"], "'tokenise' is no stage; choose one of prepare, encode, tokenize, finetune, evaluate"),
        (["sample", "--set", "seed"], "--set seed: expected section.key=value"),
    ],
)
def test_wrong_arguments(cemg: Command, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in fails(cemg, "run", *arguments, "--output", tmp_path / "run")


def test_a_setting_that_cannot_work(cemg: Command, tmp_path: Path) -> None:
    arguments = ["sample", "--dataset", tmp_path, "--output", tmp_path / "features", "--set", "encode.modalities=[sound]"]
    assert "name one or more of image, text, collaborative" in fails(cemg, "encode", *arguments)


def test_an_unset_variable(cemg: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CEMG_DATA", raising=False)
    assert "CEMG_DATA is not set" in fails(cemg, "run", "beauty", "--output", tmp_path / "run")


# ---- folders of earlier stages ------------------------------------------------------------------------------------------------


def test_missing_inputs_of_stages(cemg: Command, tmp_path: Path) -> None:
    none, output = tmp_path / "none", ("--output", tmp_path / "output")
    assert str(none) in fails(cemg, "encode", "sample", "--dataset", none, *output)
    assert str(none) in fails(cemg, "tokenize", "sample", "--features", none, *output)
    assert str(none) in fails(cemg, "finetune", "sample", "--dataset", none, "--tokenizer", none, *output)
    assert str(none) in fails(cemg, "evaluate", "sample", "--dataset", none, "--model", none, *output)
    none.mkdir()
    assert "make one with `cemg prepare`" in fails(cemg, "encode", "sample", "--dataset", none, *output)
    assert not (tmp_path / "output").exists()


def test_a_tokenizer_and_a_model_of_another_data_set(cemg: Command, shop: Path, model: Path, tmp_path: Path) -> None:
    dataset, output = tmp_path / "dataset", ("--output", tmp_path / "output")
    assert cemg("prepare", shop / "shop.yaml", "--output", dataset, "--set", "prepare.keep_unseen_items=true").status == 0
    save_model(tmp_path / "other", [*ITEM_IDS, "one-more"])
    message = fails(cemg, "finetune", shop / "shop.yaml", "--dataset", dataset, "--tokenizer", tmp_path / "other", *output)
    assert f"{tmp_path / 'other'}: holds {NUM_ITEMS + 1} items" in message
    message = fails(cemg, "evaluate", shop / "shop.yaml", "--dataset", dataset, "--model", tmp_path / "other", *output)
    assert "its catalogue is not that of" in message
    (tmp_path / "bare").mkdir()
    message = fails(cemg, "evaluate", shop / "shop.yaml", "--dataset", dataset, "--model", tmp_path / "bare", *output)
    assert "not a model folder" in message


# ---- models -------------------------------------------------------------------------------------------------------------------


def test_a_missing_model_folder(cemg: Command, tmp_path: Path) -> None:
    assert f"{tmp_path}/none: no such model folder" in fails(cemg, "recommend", tmp_path / "none", "item-01")
    assert "runs/none: no such model folder" in fails(cemg, "recommend", "runs/none", "item-01")
    assert "not a model folder" in fails(cemg, "recommend", tmp_path, "item-01")


def copy_with_tokenizer_of(model: Path, tokenizer: Path, folder: Path) -> Path:
    """The model's folder with the files of another tokenizer over its own."""
    shutil.copytree(model, folder)
    for file in (*tokenizer.glob("item_*"), *tokenizer.glob("*token*.json")):
        shutil.copyfile(file, folder / file.name)
    return folder


@pytest.mark.parametrize("other_ids", [[*ITEM_IDS[1:], "other"], ITEM_IDS[:-1], ITEM_IDS])
def test_a_tokenizer_beside_a_model_it_does_not_belong_to(cemg: Command, model: Path, tmp_path: Path, other_ids: list[str]) -> None:
    """Another item, one item fewer, or the same items under other codes."""
    save_model(tmp_path / "other", other_ids, seed=1)
    mixed = copy_with_tokenizer_of(model, tmp_path / "other", tmp_path / "mixed")
    message = fails(cemg, "recommend", mixed, "item-01")
    assert message.startswith(f"error: {mixed}: tokenizer and model do not belong together")
    assert "load the tokenizer saved with this model" in message


def test_a_model_without_its_tokenizer(cemg: Command, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "alone", ignore=shutil.ignore_patterns("item_*", "*token*"))
    assert "holds no item tokenizer" in fails(cemg, "recommend", tmp_path / "alone", "item-01")


def test_an_unknown_item_id(cemg: Command, model: Path) -> None:
    message = fails(cemg, "recommend", model, "item-01", "no-such", "nor-this")
    assert "item id 'no-such' and 1 more is not among the 24 items of the catalogue" in message
    assert "--skip-unknown" in message


def test_impossible_list_lengths(cemg: Command, model: Path) -> None:
    assert "k must be at least 1" in fails(cemg, "recommend", model, "item-01", "-k", 0)
    every = cemg("recommend", model, *ITEM_IDS, "-k", 30, "--exclude-history")
    assert (every.status, every.output) == (0, ""), "with everything excluded there is nothing to recommend"


def test_an_empty_history_is_a_new_user(cemg: Command, model: Path) -> None:
    outcome = cemg("recommend", model, "-k", 5)
    assert outcome.status == 0
    recommended = [line.split()[1] for line in outcome.output.splitlines()]
    assert len(set(recommended)) == 5
    assert set(recommended) <= set(ITEM_IDS)


# ---- models of other kinds ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network")
    save_network(folder / "run" / "model", ITEM_IDS)
    for name in ("recipe.yaml", "metrics.json"):
        (folder / "run" / name).write_text("{}")
    return folder / "run" / "model"


def test_what_needs_codes_says_so_of_a_network_over_whole_items(cemg: Command, network: Path, shop: Path, tmp_path: Path) -> None:
    """One line that names the kind of the model and what works with it; nothing of weights that are missing."""
    dataset, output = tmp_path / "dataset", ("--output", tmp_path / "output")
    assert cemg("prepare", shop / "shop.yaml", "--output", dataset).status == 0
    for arguments in (
        ("evaluate", shop / "shop.yaml", "--dataset", dataset, "--model", network, *output),
        ("add-items", network, "--items", shop / "items.parquet", "--features", tmp_path, *output),
        ("demo", network),
        ("export", network.parent, *output),
        ("publish", network.parent, "--repo", "org/shop", "--dry-run"),
    ):
        message = fails(cemg, *arguments)
        assert message.startswith(f"error: {network}: a sasrec model ranks whole items and has no item codes, which this needs")
        assert "recommend with it by `cemg recommend` or `cemg serve`" in message
        assert "`cemg run … --system`" in message
    assert not (tmp_path / "output").exists()


def test_options_of_codes_are_refused_for_a_network_over_whole_items(cemg: Command, network: Path, tmp_path: Path) -> None:
    message = fails(cemg, "recommend", network, "item-01", "--num-beams", 30)
    assert "--num-beams: is for models that write codes" in message
    assert "--new-item-boost" in fails(cemg, "recommend", network, "item-01", "--new-item-boost", 1)
    assert "new_item_boost: is for models that write codes" in fails(cemg, "serve", network, "--port", 0, "--new-item-boost", 1)
    users = tmp_path / "users.parquet"
    pl.DataFrame({"user_id": ["a"], "history": [["item-01"]]}).write_parquet(users)
    files = ("--histories", users, "--output", tmp_path / "recs")
    assert "num_beams=30:" in fails(cemg, "recommend", network, *files, "--num-beams", 30)
    message = fails(cemg, "recommend", network, "item-01", "no-such")
    assert "item id 'no-such' is not among the 24 items of the catalogue; correct it, or use --skip-unknown" in message
    assert not (tmp_path / "recs").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mmgrec", "an mmgrec model ranks for the users it was trained on; measure it by `cemg run … --system mmgrec`"),
        ("bert", "a model of kind 'bert' is none of cemg, mscgrec, sasrec, gru4rec; give the folder `model` of a run"),
    ],
)
def test_models_of_any_other_kind_are_named(cemg: Command, network: Path, tmp_path: Path, kind: str, message: str) -> None:
    shutil.copytree(network, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"model_type": kind}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert fails(cemg, "recommend", tmp_path / "model", "item-01").startswith(f"error: {tmp_path / 'model'}: {message}")


def test_a_network_without_its_catalogue(cemg: Command, network: Path, tmp_path: Path) -> None:
    shutil.copytree(network, tmp_path / "alone", ignore=shutil.ignore_patterns("item_ids.json"))
    assert "holds no catalogue; copy item_ids.json" in fails(cemg, "recommend", tmp_path / "alone", "item-01")


# ---- files of users -----------------------------------------------------------------------------------------------------------


def test_item_ids_and_files_of_users_are_not_mixed(cemg: Command, model: Path, tmp_path: Path) -> None:
    users, output = tmp_path / "users.parquet", tmp_path / "recs"
    pl.DataFrame({"user_id": ["a"], "history": [["item-01"]]}).write_parquet(users)
    files = ("--histories", users, "--output", output)
    assert "either item ids (item-01) or --histories, not both" in fails(cemg, "recommend", model, "item-01", *files)
    assert "name the folder to write with --output" in fails(cemg, "recommend", model, "--histories", users)
    assert "--output: is for files of users; give --histories too" in fails(cemg, "recommend", model, "item-01", "--output", output)
    assert "--batch-size: is for files" in fails(cemg, "recommend", model, "item-01", "--batch-size", 3)
    assert "--overwrite: is for files" in fails(cemg, "recommend", model, "--overwrite")
    assert "--new-item-…: these options are for a single history" in fails(cemg, "recommend", model, *files, "--new-item-boost", 1)
    assert not output.exists()


def test_files_of_users_that_cannot_be_used(cemg: Command, model: Path, tmp_path: Path) -> None:
    users, output = tmp_path / "users.parquet", tmp_path / "recs"
    files = ("--histories", users, "--output", output)
    assert f"{users}: no such file or folder" in fails(cemg, "recommend", model, *files)
    pl.DataFrame({"user_id": ["a", "b"], "history": [["item-01"], ["no-such"]]}).write_parquet(users)
    message = fails(cemg, "recommend", model, *files)
    assert f"{users}: column history, row 2: item id 'no-such' is not among the 24 items of the catalogue" in message
    assert "--skip-unknown" in message
    assert "column id is missing (present: user_id, history)" in fails(cemg, "recommend", model, *files, "--user-column", "id")
    assert "dtype='int8': give float32, bfloat16, float16" in fails(cemg, "recommend", model, *files, "--dtype", "int8")
    assert "device 'tpu': give auto, cpu" in fails(cemg, "recommend", model, *files, "--device", "tpu")
    assert "no such model folder" in fails(cemg, "recommend", tmp_path / "none", *files)
    assert not output.exists()
    assert cemg("recommend", model, *files, "--skip-unknown").status == 0
    message = fails(cemg, "recommend", model, *files, "--skip-unknown", "-k", 3)
    assert f"{output}: was begun with other inputs or settings (k 10 → 3); use --overwrite" in message
