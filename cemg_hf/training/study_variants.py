"""The paper's questions as variants of a recipe: what is changed, under which name, in which run folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from ..errors import CEMGError
from ..evaluation.study_report import ABLATIONS
from ..features.store import CONTENT_MODALITIES

if TYPE_CHECKING:
    from ..recipes import Recipe

CEMG, MSCGREC = "cemg", "mscgrec"
SASREC, SASREC_CONTENT = "sasrec", "sasrec-content"
WITH_SOFTMAX = (MSCGREC, CEMG, "tiger", "letter")
"""Systems that are trained under both softmaxes."""
STREAM_SYSTEMS = (*WITH_SOFTMAX, SASREC, SASREC_CONTENT)
"""Systems that the question of code streams is about."""
EQUAL_THIRDS = 0.7071
"""Factor on the collaborative vector under which it weighs as much as image and text, which have half of a squared norm of d each."""
SWEEPS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "M": ("num_levels", (2, 3, 4, 6, 8)),
    "K": ("codebook_size", (64, 128, 256, 512)),
    "lambda_q": ("lambda_quant", (0.05, 0.1, 0.25, 0.5, 1.0)),
    "lambda_d": ("lambda_div", (0.0, 0.001, 0.01, 0.1)),
}
"""Symbol → setting of the `tokenize` section and the values that are tried beside the recipe's own."""
_T5_SIZES = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers", "feed_forward_proj")


@dataclass(frozen=True)
class Variant:
    """One row of a study, and one run folder: variants of the same system and settings are the same run, whichever question asks."""

    label: str = field(metadata={"help": "Name of the row."})
    system: str = field(default=CEMG, metadata={"help": "What is laid over the recipe."})
    assignments: tuple[str, ...] = field(default=(), metadata={"help": "`section.key=value` changes of the recipe."})
    parameter: str = field(default="", metadata={"help": "Symbol that a sweep changes."})
    value: float | None = field(default=None, metadata={"help": "Its value."})
    tables: Mapping[str, str] = field(
        default_factory=dict, metadata={"help": "Tables that the row stands in → label of the row it is tested against there, if any."}
    )

    @property
    def folder(self) -> str:
        """Name of the run folder; that of an unchanged system is the system's."""
        change = re.sub(r"[^A-Za-z0-9_.]+", "-", self.label.removeprefix(f"{self.system}, ")).strip("-")
        return f"{self.system}-{change}" if self.assignments else self.system


def compared(systems: Sequence[str]) -> list[Variant]:
    """RQ1, RQ3 and RQ5: the systems as they are."""
    return [Variant(system, system) for system in dict.fromkeys(systems)]


def ablated(recipe: Recipe, modalities: Sequence[str], init_from: str | None = None) -> list[Variant]:
    """RQ2: CEMG, and CEMG with one thing less at a time, which is tested against the whole.

    Args:
        recipe: the experiment; only parts that it has can be taken away.
        modalities: what its codes are made of.
        init_from: a pretrained T5 (folder or Hub id). It is compared with the same network from scratch, not with the recipe's,
            which has another size.

    Raises:
        CEMGError: `init_from` cannot be loaded, or is no T5.
    """
    variants = [Variant(CEMG)]
    for name in ("collaborative", "image", "text"):
        kept = [modality for modality in modalities if modality != name]
        if name in modalities and kept:
            changes = [f"tokenize.modalities=[{', '.join(kept)}]"]
            dense = recipe.finetune.dense
            if dense is not None and dense.content and not set(kept) & set(CONTENT_MODALITIES):
                changes.append("finetune.dense.content=false")
            variants.append(Variant(f"without {name}", CEMG, tuple(changes)))
    content = [name for name in modalities if name in CONTENT_MODALITIES]
    if len(content) > 1:
        variants.append(Variant("equal weights in fusion", CEMG, ("tokenize.fusion=equal",)))
    if content and recipe.tokenize.next_item.epochs:
        variants.append(Variant("fusion by reconstruction", CEMG, ("tokenize.next_item.epochs=0",)))
    if recipe.finetune.objective.constrained:
        variants.append(Variant("softmax over all codes", CEMG, ("finetune.objective.constrained=false",)))
    if recipe.finetune.item_dropout:
        variants.append(Variant("without item dropout", CEMG, ("finetune.item_dropout=0",)))
    if recipe.finetune.objective.teacher_weight:
        variants.append(Variant("without teacher", CEMG, ("finetune.objective.teacher_weight=0",)))
    if recipe.finetune.dense is not None:
        variants.append(Variant("without dense tower", CEMG, ("finetune.dense=null", "finetune.objective.teacher_weight=0")))
    if init_from is not None:
        sizes = [f"finetune.generator.{name}={value}" for name, value in t5_sizes(init_from).items()]
        variants.append(Variant("pretrained T5", CEMG, (f"finetune.generator.init_from={init_from}",)))
        variants.append(Variant("the same T5 from scratch", CEMG, tuple(sizes)))
    return [replace(variant, tables={ABLATIONS: CEMG if variant.assignments else ""}) for variant in variants]


