"""The names of the door, each from its room."""

from __future__ import annotations

from selfloop.workflows import objectives
from selfloop.workflows.data.schema import MESSAGES, Message
from selfloop.workflows.errors import RecipeError
from selfloop.workflows.flow.iteration import Iteration
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.stream import Model, Stream
from selfloop.workflows.flow.surgery import ScalarHead
from selfloop.workflows.flow.verbs.play import VERDICT, Player, Said, graded
from selfloop.workflows.judges.base import PromptJudge, Verifier
from selfloop.workflows.judges.prompts.frames import conversation, frame
from selfloop.workflows.objectives import *  # noqa: F403
from selfloop.workflows.outside.load import load_class, load_made, load_rule, own_or
from selfloop.workflows.rules.base import Pair, Row, Rule, reads
from selfloop.workflows.rules.groups import Advantages, Groups, Rewards, Truncated
from selfloop.workflows.rules.keep import BestOfN, Correct, scored_rows
from selfloop.workflows.rules.pairs import MostAgainstLeast, best_against_worst

__all__ = [
    "MESSAGES",
    "VERDICT",
    "Advantages",
    "BestOfN",
    "Correct",
    "Groups",
    "Iteration",
    "Message",
    "Model",
    "MostAgainstLeast",
    "Pair",
    "Player",
    "PromptJudge",
    "Recipe",
    "RecipeError",
    "Rewards",
    "Row",
    "Rule",
    "Said",
    "ScalarHead",
    "Stream",
    "Truncated",
    "Verifier",
    "best_against_worst",
    "conversation",
    "frame",
    "graded",
    "load_class",
    "load_made",
    "load_rule",
    "own_or",
    "reads",
    "scored_rows",
]
__all__ += objectives.__all__
