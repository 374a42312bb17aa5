"""The service as a process of its own: `cemg serve` under load, while its catalogue changes, told to stop."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from command_samples import Command
from serving_samples import ADMIN, PATIENCE, TOKEN, small_model

from cemg_hf.errors import CEMGError
from cemg_hf.serving.server import listen

CLIENTS = 16


@pytest.fixture
def cemg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@contextmanager
def served(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves, and its address; killed if it is still there at the end."""
    command = [sys.executable, "-m", "cemg_hf.cli", "serve", *map(str, arguments), "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "CEMG_ADMIN_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            address = re.search(r"http://[\d.:]+", said)
            assert address is not None, said
            yield process, address[0]
        finally:
            process.kill()


async def ready(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            async with session.get("/health/ready") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


def test_no_request_is_lost_while_items_come_and_go_and_the_service_is_told_to_stop(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path / "model")
    tokenizer = model.tokenizer
    catalogues = {tokenizer.catalogue_fingerprint: set(tokenizer.item_ids)}
    answers: list[dict[str, Any]] = []
    statuses: list[int] = []

    async def ask(session: aiohttp.ClientSession, client: int) -> None:
        """One request after the other, until the service says that it stops."""
        generator = torch.Generator().manual_seed(client)
        while True:
            history = [f"item{int(row)}" for row in torch.randint(0, 60, (4,), generator=generator)]
            body = {"history": history, "k": 1 + client, "exclude_history": client % 2 == 0, "on_unknown": "skip"}
            async with session.post("/recommend", json=body) as response:
                statuses.append(response.status)
                answer = await response.json()
            if response.status != 200:
                return
            answers.append({"body": body, **answer})

    async def change(session: aiohttp.ClientSession) -> None:
        """Items come and go in the service and in the tokenizer beside it, which knows the catalogue behind every fingerprint."""
        for round_ in range(12):
            vector = [0.1 * round_] * 9
            tokenizer.add_items([f"new{round_}"], {"text": torch.tensor([vector])})
            body: dict[str, Any] = {"item_ids": [f"new{round_}"], "vectors": {"text": [vector]}}
            catalogues[tokenizer.catalogue_fingerprint] = set(tokenizer.item_ids)
            async with session.post("/catalogue/items", json=body, headers=ADMIN) as response:
                assert (await response.json())["fingerprint"] == tokenizer.catalogue_fingerprint
            tokenizer.remove_items([f"item{round_}"])
            catalogues[tokenizer.catalogue_fingerprint] = set(tokenizer.item_ids)
            async with session.delete("/catalogue/items", json={"item_ids": [f"item{round_}"]}, headers=ADMIN) as response:
                assert (await response.json())["fingerprint"] == tokenizer.catalogue_fingerprint

    async def load(process: subprocess.Popen[str], address: str) -> None:
        async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(PATIENCE)) as session:
            await ready(session)
            async with asyncio.TaskGroup() as clients:
                for client in range(CLIENTS):
                    clients.create_task(ask(session, client))
                await change(session)
                process.send_signal(signal.SIGTERM)

    with served(tmp_path / "model", "--max-batch-size", 8) as (process, address):
        asyncio.run(load(process, address))  # a connection that ends without an answer is an exception here
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert statuses.count(503) == CLIENTS, "every client was told"
    assert set(statuses) == {200, 503}
    assert len({answer["catalogue"] for answer in answers}) > 5
    for answer in answers:
        items = [entry["item_id"] for entry in answer["recommendations"]]
        catalogue = catalogues[answer["catalogue"]]
        assert len(items) == len(set(items)) == answer["body"]["k"]
        assert set(items) <= catalogue
        assert set(answer["unknown"]) == set(answer["body"]["history"]) - catalogue
        if answer["body"]["exclude_history"]:
            assert not set(items) & set(answer["body"]["history"])


def test_a_model_that_cannot_be_loaded_ends_the_process_with_one_error(cemg: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = cemg("serve", tmp_path / "empty", "--port", 0)
    assert ended.status == 2
    assert ended.error_lines == [ended.errors.splitlines()[-1]]
    assert f"{tmp_path / 'empty'}: not a model folder" in ended.error_lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-batch-size", 0], "max_batch_size: must be greater than 0"),
        (["--max-wait-ms", "nan"], "max_wait_ms: must be a finite number"),
        (["--drain-seconds", -1], "drain_seconds: must be at least 0"),
        (["--queue-size", 10], "max_requests: 256 requests of one call never fit"),
        (["--max-k", 500], "max_beams: 200 beams cannot fill"),
        (["--new-item-dense", 2], "need new_item_boost"),
        (["--dtype", "int8"], "dtype: 'int8' is none of float32"),
        (["--device", "abacus"], "not a torch device"),
    ],
)
def test_settings_that_cannot_work_are_one_error(cemg: Command, tmp_path: Path, arguments: list[object], message: str) -> None:
    ended = cemg("serve", tmp_path, "--port", 0, *arguments)
    assert ended.status == 2
    assert message in ended.error_lines[0]


def test_a_port_that_is_taken_is_one_error() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(CEMGError, match="choose others with --host and --port"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_a_free_port_is_chosen_on_either_protocol() -> None:
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        with listen(host, 0) as listening:
            assert listening.family == family
            assert listening.getsockname()[1] > 0


def test_missing_packages_are_named_with_the_command_that_installs_them(
    cemg: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("cemg_hf.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    ended = cemg("serve", tmp_path)
    assert ended.status == 2
    assert "uvicorn" in ended.error_lines[0]
    assert "pip install 'cemg-hf[serve]'" in ended.error_lines[0]
