from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from cemg_hf import recipes
from cemg_hf.data.prepare import prepare
from cemg_hf.errors import CEMGError
from cemg_hf.recipes import SYSTEMS, Recipe, compared_systems, load_recipe, overlaid, recipe_names, system_names
from cemg_hf.settings import read_yaml
from cemg_hf.training.loading import NETWORKS

EXPECTED = ["beauty", "movielens-100k", "own-data", "sample", "sports", "yelp"]
LEAST_SYSTEMS = {"cemg", "popularity", "item_knn", "lightgcn", "gru4rec", "sasrec", "mmgrec", "tiger", "letter"}


def test_the_recipes_ship_with_the_package() -> None:
    assert recipe_names() == EXPECTED


@pytest.mark.parametrize("name", EXPECTED)
def test_shipped_recipes_are_complete(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == recipe.prepare.name == name
    assert recipe.description
    recipe.encode.check()
    generator = recipe.finetune.generator
    assert recipe.tokenize.num_levels * recipe.tokenize.codebook_size + 3 < 2**15
    assert generator.max_history >= 20
    assert recipe.evaluate.num_beams >= 20
    # A run folder's recipe.yaml is the recipe, written out: loading it must give the same experiment.
    written = tmp_path / "recipe.yaml"
    written.write_text(yaml.safe_dump(asdict(recipe)))
    assert load_recipe(written) == recipe


def dataclasses_below(kind: type) -> Iterator[type]:
    yield kind
    for hint in get_type_hints(kind).values():
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type):
                yield from dataclasses_below(inner)


def test_every_setting_is_explained() -> None:
    settings = [(kind, entry) for kind in dataclasses_below(Recipe) for entry in fields(kind)]
    assert len(settings) > 50
    assert [f"{kind.__name__}.{entry.name}" for kind, entry in settings if not entry.metadata.get("help")] == []


def test_assignments_and_overrides_change_the_recipe() -> None:
    overrides: dict[str, Any] = {"seed": 7, "prepare.interactions": "mine.csv"}
    recipe = load_recipe("own-data", ["finetune.loop.epochs=3", "finetune.lora.rank=4", "encode.modalities=[text]"], overrides)
    assert (recipe.seed, recipe.prepare.interactions, recipe.finetune.loop.epochs) == (7, "mine.csv", 3)
    assert recipe.finetune.lora is not None
    assert recipe.finetune.lora.rank == 4
    assert recipe.encode.modalities == ["text"]
    assert recipe.finetune.loop.batch_size == load_recipe("own-data").finetune.loop.batch_size
    assert load_recipe("own-data").seed != 7


@pytest.mark.parametrize("content", ["name: x\nprepare:\n", "name: x\n"])
def test_an_empty_section_takes_overrides(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    assert load_recipe(tmp_path / "mine.yaml", [], {"prepare.interactions": "a.csv"}).prepare.interactions == "a.csv"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("finetun.loop.epochs=3", "sample.yaml: unknown key 'finetun'; did you mean 'finetune'?"),
        ("finetune.loop.epoch=3", "sample.yaml: finetune: loop: unknown key 'epoch'; did you mean 'epochs'?"),
        ("encode.text.encodr=tfidf", "sample.yaml: encode: text: unknown key 'encodr'; did you mean 'encoder'?"),
        ("finetune.loop.epochs=many", "sample.yaml: finetune: loop: epochs: expected int, got 'many'"),
        ("finetune.loop.epochs=0", "sample.yaml: finetune: loop: epochs: must be at least 1, got 0"),
    ],
)
def test_wrong_settings_name_the_place(assignment: str, message: str) -> None:
    with pytest.raises(CEMGError) as raised:
        load_recipe("sample", [assignment])
    assert str(raised.value) == message


# ---- systems that are laid over a recipe -----------------------------------------------------------------------------------------


def test_the_systems_ship_with_the_package() -> None:
    assert set(system_names()) >= LEAST_SYSTEMS
    assert system_names()[0] == "cemg"


@pytest.mark.parametrize("system", system_names())
@pytest.mark.parametrize("name", EXPECTED)
def test_every_system_loads_over_every_recipe(name: str, system: str, tmp_path: Path) -> None:
    recipe, plain = load_recipe(name, system=system), load_recipe(name)
    assert recipe.system == system
    # Systems differ in what they are, not in what they are measured on or how.
    assert (recipe.prepare, recipe.evaluate, recipe.name, recipe.seed) == (plain.prepare, plain.evaluate, plain.name, plain.seed)
    if recipe.family == "sequential":
        settings_type = NETWORKS[recipe.sequential.network].config_class
        settings_type(num_items=10, **recipe.sequential.settings)
        assert set(recipe.sequential.settings) < set(settings_type.__annotations__)
    if system.partition("-")[0] in ("tiger", "letter"):
        assert recipe.finetune.dense is None
        assert recipe.finetune.objective.teacher_weight == 0
        assert recipe.tokenize.modalities == ["text"]
    written = tmp_path / "recipe.yaml"
    written.write_text(yaml.safe_dump(asdict(recipe)))
    assert load_recipe(written) == recipe


