"""The list of commands, and how all of them begin and end."""

from __future__ import annotations

from typing import Any

import typer
from command_samples import Command

from cemg_hf import cli
from cemg_hf.cli import app

COMMANDS = {"run", "quickstart", "prepare", "encode", "tokenize", "finetune", "evaluate", "recommend", "recipes"} | {
    "inspect",
    "describe",
    "add-items",
    "cold-start",
    "compare",
    "study",
    "serve",
    "demo",
    "convert",
    "publish",
    "download-images",
    "rq-dino",
    "export",
}


def test_every_command_and_option_is_explained() -> None:
    group: Any = typer.main.get_command(app)
    assert set(group.commands) == COMMANDS
    assert list(group.commands) == list(cli.COMMANDS)
    for command in group.commands.values():
        assert command.help
        assert all(option.help for option in command.params), command.name


def test_misused_commands_end_with_status_2(cemg: Command) -> None:
    assert cemg("recomend").status == 2
    assert cemg("run").status == 2
    assert cemg("run", "sample", "--sede", "3").status == 2
