"""`cemg publish`: what it says and refuses here, and from push to pull through the local Hub."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from command_samples import Command
from hub_samples import MODEL_FILES, histories, licensed, recommended
from huggingface_hub import ModelCard
from local_hub import TOKEN, ClientProblem, Clients, Fault, LocalHub
from local_hub.store import regular_file

from cemg_hf import CEMGForConditionalGeneration
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.modules import METRIC_MODULES, metric_path
from cemg_hf.hub.export import export_model
from cemg_hf.hub.publish import PublishConfig, dry_run, publish

Capture = pytest.CaptureFixture[str]
DATA_FILES = {"README.md", "eval.yaml", "interactions.parquet", "items.parquet", "statistics.json"}
DATA_FILES |= {f"splits/{split}.parquet" for split in ("train", "validation", "test")}


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def published(publisher: Clients, puller: Clients, finished: Path) -> dict[str, str]:  # clients first: they start while the run is made
    """Names of the repositories of a published run."""
    names = {"model": "org/cemg-shop", "dataset": "org/cemg-shop-data"}
    ended = publisher("publish", arguments=[finished, "--repo", names["model"], "--dataset-repo", names["dataset"]])
    assert ended["status"] == 0, ended
    return names


# ---- without a Hub ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_files_and_sizes_and_needs_no_network(finished: Path) -> None:
    said, refused = dry_run(finished, PublishConfig("org/shop", dataset_repo="org/shop-data"))
    listed = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in said.splitlines() if line.startswith(" ")}
    assert listed.keys() >= MODEL_FILES | DATA_FILES
    assert listed["interactions.parquet"] == (finished / "dataset" / "interactions.parquet").stat().st_size
    assert "manifest.json" not in listed
    assert "refused" not in said
    assert refused == []
    assert f"dataset org/shop-data: {len(DATA_FILES)} files" in said


def test_a_model_that_carries_no_code_is_published_without_any(
    streams: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = Command(monkeypatch, capsys)("publish", streams, "--repo", "org/streams", "--dry-run")
    assert outcome.status == 0, outcome
    listed = {line.split()[1] for line in outcome.output.splitlines() if line.startswith(" ")}
    made = {"README.md", "recipe.yaml"}
    assert listed == made | {path.name for path in (streams / "model").iterdir() if path.name != "training_report.json"}
    assert {"config.json", "model.safetensors", "item_ids.json", "tokenizer_config.json"} < listed


def test_a_dry_run_says_all_that_is_refused_and_publishing_stops_before_the_network(run: Path) -> None:
    licensed(run / "dataset", "other")
    (run / "dataset" / "notes.md").write_text("a token:\nhf_" + "aB3" * 12 + "\n")
    config = PublishConfig("org/shop", dataset_repo="org/shop-data")
    said, reasons = dry_run(run, config)
    refused = [line for line in said.splitlines() if line.startswith("refused")]
    assert [line.split(":")[1].strip() for line in refused] == ["items.parquet", "notes.md, line 2"]
    assert [f"refused: {reason.removeprefix('org/shop-data: ')}" for reason in reasons] == refused
    with pytest.raises(CEMGError, match=r"nothing was published\. org/shop-data: items\.parquet: .*\(and 1 more, see --dry-run\)"):
        publish(run, config)


def test_the_status_of_a_dry_run_says_whether_anything_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    cemg = Command(monkeypatch, capsys)
    arguments = ("publish", run, "--repo", "org/shop", "--dataset-repo", "org/shop-data", "--dry-run")
    assert cemg(*arguments).status == 0
    licensed(run / "dataset", "other")
    refused = cemg(*arguments)
    assert refused.status == 1
    assert "\nrefused: items.parquet: the licence" in refused.output


def test_no_temporary_folder_is_an_error(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(CEMGError, match=r"no temporary folder can be made .* set TMPDIR"):
        dry_run(finished, PublishConfig("org/shop"))


def test_a_secret_in_the_recipe_is_refused_and_not_shown(run: Path) -> None:
    recipe = run / "recipe.yaml"
    secret = "postgres://shop:" + "hunter2@db/orders"
    recipe.write_text(recipe.read_text().replace("description: ", f"description: from {secret} ", 1))
    with pytest.raises(CEMGError, match="a password in a URL") as error:
        publish(run, PublishConfig("org/shop"))
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repo": "a/b/c"}, "--repo a/b/c"),
        ({"repo": "org/shop", "dataset_repo": "org/shop"}, "--dataset-repo org/shop: is the name of the model's"),
    ],
)
def test_names_that_cannot_be_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PublishConfig(**settings)


def test_the_card_takes_a_comparison(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"none\.json: no such file; give the `compare\.json`"):
        dry_run(finished, PublishConfig("org/shop", comparison=str(tmp_path / "none.json")))


def test_an_offline_client_says_so(finished: Path) -> None:
    with pytest.raises(CEMGError, match="org/shop: HF_HUB_OFFLINE is set"):
        publish(finished, PublishConfig("org/shop"))


# ---- from push to pull ------------------------------------------------------------------------------------------------------


def test_each_repository_is_one_commit_with_all_files(published: dict[str, str], hub: LocalHub) -> None:
    assert hub.commits(published["model"]) == ["Publish model of run"]
    assert hub.commits(published["dataset"], "dataset") == ["Publish dataset of run"]
    assert hub.files(published["model"]).keys() >= MODEL_FILES
    assert hub.files(published["dataset"], "dataset").keys() == DATA_FILES


def test_cards_name_the_repositories(published: dict[str, str], hub: LocalHub) -> None:
    card = ModelCard(hub.content(published["model"], "README.md").decode())
    assert card.data.datasets == [published["dataset"]]
    assert f'from_pretrained("{published["model"]}"' in card.text
    assert f'load_dataset("{published["dataset"]}", "items"' in hub.content(published["dataset"], "README.md", "dataset").decode()


def test_what_is_pulled_recommends_as_what_was_pushed(
    published: dict[str, str], finished: Path, hub: LocalHub, puller: Clients, tmp_path: Path
) -> None:
    before = recommended(export_model(finished, tmp_path / "here"), finished)
    hub.asked.clear()
    found = puller("recommend", repo=published["model"], histories=histories(finished), cache_dir=tmp_path / "cache")
    assert found["recommended"] == before
    assert found["module"] == "transformers_modules"
    assert found["rqvae"]
    assert found["catalogue"] == found["attached"]
    fetched = [one.path for one in hub.asked if one.method == "GET" and "/resolve/" in one.path]
    assert all(hub.head(published["model"]) in path for path in fetched), "parts of one model come from one commit"
    assert found == puller("recommend", repo=published["model"], histories=histories(finished), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("file", ["item_ids.json", "item_codes.safetensors", "rqvae_config.json", "rqvae.safetensors", "model.safetensors"])
def test_a_model_comes_whole_or_not_at_all(
    published: dict[str, str], finished: Path, hub: LocalHub, puller: Clients, tmp_path: Path, file: str
) -> None:
    asked = {"repo": published["model"], "histories": [], "cache_dir": tmp_path / "cache", "tokenizer": False}
    with hub.failing(Fault("HEAD", f"/resolve/.*/{file}", status=403, times=None)), pytest.raises(ClientProblem):
        puller("recommend", **asked)
    assert puller("recommend", **asked)["rqvae"]


def test_a_model_that_changes_while_it_is_pulled_is_not_mixed(
    published: dict[str, str], finished: Path, repo: str, hub: LocalHub, publisher: Clients, puller: Clients, tmp_path: Path
) -> None:
    publisher("push_model", folder=finished / "model", repo=repo)
    first = hub.head(repo)

    def change() -> None:
        hub.repositories["model", repo].commit("main", {}, {"item_ids.json": regular_file(b"[]")}, [])

    asked = {"repo": repo, "histories": histories(finished), "cache_dir": tmp_path / "cache", "tokenizer": False}
    with hub.failing(Fault("HEAD", "/resolve/.*/model.safetensors", meanwhile=change)):
        assert puller("recommend", **asked)["recommended"] == recommended(finished / "model", finished)
    assert hub.head(repo) != first


def test_a_repeated_call_commits_nothing(published: dict[str, str], finished: Path, hub: LocalHub, publisher: Clients) -> None:
    heads = hub.head(published["model"]), hub.head(published["dataset"], "dataset")
    sent = hub.received("/upload/")
    ended = publisher("publish", arguments=[finished, "--repo", published["model"], "--dataset-repo", published["dataset"]])
    assert ended["output"].count("nothing to change since commit") == 2
    assert (hub.head(published["model"]), hub.head(published["dataset"], "dataset")) == heads
    assert hub.received("/upload/") == sent


def test_a_full_disk_here_is_an_error_and_nothing_is_published(finished: Path, hub: LocalHub, publisher: Clients) -> None:
    ended = publisher("publish", arguments=[finished, "--repo", "org/full", "--dataset-repo", "org/full-data"], largest=20_000)
    assert ended["status"] == 2
    (error,) = ended["errors"]
    assert "the disk is full; make room, or name a folder on another disk (TMPDIR: that of temporary files)" in error
    assert not {("model", "org/full"), ("dataset", "org/full-data")} & hub.repositories.keys()


def test_the_data_set_loads_with_pictures(published: dict[str, str], finished: Path, puller: Clients, tmp_path: Path) -> None:
    loaded = {
        config: puller("load_data", repo=published["dataset"], config=config, cache_dir=tmp_path / "cache")
        for config in ("interactions", "items", "splits")
    }
    statistics = json.loads((finished / "dataset" / "statistics.json").read_text())
    assert loaded["interactions"]["train"]["rows"] == statistics["interactions"]
    items = loaded["items"]["train"]
    assert items["rows"] == statistics["items"]
    assert items["first"]["image"] == {"picture": [48, 48]}
    assert items["features"]["image"].startswith("Image(")
    assert loaded["splits"].keys() == {"train", "validation", "test"}
    assert loaded["splits"]["test"]["first"].keys() == {"user_id", "history", "target"}


def test_a_branch_holds_another_model_and_main_keeps_the_first(
    published: dict[str, str], run: Path, finished: Path, hub: LocalHub, publisher: Clients, puller: Clients, tmp_path: Path
) -> None:
    model = CEMGForConditionalGeneration.from_pretrained(run / "model")
    for parameter in model.encoder.parameters():
        parameter.data.mul_(-1)
    model.save_pretrained(run / "model")
    head = hub.head(published["model"])
    publisher("api", method="create_tag", repo_id=published["model"], tag="v1")
    ended = publisher("publish", arguments=[run, "--repo", published["model"], "--revision", "second"])
    assert ended["status"] == 0, ended
    second = hub.head(published["model"], branch="second")
    assert hub.head(published["model"]) == head != second
    found = {
        revision: puller("recommend", repo=published["model"], histories=histories(run), cache_dir=tmp_path / "cache", revision=revision)
        for revision in ("main", "v1", "second", second)
    }
    here = {name: recommended(export_model(folder, tmp_path / name), run) for name, folder in (("first", finished), ("second", run))}
    assert found["main"]["recommended"] == found["v1"]["recommended"] == here["first"]
    assert found["second"]["recommended"] == found[second]["recommended"] == here["second"] != here["first"]


def test_without_item_texts_under_a_licence_that_forbids_them(
    run: Path, hub: LocalHub, publisher: Clients, puller: Clients, tmp_path: Path
) -> None:
    licensed(run / "dataset", "other")
    arguments = [run, "--repo", "org/closed", "--dataset-repo", "org/closed-data", "--private"]
    refused = publisher("publish", arguments=arguments)
    assert refused["status"] == 2
    assert "does not allow to pass on title, image" in refused["errors"][0]
    assert ("model", "org/closed") not in hub.repositories
    assert publisher("publish", arguments=[*arguments, "--no-item-texts"])["status"] == 0
    assert hub.repositories["model", "org/closed"].private
    assert hub.repositories["dataset", "org/closed-data"].private
    items = puller("load_data", repo="org/closed-data", config="items", cache_dir=tmp_path / "cache")["train"]
    assert items["features"] == {"item_id": "Value('string')"}


# ---- push_to_hub, and metrics as modules -------------------------------------------------------------------------------------


def test_push_to_hub_of_a_model_brings_its_tokenizer_and_code(
    finished: Path, hub: LocalHub, publisher: Clients, puller: Clients, tmp_path: Path
) -> None:
    publisher("push_model", folder=finished / "model", repo="org/pushed", private=True, commit_message="first")
    assert hub.commits("org/pushed") == ["first"]
    assert hub.repositories["model", "org/pushed"].private
    assert hub.files("org/pushed").keys() >= MODEL_FILES - {"recipe.yaml"}
    found = puller("recommend", repo="org/pushed", histories=histories(finished), cache_dir=tmp_path / "cache")
    assert found["recommended"] == recommended(finished / "model", finished)


def test_push_to_hub_of_a_tokenizer_to_a_branch(finished: Path, hub: LocalHub, publisher: Clients, puller: Clients, tmp_path: Path) -> None:
    publisher("push_tokenizer", folder=finished / "tokenizer", repo="org/codes", revision="draft")
    assert set(hub.files("org/codes", revision="main")) == set()
    assert {"item_ids.json", "rqvae.safetensors", "tokenization_cemg.py"} <= hub.files("org/codes", revision="draft").keys()
    history = histories(finished)[0]
    expected = CEMGForConditionalGeneration.from_pretrained(finished / "model").tokenizer(history)["input_ids"]
    assert puller("tokenize", repo="org/codes", history=history, revision="draft", cache_dir=tmp_path / "cache") == expected


def test_push_to_hub_of_a_pipeline_brings_the_model(
    finished: Path, hub: LocalHub, publisher: Clients, puller: Clients, tmp_path: Path
) -> None:
    publisher("push_pipeline", folder=finished / "model", repo="org/piped")
    assert len(hub.commits("org/piped")) == 1
    found = puller("pipe", repo="org/piped", histories=histories(finished), cache_dir=tmp_path / "cache")
    assert [[[one["item_id"], one["score"]] for one in row] for row in found] == recommended(finished / "model", finished)


@pytest.mark.parametrize("name", METRIC_MODULES)
def test_metrics_load_from_a_space(name: str, publisher: Clients) -> None:
    publisher("api", method="create_repo", repo_id=f"org/{name}", repo_type="space", space_sdk="gradio")
    source = Path(metric_path(name), f"{name}.py").read_text()
    publisher("add", repo=f"org/{name}", files={f"{name}.py": source}, repo_type="space")
    found = publisher("metric", repo=f"org/{name}", predictions=[["a", "b"], ["c", "d"]], references=["a", "x"], k=2)
    assert found == {f"{name.split('_')[0]}@2": 0.5}


def test_a_stranger_sees_nothing_private_and_may_not_publish(run: Path, hub: LocalHub, publisher: Clients, tmp_path: Path) -> None:
    publisher("push_tokenizer", folder=run / "tokenizer", repo="org/secret-codes", private=True)
    with pytest.raises(ClientProblem, match="RepositoryNotFoundError"):
        publisher("snapshot", repo="org/secret-codes", cache_dir=tmp_path / "cache", anonymous=True)
    ended = publisher("publish", arguments=[run, "--repo", "org/strange"], token=TOKEN + "x")
    assert ended["errors"] == ["error: org/strange: the Hub asks who you are; log in with `hf auth login`, or set HF_TOKEN"]
    assert ("model", "org/strange") not in hub.repositories