def test_a_system_wins_over_the_recipe_and_an_assignment_over_both(tmp_path: Path) -> None:
    overlay = read_yaml(SYSTEMS / "gru4rec.yaml")["sequential"]
    mine = {"name": "mine", "prepare": {"name": "mine", "interactions": "a.csv"}, "seed": 3}
    mine["sequential"] = {"network": "sasrec", "validation_users": 77, "loop": {"epochs": 999, "weight_decay": 0.5}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(mine))
    alone = load_recipe(path).sequential
    assert (alone.network, alone.loop.epochs) == ("sasrec", 999)
    laid = load_recipe(path, system="gru4rec").sequential
    assert (laid.network, laid.loop.epochs, laid.settings) == ("gru4rec", overlay["loop"]["epochs"], overlay["settings"])
    assert (laid.loop.weight_decay, laid.validation_users) == (0.5, 77)  # what the system does not name is the recipe's
    changed = load_recipe(path, ["sequential.loop.epochs=5", "sequential.settings.hidden_size=8"], {"seed": 9}, "gru4rec")
    assert (changed.sequential.loop.epochs, changed.sequential.settings["hidden_size"], changed.seed) == (5, 8, 9)
    assert changed.sequential.settings | {"hidden_size": 0} == overlay["settings"] | {"hidden_size": 0}


def test_overlaid_merges_sections_and_replaces_everything_else() -> None:
    values = {"a": {"b": 1, "c": {"d": [1, 2], "e": None}}, "f": [1], "g": None}
    overlay = {"a": {"c": {"d": [3], "e": {"x": 1}}}, "f": {"y": 2}, "g": {"z": 3}, "h": 4}
    merged = {"a": {"b": 1, "c": {"d": [3], "e": {"x": 1}}}, "f": {"y": 2}, "g": {"z": 3}, "h": 4}
    assert overlaid(values, overlay) == merged
    assert overlaid(values, {"a": None}) == values | {"a": None}
    assert overlaid(values, {}) == values
    assert values == {"a": {"b": 1, "c": {"d": [1, 2], "e": None}}, "f": [1], "g": None}


@pytest.mark.parametrize(("system", "extended"), [("tiger-paper", "tiger"), ("letter-paper", "letter")])
def test_a_system_that_extends_another_differs_from_it_in_what_it_says(system: str, extended: str) -> None:
    recipe, below = load_recipe("beauty", system=system), load_recipe("beauty", system=extended)
    overlay = read_yaml(SYSTEMS / f"{system}.yaml")
    assert overlay == {"extends": [extended, "parts/paper-network"]}
    network = read_yaml(SYSTEMS / "parts" / "paper-network.yaml")["finetune"]
    assert extended in compared_systems()
    assert system not in compared_systems()
    assert (recipe.encode, recipe.tokenize, recipe.finetune.objective) == (below.encode, below.tokenize, below.finetune.objective)
    assert (recipe.finetune.generator.item_causal, below.finetune.generator.item_causal) == (False, True)
    assert recipe.finetune.generator.codes_from_codebooks == below.finetune.generator.codes_from_codebooks  # which only the other names
    assert recipe.finetune.loop.epochs == network["loop"]["epochs"] > below.finetune.loop.epochs


def systems(folder: Path, **overlays: dict[str, Any]) -> Path:
    """A folder of systems to be laid over recipes; `__` in a name is a folder."""
    for name, overlay in overlays.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(overlay))
    return folder


def test_a_system_extends_several_the_later_over_the_earlier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = {"seed": 1, "finetune": {"item_dropout": 0.1, "loop": {"epochs": 1, "batch_size": 1}}}
    part = {"finetune": {"item_dropout": 0.2, "loop": {"epochs": 2}}}
    many = {"extends": ["one", "parts/two"], "finetune": {"loop": {"epochs": 3}}}
    folder = systems(tmp_path, one=one, parts__two=part, single={"extends": "one"}, many=many, further={"extends": "many", "seed": 4})
    monkeypatch.setattr(recipes, "SYSTEMS", folder)
    assert system_names() == ["cemg", "further", "many", "one", "single"], "a part is no system"
    assert compared_systems() == ["cemg", "one"]
    assert recipes.read_system("single") == one
    assert recipes.read_system("many") == {"seed": 1, "finetune": {"item_dropout": 0.2, "loop": {"epochs": 3, "batch_size": 1}}}
    assert recipes.read_system("further") == recipes.read_system("many") | {"seed": 4}


@pytest.mark.parametrize(
    ("overlays", "message"),
    [
        ({"a": {"extends": "a"}}, "a.yaml: extends: a → a, which comes back to itself"),
        (
            {"a": {"extends": ["b"]}, "b": {"extends": "c"}, "c": {"extends": "b"}},
            "c.yaml: extends: a → b → c → b, which comes back to itself",
        ),
        ({"a": {"extends": ["b", "d"]}, "b": {"seed": 1}}, "a.yaml: extends: a → d, and there is no {folder}/d.yaml"),
    ],
)
def test_a_system_that_extends_itself_or_nothing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overlays: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(recipes, "SYSTEMS", systems(tmp_path, **overlays))
    with pytest.raises(CEMGError) as raised:
        load_recipe("sample", system="a")
    assert str(raised.value) == f"{tmp_path}/{message.format(folder=tmp_path)}"


def test_unknown_systems_are_answered_with_the_known_ones() -> None:
    with pytest.raises(CEMGError, match=f"system: 'sasrek' is unknown; choose one of {', '.join(system_names())}"):
        load_recipe("sample", system="sasrek")


def test_unknown_families_are_refused() -> None:
    with pytest.raises(CEMGError, match="family: 'forest' is no kind of model; choose one of cemg, popularity"):
        load_recipe("sample", ["family=forest"])


def test_unknown_recipes_are_answered_with_the_known_ones(tmp_path: Path) -> None:
    for name in ("beuty", tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(CEMGError, match=", ".join(EXPECTED)):
            load_recipe(name)


def test_paths_may_be_read_where_their_variables_are_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CEMG_DATA", raising=False)
    recipe = load_recipe("beauty")
    with pytest.raises(CEMGError, match="CEMG_DATA is not set"):
        prepare(recipe.prepare, tmp_path / "dataset")
