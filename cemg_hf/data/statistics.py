"""The figures of a prepared dataset, as in table 1 of the paper, and what preparation removed to arrive at them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import CEMGError

STATISTICS_FILE = "statistics.json"


@dataclass(frozen=True)
class Statistics:
    """Counts of the prepared dataset."""

    name: str = field(metadata={"help": "Name of the dataset."})
    users: int = field(metadata={"help": "Users with at least one interaction."})
    items: int = field(metadata={"help": "Items of the catalogue."})
    interactions: int = field(metadata={"help": "Interactions kept."})
    evaluated_users: int = field(metadata={"help": "Users with a test case; leave-one-out: those with three interactions."})
    items_with_text: int = field(metadata={"help": "Items with a title, brand, category or description."})
    items_with_image: int = field(metadata={"help": "Items with the bytes of an image."})
    items_without_content: int = field(metadata={"help": "Items with neither text nor image (kept)."})
    unreadable_images: int = field(metadata={"help": "Image files named or found that could not be read (masked)."})
    duplicates_removed: int = field(metadata={"help": "Exact repeats of (user, item, timestamp) removed."})
    unknown_item_interactions: int = field(metadata={"help": "Interactions skipped because their item is not in the items table."})
    below_min_rating: int = field(metadata={"help": "Interactions removed because their rating is missing or too low."})
    removed_by_k_core: int = field(metadata={"help": "Interactions removed by the k-core."})

    @property
    def average_length(self) -> float:
        """Interactions per user."""
        return self.interactions / self.users

    @property
    def sparsity(self) -> float:
        """1 − interactions / (users · items)."""
        return 1 - self.interactions / (self.users * self.items)

    @classmethod
    def load(cls, folder: str | Path) -> Statistics:
        """Read the statistics of a dataset folder.

        Raises:
            CEMGError: the folder has none.
        """
        path = Path(folder) / STATISTICS_FILE
        if not path.is_file():
            raise CEMGError(f"{folder}: not a prepared dataset ({STATISTICS_FILE} missing); make one with `cemg prepare`")
        content = json.loads(path.read_text())
        return cls(**{one.name: content[one.name] for one in fields(cls)})

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "average_length": round(self.average_length, 4), "sparsity": round(self.sparsity, 6)}

    def row(self) -> dict[str, str]:
        """Heading and value of each column of the paper's table 1."""
        return {
            "Dataset": self.name,
            "#Users": f"{self.users:,}",
            "#Items": f"{self.items:,}",
            "#Interactions": f"{self.interactions:,}",
            "Avg. Len.": f"{self.average_length:.2f}",
            "Sparsity": f"{self.sparsity:.2%}",
        }

    def table(self) -> str:
        """Two aligned lines, headings and values, as in the paper's table 1."""
        cells = self.row()
        widths = {heading: max(len(heading), len(value)) for heading, value in cells.items()}
        align = {heading: "<" if heading == "Dataset" else ">" for heading in cells}
        lines = [
            "  ".join(f"{heading:{align[heading]}{widths[heading]}}" for heading in cells),
            "  ".join(f"{value:{align[heading]}{widths[heading]}}" for heading, value in cells.items()),
        ]
        return "\n".join(lines)
