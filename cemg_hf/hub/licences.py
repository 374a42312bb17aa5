"""Which licences of a data set allow its texts and images to be passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard

from ..errors import CEMGError

REDISTRIBUTABLE = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc-by-2.0 cc-by-2.5 cc-by-3.0
    cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gfdl gpl-2.0 gpl-3.0 isc lgpl-2.1
    lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 osl-3.0 pddl postgresql unlicense wtfpl zlib
    """.split()  # noqa: SIM905 -- a list of fifty quoted names would fill the page
)
"""Identifiers of the Hub's `license` field under which a prepared copy may be published, on their conditions (naming the source, the same
licence, no commerce). Not among them: `other` and `unknown`; licences without derivatives (cc-by-nd, cc-by-nc-nd), as what `prepare`
filters and restructures is one; families without a version (cc, gpl, lgpl, openrail); and licences of models that restrict their use."""


def card_licences(card: Path) -> list[str]:
    """The `license` field of a card, lower case, as a list.

    Raises:
        CEMGError: no such file, or front matter that is not YAML.
    """
    if not card.is_file():
        raise CEMGError(f"{card}: no such file; it says by its `license` what may be published. Run `cemg prepare` again")
    try:
        given: Any = DatasetCard(card.read_text(encoding="utf-8")).data.to_dict().get("license")
    except (ValueError, yaml.YAMLError) as error:
        raise CEMGError(f"{card}: the front matter cannot be read ({' '.join(str(error).split())}); run `cemg prepare` again") from error
    licences = given if isinstance(given, list) else [given or "unknown"]
    return [str(licence).strip().lower() for licence in licences]


def allows_redistribution(licences: list[str]) -> bool:
    """Whether all of them allow texts and images to be passed on."""
    return bool(licences) and set(licences) <= REDISTRIBUTABLE
