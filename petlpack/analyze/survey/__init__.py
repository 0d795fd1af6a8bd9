"""What directories take that were never packed: every byte of every file, and what stands there more than once."""

from petlpack.analyze.survey.account import EqualTensor, KindRow, RunRow, Survey, survey

__all__ = ["EqualTensor", "KindRow", "RunRow", "Survey", "survey"]
