"""Tasks of the CLUE benchmark: reading, scoring, submitting, and baselines for them.

Reading, scores and submissions need neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.clue.bundling import bundle_submission as bundle_submission
    from kexue.clue.catalogue import TASKS as TASKS, TaskInfo as TaskInfo, list_tasks as list_tasks
    from kexue.clue.checking import SubmissionReport as SubmissionReport, check_submission as check_submission
    from kexue.clue.config import ClueConfig as ClueConfig
    from kexue.clue.examples import (
        Answer as Answer,
        ChoiceExample as ChoiceExample,
        Entity as Entity,
        EntityExample as EntityExample,
        IdiomExample as IdiomExample,
        SpanExample as SpanExample,
        TextExample as TextExample,
    )
    from kexue.clue.framings.rows import RowTokenizer as RowTokenizer
    from kexue.clue.run import predict_task as predict_task, train_task as train_task
    from kexue.clue.tasks import Task as Task, get_task as get_task

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "bundling": ("bundle_submission",),
        "catalogue": ("TASKS", "TaskInfo", "list_tasks"),
        "checking": ("SubmissionReport", "check_submission"),
        "config": ("ClueConfig",),
        "examples": (
            "Answer", "ChoiceExample", "Entity", "EntityExample", "IdiomExample", "SpanExample", "TextExample",
        ),
        "framings.rows": ("RowTokenizer",),
        "run": ("predict_task", "train_task"),
        "tasks": ("Task", "get_task"),
    },
    needs={"framings.rows": "torch", "run": "torch"},
    extra="clue",
)  # fmt: skip
