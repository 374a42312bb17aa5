"""Variants of code streams are what their names say, for any recipe; those of the other questions are in test_studies.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizer_samples import settings

from cemg_hf.evaluation.study_report import ABLATIONS
from cemg_hf.models.cemg.modeling_rqvae import GuidedFusion
from cemg_hf.recipes import Recipe, load_recipe
from cemg_hf.training.study_variants import CEMG, EQUAL_THIRDS, MSCGREC, Variant, ablated, streamed

THREE, TWO = ["collaborative", "text", "image"], ["collaborative", "text"]


def variants(recipe: str, streams: list[str]) -> dict[str, Variant]:
    return {variant.label: variant for variant in streamed(lambda system: load_recipe(recipe, system=system), streams)}


def loaded(recipe: str, variant: Variant) -> Recipe:
    return load_recipe(recipe, variant.assignments, system=variant.system)


@pytest.mark.parametrize(("recipe", "streams"), [("sample", THREE), ("movielens-100k", THREE), ("beauty", TWO)])
def test_every_variant_is_a_recipe_and_a_run_folder_of_its_own(recipe: str, streams: list[str]) -> None:
    found = variants(recipe, streams)
    folders = [variant.folder for variant in found.values()]
    assert len(set(folders)) == len(folders)
    assert {name for name in found if name.endswith("written")} == {f"mscgrec, {name} written" for name in streams[1:]}
    for variant in found.values():
        own = loaded(recipe, variant)
        assert own.system == variant.system
        for against in variant.tables.values():
            assert against in ("", *found)
            assert against != variant.label
    for name in streams[1:]:
        written = loaded(recipe, found[f"mscgrec, {name} written"]).streams
        assert written is not None
        assert written.decoded == name


@pytest.mark.parametrize("recipe", ["sample", "beauty"])
def test_both_softmaxes_of_a_system_differ_in_nothing_else(recipe: str) -> None:
    found = variants(recipe, TWO)
    for system in (MSCGREC, CEMG, "tiger", "letter"):
        (other,) = (variant for variant in found.values() if variant.tables.get("softmax") == system)
        one, two = loaded(recipe, found[system]), loaded(recipe, other)
        assert one.finetune.objective.constrained != two.finetune.objective.constrained
        assert ("all" in other.label) == one.finetune.objective.constrained
        two.finetune.objective.constrained = one.finetune.objective.constrained
        assert one == two


def test_a_run_that_another_question_asks_for_too_is_the_same_run() -> None:
    (of_rq2,) = (variant for variant in ablated(load_recipe("beauty"), TWO) if variant.label == "softmax over all codes")
    mine = variants("beauty", TWO)["cemg, softmax over all codes"]
    assert (mine.folder, mine.assignments) == (of_rq2.folder, of_rq2.assignments)


@pytest.mark.parametrize(("recipe", "streams"), [("sample", THREE), ("movielens-100k", THREE), ("beauty", TWO)])
def test_one_code_differs_from_streams_in_the_codes_alone(recipe: str, streams: list[str]) -> None:
    found = variants(recipe, streams)
    separate, fused, beside = (loaded(recipe, found[label]) for label in (MSCGREC, "one code, fused", "one code, concatenated"))
    assert fused.streams is beside.streams is None
    assert fused.tokenize.next_item.epochs == load_recipe(recipe).tokenize.next_item.epochs > 0
    assert beside.tokenize.next_item.epochs == 0
    assert beside.tokenize.fusion == "equal"
    for one in (fused, beside):
        assert (one.encode, one.finetune) == (separate.encode, separate.finetune)
        assert one.tokenize.num_levels == separate.tokenize.num_levels
    if "image" in streams:
        assert beside.tokenize.dimension >= 2 * beside.encode.dimension


def test_concatenated_is_every_vector_beside_the_others() -> None:
    """x is the vectors of all modalities side by side, turned and scaled but not mixed, and each as long as the others."""
    dims = {"image": 6, "text": 4, "collaborative": 3}
    config = settings(dimension=12, fusion="equal", unit_rows=False, collaborative_weight=EQUAL_THIRDS, next_item={"epochs": 0})
    fusion = GuidedFusion(config.model_config(dims)).requires_grad_(False)
    generator = np.random.default_rng(0)
    features = {name: torch.from_numpy(generator.normal(size=(50, size)).astype(np.float32)) for name, size in dims.items()}
    x = fusion(features).x
    parts = {name: fusion({one: values * (one == name) for one, values in features.items()}).x for name in dims}
    assert torch.allclose(sum(parts.values()), x, atol=1e-6)
    used = torch.stack([part.abs().sum(0) > 0 for part in parts.values()])
    assert int(used.sum(0).max()) == 1, "no axis of x holds two modalities"
    assert used.sum(1).tolist() == [6, 4, 3]
    lengths = [
        part.square().sum(1).mean().item() * size / features[name].square().sum(1).mean().item()
        for (name, size), part in zip(dims.items(), parts.values(), strict=True)
    ]
    assert lengths == pytest.approx([6.0] * 3, rel=1e-3)


def test_every_ablation_is_tested_against_the_whole() -> None:
    whole, *others = ablated(load_recipe("beauty"), TWO)
    assert whole.tables == {ABLATIONS: ""}
    assert len(others) > 5
    assert all(variant.tables == {ABLATIONS: whole.label} for variant in others)
