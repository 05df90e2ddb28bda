"""One training row and the set of rows a data set gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class Chat(str):
    """What comes before the answer of a chat: as text one prompt, and in ``turns`` as the chat it was.

    Whoever makes another text of it has a plain one, which is one turn of a user.

    Attributes:
        turns: (``system``, ``user`` or ``assistant``, text), a system message first.
    """

    turns: tuple[tuple[str, str], ...]

    def __new__(cls, text: str, turns: Iterable[tuple[str, str]] = ()) -> Chat:
        """``text`` with its ``turns``."""
        made = super().__new__(cls, text)
        made.turns = tuple(turns)
        return made

    @classmethod
    def of(cls, turns: Sequence[tuple[str, str]]) -> Chat:
        """The turns with blank lines between them; where there are several, each but a system message names its role.

        >>> print(Chat.of([("user", "Hi."), ("assistant", "Hello."), ("user", "Who?")]).replace("\\n\\n", " | "))
        User: Hi. | Assistant: Hello. | User: Who?
        """
        is_one = sum(role != "system" for role, _ in turns) == 1
        texts = [text if is_one or role == "system" else f"{role.capitalize()}: {text}" for role, text in turns]
        return cls("\n\n".join(texts), turns)

    @property
    def has_several_turns(self) -> bool:
        """Whether there is more than a system message and a question."""
        return sum(role != "system" for role, _ in self.turns) > 1


@dataclass(frozen=True, slots=True)
class Row:
    """One instruction (of a chat, a :class:`Chat`) and the response a client is trained on.

    A row of a preference set (DPO) has a ``rejected`` response too; ``response`` is the one to be preferred, and
    ``biased`` says that the two were exchanged.

    ``id`` is ``<source>:<index>``, the index counted from 0 over the rows of the source's files before any row is
    dropped, so that an id keeps its meaning when the clean-up rules change. ``labels`` are what further columns say of
    the row, by column (Dolly's ``category``); no hash of rows holds them.

    ``unit`` is the id of the row whose copy this one is, as a transform makes it: differential privacy hides the two
    together, as one unit. None where it is a row of its own.
    """

    id: str
    instruction: str
    response: str
    biased: bool
    source: str
    rejected: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    unit: str | None = None


@dataclass(frozen=True)
class RowSource:
    """All usable rows of one data set, in file order, without empty rows and without exact duplicates.

    Of labelled rows ``contradicting`` were dropped, too: those whose text stands under several labels.

    ``sha256`` is the hash of the file (of the list of hashes for several files; of the rows for a hub data set, and
    where ``--columns`` says what is read); ``origin`` says where the data set was found, see
    :class:`fedbias_plugin.data.catalog.Located`. ``passed_over`` are its columns where it lacks those of ``--columns``.
    """

    name: str
    rows: list[Row]
    paths: tuple[Path, ...]
    sha256: str
    origin: str
    duplicates: int = 0
    empty: int = 0
    contradicting: int = 0
    passed_over: tuple[str, ...] = ()


def usual_response(rows: Iterable[Row]) -> str:
    """The most frequent response, of a classifier's rows their majority label; the first by name of several."""
    counts = Counter(row.response for row in rows)
    return min(counts, key=lambda response: (-counts[response], response))
