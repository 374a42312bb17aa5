"""Code streams from features to rankings, on a made-up ring of items."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from shop_samples import ITEMS, walks, write_dataset
from tokenizer_samples import settings

from cemg_hf.artefacts import MANIFEST_NAME
from cemg_hf.data import PreparedDataset
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation.metrics import check_rankings, ranking_metrics
from cemg_hf.features.projection import Projection
from cemg_hf.features.store import FeatureStore, ModalityFeatures
from cemg_hf.hub.export import export_model
from cemg_hf.models.cemg import collision_rate
from cemg_hf.models.mscgrec import MSCGRecTokenizer
from cemg_hf.recipes import load_recipe, recipe_names
from cemg_hf.training.evaluate import EvaluateConfig, GeneratorRanker, evaluate, load_generator
from cemg_hf.training.finetune import FinetuneConfig, GeneratorConfig, build_generator, finetune
from cemg_hf.training.inspect import inspect_tokenizer
from cemg_hf.training.loading import open_tokenizer
from cemg_hf.training.loop import LoopConfig
from cemg_hf.training.new_items import add_encoded_items
from cemg_hf.training.objective import ObjectiveConfig
from cemg_hf.training.pipeline import run
from cemg_hf.training.rq_dino_codes import PictureCodes
from cemg_hf.training.sequential import SequentialConfig
from cemg_hf.training.stage_store import StageStore
from cemg_hf.training.streams import CODEBOOKS_NAME, REPORT_NAME, StreamsConfig, load_codebooks, stream_codes, tokenize_streams
from cemg_hf.training.tokenize import tokenize

NAMES = ("collaborative", "text", "image")
CODES = settings(dimension=8, codebook_size=6, hidden_dims=[], latent_dim=4, epochs=2, evaluation_interval=1, next_item={"epochs": 0})
SMALL = FinetuneConfig(
    generator=GeneratorConfig(
        d_model=32, d_kv=8, d_ff=64, num_heads=4, num_layers=1, num_decoder_layers=1, dropout_rate=0.0, max_history=5
    ),
    loop=LoopConfig(epochs=12, batch_size=32, learning_rate=0.01, eval_every=4),
    objective=ObjectiveConfig(constrained=True),
)


def modality(size: int, lacking: list[int], seed: int) -> ModalityFeatures:
    """Vectors that turn with the ring; of the items `lacking` there are none."""
    generator = np.random.default_rng(seed)
    angle = 2 * np.pi * np.arange(ITEMS) / ITEMS
    waves = np.stack([np.sin(angle), np.cos(angle), np.sin(2 * angle), np.cos(2 * angle)], axis=1)
    mask = ~np.isin(np.arange(ITEMS), lacking)
    vectors = (waves @ generator.normal(size=(4, size)) + 0.1 * generator.normal(size=(ITEMS, size))) * mask[:, None]
    projection = Projection(np.zeros(size, np.float32), np.eye(size, dtype=np.float32), np.ones((), np.float32))
    return ModalityFeatures(vectors.astype(np.float32), mask, projection, {"name": "made up"})


def features(names: tuple[str, ...] = NAMES) -> FeatureStore:
    lacking = {"collaborative": [ITEMS - 2, ITEMS - 1], "text": [4], "image": [1, 4, 8]}
    return FeatureStore(
        [f"i{item}" for item in range(ITEMS)], {name: modality(6 + len(name), lacking[name], seed) for seed, name in enumerate(names)}
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `dataset`, `features`, `tokenizer` and the trained `model`."""
    folder = tmp_path_factory.mktemp("streams")
    write_dataset(folder / "dataset", walks())
    features().save(folder / "features")
    tokenize_streams(StreamsConfig(), CODES, folder / "features", folder / "tokenizer", 0)
    finetune(SMALL, folder / "dataset", folder / "tokenizer", folder / "model", 0, StreamsConfig())
    return folder


@pytest.fixture(scope="module")
def data(shop: Path) -> PreparedDataset:
    return PreparedDataset.load(shop / "dataset")


