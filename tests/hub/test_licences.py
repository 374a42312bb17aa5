from __future__ import annotations

from pathlib import Path

import pytest

from cemg_hf.data.card import HUB_LICENSES
from cemg_hf.errors import CEMGError
from cemg_hf.hub.licences import REDISTRIBUTABLE, allows_redistribution, card_licences


def card(folder: Path, front: str) -> Path:
    (folder / "README.md").write_text(f"---\n{front}\n---\n\n# x\n")
    return folder / "README.md"


def test_every_licence_that_allows_it_is_one_the_hub_knows() -> None:
    assert REDISTRIBUTABLE <= HUB_LICENSES


@pytest.mark.parametrize("name", ["other", "unknown", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc", "llama2", "no-such-licence"])
def test_what_does_not_clearly_allow_it_does_not(name: str) -> None:
    assert not allows_redistribution([name])


@pytest.mark.parametrize(
    ("front", "allowed"),
    [
        ("license: CC-BY-4.0", True),
        ("license: [mit, cc0-1.0]", True),
        ("license:\n- mit\n- other", False),
        ("license: []", False),
        ("pretty_name: x", False),
    ],
)
def test_the_licence_field_of_the_card_decides(tmp_path: Path, front: str, allowed: bool) -> None:
    assert allows_redistribution(card_licences(card(tmp_path, front))) is allowed


def test_a_card_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"README\.md: no such file"):
        card_licences(tmp_path / "README.md")
    with pytest.raises(CEMGError, match=r"README\.md: the front matter cannot be read"):
        card_licences(card(tmp_path, "license: [mit"))
