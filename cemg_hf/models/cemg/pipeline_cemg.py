"""`pipeline("next-item-recommendation")`: histories of item ids in, ranked items out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from types import GeneratorType
from typing import Any

from torch.utils.data import Dataset
from transformers import Pipeline

from .tokenization_cemg import CEMGTokenizer

TASK = "next-item-recommendation"
BATCH_SIZE = 64  # as `recommend`; a history's neighbours in a batch do not change its list
REQUEST_FIELDS = ("history", "allowed_items", "denied_items")
SEARCH_SETTINGS = (
    "top_k",
    "exclude_history",
    "allowed_items",
    "denied_items",
    "max_per_first_code",
    "min_first_codes",
    "num_beams",
    "on_unknown",
    "dense_weight",
    "new_item_boost",
    "new_item_dense",
    "new_item_likelihood",
)


Base: Any = Pipeline  # whose annotations fit none of its own subclasses


class NextItemRecommendationPipeline(Base):
    """Recommends the next items of histories with a [`CEMGForConditionalGeneration`].

        >>> pipe = pipeline("next-item-recommendation", model="org/cemg-beauty", trust_remote_code=True)
        >>> pipe(["B004756YJA", "B004ZT0SSG"], top_k=10, exclude_history=True)
        [{"item_id": "B000SJ9G0I", "score": -4.575160503387451, "codes": "<a_14><b_16><c_214><d_11>"}, …]

    Every setting of a call may be given when the pipeline is made, as its default for all calls.

    Args:
        model: the generator, its item tokenizer attached.
        tokenizer: another state of the model's catalogue (or its folder), attached to the model in the place of its own. Default: the
            model's own.
        batch_size: histories in one pass of the model (default 64). A stream gives its first list when so many histories have come.
        local_files_only: as `pipeline` hands it on; nothing is loaded here.
        kwargs: as for any pipeline (`device`, …), and settings of calls.

    Raises:
        ValueError: a model without a catalogue, a tokenizer of another model, or unknown settings.
    """

    # Models load with their catalogue; loading it once more would only take time.
    _load_tokenizer = False
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, model: Any, tokenizer: Any = None, *, local_files_only: bool = False, **kwargs: Any) -> None:
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = model.item_tokenizer_class.from_pretrained(tokenizer, local_files_only=local_files_only)
        super().__init__(model, tokenizer, **{"batch_size": BATCH_SIZE, **kwargs})
        if self.tokenizer is None:
            raise ValueError("the model has no catalogue; load it from a folder that holds its tokenizer, or give tokenizer")

    @property
    def tokenizer(self) -> CEMGTokenizer | None:
        """The model's catalogue; a tokenizer that is set is attached to the model."""
        tokenizer: CEMGTokenizer | None = self.model.tokenizer
        return tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: CEMGTokenizer | None) -> None:
        if tokenizer is not None and tokenizer is not self.model.tokenizer:
            self.model.set_tokenizer(tokenizer)

    def __call__(self, histories: Any, **settings: Any) -> Any:
        """The most probable next items.

        Args:
            histories: one history (a list of item ids, oldest first; an empty one is a new user), or a list of histories, or a generator
                or dataset of histories. In the place of a history may stand a request
                `{"history": […], "allowed_items": […], "denied_items": […]}`, whose lists hold for this history together with those
                of the call.
            top_k: items per list (default 10); fewer only when fewer are possible.
            exclude_history: leave out every item of the history.
            allowed_items, denied_items: item ids, for all histories: recommend only these, never recommend these.
            titles: item id → title, such as `dict(zip(items["item_id"], items["title"]))`. A published model holds no texts of items.
            on_unknown: ids that are not in the catalogue raise ("error") or are left out ("skip").
            max_per_first_code, min_first_codes, num_beams, dense_weight, new_item_boost, new_item_dense, new_item_likelihood:
                as for `model.recommend`.
            batch_size, num_workers: as for any pipeline.

        Returns:
            For a history a list of dictionaries, best first: `item_id`, `title` where it is known, `score` (Σ log p of the item's codes, or
            its mixture with the dense tower's log p) and `codes`, the item's place in the catalogue's tree from its first code on (what
            `tokenizer.describe` reads). For a list of histories a list of these; for a generator or a dataset an iterator over them.

        Raises:
            ValueError: unknown item ids, requests or settings that cannot be read, and what `model.recommend` raises.
        """
        if isinstance(histories, list | tuple):
            assert self.tokenizer is not None
            single = self.tokenizer.is_one_history(histories)
            return super().__call__({"history": histories} if single else list(histories), **settings)
        if isinstance(histories, str) or not isinstance(histories, Iterable | Dataset):
            raise ValueError(f"a history is a list of item ids, got {histories!r}; write [{str(histories)!r}]")
        if not isinstance(histories, Mapping | GeneratorType | Dataset):  # `datasets` and their columns, arrays, sets of rows
            histories = (history for history in histories)
        return super().__call__(histories, **settings)

    def _sanitize_parameters(self, **settings: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        unknown = settings.keys() - {*SEARCH_SETTINGS, "titles"}
        if unknown:
            raise ValueError(f"{min(unknown)} is no setting of {TASK}; settings are {', '.join(SEARCH_SETTINGS)} and titles")
        top_k = settings.get("top_k", 1)
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
            raise ValueError(f"top_k must be a whole number from 1 on, got {top_k!r}")
        for name in ("allowed_items", "denied_items"):
            if settings.get(name) is not None:
                settings[name] = _item_list(name, settings[name])
        shown = {"titles": settings.pop("titles")} if "titles" in settings else {}
        if not isinstance(shown.get("titles"), Mapping | None):
            raise ValueError(f"titles: a mapping from item id to title is expected, got {type(shown['titles']).__name__}")
        checked = {"on_unknown": settings["on_unknown"]} if "on_unknown" in settings else {}
        return checked, settings, shown

    def preprocess(self, input_: Any, on_unknown: str = "error") -> dict[str, Any]:
        """A request as a tuple of its lists; a batch of them is a list of tuples, whose lengths no collator minds."""
        request = input_ if isinstance(input_, Mapping) else {"history": input_}
        unknown = sorted(map(str, request.keys() - set(REQUEST_FIELDS)))
        if unknown or "history" not in request:
            found = f"got also {unknown[0]!r}" if unknown else f"got {', '.join(map(str, request)) or 'nothing'}"
            raise ValueError(f"a request has the keys history and, if wanted, allowed_items and denied_items; {found}")
        assert self.tokenizer is not None
        lists = [None if request.get(name) is None else _item_list(name, request[name]) for name in REQUEST_FIELDS]
        if lists[0] is None:
            raise ValueError("history: None is no list of item ids; an empty history is []")
        for name, items in zip(REQUEST_FIELDS, lists, strict=True):
            try:
                self.tokenizer.item_indices(items or [], on_unknown)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return {"request": tuple(lists)}

    def _forward(
        self,
        input_tensors: dict[str, Any],
        top_k: int = 10,
        allowed_items: list[str] | None = None,
        denied_items: list[str] | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """One pass of the model for all requests of a batch."""
        requests = input_tensors["request"]
        batch = requests if isinstance(requests, list) else [requests]
        histories, allowed, denied = zip(*batch, strict=True)
        lists = self.model.recommend(
            list(histories),
            k=top_k,
            allowed_items=_both(allowed, allowed_items),
            denied_items=_either(denied, denied_items),
            batch_size=len(batch),
            **settings,
        )
        return {"found": lists if isinstance(requests, list) else lists[0]}

    def postprocess(self, model_outputs: dict[str, Any], titles: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Recommendations as plain dictionaries."""
        assert self.tokenizer is not None
        found = model_outputs["found"]
        items = self.tokenizer.item_indices([item_id for item_id, _ in found])
        rows = self.tokenizer.item_tokens[items].tolist()
        answers = []
        for (item_id, score), tokens in zip(found, rows, strict=True):
            title = {"title": titles[item_id]} if titles is not None and item_id in titles else {}
            codes = "".join(self.tokenizer.convert_ids_to_tokens(tokens))
            answers.append({"item_id": item_id, **title, "score": score, "codes": codes})
        return answers


def _item_list(name: str, items: Any) -> list[str]:
    """Raises ValueError for anything but an iterable of strings."""
    if isinstance(items, str | Mapping) or not isinstance(items, Iterable):
        raise ValueError(f"{name}: a list of item ids is expected, got {items!r}")
    found = list(items)
    wrong = next((item for item in found if not isinstance(item, str)), None)
    if wrong is not None:
        remedy = f'; give lists of single histories as {{"history": […], "{name}": […]}}' if name != "history" else ""
        raise ValueError(f"{name}: item ids are strings, got {wrong!r} ({type(wrong).__name__}){remedy}")
    return found


def _both(own: Sequence[list[str] | None], shared: list[str] | None) -> Sequence[str] | Sequence[list[str] | None] | None:
    """What `allowed_items` of the requests and of the call leave together."""
    if all(items is None for items in own):
        return shared
    if shared is None:
        return list(own)
    wanted = set(shared)
    return [shared if items is None else [item for item in items if item in wanted] for items in own]


def _either(own: Sequence[list[str] | None], shared: list[str] | None) -> Sequence[str] | Sequence[list[str] | None] | None:
    """What `denied_items` of the requests and of the call take out together."""
    if all(items is None for items in own):
        return shared
    return [[*(shared or []), *(items or [])] for items in own]
