"""Interactions and items: read, checked, filtered, split, written as a dataset folder, loaded again."""

from .dataset import PreparedDataset
from .prepare import PrepareConfig, prepare
from .ragged import Ragged
from .readers import read_table
from .splits import EvaluationCases
from .statistics import Statistics

__all__ = ["EvaluationCases", "PrepareConfig", "PreparedDataset", "Ragged", "Statistics", "prepare", "read_table"]
