"""The cold-start protocol: items whose every interaction is held out of training come in through `add_items` and are recommended.

Items are drawn, and a dataset folder is written in which neither they nor any interaction with them exist. Encoders, tokenizer and
generator of a recipe are trained on that folder. The held-out items are then encoded by the run's own encoders and added to the
catalogue, and everyone is ranked on the test cases of the *original* data set: those whose target is a held-out item ("unseen") show
whether new items are found, the others ("seen") what that costs. The boost of new items is chosen on the validation cases.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ..artefacts import result_envelope, write_json
from ..data import PreparedDataset, Ragged
from ..data.prepare import prepare
from ..data.splits import EvaluationSplit
from ..errors import CEMGError
from ..evaluation import bootstrap_interval, check_rankings, hit_ranks, paired_bootstrap
from ..evaluation.content_knn import ContentKNNRecommender
from ..features.items import encode_items
from ..features.store import FeatureStore
from ..features.text import TFIDF
from ..models.cemg import CEMGForConditionalGeneration
from ..models.cemg.generation_cemg import merge_rankings
from .encode import encode
from .evaluate import load_generator
from .finetune import finetune
from .hold_out import HELD_OUT_FILE, hold_out_items
from .new_items import add_encoded_items
from .ranking import rank_histories, rank_histories_separately
from .tokenize import tokenize

if TYPE_CHECKING:
    from ..recipes import Recipe

logger = logging.getLogger(__name__)

RESULT_NAME = "cold_start.json"
PLOT_NAME = "cold_start.png"
COLLABORATIVE_MODES = ("predicted", "masked")
SPLITS: tuple[EvaluationSplit, ...] = ("validation", "test")
BEFORE, ADDED = "before adding", "after adding"
KNN, KNN_NEW = "content-kNN", "content-kNN, new items only"


@dataclass
class ColdStartConfig:
    """What is held out, which settings of the decoder are tried, and how lists are made and measured."""

    share: float = field(default=0.05, metadata={"help": "Share of the catalogue whose items are held out of training."})
    seed: int = field(default=42, metadata={"help": "Seed of the draw of held-out items."})
    ks: list[int] = field(default_factory=lambda: [10, 50], metadata={"help": "Cut-offs of recall; choices look at the first."})
    boosts: list[float] = field(
        default_factory=lambda: [-20.0, -15.0, -12.0, -10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0],
        metadata={"help": "Values of `recommend(new_item_boost=…)` to try, besides none."},
    )
    dense: list[float] = field(default_factory=lambda: [0.0, 10.0, 20.0], metadata={"help": "Values of `new_item_dense` to try."})
    likelihood: list[float] = field(default_factory=lambda: [1.0, 0.3], metadata={"help": "Values of `new_item_likelihood` to try."})
    collaborative: list[str] = field(
        default_factory=lambda: ["predicted", "masked"],
        metadata={"help": "What `add_items` does about e^c of the new items; each is tried."},
    )
    half_lives: list[float] = field(
        default_factory=lambda: [1.0, 3.0, 10.0],
        metadata={"help": "Half-lives (in items) of the content-kNN baseline, chosen on validation."},
    )
    tolerance: float = field(
        default=0.05, metadata={"help": "Share of the seen targets' validation recall that the chosen settings may lose at most."}
    )
    num_beams: int = field(default=50, metadata={"help": "Beams of each search; at least the largest cut-off."})
    exclude_history: bool = field(
        default=True, metadata={"help": "Rank items outside the history only; content-kNN makes no sense otherwise."}
    )
    batch_size: int = field(default=128, metadata={"help": "Users per forward pass."})

    def check(self) -> None:
        """Raise CEMGError for a setting that cannot work."""
        for name in ("ks", "boosts", "dense", "likelihood", "collaborative", "half_lives"):
            if not getattr(self, name):
                raise CEMGError(f"{name}: is empty; give at least one value")
        if self.num_beams < max(self.ks):
            raise CEMGError(f"num_beams = {self.num_beams}: cannot fill lists of {max(self.ks)}; use at least as many beams as max(ks)")
        unknown = sorted(set(self.collaborative) - set(COLLABORATIVE_MODES))
        if unknown:
            raise CEMGError(f"collaborative = {unknown[0]!r}: choose among {', '.join(COLLABORATIVE_MODES)}")
        if not 0 <= self.tolerance <= 1:
            raise CEMGError(f"tolerance = {self.tolerance}: give a share, 0 … 1")


def run_cold_start(recipe: Recipe, output: str | Path, config: ColdStartConfig | None = None, command: str = "") -> dict[str, Any]:
    """Train a recipe without the held-out items, add them, measure; what is up to date is skipped, what was killed resumes.

    Args:
        recipe: the experiment; its `evaluate` section is not used.
        output: folder; afterwards it holds `original/` (the data set), `dataset/` (without the held-out items), `features/`,
            `tokenizer/`, `model/`, `cold_start.json` and `cold_start.png`.
        config: settings of the protocol (default: `ColdStartConfig()`).
        command: recorded in `cold_start.json`.

    Returns: the content of `cold_start.json`; see `measure_cold_start` for its `metrics`.

    Raises:
        CEMGError: a recipe of another system than CEMG with one code per item, settings that cannot work, or as the stages.
    """
    config = ColdStartConfig() if config is None else config
    config.check()
    if recipe.family != "cemg" or recipe.streams is not None:
        raise CEMGError(
            f"{recipe.name}, system {recipe.system}: cold start is measured of CEMG, whose items have one code each; take a recipe "
            "of the family cemg without `streams`"
        )
    started = time.perf_counter()
    run = Path(output)
    original, dataset, features, tokenizer, model = (run / name for name in ("original", "dataset", "features", "tokenizer", "model"))
    prepare(recipe.prepare, original, recipe.seed)
    hold_out_items(original, dataset, config.share, config.seed, recipe.encode.modalities)
    world = _World.load(original, run)
    for split in SPLITS:  # before hours of training, not after
        unseen = world.is_new[world.data.evaluation_cases(split).targets]
        if not unseen.any() or unseen.all():
            raise CEMGError(f"share = {config.share}: {unseen.sum()} of {len(unseen)} {split} targets are unseen; choose another share")
    encode(recipe.encode, dataset, features, recipe.seed)
    tokenize(recipe.tokenize, features, tokenizer, recipe.seed, dataset)
    finetune(recipe.finetune, dataset, tokenizer, model, recipe.seed)
    text, image = recipe.encode.text.encoder, recipe.encode.image
    image_source = image.encoder if image.is_folder else image.weights
    metrics = measure_cold_start(original, run, config, text_source=None if text == TFIDF else text, image_source=image_source)
    envelope = result_envelope(
        metrics,
        command=command,
        seeds=[recipe.seed],
        seconds=time.perf_counter() - started,
        settings=asdict(config),
        recipe=recipe.name,
    )
    write_json(run / RESULT_NAME, envelope)
    plot_cold_start(metrics, run / PLOT_NAME, title=f"Cold start on {recipe.name}: {metrics['held_out_items']} items never trained on")
    logger.info("cold start: %s", metrics["price"])
    return envelope


def measure_cold_start(
    original: str | Path, run: str | Path, config: ColdStartConfig, *, text_source: str | None = None, image_source: str | None = None
) -> dict[str, Any]:
    """Add the held-out items to a trained run and rank everyone, before and after.

    Args:
        original: the data set with all items.
        run: folder with `dataset/` (by `hold_out_items`), `features/` and `model/`.
        config: settings.
        text_source, image_source: as for `encode_items`, where encoders lie elsewhere than their descriptions say.

    Returns:
        "held_out_items"; "validation" and "test": a list of rows, each a system with its settings and, for the cases with "seen" and
        "unseen" targets, recall@k with a bootstrap interval and n; "chosen": per treatment of e^c the settings chosen on validation
        and the paired difference of seen recall on test; "best": the treatment with the higher validation recall on unseen targets;
        "price": one sentence about it. In histories, held-out items are skipped before they are added and included afterwards.
    """
    run = Path(run)
    world = _World.load(Path(original), run)
    encoded = encode_items(world.new_items, run / "features", base=original, text_source=text_source, image_source=image_source)
    hits: dict[str, list[_Row]] = {}
    generator = load_generator(run / "model", world.reduced)
    for split in SPLITS:
        cases = world.data.evaluation_cases(split)
        histories = world.to_catalogue(cases.histories, generator)
        ranked, _ = rank_histories(
            generator, histories, config.num_beams, dense_weight=0, progress=f"{split}, before adding", **_options(config)
        )
        hits[split] = [_Row({"system": BEFORE}, world.hits(world.to_original(ranked, generator), cases.targets, config.ks))]
    for mode in _modes(generator, config):
        generator = load_generator(run / "model", world.reduced)
        assert generator.tokenizer is not None
        add_encoded_items(generator.tokenizer, world.new_items["item_id"].to_list(), encoded, mode)
        for split in SPLITS:
            hits[split] += _rank_added(generator, world, split, mode, config)
    blocks = _content_vectors(world, run / "features", encoded)
    for split in SPLITS:
        hits[split] += _rank_by_content(blocks, world, split, config)
    return _report(hits, world, config)


@dataclass(frozen=True)
class _Row:
    """One system with its settings, and per cut-off whether it found the target of each case, (cases,) bool."""

    settings: dict[str, Any]
    hits: dict[int, np.ndarray]


@dataclass(frozen=True)
class _World:
    """The data set with all items, the one without the held-out ones, and which items those are."""

    data: PreparedDataset
    reduced: PreparedDataset
    is_new: np.ndarray
    new_items: pl.DataFrame

    @classmethod
    def load(cls, original: Path, run: Path) -> _World:
        data, reduced = PreparedDataset.load(original), PreparedDataset.load(run / "dataset")
        if not (run / "dataset" / HELD_OUT_FILE).is_file():
            raise CEMGError(f"{run / 'dataset'}: not written by hold_out_items ({HELD_OUT_FILE} missing); run `cemg cold-start`")
        held = json.loads((run / "dataset" / HELD_OUT_FILE).read_text(encoding="utf-8"))
        is_new = pl.Series(data.item_ids).is_in(held).to_numpy()
        if [data.item_ids[item] for item in np.flatnonzero(~is_new)] != reduced.item_ids:
            raise CEMGError(f"{run / 'dataset'}: was not made from {original}; run `cemg cold-start` with one recipe per folder")
        return cls(data, reduced, is_new, data.items_table().filter(pl.Series(is_new)))

    def to_catalogue(self, histories: Ragged, generator: CEMGForConditionalGeneration) -> Ragged:
        """Histories in the indices of the generator's catalogue, items that it does not hold skipped."""
        rows = self._rows_in_catalogue(generator)[histories.values]
        return Ragged.from_lengths(rows[rows >= 0], np.bincount(histories.rows[rows >= 0], minlength=len(histories)))

    def to_original(self, ranked: np.ndarray, generator: CEMGForConditionalGeneration) -> np.ndarray:
        """Rankings of the generator's catalogue in the original data set's indices."""
        rows = self._rows_in_catalogue(generator)
        back = np.full(rows.max() + 2, -1)  # the last entry is what −1 points at
        back[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        return back[ranked]

    def _rows_in_catalogue(self, generator: CEMGForConditionalGeneration) -> np.ndarray:
        """(N,) row of each of the original data set's items in the generator's catalogue, −1 where it is not there."""
        assert generator.tokenizer is not None
        ids = generator.tokenizer.item_ids
        return pl.Series(self.data.item_ids).replace_strict(ids, range(len(ids)), default=-1, return_dtype=pl.Int64).to_numpy()

    def hits(self, ranked: np.ndarray, targets: np.ndarray, ks: Sequence[int]) -> dict[int, np.ndarray]:
        check_rankings(ranked, len(self.is_new))
        ranks = hit_ranks(ranked, targets).numpy()
        return {k: ranks < k for k in ks}


def _options(config: ColdStartConfig) -> dict[str, Any]:
    return {"num_beams": config.num_beams, "exclude_history": config.exclude_history, "batch_size": config.batch_size}


def _modes(generator: CEMGForConditionalGeneration, config: ColdStartConfig) -> list[str]:
    """The treatments of e^c that this run's tokenizer can give."""
    assert generator.tokenizer is not None
    rqvae = generator.tokenizer.rqvae
    if rqvae is None or rqvae.content_head is not None:
        return list(dict.fromkeys(config.collaborative))
    logger.info("cold start: the tokenizer has no head that predicts e^c from content; new items are added with e^c masked only")
    return ["masked"]


def _rank_added(
    generator: CEMGForConditionalGeneration, world: _World, split: EvaluationSplit, mode: str, config: ColdStartConfig
) -> list[_Row]:
    """A row without own beams for new items, and one for every way to score them and boost."""
    cases = world.data.evaluation_cases(split)
    histories = world.to_catalogue(cases.histories, generator)

    def row(ranked: np.ndarray, **settings: float | None) -> _Row:
        hits = world.hits(world.to_original(ranked, generator), cases.targets, config.ks)
        return _Row({"system": ADDED, "collaborative": mode, **settings}, hits)

    label = f"{split}, e^c {mode}"
    ranked, _ = rank_histories(generator, histories, config.num_beams, dense_weight=0, progress=label, **_options(config))
    rows = [row(ranked, boost=None, dense=0.0, likelihood=1.0)]
    weights = list(product(config.dense, config.likelihood))
    rankings = rank_histories_separately(generator, histories, weights=weights, progress=label, **_options(config))
    for (dense, likelihood), found in zip(weights, rankings, strict=True):
        for boost in config.boosts:
            items, _ = merge_rankings(*found, boost, config.num_beams)
            rows.append(row(items.numpy(), boost=boost, dense=dense, likelihood=likelihood))
    return rows


def _content_vectors(
    world: _World, features: Path, encoded: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Projected vectors and masks of all items of the original data set, per content modality: the run's own, and the new items'."""
    store = FeatureStore.load(features)
    blocks, masks = [], []
    for name, (raw, given) in encoded.items():
        modality = store.modalities[name]
        block = np.zeros((len(world.is_new), modality.dimension), dtype=np.float32)
        mask = np.zeros(len(world.is_new), dtype=bool)
        block[~world.is_new], mask[~world.is_new] = modality.vectors, modality.mask
        block[world.is_new], mask[world.is_new] = modality.projection.transform(raw, given), given
        blocks.append(block)
        masks.append(mask)
    return blocks, masks


def _rank_by_content(
    content: tuple[list[np.ndarray], list[np.ndarray]], world: _World, split: EvaluationSplit, config: ColdStartConfig
) -> list[_Row]:
    """Content-kNN over the whole catalogue and, as an upper reference, over the new items alone, for every half-life."""
    cases = world.data.evaluation_cases(split)
    rows = []
    for half_life in config.half_lives:
        nearest = ContentKNNRecommender(*content, half_life=half_life)
        for system, candidates in ((KNN, None), (KNN_NEW, world.is_new)):
            ranked = nearest.rank(cases.histories, max(config.ks), candidates=candidates, exclude_history=config.exclude_history)
            rows.append(_Row({"system": system, "half_life": half_life}, world.hits(ranked, cases.targets, config.ks)))
    return rows


def _report(hits: Mapping[str, list[_Row]], world: _World, config: ColdStartConfig) -> dict[str, Any]:
    """Rows with intervals, the choice on validation and its price on test; see `measure_cold_start`."""
    unseen = {split: world.is_new[world.data.evaluation_cases(split).targets] for split in SPLITS}

    def recall(split: str, row: int, k: int, part: np.ndarray) -> float:
        return float(hits[split][row].hits[k][part].mean())

    def on_validation(row: int) -> tuple[float, ...]:
        return tuple(recall("validation", row, k, unseen["validation"]) for k in config.ks)

    def select(**settings: Any) -> list[int]:
        return [n for n, row in enumerate(hits["validation"]) if settings.items() <= row.settings.items()]

    k = config.ks[0]
    floor = (1 - config.tolerance) * recall("validation", 0, k, ~unseen["validation"])
    chosen: dict[str, Any] = {}
    for mode in dict.fromkeys(row.settings["collaborative"] for row in hits["validation"] if "collaborative" in row.settings):
        rows = select(system=ADDED, collaborative=mode)
        affordable = [row for row in rows if recall("validation", row, k, ~unseen["validation"]) >= floor] or rows[:1]
        best = max(affordable, key=on_validation)  # of equals the first: the smaller boost
        after, before = hits["test"][best].hits[k], hits["test"][0].hits[k]
        chosen[mode] = {
            "row": best,
            "settings": {key: value for key, value in hits["test"][best].settings.items() if key in ("boost", "dense", "likelihood")},
            "validation_unseen": dict(zip(_names(config), on_validation(best), strict=True)),
            f"seen_recall@{k}_after_minus_before": asdict(
                paired_bootstrap(*(part[~unseen["test"]].astype(float) for part in (after, before)))
            ),
        }
    half_life = max(select(system=KNN), key=lambda row: float(hits["validation"][row].hits[config.ks[-1]].mean()))
    best_mode = max(chosen, key=lambda mode: tuple(chosen[mode]["validation_unseen"].values()))
    best = chosen[best_mode]["row"]
    seen = [recall("test", row, k, ~unseen["test"]) for row in (0, best)]
    lost = 0.0 if seen[0] == 0 else 100 * (1 - seen[1] / seen[0])
    options = ", ".join(f"{key} {value}" for key, value in chosen[best_mode]["settings"].items())
    price = (
        f"e^c {best_mode}, {options}: recall@{k} on {int(unseen['test'].sum())} unseen targets {recall('test', 0, k, unseen['test']):.4f} "
        f"→ {recall('test', best, k, unseen['test']):.4f}, on {int((~unseen['test']).sum())} seen targets {seen[0]:.4f} → {seen[1]:.4f} "
        f"({lost:+.1f} % lost)"
    )
    return {
        "held_out_items": int(world.is_new.sum()),
        "items": len(world.is_new),
        "chance_among_new": {name: min(1.0, k / int(world.is_new.sum())) for name, k in zip(_names(config), config.ks, strict=True)},
        **{split: [_measured(row, unseen[split]) for row in hits[split]] for split in SPLITS},
        "chosen": chosen,
        "best": best_mode,
        "knn_half_life": hits["validation"][half_life].settings["half_life"],
        "price": price,
    }


def _names(config: ColdStartConfig) -> list[str]:
    return [f"recall@{k}" for k in config.ks]


def _measured(row: _Row, unseen: np.ndarray) -> dict[str, Any]:
    parts = {"unseen": unseen, "seen": ~unseen}
    intervals = {
        name: {f"recall@{k}": asdict(bootstrap_interval(hits[part].astype(float))) for k, hits in row.hits.items()} | {"n": int(part.sum())}
        for name, part in parts.items()
    }
    return row.settings | intervals


def format_cold_start(envelope: Mapping[str, Any]) -> str:
    """The rows that matter of `run_cold_start`'s result, test cases, as a Markdown table, and the price in a sentence."""
    metrics = envelope["metrics"]
    names = list(metrics["chance_among_new"])
    rows = metrics["test"]
    shown = {"CEMG before adding": rows[0]}
    for mode, choice in metrics["chosen"].items():
        plain = next(row for row in rows if row.get("collaborative") == mode and row["boost"] is None)
        shown[f"added, e^c {mode}, shared beams"] = plain
        options = ", ".join(f"{key} {value:g}" for key, value in choice["settings"].items() if value is not None)
        shown[f"added, e^c {mode}, {options or 'shared beams'}"] = rows[choice["row"]]
    for system in (KNN, KNN_NEW):
        shown[system] = next(row for row in rows if row["system"] == system and row["half_life"] == metrics["knn_half_life"])
    parts = ("unseen", "seen")
    head = [f"{part} {name} (n = {rows[0][part]['n']:,})" for part in parts for name in names]
    lines = ["| | " + " | ".join(head) + " |", "|---" + "|---:" * len(head) + "|"]
    lines += [
        f"| {label} | " + " | ".join(f"{row[part][name]['mean']:.4f}" for part in parts for name in names) + " |"
        for label, row in shown.items()
    ]
    return "\n".join([f"{metrics['held_out_items']} of {metrics['items']} items held out", "", *lines, "", metrics["price"]])


def plot_cold_start(metrics: Mapping[str, Any], path: str | Path, title: str = "") -> None:
    """What new items gain against what the others lose, on test: a panel per cut-off, a curve over the boosts per treatment of e^c.

    Args:
        metrics: what `measure_cold_start` returns.
        path: figure to write (.png, .svg or .pdf).
        title: what was measured, on what.
    """
    from matplotlib.figure import Figure

    names = list(metrics["chance_among_new"])
    figure = Figure(figsize=(5.2 * len(names), 4.6), layout="constrained", dpi=150)
    handles: dict[str, Any] = {}
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows = metrics["test"]
        handles["seen targets before adding"] = panel.axvline(rows[0]["seen"][name]["mean"], color="black", linestyle=":", linewidth=1)
        for number, (mode, choice) in enumerate(metrics["chosen"].items()):
            base = {"collaborative": mode} | {key: choice["settings"][key] for key in ("dense", "likelihood")}
            # Without own beams the dense weight plays no part: that point belongs to every curve.
            curve = [row for row in rows if base.items() <= row.items() or (row.get("collaborative") == mode and row["boost"] is None)]
            points = [(row["seen"][name]["mean"], row["unseen"][name]["mean"]) for row in curve]
            colour = f"C{number}"
            handles[f"CEMG, e^c {mode}"] = panel.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3)[0]
            reach = np.maximum(np.max(points, axis=0), 1e-9)
            labelled: list[np.ndarray] = []
            for row, point in zip(curve, points, strict=True):
                place = np.array(point) / reach
                if any(np.abs(place - other).max() < 0.04 for other in labelled):  # it would stand on that one's label
                    continue
                labelled.append(place)
                panel.annotate(
                    "none" if row["boost"] is None else f"{row['boost']:g}", point, fontsize=7, xytext=(3, 3), textcoords="offset points"
                )
            best = rows[choice["row"]]
            star = panel.plot(best["seen"][name]["mean"], best["unseen"][name]["mean"], "*", color=colour, markersize=13)[0]
            handles["boost chosen on validation"] = star
        for system, style in ((KNN, "s"), (KNN_NEW, None)):
            row = next(row for row in rows if row["system"] == system and row["half_life"] == metrics["knn_half_life"])
            values = row["seen"][name]["mean"], row["unseen"][name]["mean"]
            if style is None:
                handles[system] = panel.axhline(values[1], color="#777777", linestyle="--", linewidth=1)
            else:
                handles[system] = panel.plot(*values, style, color="#777777")[0]
        panel.set_xlabel(f"{name}, seen targets (n = {rows[0]['seen']['n']:,})")
        panel.set_ylabel(f"{name}, unseen targets (n = {rows[0]['unseen']['n']:,})")
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    path = Path(path)
    scratch = path.with_name(f".{path.name}.partial")
    figure.savefig(scratch, format=path.suffix[1:])
    scratch.replace(path)
