"""Bodies of requests and answers, with the limits of the service in them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model, model_validator

from .config import ServingConfig
from .ranker import Query

MAX_ID_LENGTH = 512
OF_CODES = " For models that write item codes; a network over whole items (SASRec, GRU4Rec) answers 422."
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH)]


class Body(BaseModel):
    """Strict: a misspelt or mistyped setting is an error, not a default."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RecommendRequest(Body):
    """One history, and what to recommend after it. What is left out is as in `model.recommend`."""

    history: list[ItemId] = Field(default=[], description="Item ids in chronological order; empty for a new user.")
    k: int = Field(default=10, ge=1, description="Items to recommend.")
    exclude_history: bool = Field(default=False, description="Leave out the items of the history.")
    num_beams: int | None = Field(default=None, ge=1, description="Beams of the search, at least k." + OF_CODES)
    on_unknown: Literal["error", "skip"] = Field(default="error", description="Item ids that the catalogue lacks: 422, or left out.")
    allowed_items: list[ItemId] | None = Field(default=None, description="Recommend these items only.")
    denied_items: list[ItemId] | None = Field(default=None, description="Never recommend these items.")

    max_per_first_code: int | None = Field(
        default=None, ge=1, description="Items of one branch of the catalogue (first code), at most." + OF_CODES
    )
    min_first_codes: int | None = Field(
        default=None, ge=1, description="Different branches of the catalogue in the list, at least." + OF_CODES
    )

    @model_validator(mode="after")
    def _fits_together(self) -> RecommendRequest:
        for name in ("max_per_first_code", "min_first_codes"):
            if (getattr(self, name) or 1) > self.k:
                raise ValueError(f"{name}={getattr(self, name)} is more than a list of k={self.k} holds")
        if self.num_beams is not None and self.num_beams < self.k:
            raise ValueError(f"num_beams={self.num_beams} cannot fill lists of k={self.k}; use at least k beams")
        return self

    def query(self) -> Query:
        return Query(**dict(self))


def limited(config: ServingConfig) -> type[RecommendRequest]:
    """`RecommendRequest` within the limits of a service, which its OpenAPI description then names."""
    fields: dict[str, Any] = {
        "history": (Annotated[list[ItemId], Field(max_length=config.max_history)], RecommendRequest.model_fields["history"]),
        "k": (Annotated[int, Field(le=config.max_k)], RecommendRequest.model_fields["k"]),
        "num_beams": (Annotated[int, Field(le=config.max_beams)] | None, RecommendRequest.model_fields["num_beams"]),
    }
    for name in ("allowed_items", "denied_items"):
        fields[name] = (Annotated[list[ItemId], Field(max_length=config.max_filter)] | None, RecommendRequest.model_fields[name])
    return create_model("RecommendRequest", __base__=RecommendRequest, __doc__=RecommendRequest.__doc__, **fields)


class RecommendedItem(BaseModel):
    item_id: str
    score: float = Field(
        description="Σ log p of the item's codes, mixed with a dense tower's log p where the model has one; "
        "of a network over whole items the product of the history's state and the item's vector."
    )
    title: str | None = None


class RecommendAnswer(BaseModel):
    recommendations: list[RecommendedItem] = Field(description="Best first.")
    unknown: list[str] = Field(description="Item ids of the request that were left out, because the catalogue lacks them.")
    catalogue: str = Field(description="Fingerprint of the catalogue that this answer was made on.")


class CatalogueState(BaseModel):
    items: int
    fingerprint: str
    new_items: int = Field(description="Items that came after the model was trained; none of a network over whole items.")
    new_item_ids: list[str] = Field(description="The latest of them.")


class AddRequest(Body):
    """New items, as the encoders of the tokenizer see them."""

    item_ids: list[ItemId] = Field(min_length=1)
    vectors: dict[str, list[list[float]]] = Field(description="Modality → one raw encoder vector per item.")
    masks: dict[str, list[bool]] | None = Field(default=None, description="Modality → false for the items that lack it.")
    collaborative: Literal["predicted", "masked"] = Field(default="predicted", description="The missing collaborative vector.")

    @model_validator(mode="after")
    def _even_rows(self) -> AddRequest:
        for name, rows in self.vectors.items():
            lengths = sorted({len(row) for row in rows})
            if len(lengths) > 1:
                raise ValueError(f"vectors[{name!r}]: rows of different length, {lengths[0]} to {lengths[-1]}; give one vector per item")
        return self


class RemoveRequest(Body):
    item_ids: list[ItemId] = Field(min_length=1)


class ReloadRequest(Body):
    folder: str | None = Field(default=None, description="Model or tokenizer folder to read; by default that of the model.")


class CatalogueChange(BaseModel):
    items: int
    fingerprint: str


class ItemsAdded(CatalogueChange):
    moved: int = Field(description="Added items that are not at their nearest code, because another item holds it.")


class Health(BaseModel):
    status: Literal["loading", "ready", "stopping", "failed"]