# ---- codes ------------------------------------------------------------------------------------------------------------------------


def test_every_stream_has_a_code_of_its_own_for_every_item(shop: Path) -> None:
    tokenizer = open_tokenizer(shop / "tokenizer")
    assert isinstance(tokenizer, MSCGRecTokenizer)
    assert tokenizer.streams == list(NAMES)
    store = FeatureStore.load(shop / "features")
    for stream, name in enumerate(NAMES):
        assert len(torch.unique(tokenizer.stream_codes[:, stream], dim=0)) == ITEMS
        np.testing.assert_array_equal(tokenizer.stream_mask[:, stream].numpy(), store.modalities[name].mask)
    books = load_codebooks(shop / "tokenizer", ["image", "text"])
    assert books is not None
    assert [tuple(book.shape) for book in books] == [(3, 6, 4)] * 2
    assert load_codebooks(shop / "model", ["image"]) is None


def test_the_report_counts_items_that_share_the_codes_before_the_last_level(shop: Path) -> None:
    report = json.loads((shop / "tokenizer" / REPORT_NAME).read_text())
    assert set(report["streams"]) == set(NAMES)
    for name, about in report["streams"].items():
        store = FeatureStore.load(shop / "features").modalities[name]
        assert (about["present"], about["masked"]) == (int(store.mask.sum()), int((~store.mask).sum()))
        assert about["collision_rate_after"] == 0
        assert about["collision_rate_before"] <= about["collision_rate_before_last_level"] <= 1
        assert len(about["levels"]) == 3
    # Six codes per level for 30 items: some share two of them.
    assert any(about["collision_rate_before_last_level"] > 0 for about in report["streams"].values())


def test_items_without_a_modality_take_nothing_from_those_that_have_it() -> None:
    full = features().modalities["image"]
    codes, _, about = stream_codes("image", full, CODES, 0)
    only = torch.from_numpy(np.flatnonzero(full.mask))
    alone, _, also = stream_codes("image", replace(full, vectors=full.vectors[full.mask], mask=np.ones(len(only), dtype=bool)), CODES, 0)
    assert torch.equal(codes[only], alone)
    assert about["collision_rate_before"] == also["collision_rate_before"]
    assert collision_rate(codes) == 0


def test_only_what_decides_the_codes_makes_them_anew(shop: Path, tmp_path: Path) -> None:
    output, one = tmp_path / "tokenizer", StreamsConfig(modalities=["collaborative", "text"])
    tokenize(CODES, shop / "features", output, 0, None, one)
    before = (output / MANIFEST_NAME).stat().st_mtime_ns
    tokenize(CODES, shop / "features", output, 0, None, replace(one, decoded="text", dropout=0.5, dual_positions=False))
    assert (output / MANIFEST_NAME).stat().st_mtime_ns == before
    tokenize(CODES, shop / "features", output, 0, None, StreamsConfig())
    assert (output / MANIFEST_NAME).stat().st_mtime_ns != before
    assert (output / CODEBOOKS_NAME).is_file()


