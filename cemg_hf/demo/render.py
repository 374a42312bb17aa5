"""The page's parts as HTML. Templates escape every value: what a shop writes about its items is text, never markup."""

from __future__ import annotations

import math
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_templates = Environment(
    loader=PackageLoader(__package__, "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_templates.filters["odds"] = math.exp
_templates.filters["signed"] = lambda value: f"{value:.2f}".replace("-", "−")


def render(part: str, **values: Any) -> str:
    """HTML of `templates/<part>.html`; a value that is missing is an error."""
    return str(Markup(_templates.get_template(f"{part}.html").render(**values)))
