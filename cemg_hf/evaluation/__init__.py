"""Metrics, the protocol, the popularity floor, tables and plots. Knows ranked items and targets; knows no model and no data set."""

from .confidence import Interval, PairedDifference, bootstrap_interval, paired_bootstrap
from .metrics import Rows, check_rankings, hit_ranks, list_metrics, per_case_metrics, rank_from_scores, ranking_metrics
from .modules import metric_path
from .popularity import PopularityRecommender
from .protocol import cold_start_slices, evaluate_rankings, predictions_table, write_predictions
from .report import format_table, plot_metrics, plot_training_curve, still_rising

__all__ = [
    "Interval",
    "PairedDifference",
    "PopularityRecommender",
    "Rows",
    "bootstrap_interval",
    "check_rankings",
    "cold_start_slices",
    "evaluate_rankings",
    "format_table",
    "hit_ranks",
    "list_metrics",
    "metric_path",
    "paired_bootstrap",
    "per_case_metrics",
    "plot_metrics",
    "plot_training_curve",
    "predictions_table",
    "rank_from_scores",
    "ranking_metrics",
    "still_rising",
    "write_predictions",
]
