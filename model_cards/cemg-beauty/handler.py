"""What an Inference Endpoint runs: https://huggingface.co/docs/inference-endpoints/engines/toolkit calls `EndpointHandler`."""

from __future__ import annotations

import os
from typing import Any

from transformers import pipeline

# This file is published as it is beside the model, so it imports nothing that is not there or in requirements.txt.
MAX_HISTORIES = 256
MAX_BEAMS = 200
"""Of a request, so that none can ask for more memory than a small endpoint has."""
PARAMETERS = {
    "top_k": int,
    "exclude_history": bool,
    "allowed_items": list,
    "denied_items": list,
    "max_per_first_code": int,
    "min_first_codes": int,
    "num_beams": int,
    "on_unknown": str,
    "dense_weight": float,
    "new_item_boost": float,
    "new_item_dense": float,
    "new_item_likelihood": float,
}


class EndpointHandler:
    """Next items for the histories of a request.

    Args:
        path: folder of the model, as the endpoint has downloaded it.
    """

    def __init__(self, path: str | os.PathLike[str] = "") -> None:
        self.pipeline = pipeline("next-item-recommendation", model=str(path), trust_remote_code=True)  # type: ignore[call-overload]

    def __call__(self, data: dict[str, Any]) -> list[Any]:
        """One list of recommendations for a history, a list of lists for a list of histories.

        Args:
            data: `{"inputs": […], "parameters": {…}}`. Inputs are one history (item ids, oldest first) or a list of histories, or
                requests `{"history": […], "allowed_items": […], "denied_items": […]}` in their place; parameters are those of the
                pipeline, such as `top_k` and `exclude_history`.

        Returns: lists of `{"item_id": …, "score": …, "codes": …}`, best first.

        Raises:
            ValueError: a request that cannot be answered. The endpoint answers 400 and `{"error": message}` then.
        """
        if not isinstance(data, dict):
            raise ValueError(f'an object {{"inputs": …, "parameters": …}} is expected, got {type(data).__name__}')
        inputs, parameters = data.get("inputs"), data.get("parameters") or {}
        if not isinstance(inputs, list | dict):
            raise ValueError(f"inputs: a list of item ids, or a list of such lists, is expected, got {type(inputs).__name__}")
        if isinstance(inputs, list) and len(inputs) > MAX_HISTORIES and not isinstance(inputs[0], str):
            raise ValueError(f"inputs: {len(inputs)} histories; a request may hold {MAX_HISTORIES}, send the others in further ones")
        if not isinstance(parameters, dict):
            raise ValueError(f"parameters: an object of settings is expected, got {type(parameters).__name__}")
        settings = {name: _checked(name, value) for name, value in parameters.items() if value is not None}
        for name in ("top_k", "num_beams"):
            if settings.get(name, 0) > MAX_BEAMS:
                raise ValueError(f"{name}: {settings[name]} is too many; a request may ask for {MAX_BEAMS}")
        answer: list[Any] = self.pipeline(inputs, **settings)
        return answer


def _checked(name: str, value: Any) -> Any:
    """Raises ValueError for what JSON cannot mean as this parameter."""
    if name not in PARAMETERS:
        raise ValueError(f"parameters: {name!r} is unknown; there are {', '.join(PARAMETERS)}")
    kind = PARAMETERS[name]
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise ValueError(f"{name}: {kind.__name__} is expected, got {value!r}")
    return value
