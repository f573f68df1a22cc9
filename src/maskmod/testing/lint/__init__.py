"""The linter: what is wrong with a predicate, in the user's own file and line, with the rewrite."""

from maskmod.testing.lint.check import check
from maskmod.testing.lint.report import Facts, Finding, LintReport

__all__ = ["Facts", "Finding", "LintReport", "check"]