def test_a_modality_that_the_catalogue_lacks_is_no_stream(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features(("collaborative", "text")).save(tmp_path / "features")
    with caplog.at_level(logging.WARNING):
        tokenize_streams(StreamsConfig(), CODES, tmp_path / "features", tmp_path / "tokenizer", 0)
    assert "no item has image; there is no such stream" in caplog.text
    tokenizer = open_tokenizer(tmp_path / "tokenizer")
    assert isinstance(tokenizer, MSCGRecTokenizer)
    assert tokenizer.streams == ["collaborative", "text"]
    with pytest.raises(CEMGError, match=r"no image vectors, .* set streams.decoded to one of collaborative, text"):
        tokenize_streams(StreamsConfig(decoded="image"), CODES, tmp_path / "features", tmp_path / "other", 0)
    with pytest.raises(CEMGError, match=r"streams\.decoded: there is no stream 'image'; choose one of collaborative, text"):
        build_generator(SMALL.generator, tokenizer, StreamsConfig(decoded="image"))


def test_a_modality_that_is_masked_for_the_whole_catalogue_is_no_stream(tmp_path: Path) -> None:
    store = features()
    nothing = replace(store.modalities["image"], mask=np.zeros(ITEMS, dtype=bool))
    replace(store, modalities=dict(store.modalities) | {"image": nothing}).save(tmp_path / "features")
    tokenize_streams(StreamsConfig(), CODES, tmp_path / "features", tmp_path / "tokenizer", 0)
    tokenizer = open_tokenizer(tmp_path / "tokenizer")
    assert isinstance(tokenizer, MSCGRecTokenizer)
    assert tokenizer.streams == ["collaborative", "text"]
    with pytest.raises(CEMGError, match=r"no image vectors, .* set streams.decoded to one of collaborative, text"):
        tokenize_streams(StreamsConfig(decoded="image"), CODES, tmp_path / "features", tmp_path / "other", 0)


def test_streams_of_different_length_are_refused(shop: Path, tmp_path: Path) -> None:
    path = tmp_path / "features"
    features().save(path)
    arrays = load_file(path / "features.safetensors")
    save_file(arrays | {"text.vectors": arrays["text.vectors"][:-1].clone()}, path / "features.safetensors")
    with pytest.raises(CEMGError, match=f"{ITEMS - 1} text vectors for {ITEMS} item ids"):
        tokenize_streams(StreamsConfig(), CODES, path, tmp_path / "tokenizer", 0)
    copy = tmp_path / "copy"
    shutil.copytree(shop / "tokenizer", copy)
    books = load_file(copy / CODEBOOKS_NAME)
    save_file(books | {"text": books["text"][:-1].clone()}, copy / CODEBOOKS_NAME)
    with pytest.raises(CEMGError, match=r"these do not \(collaborative 3×6, text 2×6, image 3×6\)"):
        finetune(SMALL, shop / "dataset", copy, tmp_path / "model", 0, StreamsConfig())
    save_file({name: books[name] for name in ("collaborative", "image")}, copy / CODEBOOKS_NAME)
    with pytest.raises(CEMGError, match="no code vectors of text, only of collaborative, image"):
        finetune(SMALL, shop / "dataset", copy, tmp_path / "model", 0, StreamsConfig())
    features().save(path)
    (path / "item_ids.json").write_text(json.dumps([f"i{item}" for item in range(1, ITEMS + 1)]))
    tokenize_streams(StreamsConfig(), CODES, path, tmp_path / "tokenizer", 0)
    with pytest.raises(CEMGError, match="run `cemg tokenize` on this data set"):
        finetune(SMALL, shop / "dataset", tmp_path / "tokenizer", tmp_path / "model", 0, StreamsConfig())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"modalities": ["sound"]}, "name one or more of image, text, collaborative"),
        ({"modalities": []}, "name one or more"),
        ({"modalities": ["text"]}, "'collaborative' has no stream; choose one of text"),
        ({"decoded": "sound"}, "'sound' has no stream"),
        ({"dropout": 1.0}, "must lie in"),
        (
            {"modalities": ["collaborative"], "image_codes": "runs/rq-dino"},
            "codes of pictures, which have no stream; add image",
        ),
    ],
)
def test_settings_that_cannot_work(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(CEMGError, match=message):
        StreamsConfig(**wrong)  # type: ignore[arg-type]


def test_settings_of_other_tokenizers_are_refused(shop: Path, tmp_path: Path) -> None:
    for name, value in (("identifiers", 2), ("start_from", str(shop / "tokenizer"))):
        with pytest.raises(CEMGError, match=rf"tokenize\.{name}"):
            tokenize_streams(StreamsConfig(), replace(CODES, **{name: value}), shop / "features", tmp_path / "tokenizer", 0)  # type: ignore[arg-type]


# ---- training and rankings --------------------------------------------------------------------------------------------------------


def test_training_improves_on_the_untrained_model(shop: Path, data: PreparedDataset) -> None:
    model = load_generator(shop / "model", data)
    assert model.config.streams == list(NAMES)
    torch.manual_seed(0)
    untrained = build_generator(SMALL.generator, open_tokenizer(shop / "tokenizer"), StreamsConfig()).eval()
    cases = data.evaluation_cases("test")
    before, after = (
        ranking_metrics(GeneratorRanker(one)(cases, 10, exclude_history=True)[0], cases.targets, [10])["ndcg@10"]
        for one in (untrained, model)
    )
    assert before is not None
    assert after is not None
    assert after > max(2 * before, 0.5)


@pytest.mark.parametrize("dropped", [("text",), ("collaborative",), ("text", "image")])
def test_histories_without_a_stream_are_ranked_too(shop: Path, data: PreparedDataset, dropped: tuple[str, ...]) -> None:
    model, cases = load_generator(shop / "model", data), data.evaluation_cases("test")
    whole, _ = GeneratorRanker(model)(cases, 10, exclude_history=True)
    ranked, scores = GeneratorRanker(model, without_streams=dropped)(cases, 10, exclude_history=True)
    check_rankings(ranked, ITEMS)
    assert np.isfinite(scores).all()
    assert (ranked != whole).any()
    found = ranking_metrics(ranked, cases.targets, [10])["ndcg@10"]
    assert found is not None
    assert found > 0.3  # what is left of the history still tells the place in the ring


def test_evaluation_without_a_stream_is_another_evaluation(shop: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(num_beams=20, resamples=10)
    for without in ((), ("image",)):
        evaluate(config, shop / "dataset", shop / "model", tmp_path / "evaluation", without_streams=without)
        settings_used = json.loads((tmp_path / "evaluation" / MANIFEST_NAME).read_text())["settings"]
        assert settings_used.get("without_streams", []) == list(without)
    with pytest.raises(CEMGError, match="without_streams: there is no stream 'sound'"):
        evaluate(config, shop / "dataset", shop / "model", tmp_path / "other", without_streams=["sound"])


def test_any_stream_may_be_written(shop: Path, tmp_path: Path, data: PreparedDataset) -> None:
    quick = replace(SMALL, loop=replace(SMALL.loop, epochs=1, eval_every=1))
    finetune(quick, shop / "dataset", shop / "tokenizer", tmp_path / "model", 0, StreamsConfig(decoded="image"))
    model, coded = load_generator(tmp_path / "model", data), open_tokenizer(shop / "tokenizer")
    assert isinstance(coded, MSCGRecTokenizer)
    assert model.config.streams == ["image", "collaborative", "text"]
    assert model.tokenizer is not None
    assert torch.equal(model.tokenizer.item_codes, coded.stream_codes[:, 2])
    assert len(model.recommend(["i4"], k=ITEMS)) == ITEMS  # item 4 has neither text nor image


def test_recipe_and_tokenizer_have_to_agree_on_streams(shop: Path, tmp_path: Path) -> None:
    for name, streams, message in (
        ("tokenizer", None, "code streams, the recipe has none"),
        ("plain", StreamsConfig(), "one code per item"),
    ):
        if name == "plain":
            tokenize(CODES, shop / "features", tmp_path / name, 0)
            (tmp_path / name).rename(tmp_path / "tokenizer")
        tokenizer = (shop if name == "tokenizer" else tmp_path) / "tokenizer"
        with pytest.raises(CEMGError, match=message):
            finetune(SMALL, shop / "dataset", tokenizer, tmp_path / "model", 0, streams)


def test_a_model_without_streams_has_none_to_leave_out(shop: Path, tmp_path: Path, data: PreparedDataset) -> None:
    tokenize(CODES, shop / "features", tmp_path / "tokenizer", 0)
    model = build_generator(SMALL.generator, open_tokenizer(tmp_path / "tokenizer")).eval()
    with pytest.raises(CEMGError, match="without_streams: text cannot be left out"):
        GeneratorRanker(model, without_streams=("text",))(data.evaluation_cases("test"), 10, exclude_history=True)


# ---- new items and a dense tower ---------------------------------------------------------------------------------------------------


def new_items(count: int, lacking: dict[str, list[int]], seed: int = 3) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Raw vectors and masks of items that lie on the ring."""
    encoded = {}
    for stream, name in enumerate(("text", "image"), start=1):
        known = modality(6 + len(name), [], stream)
        mask = ~np.isin(np.arange(count), lacking.get(name, []))
        encoded[name] = (known.vectors[seed : seed + count] + 0.01, mask)
    return encoded


@pytest.mark.parametrize(("decoded", "added"), [("collaborative", ["a", "b", "c"]), ("text", ["a", "c"])])
def test_new_items_come_in_by_their_content_and_are_found(
    shop: Path, data: PreparedDataset, decoded: str, added: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    coded = open_tokenizer(shop / "tokenizer")
    assert isinstance(coded, MSCGRecTokenizer)
    tokenizer = coded.with_layout(base_vocab_size=2, max_history=5, decoded=decoded)
    with caplog.at_level(logging.WARNING):
        found = add_encoded_items(tokenizer, ["a", "b", "c", "d"], new_items(4, {"text": [1, 3], "image": [2, 3]}), "predicted")
    assert tokenizer.item_ids[ITEMS:] == added
    assert len(found.item_codes) == len(added)
    assert f"{4 - len(added)} new items have no content" in caplog.text
    assert torch.equal(tokenizer.stream_codes[:ITEMS, 0], tokenizer.item_codes[:ITEMS])
    if decoded == "collaborative":
        model = load_generator(shop / "model", data)
        assert model.tokenizer is not None
        add_encoded_items(model.tokenizer, ["a"], new_items(1, {}), "predicted")
        (first, *_) = model.recommend(["i0", "i1", "i2"], k=5, new_item_boost=100.0)
        assert first.item_id == "a"
        assert torch.equal(model.tokenizer.item_codes[ITEMS], found.item_codes[0])  # the model folder holds the same networks


def test_the_head_is_trained_on_the_catalogue_and_reported(shop: Path, tmp_path: Path) -> None:
    report = json.loads((shop / "tokenizer" / REPORT_NAME).read_text())["content_head"]
    assert report["items"] == ITEMS - 3  # two have no collaborative vector, one neither a text nor a picture
    assert report["cosine"] > 0.5
    tokenize_streams(StreamsConfig(), replace(CODES, content_head_dim=0), shop / "features", tmp_path / "tokenizer", 0)
    headless = open_tokenizer(tmp_path / "tokenizer")
    assert torch.equal(headless.stream_codes, open_tokenizer(shop / "tokenizer").stream_codes)  # type: ignore[attr-defined]
    with pytest.raises(CEMGError, match=r"cannot be added: new items have nothing for the collaborative codes; .*content_head_dim above 0"):
        add_encoded_items(headless, ["a"], new_items(1, {}), "predicted")
    with pytest.raises(CEMGError, match="collaborative='predicted'"):
        add_encoded_items(open_tokenizer(shop / "tokenizer"), ["a"], new_items(1, {}), "masked")


def test_a_dense_tower_stands_beside_streams(shop: Path, tmp_path: Path, data: PreparedDataset) -> None:
    tower = SequentialConfig(
        settings={"hidden_size": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0},
        loop=LoopConfig(epochs=4, batch_size=32, learning_rate=0.01, eval_every=4),
    )
    taught = replace(SMALL.objective, teacher_weight=0.5)
    config = replace(SMALL, dense=tower, objective=taught, loop=replace(SMALL.loop, epochs=4))
    finetune(config, shop / "dataset", shop / "tokenizer", tmp_path / "model", 0, StreamsConfig())
    model, cases = load_generator(tmp_path / "model", data), data.evaluation_cases("test")
    report = json.loads((tmp_path / "model" / "training_report.json").read_text())
    by_weight = {float(weight): found["ndcg@10"] for weight, found in report["dense_weights"].items()}
    assert by_weight[model.config.dense_weight] == max(by_weight.values())
    ranked, scores = GeneratorRanker(model, dense_weight=0.5)(cases, 10, exclude_history=True)
    check_rankings(ranked, ITEMS)
    for row in range(5):
        history = [data.item_ids[item] for item in cases.histories.to_lists()[row]]
        found = model.recommend(history, k=10, num_beams=50, dense_weight=0.5, exclude_history=True)
        assert [data.item_ids[item] for item in ranked[row]] == [item.item_id for item in found]
        assert scores[row].tolist() == pytest.approx([item.score for item in found], abs=1e-4)
    with_content = replace(config, dense=replace(tower, content=True))
    with pytest.raises(CEMGError, match=r"code streams come without content vectors; set .*content to false"):
        finetune(with_content, shop / "dataset", shop / "tokenizer", tmp_path / "other", 0, StreamsConfig())


# ---- recipe -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_the_recipe_lies_over_any_data_recipe(name: str, tmp_path: Path) -> None:
    recipe, plain = load_recipe(name, system="mscgrec"), load_recipe(name)
    assert recipe.streams == StreamsConfig()
    assert recipe.finetune.objective.constrained
    assert recipe.tokenize.codebook_size == plain.tokenize.codebook_size
    assert recipe.encode.sequential is not None
    keys = [StageStore.of(one, tmp_path).keys for one in (recipe, replace(recipe, streams=None))]
    assert keys[0]["tokenize"] != keys[1]["tokenize"]
    assert keys[0]["encode"] == keys[1]["encode"]
    written = replace(recipe.streams, decoded="text", dropout=0.0)
    assert StageStore.of(replace(recipe, streams=written), tmp_path).keys == keys[0]


def test_it_runs_to_its_metrics_and_is_exported(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{item}", step) for user, row in enumerate(walks()) for step, item in enumerate(row)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "interactions.csv")
    own = {"prepare.interactions": str(tmp_path / "interactions.csv"), "prepare.items": None, "prepare.images": None}
    quick = [
        "prepare={min_interactions: 0}",
        "encode.sequential.loop.epochs=1",
        "encode.sequential.settings.hidden_size=16",
        "tokenize={dimension: 16, codebook_size: 4, latent_dim: 4, epochs: 1, hidden_dims: []}",
        "finetune.generator={d_model: 16, d_kv: 8, d_ff: 16, num_heads: 2, num_layers: 1, num_decoder_layers: 1}",
        "finetune.loop.epochs=1",
        "evaluate={num_beams: 20, resamples: 10}",
    ]
    recipe = load_recipe("own-data", quick, own, "mscgrec")
    result = run(recipe, tmp_path / "run", command="cemg run")
    assert set(result["metrics"]) == {"mscgrec", "popularity"}
    assert list(result["tokenizer"]["streams"]) == ["collaborative"]  # items have neither texts nor pictures here
    export_model(tmp_path / "run", tmp_path / "hub", dtype="float32")
    model = load_generator(tmp_path / "hub", PreparedDataset.load(tmp_path / "run" / "dataset"))
    assert model.config.streams == ["collaborative"]
    assert "auto_map" not in json.loads((tmp_path / "hub" / "config.json").read_text())
    assert not list((tmp_path / "hub").glob("*.py"))
    assert "import cemg_hf" in (tmp_path / "hub" / "README.md").read_text()


def picture_codes(levels: int = 3, size: int = 6) -> PictureCodes:
    """Codes of pictures of all items but two, in an order of their own, and of one that the catalogue does not know."""
    torch.manual_seed(5)
    ids = ["stranger", *(f"i{item}" for item in reversed(range(ITEMS)) if item not in (2, 7))]
    codebooks = torch.randn(levels, size, 3)
    codes = torch.randint(size, (len(ids), levels))
    latent = sum(book[column] for book, column in zip(codebooks, codes.T, strict=True)) + 0.01 * torch.randn(len(ids), 3)
    return PictureCodes(ids, codes, latent, torch.ones(len(ids), dtype=torch.bool), codebooks)


@pytest.mark.parametrize("names", [NAMES, ("collaborative", "text")])
def test_picture_codes_take_the_place_of_the_image_quantiser(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Also where the features hold no image vectors."""
    features(names).save(tmp_path / "features")
    coded = picture_codes()
    (tmp_path / "pictures").mkdir()
    coded.save(tmp_path / "pictures")
    streams = StreamsConfig(image_codes=str(tmp_path / "pictures"))
    folder = tokenize_streams(streams, CODES, tmp_path / "features", tmp_path / "tokenizer", 0)
    tokenizer = MSCGRecTokenizer.from_pretrained(folder)
    assert tokenizer.streams == list(NAMES)
    image = tokenizer.stream_codes[:, 2]
    assert tokenizer.stream_mask[:, 2].logical_not().nonzero().ravel().tolist() == [2, 7]
    assert len(image.unique(dim=0)) == ITEMS
    wanted = coded.of_items(tokenizer.item_ids)
    first = (wanted.codes[:, :-1] == image[:, :-1]).all(1)[wanted.mask]
    assert first.double().mean() > 0.9, "codes moved although their branches have room"
    report = json.loads((folder / REPORT_NAME).read_text())["streams"]["image"]
    assert (report["source"], report["present"], report["masked"]) == ("rq-dino", ITEMS - 2, 2)
    torch.testing.assert_close(load_codebooks(folder, ["image"])[0], coded.codebooks)  # type: ignore[index]
    before = (folder / MANIFEST_NAME).read_text()
    assert tokenize_streams(streams, CODES, tmp_path / "features", folder, 0) == folder
    assert (folder / MANIFEST_NAME).read_text() == before
    replace(coded, codes=coded.codes.flip(0)).save(tmp_path / "pictures")
    tokenize_streams(streams, CODES, tmp_path / "features", folder, 0)
    assert (folder / MANIFEST_NAME).read_text() != before, "other picture codes, the same tokenizer"


def test_picture_codes_of_another_shape_or_place_are_refused(tmp_path: Path) -> None:
    features().save(tmp_path / "features")
    place = tmp_path / "pictures"
    with pytest.raises(CEMGError, match=r"codes\.safetensors is missing; give a folder written by `cemg rq-dino`"):
        tokenize_streams(StreamsConfig(image_codes=str(place)), CODES, tmp_path / "features", tmp_path / "tokenizer", 0)
    place.mkdir()
    picture_codes(levels=4).save(place)
    with pytest.raises(CEMGError, match=r"has 4 levels of 6 codes, tokenize 3 of 6"):
        tokenize_streams(StreamsConfig(image_codes=str(place)), CODES, tmp_path / "features", tmp_path / "tokenizer", 0)


def test_a_model_of_picture_codes_is_trained_and_inspected_and_refuses_new_items(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    picture_codes().save(tmp_path / "pictures")
    streams = StreamsConfig(image_codes=str(tmp_path / "pictures"), decoded="image")
    output = tokenize_streams(streams, CODES, shop / "features", tmp_path / "tokenizer", 0)
    quick = replace(SMALL, loop=replace(SMALL.loop, epochs=1, eval_every=1))
    finetune(quick, shop / "dataset", output, tmp_path / "model", 0, streams)
    model = load_generator(tmp_path / "model", PreparedDataset.load(shop / "dataset"))
    assert model.config.streams == ["image", "collaborative", "text"]
    assert len(model.recommend(["i4"], k=ITEMS)) == ITEMS
    assert model.tokenizer is not None
    for closed in (model.tokenizer, open_tokenizer(output)):
        with pytest.raises(CEMGError, match=r"cannot be added: this tokenizer holds no networks .* without streams\.image_codes"):
            add_encoded_items(closed, ["a"], new_items(1, {}), "predicted")
    assert inspect_tokenizer(output, output=tmp_path / "inspection")["metrics"]["tokenizer"]["items"] == ITEMS
    # Pictures may lie elsewhere when training is asked for again: the tokenizer is what counts.
    trained = (tmp_path / "model" / MANIFEST_NAME).stat().st_mtime_ns
    finetune(quick, shop / "dataset", output, tmp_path / "model", 0, replace(streams, image_codes=str(tmp_path / "moved")))
    assert (tmp_path / "model" / MANIFEST_NAME).stat().st_mtime_ns == trained
