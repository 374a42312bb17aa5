from __future__ import annotations

import re
from importlib.resources import files

import pytest

from cemg_hf.demo.theme import COLOURS, theme


def colours(selector: str) -> dict[str, str]:
    """What style.css calls its colours in a mode."""
    style = files("cemg_hf.demo").joinpath("style.css").read_text(encoding="utf-8")
    block = re.search(rf"^{re.escape(selector)} \{{(.*?)^\}}", style, re.MULTILINE | re.DOTALL)
    assert block is not None
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block.group(1)))


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [":root", ".dark"])
def test_texts_can_be_read_in_both_modes(mode: str) -> None:
    named = colours(mode)
    assert set(COLOURS.values()) <= set(named)
    pairs = [(text, ground) for text in ("ink", "soft") for ground in ("paper", "surface", "sunken")]
    pairs += [("accent", "surface"), ("accent-ink", "accent"), ("warn", "warn-soft"), ("ink", "accent-soft")]
    pairs += [(f"level-{level}", "surface") for level in range(6)]
    for text, ground in pairs:
        assert contrast(named[text], named[ground]) >= 4.5, f"{text} on {ground}"


def test_nothing_is_fetched_for_the_look() -> None:
    made = theme()
    assert made._stylesheets == []
    assert "http" not in files("cemg_hf.demo").joinpath("style.css").read_text(encoding="utf-8")
