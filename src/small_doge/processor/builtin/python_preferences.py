"""Source `builtin:python-preferences`: the right answer against a truncated, a repeated or another function's one."""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator

from .python_docs import cached_documents
from .python_qa import iter_conversations
from .splitting import position

SOURCE = "builtin:python-preferences"
KINDS = ("truncated", "repeated", "mismatched")
SHARES = 100  # a mismatched answer is of the same hundredth of the split, so that it never crosses to the other side


def iter_preferences(documents: Iterable[dict] | None = None, seed: int = 0, packages: bool = True) -> Iterator[dict]:
    """Yield preference pairs made from the questions of `iter_conversations`, each question once, kinds in turn.

    Keys: `prompt`, `chosen` and `rejected` (lists of messages), `kind` (truncated, repeated or mismatched), `id`,
    `group` (split by it; for shares of whole per cents, a mismatched answer belongs to the same part as its question)
    and `source`.
    """
    documents = cached_documents(packages) if documents is None else documents
    asked = [c for c in iter_conversations(documents, seed) if c["kind"] == "what"]
    neighbors: dict[int, list[dict]] = defaultdict(list)
    for conversation in asked:
        neighbors[_share(conversation["group"])].append(conversation)
    for number, conversation in enumerate(asked):
        rng = random.Random(f"{seed}:{conversation['id']}")
        question, answer = conversation["messages"]
        kind = KINDS[number % len(KINDS)]
        if kind == "mismatched":
            others = neighbors[_share(conversation["group"])]
            others = [c for c in others if c["group"] != conversation["group"]]
            if not others:
                kind = "truncated"
        if kind == "truncated":
            worse = _truncated(answer["content"], rng)
        elif kind == "repeated":
            worse = " ".join([answer["content"]] * rng.randint(2, 4))
        else:
            worse = rng.choice(others)["messages"][1]["content"]
        yield {
            "prompt": [question],
            "chosen": [answer],
            "rejected": [{"role": "assistant", "content": worse}],
            "kind": kind,
            "id": f"{conversation['topic']}#{kind}",
            "group": conversation["group"],
            "source": SOURCE,
        }


def _share(group: str) -> int:
    return int(position(group) * SHARES)


def _truncated(answer: str, rng: random.Random) -> str:
    words = answer.split()
    return " ".join(words[: max(1, round(len(words) * rng.uniform(0.3, 0.6)))]).rstrip(".,;:")
