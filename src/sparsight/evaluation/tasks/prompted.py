"""A long text, a question about it and what has to be written: the one shape of all tasks that compare ways of choosing tokens.

Only the context is prefilled, densely and at once; the question and the answer are decode steps, so that the method acts on every token that
leads to the answer (see `coreference`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...errors import TextError
from ...models import LoadedModel
from ...runtime.encode import encode_prompt
from ..scoring import Chunk
from .coreference import MINIMUM_STEPS, shared_start


@dataclass(frozen=True)
class Prompted:
    """One item of a task, as text.

    Attributes
    ----------
    task : str
    context : str
        Prefilled.
    question : str
        Read as decode steps. It ends with the beginning of the answer's sentence, so that the answer follows at once; empty where the answer
        goes on with the context.
    answers : tuple of str
        All of them have to be written, in this order where the answer is forced.
    cluster : str
        Items with the same one are not independent; empty for an item of its own.
    length : int or None
        Tokens that the whole item was made to fill, by a model's tokenizer; None for texts that have a length of their own.
    depth : float or None
        Where in the context the answer stands, 0 for its beginning and 1 for its end.
    seed : int
    joints : tuple of str
        What stands before each answer; given, not asked for. By default a blank before the first and a comma between two.
    """

    task: str
    context: str
    question: str
    answers: tuple[str, ...]
    cluster: str = ""
    length: int | None = None
    depth: float | None = None
    seed: int = 0
    joints: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """Everything the model is given."""
        return self.context + self.question

    @property
    def text(self) -> str:
        """The prompt and what has to follow it."""
        return self.until(len(self.answers) - 1)[1]

    def until(self, answer: int) -> tuple[str, str]:
        """The text up to the beginning and up to the end of an answer."""
        joints = self.joints or (" ", *(", " for _ in self.answers[1:]))
        pieces = [piece for pair in zip(joints, self.answers, strict=True) for piece in pair][: 2 * answer + 2]
        return self.prompt + "".join(pieces[:-1]), self.prompt + "".join(pieces)


@dataclass(frozen=True, eq=False)
class CutPrompt:
    """Tokens of an item as a model reads it.

    Attributes
    ----------
    ids : (tokens,) int64
        Prompt and answer.
    split, prompt : int
        The first token that is a decode step, and the tokens of the prompt: after them comes the answer.
    spans : tuple of (int, int)
        Where each of the answers begins and ends, counted from the first token after the prompt. What stands between two is in neither.
    """

    ids: Tensor
    split: int
    prompt: int
    spans: tuple[tuple[int, int], ...]

    @property
    def answer(self) -> Tensor:
        """`(tokens,)` ids of what has to follow the prompt."""
        return self.ids[self.prompt :]

    @property
    def chunk(self) -> Chunk:
        """What is scored in one pass: every prediction from the first decode step on, those of the answer last."""
        return Chunk(self.ids, len(self.ids) - 1 - self.split)


def cut_prompt(loaded: LoadedModel, item: Prompted, extra: int = 0) -> CutPrompt:
    """Encode an item as a whole and cut it between tokens.

    Parameters
    ----------
    loaded : LoadedModel
    item : Prompted
    extra : int
        Tokens to be generated beyond those of the answer.

    Raises
    ------
    TextError
        If the item is longer than the model's context, too short to be split, or has no answer.
    """
    if not item.answers or not all(answer.strip() for answer in item.answers):
        raise TextError(f"an item of {item.task!r} has no answer; give at least one, and none of blanks only")
    full = encode_prompt(loaded, item.text, chat=False)

    def tokens(text: str) -> int:
        # Encoding pieces on their own may merge letters differently at their edge, so the pieces are cut from the whole.
        return shared_start(full, encode_prompt(loaded, text, chat=False))

    prompt = tokens(item.prompt)
    split = min(tokens(item.context), prompt - MINIMUM_STEPS)
    if split < 1:
        raise TextError(f"a prompt of {prompt} tokens is too short; at least {MINIMUM_STEPS + 1} are needed")
    needed = full.shape[1] + extra
    if needed > loaded.anatomy.context_length:
        raise TextError(
            f"an item of {item.task!r} needs {needed} tokens, but {loaded.name} has a context of {loaded.anatomy.context_length}; "
            "ask for a smaller length"
        )
    ends = [tuple(map(tokens, (before.rstrip(), after))) for before, after in map(item.until, range(len(item.answers)))]
    spans = tuple((max(begin - prompt, 0), max(end, begin + 1) - prompt) for begin, end in ends)
    return CutPrompt(full[0].cpu(), split, prompt, spans)
