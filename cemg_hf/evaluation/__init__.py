"""Metrics, the protocol, the popularity floor, tables and plots. Knows ranked items and targets; knows no model and no data set."""

from .beyond_accuracy import describe_recommendations, intra_list_distances
from .comparison import Comparison, compare
from .comparison_report import format_comparison, plot_comparison
from .confidence import Interval, PairedDifference, bootstrap_interval, paired_bootstrap
from .metrics import Rows, check_rankings, hit_ranks, list_metrics, per_case_metrics, rank_from_scores, ranking_metrics
from .modules import metric_path
from .popularity import PopularityRecommender
from .predictions import Predictions, predictions_table, read_predictions, write_predictions
from .protocol import cold_start_slices, evaluate_rankings, ranking_intervals
from .report import format_table, plot_metrics, plot_training_curve, still_rising
from .runs import MeasuredRun, read_runs

__all__ = [
    "Comparison",
    "Interval",
    "MeasuredRun",
    "PairedDifference",
    "PopularityRecommender",
    "Predictions",
    "Rows",
    "bootstrap_interval",
    "check_rankings",
    "cold_start_slices",
    "compare",
    "describe_recommendations",
    "evaluate_rankings",
    "format_comparison",
    "format_table",
    "hit_ranks",
    "intra_list_distances",
    "list_metrics",
    "metric_path",
    "paired_bootstrap",
    "per_case_metrics",
    "plot_comparison",
    "plot_metrics",
    "plot_training_curve",
    "predictions_table",
    "rank_from_scores",
    "ranking_intervals",
    "ranking_metrics",
    "read_predictions",
    "read_runs",
    "still_rising",
    "write_predictions",
]
