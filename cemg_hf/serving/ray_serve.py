"""The service on Ray Serve: several replicas behind one address, each with a model and a batcher of its own.

    serve run cemg_hf.serving.ray_serve:build model=/path/to/model replicas=2

Ray spreads requests over the replicas, and replaces those that die. A change of the catalogue has to reach all of them, so it comes
through Ray, and the routes by which a single service is changed are absent: whenever the deployment's `user_config` changes, every replica
reads its catalogue again, from the folder that it names or the model's, without a stop. `/metrics` answers for the replica that is asked.

Without `from __future__ import annotations`: Ray reads the type of `build`'s argument.
"""

import math
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from ..settings import from_mapping
from .app import create_app
from .config import ServingConfig
from .loading import load_recommender, load_titles
from .service import RecommendService


class DeploymentArguments(BaseModel):
    """What `serve run` is given as key=value, or a Serve config file as `args`."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="Model folder, the same on every machine, or Hub id.")
    replicas: int = Field(default=1, ge=1)
    gpus: float = Field(default=0, ge=0, description="GPUs of each replica; several may share one.")
    cpus: float = Field(default=1, ge=0, description="CPU cores of each replica.")
    device: str = "auto"
    dtype: str = "float32"
    items: str | None = Field(default=None, description="Table of titles.")
    catalogue: str | None = Field(default=None, description="Folder to read the catalogue from, if not the model's.")
    settings: dict[str, Any] = Field(default={}, description="Fields of `ServingConfig` that differ from their defaults.")


@serve.deployment
@serve.ingress()
class RecommendDeployment:
    """One replica. Ray calls every method but the constructor by its name."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        given = DeploymentArguments(**arguments)
        self.service = RecommendService(
            lambda: load_recommender(given.model, given.device, given.dtype),
            from_mapping(ServingConfig, given.settings, "settings"),
            folder=Path(given.model) if Path(given.model).is_dir() else None,
            load_titles=lambda: load_titles(given.items),
        )
        self.configured = False

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self.service)

    async def reconfigure(self, changed: dict[str, Any]) -> None:
        """At the start, and whenever `user_config` changes. A replica is asked for nothing before the first call returns."""
        await self.service.loaded.wait()
        await self.check_health()
        folder = changed.get("catalogue")
        if self.configured or folder is not None:
            await self.service.keeper.reload(None if folder is None else Path(folder))
        self.configured = True

    async def check_health(self) -> None:
        """Again and again; a replica that raises is replaced."""
        if self.service.failure is not None:
            raise self.service.failure


def build(arguments: DeploymentArguments) -> Application:
    """The application that `serve run` starts.

    Raises:
        CEMGError: settings that cannot work.
    """
    config = from_mapping(ServingConfig, arguments.settings, "settings")
    deployment = RecommendDeployment.options(  # type: ignore[attr-defined]
        num_replicas=arguments.replicas,
        ray_actor_options={"num_gpus": arguments.gpus, "num_cpus": arguments.cpus},
        # Ray would hand a replica five requests at once, which is no batch, and keep the others without a limit. With room for more than
        # its queue holds, the replica itself says 429.
        max_ongoing_requests=2 * (config.queue_size + config.max_batch_size),
        graceful_shutdown_timeout_s=math.ceil(config.deadline_seconds) + 5,
        user_config={"catalogue": arguments.catalogue},
    )
    return deployment.bind(arguments.model_dump())