def t5_sizes(source: str) -> dict[str, Any]:
    """What `finetune.generator` has to say for a network of the size of a pretrained T5.

    Raises:
        CEMGError: it cannot be loaded, or is no T5.
    """
    path = os.path.expandvars(source)
    try:
        found = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise CEMGError(f"--init-from: cannot load {path} ({str(error).splitlines()[0]})") from error
    if found.model_type != "t5":
        raise CEMGError(f"--init-from: {path} is a {found.model_type} model; give the folder or Hub id of a T5")
    return {name: getattr(found, name) for name in _T5_SIZES}


def swept(recipe: Recipe, symbols: Sequence[str]) -> list[Variant]:
    """RQ4: one setting at a time around the recipe, whose own value is among those tried."""
    variants = []
    for symbol in dict.fromkeys(symbols):
        key, values = SWEEPS[symbol]
        own = getattr(recipe.tokenize, key)
        for value in sorted({*values, own}):
            changes = () if value == own else (f"tokenize.{key}={value}",)
            variants.append(Variant(f"{symbol} = {value:g}", CEMG, changes, symbol, value))
    return variants


def streamed(recipe_of: Callable[[str], Recipe], streams: Sequence[str]) -> list[Variant]:
    """MSCGRec's open questions: its code streams against what else one can do with the same modalities.

    "One code" is MSCGRec's recipe with a single code per item: same vectors, network and softmax, so that the codes alone differ. Fused is
    CEMG's tokenizer; concatenated has image, text and collaborative vector side by side, of equal length, and nothing learned before the
    autoencoder. Two content modalities have axes of their own in x where `dimension` has room for both (see `GuidedFusion`).

    Args:
        recipe_of: system → its recipe.
        streams: modalities with a code stream that the data has.
    """
    separate, fused = recipe_of(MSCGREC), recipe_of(CEMG)
    assert separate.streams is not None
    whole = {"written": "", "codes": "", "softmax": "", "left_out": "", "content": SASREC, "cost": ""}
    variants = [
        Variant(MSCGREC, MSCGREC, tables=whole),
        Variant(CEMG, CEMG, tables={"codes": MSCGREC, "softmax": "", "content": SASREC, "cost": ""}),
        Variant(SASREC, SASREC, tables={"content": "", "cost": ""}),
        Variant(SASREC_CONTENT, SASREC_CONTENT, tables={"content": SASREC, "cost": ""}),
    ]
    one_code = ("streams=null", f"tokenize.next_item.epochs={fused.tokenize.next_item.epochs}")
    variants.append(Variant("one code, fused", MSCGREC, one_code, tables={"codes": MSCGREC, "cost": ""}))
    beside = ["streams=null", "tokenize.next_item.epochs=0", "tokenize.fusion=equal"]
    if set(CONTENT_MODALITIES) <= set(streams):
        beside.append(f"tokenize.dimension={max(separate.tokenize.dimension, 2 * separate.encode.dimension)}")
        beside.append(f"tokenize.collaborative_weight={EQUAL_THIRDS}")
    variants.append(Variant("one code, concatenated", MSCGREC, tuple(beside), tables={"codes": MSCGREC}))
    for name in streams:
        if name != separate.streams.decoded:
            variants.append(Variant(f"{MSCGREC}, {name} written", MSCGREC, (f"streams.decoded={name}",), tables={"written": MSCGREC}))
    for system in WITH_SOFTMAX:
        if system not in (MSCGREC, CEMG):
            variants.append(Variant(system, system, tables={"softmax": ""}))
        constrained = recipe_of(system).finetune.objective.constrained
        label = f"{system}, softmax over {'all' if constrained else 'permissible'} codes"
        changes = (f"finetune.objective.constrained={'false' if constrained else 'true'}",)
        variants.append(Variant(label, system, changes, tables={"softmax": system}))
    return variants
