"""Every article's claim, re-run: one file per article, found by its slug."""

from kexue.experiments.registry import Experiment, experiment, list_experiments, run_experiment
from kexue.experiments.report import Claim, Figure, Report

__all__ = ["Claim", "Experiment", "Figure", "Report", "experiment", "list_experiments", "run_experiment"]
