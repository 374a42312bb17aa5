"""Client processes of the local Hub: `huggingface_hub` and what stands on it, unmodified, with HF_ENDPOINT set before their import.

One process imports the libraries; every job runs in a fork of it, so that it starts fresh (its memory, its limits, its death are its own)
without importing them again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

JOBS = Path(__file__).parents[1] / "client_jobs.py"


class ClientProblem(Exception):
    """What a job raised, or the signal it died of. kind: the exception's name, or "signal"."""

    def __init__(self, kind: str, message: str, output: str) -> None:
        super().__init__(f"{kind}: {message}\n{output[-3000:]}")
        self.kind, self.message = kind, message


class Clients:
    """Calls the functions of `client_jobs.py` in processes of their own.

    Args:
        endpoint, token: of the Hub.
        home: HF_HOME, the caches among it.
        preload: modules that the jobs need, imported once.
        python: interpreter of the environment.
        environment: further variables.
    """

    def __init__(
        self,
        endpoint: str,
        token: str,
        home: Path,
        *,
        preload: Sequence[str] = ("huggingface_hub",),
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        # HF_HUB_DISABLE_XET: with hf_xet installed the client would speak a protocol that this Hub does not offer.
        settings = {"HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        settings |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self._count = 0
        self._log = (home / "clients.log").open("w+")
        self._process = subprocess.Popen(
            [python, "-c", _WORKER, str(JOBS), *preload],
            env={**inherited, **settings, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._log.close()

    def __call__(self, job: str, **arguments: Any) -> Any:
        """What the job returned.

        Raises:
            ClientProblem: what it raised, or how it died.
        """
        self._count += 1
        folder = self.home / "jobs" / f"{self._count:03d}-{job}"
        folder.mkdir(parents=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"job": job, "arguments": arguments, "folder": str(folder)}, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ClientProblem("start", "the client process ended", Path(self._log.name).read_text())
        status = json.loads(line)
        output = (folder / "output").read_text(errors="replace")
        if status["signal"]:
            raise ClientProblem("signal", str(status["signal"]), output)
        result = json.loads((folder / "result.json").read_text())
        if "error" in result:
            raise ClientProblem(result["error"], result["message"], output)
        return result["value"]


_WORKER = """
import importlib, json, os, resource, runpy, sys, traceback
for name in sys.argv[2:]:
    importlib.import_module(name)
sys.path.insert(0, os.path.dirname(sys.argv[1]))
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        output = os.open(os.path.join(asked["folder"], "output"), os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        with open(os.path.join(asked["folder"], "pid"), "w") as file:
            file.write(str(os.getpid()))
        try:
            result = {"value": runpy.run_path(sys.argv[1])[asked["job"]](**asked["arguments"])}
        except BaseException as error:
            traceback.print_exc()
            result = {"error": type(error).__name__, "message": str(error)}
        sys.stdout.flush()
        sys.stderr.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)  # a job may have lowered it
        with open(os.path.join(asked["folder"], "result.json"), "w") as file:
            json.dump(result, file, default=str)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(json.dumps({"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}), flush=True)
os._exit(0)  # what libraries do at exit takes seconds
"""
