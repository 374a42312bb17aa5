"""The paper's questions: variants of recipes, run over seeds as far as time allows, and what came of them as one result."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..artefacts import InUse, claim, machine, result_envelope, write_json, write_text
from ..errors import CEMGError
from ..evaluation.protocol import EXCLUDING
from ..evaluation.report import SliceIntervals, SliceValues, machine_name
from ..evaluation.runs import FLOOR
from ..evaluation.seeds import of_one_machine, over_seeds
from ..evaluation.study_pairs import paired_tests
from ..evaluation.study_plots import plot_study
from ..evaluation.study_report import COLUMNS, QUESTIONS, STREAMS, format_study
from ..recipes import CEMG, Recipe, compared_systems, load_recipe, system_names
from .deadline import OutOfTime, time_is_up, time_limit
from .encode import REPORT_NAME
from .latency import LatencyConfig, measure_latency
from .measurement import NothingToMeasure
from .pipeline import FOLDERS, STAGES, run
from .run_folder import result_of
from .stage_store import SHARED_STAGES, StageStore
from .stream_study import measure, slices_of
from .study_variants import MSCGREC, STREAM_SYSTEMS, SWEEPS, Variant, ablated, compared, streamed, swept
from .systems import stages_of

logger = logging.getLogger(__name__)

TIMED = ("seconds", "cost")
"""Slices of a row with seconds that its runs took."""
COSTS = (*TIMED, "memory", "latency", "step")
"""What a row costs, by slice: those of its seeds that were measured stand for all."""
STORE = "shared"
"""Folder, beside the runs of a recipe, of the stages that they have in common."""


@dataclass(frozen=True)
class StudyConfig:
    """One question to some recipes."""

    question: str = field(metadata={"help": f"One of {', '.join(QUESTIONS)}."})
    recipes: Sequence[str] = field(metadata={"help": "Recipes by name or path."})
    output: Path = field(metadata={"help": "Folder of all studies of one budget: questions share the runs in it."})
    systems: Sequence[str] = field(default=(), metadata={"help": "Systems of rq1, rq3, rq5 and streams; none: all there are."})
    sweeps: Sequence[str] = field(default=(), metadata={"help": f"Which of {', '.join(SWEEPS)} rq4 varies; none: all."})
    seeds: int = field(default=1, metadata={"help": "How many seeds, from the recipe's own upwards."})
    assignments: Sequence[str] = field(default=(), metadata={"help": "`section.key=value` changes of every run: its budget."})
    init_from: str | None = field(default=None, metadata={"help": "A pretrained T5, for rq2."})
    time_budget_s: float | None = field(default=None, metadata={"help": "Seconds after which the call stops; calling again continues."})
    prepared: bool = field(
        default=False, metadata={"help": "Take stored data sets, features and tokenizers as they are: no raw data, no encoders needed."}
    )

    def __post_init__(self) -> None:
        if self.question not in QUESTIONS:
            raise CEMGError(f"question: {self.question!r} is unknown; choose one of {', '.join(QUESTIONS)}")
        if not self.recipes:
            raise CEMGError("recipes: none given; name at least one recipe or YAML file")
        systems = list(STREAM_SYSTEMS) if self.question == STREAMS else system_names()
        for option, given, known in (("systems", self.systems, systems), ("sweep", self.sweeps, list(SWEEPS))):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise CEMGError(f"{option}: {unknown[0]!r} is unknown; choose among {', '.join(known)}")
        if self.seeds < 1:
            raise CEMGError(f"seeds: {self.seeds}; at least one is needed")


@dataclass(frozen=True)
class StudyRun:
    """One variant of one recipe under one seed."""

    recipe: Recipe
    variant: Variant
    folder: Path

    @property
    def key(self) -> tuple[str, str]:
        """Recipe and row."""
        return self.recipe.name, self.variant.label

    def finished(self) -> dict[str, Any] | None:
        """The content of `metrics.json`, if this recipe measured it; see `run_folder`."""
        return result_of(self.recipe, self.folder)

    def complete(self, store: StageStore, command: str, until: str = "evaluate") -> dict[str, Any]:
        """Run what is missing; see `pipeline.run`."""
        return run(self.recipe, self.folder, until=until, command=command, store=store)


class Study:
    """A question with its runs.

    Folders: `output/<recipe>/<variant>/seed-<s>` are complete run folders; `output/<recipe>/shared` holds data sets, features and
    tokenizers, which stand in them as hard links. What is finished is read; what was killed or out of time continues. Processes with
    the same output share the work: each takes the runs that no other is at, and the last to end writes the result of all.

    Args:
        config: the question.
        command: recorded in results.

    Raises:
        CEMGError: a recipe that is unknown, or settings that it does not have.
    """

    def __init__(self, config: StudyConfig, command: str = "") -> None:
        self.config, self.command = config, command
        self.bases = {source: self._recipe(source, Variant(CEMG), 0) for source in config.recipes}
        names = [recipe.name for recipe in self.bases.values()]
        if len(set(names)) < len(config.recipes):
            raise CEMGError(f"recipes: {', '.join(names)}; every recipe needs a name of its own and is given once")
        self.done: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        self.spent: dict[Path, float] = {}
        self.failed: dict[tuple[str, str], str] = {}
        self.elsewhere: set[Path] = set()

    def prepare(self, until: str) -> None:
        """Make the shared stages of all runs up to and with `until`, for a machine that has neither raw data nor encoders.

        Raises:
            CEMGError: `until` is none of the shared stages, or a stage cannot be made.
        """
        if until not in SHARED_STAGES:
            raise CEMGError(f"until: {until!r} is not shared by systems; choose one of {', '.join(SHARED_STAGES)}")
        with time_limit(self.config.time_budget_s):
            for one in self._runs():
                stages = stages_of(one.recipe)
                last = [stage for stage in SHARED_STAGES[: SHARED_STAGES.index(until) + 1] if stage in stages][-1]
                one.complete(self._store(one), self.command, until=last)

    def run(self) -> dict[str, Any]:
        """Run what is missing within the time, and write `<question>.json`, `.md` and `.png` from all that is there.

        A variant that cannot be run, such as more codes than items, does not keep the others from running: it is named in the
        result under `not_run`, with the reason.

        Returns: the content of the JSON file.

        Raises:
            CEMGError: nothing could be run.
        """
        started = time.perf_counter()
        with time_limit(self.config.time_budget_s):
            completed = self._completed_runs()
            with self._quiet():
                # All times are taken at the end, next to each other.
                for one, found in completed:
                    measured = None if found is None else self._unless_stopped(one, partial(self._measured, one))
                    if found is not None and measured is not None:
                        self.done.setdefault(one.key, {})[one.recipe.seed] = found | measured
                        self.spent |= self._seconds(one, found)
            if self.failed and not self.done:
                raise CEMGError(next(iter(self.failed.values())))
            envelope = self._envelope(time.perf_counter() - started)
        path = Path(self.config.output) / self.config.question
        write_json(path.with_suffix(".json"), envelope)
        write_text(path.with_suffix(".md"), format_study(envelope))
        plot_study(envelope, path.with_suffix(".png"))
        return envelope

    # ---- runs -----------------------------------------------------------------------------------------------------------------

    def _recipe(self, source: str, variant: Variant, seed: int) -> Recipe:
        """The recipe of one run; `seed` counts from the recipe's own."""
        assignments = [*self.config.assignments, *variant.assignments]
        first = load_recipe(source, assignments, system=variant.system).seed
        return load_recipe(source, assignments, {"seed": first + seed}, variant.system)

    def _run(self, source: str, variant: Variant, seed: int) -> StudyRun:
        recipe = self._recipe(source, variant, seed)
        return StudyRun(recipe, variant, Path(self.config.output) / recipe.name / variant.folder / f"seed-{recipe.seed}")

    def _runs(self) -> Iterator[StudyRun]:
        """All runs, a seed of everything before the next seed of anything."""
        for seed in range(self.config.seeds):
            for source in self.bases:
                yield from [self._run(source, variant, seed) for variant in self._variants(source)]

    def _variants(self, source: str) -> list[Variant]:
        config, recipe = self.config, self.bases[source]
        if config.question == "rq2":
            return ablated(recipe, self._modalities(source), config.init_from)
        if config.question == "rq4":
            return swept(recipe, config.sweeps or list(SWEEPS))
        if config.question == STREAMS:
            asked = streamed(lambda system: self._recipe(source, Variant(system, system), 0), self._modalities(source, MSCGREC))
            return [variant for variant in asked if variant.system in (config.systems or STREAM_SYSTEMS)]
        return compared(config.systems or compared_systems())

    def _modalities(self, source: str, system: str = CEMG) -> list[str]:
        """What the codes of a system are made of: those of its modalities that the data has, as far as that is known yet."""
        one = self._run(source, Variant(system, system), 0)
        streams = one.recipe.streams
        wanted = one.recipe.tokenize.modalities or one.recipe.encode.modalities
        coded = ["image"] if streams is not None and streams.image_codes is not None else []  # needs no vectors of the encode stage
        if streams is not None:
            wanted = [name for name in streams.modalities if name in wanted or name in coded]
        report = one.folder / STAGES["encode"] / REPORT_NAME
        if not report.is_file():
            try:
                one.complete(self._store(one), self.command, until="encode")
            except OutOfTime:
                return list(wanted)
        found = json.loads(report.read_text(encoding="utf-8"))["modalities"]
        return [name for name in wanted if name in coded or found.get(name, {}).get("used")]

    def _store(self, one: StudyRun, patient: bool = True) -> StageStore:
        root = Path(self.config.output) / one.recipe.name / STORE
        return StageStore.of(one.recipe, root, trusted=self.config.prepared, patient=patient)

    def _completed_runs(self) -> list[tuple[StudyRun, dict[str, Any] | None]]:
        """All runs with their results, None where there is none yet. What another process is at is left to it as far as that goes."""
        first = [(one, self._completed(one, patient=False)) for one in self._runs()]
        busy, self.elsewhere = self.elsewhere, set()
        again = [(one, self._completed(one) if found is None and one.folder in busy else found) for one, found in first]
        done = [(one, one.finished() if found is None else found) for one, found in again]
        self.elsewhere -= {one.folder for one, found in done if found is not None}
        return done

    def _completed(self, one: StudyRun, patient: bool = True) -> dict[str, Any] | None:
        """The results of a run, which is finished first where there is time for it.

        Args: patient: whether shared stages that another process makes are waited for; otherwise the run is left to later.
        """
        return one.finished() if time_is_up() else self._unless_stopped(one, lambda: one.finished() or self._complete(one, patient))

    def _complete(self, one: StudyRun, patient: bool) -> dict[str, Any]:
        logger.info("study %s: %s, %s, seed %d", self.config.question, one.recipe.name, one.variant.label, one.recipe.seed)
        return one.complete(self._store(one, patient), self.command)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Times are taken by one process, while no other is at a run of this study; else only those are read that were taken before."""
        with ExitStack() as held:
            if self.elsewhere:
                held.enter_context(time_limit(0))
            else:
                try:
                    held.enter_context(claim(Path(self.config.output) / self.config.question))
                except InUse:
                    held.enter_context(time_limit(0))
            yield

    def _measured(self, one: StudyRun) -> dict[str, Any]:
        """What a question asks of a trained system beside its accuracy."""
        if self.config.question == "rq3":
            return {"latency": self._latency(one)}
        return {STREAMS: measure(one.recipe, one.variant, one.folder, self.command)} if self.config.question == STREAMS else {}

    def _seconds(self, one: StudyRun, found: Mapping[str, Any]) -> dict[Path, float]:
        """What the stages of a run took, by where they stand: one that several runs share is the same place."""
        store = self._store(one)
        return {
            store.root / store.keys[stage] if stage in store.keys else one.folder / stage: seconds
            for stage, seconds in found.get("seconds_by_stage", {"run": found["seconds"]}).items()
        }

    def _unless_stopped(self, one: StudyRun, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What `work` gives; None, with a note of the reason, where time ran out, another process is at it, or it cannot be done."""
        key = one.key
        try:
            return work()
        except OutOfTime as error:
            logger.info("study %s: %s", self.config.question, error)
        except InUse as error:
            self.elsewhere.add(one.folder)
            logger.info("study %s: %s", self.config.question, error)
        except CEMGError as error:
            logger.warning("study %s: %s, %s, seed %d cannot be run: %s", self.config.question, *key, one.recipe.seed, error)
            self.failed[key] = str(error)
        return None

    def _latency(self, one: StudyRun) -> dict[str, float | None]:
        """Milliseconds per user; None where time was up before they were measured, and where only the results of a run are here."""
        folders = {stage: one.folder / name for stage, name in FOLDERS.items()}
        try:
            return dict(measure_latency(one.recipe, folders, one.folder / "latency"))
        except (OutOfTime, InUse, NothingToMeasure):
            return {f"batch_{size}_ms": None for size in LatencyConfig().batch_sizes}

    # ---- results --------------------------------------------------------------------------------------------------------------

    def _envelope(self, seconds: float) -> dict[str, Any]:
        rows: dict[str, dict[str, Any]] = {}
        values: dict[str, list[SliceValues]] = {}
        made_on: dict[str, list[str]] = {}
        intervals: dict[str, SliceIntervals] = {}
        not_run: dict[str, dict[str, Any]] = {}
        for source, base in self.bases.items():
            wanted = list(range(base.seed, base.seed + self.config.seeds))
            for variant in self._variants(source):
                key = base.name, variant.label
                done = self.done.get(key, {})
                name = variant.label if len(self.bases) == 1 else f"{base.name}, {variant.label}"
                about = {"recipe": base.name, "part": "", **asdict(variant)}
                for seed, envelope in sorted(done.items()):
                    measured = self._parts(envelope, "intervals")
                    for part, slices in self._slices(envelope).items():
                        row = f"{name}, {part}" if part else name
                        intervals |= {row: measured[part]} if part in measured else {}
                        values.setdefault(row, []).append(slices)
                        made_on.setdefault(row, []).append(machine_name(envelope["machine"]))
                        entry = rows.setdefault(row, about | {"part": part, "seeds": [], "machines": []})
                        entry["seeds"].append(seed)
                        entry["machines"] = sorted(set(made_on[row]))
                missing = [seed for seed in wanted if seed not in done]
                if missing:
                    rows.setdefault(name, about | {"seeds": []})
                    folders = {self._run(source, variant, seed - base.seed).folder for seed in missing}
                    otherwise = "another process is at it" if folders & self.elsewhere else "out of time"
                    not_run[name] = {"seeds": missing, "reason": self.failed.get(key, otherwise)}
        for row in values:
            values[row], rows[row]["seconds_of"] = of_one_machine(values[row], made_on[row], machine_name(machine()), TIMED)
        mean, std = over_seeds(values, some=COSTS)
        several = {row: std[row] for row in std if len(values[row]) > 1}
        alone = {row: found for row, found in intervals.items() if row not in several}  # what users say of the mean of seeds, no run knows
        return result_envelope(
            mean,
            std=several or None,
            command=self.command,
            seeds=sorted({seed for row in rows.values() for seed in row["seeds"]}),
            seconds=sum(self.spent.values()),
            seconds_of_call=round(seconds, 2),
            study=self.config.question,
            recipes={recipe.name: self._about(recipe) for recipe in self.bases.values()},
            set=list(self.config.assignments),
            time_budget_s=self.config.time_budget_s,
            rows=rows,
            not_run=not_run,
            **self._readable(),
            **({"intervals": alone} if alone else {}),
            **({"pairs": self._pairs(rows)} if self.config.question in ("rq2", STREAMS) else {}),
        )

    def _pairs(self, rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The paired tests that the tables ask for, of every recipe."""
        found = []
        for source, base in self.bases.items():
            own = {row: about for row, about in rows.items() if about["recipe"] == base.name}
            runs = [self._run(source, variant, seed) for variant in self._variants(source) for seed in range(self.config.seeds)]
            folders: dict[str, dict[int, Path]] = {}
            for one in runs:
                folders.setdefault(one.variant.label, {})[one.recipe.seed] = one.folder
            slice_name = "test" + self._about(base)["headline"]
            found += [{"recipe": base.name} | pair for pair in paired_tests(own, folders, slice_name)]
        return found

    def _slices(self, envelope: Mapping[str, Any]) -> dict[str, SliceValues]:
        """What a run says about the question, by part of the system: "" is the whole."""
        if self.config.question == "rq3":
            seconds = {"train" if stage == "finetune" else stage: spent for stage, spent in envelope["seconds_by_stage"].items()}
            return {"": {"seconds": seconds, "latency": envelope["latency"]}}
        named = self._parts(envelope, "metrics")
        return slices_of(envelope, envelope[STREAMS], named) if self.config.question == STREAMS else named

    def _parts(self, envelope: Mapping[str, Any], kind: str) -> dict[str, Any]:
        """The `metrics` or `intervals` of a run by part of its system, which the floor beside it is not; none for rq3: no accuracy."""
        own, found = envelope["system"], {} if self.config.question == "rq3" else envelope.get(kind, {})
        parts = {system: slices for system, slices in sorted(found.items()) if system != FLOOR or own == FLOOR}
        return {system.removeprefix(own).removeprefix(", "): slices for system, slices in parts.items()}

    def _about(self, recipe: Recipe) -> dict[str, Any]:
        generator, loop = recipe.finetune.generator, recipe.finetune.loop
        network = f"T5 of width {generator.d_model}, {generator.num_layers} + {generator.num_decoder_layers} layers"
        return {
            "description": recipe.description,
            "budget": f"{generator.init_from or network}, at most {loop.epochs} epoch{'s' if loop.epochs > 1 else ''}",
            "headline": EXCLUDING if recipe.finetune.validation_excludes_history else "",
            "cold_threshold": recipe.evaluate.cold_threshold,
        }

    def _readable(self) -> dict[str, Any]:
        """What a table made from the JSON alone has to know."""
        about: dict[str, Any] = {"columns": COLUMNS[self.config.question]} if self.config.question in COLUMNS else {}
        if self.config.question in ("rq3", STREAMS):
            about["latency"] = asdict(LatencyConfig()) | {"threads": torch.get_num_threads()}
        return about


def run_study(config: StudyConfig, command: str = "") -> dict[str, Any]:
    """Answer one question; see `Study.run`."""
    return Study(config, command).run()
