"""Data sets in the files in which they are published: Amazon reviews of 2014, 2018 and 2023, and the Yelp academic dataset."""

from __future__ import annotations

from .amazon import AMAZON_2014, AMAZON_2018, AMAZON_2023
from .tables import ITEM_SCHEMA, RawFormat, read_interactions, read_items
from .yelp import YELP

FORMATS = {one.name: one for one in (AMAZON_2014, AMAZON_2018, AMAZON_2023, YELP)}

__all__ = ["FORMATS", "ITEM_SCHEMA", "RawFormat", "read_interactions", "read_items"]
