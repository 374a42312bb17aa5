"""A small Hub on this machine that speaks what `huggingface_hub` speaks, so that an unmodified client can be pointed at it.

    with LocalHub(folder) as hub, hub.clients(folder) as clients:
        clients("create", repo="org/model")

What it does as huggingface.co does: repositories of models, datasets and Spaces with branches, tags and atomic commits; private
repositories and tokens; large files by git-LFS (basic and multipart) in a store of their own, on another host and without the token;
downloads by HEAD and redirect, with ETag and ranges; listings in pages. It offers no Xet storage: clients run with HF_HUB_DISABLE_XET.
What goes wrong is asked for: see `faults`.
"""

from .clients import ClientProblem, Clients
from .faults import Fault
from .server import TOKEN, LocalHub

__all__ = ["TOKEN", "ClientProblem", "Clients", "Fault", "LocalHub"]
