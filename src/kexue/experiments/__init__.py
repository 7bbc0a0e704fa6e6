"""Experiments that test the claims of the articles, one file per article; run by slug with `run_experiment`."""

from kexue.experiments.registry import Experiment, experiment, list_experiments, run_experiment
from kexue.experiments.report import Claim, Figure, Report

__all__ = ["Claim", "Experiment", "Figure", "Report", "experiment", "list_experiments", "run_experiment"]
