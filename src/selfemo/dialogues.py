"""Self-play episodes of a store as text to read."""

from __future__ import annotations

from selfemo.prompts import format_emotions
from selfemo.store import Store, read_distribution


def dialogues(store: Store, n: int = 3) -> list[str]:
    """The n longest self-play episodes as text, the latest first among equals.

    Each self-played turn shows what its speaker read in the turn before (E) and declared of itself (S).
    """
    ends = store.rows(
        "SELECT p.id, p.turn FROM prompts p JOIN rollouts r ON r.prompt = p.id "
        "WHERE r.best = 1 AND r.gate = 'pass' AND p.id NOT IN "
        "(SELECT c.parent FROM prompts c JOIN rollouts q ON q.prompt = c.id "
        "WHERE c.parent IS NOT NULL AND q.best = 1 AND q.gate = 'pass') "
        "ORDER BY p.turn DESC, r.id DESC"
    )
    texts, seen = [], set()
    for end in ends:
        prompt = store.prompt(end["id"])
        if prompt.conversation_id in seen:
            continue
        seen.add(prompt.conversation_id)
        texts.append(_episode(store, end["id"]))
        if len(texts) == n:
            break
    return texts


def _episode(store: Store, last: str) -> str:
    played = []
    prompt = store.prompt(last)
    while True:
        best = store.rows(
            "SELECT * FROM rollouts WHERE prompt = ? AND best = 1 ORDER BY id DESC LIMIT 1",
            prompt.id,
        )[0]
        emotion, own = (read_distribution(best[k]) for k in ("emotion", "self_emotion"))
        assert emotion is not None and own is not None
        played.append(
            f"> {prompt.answerer} (reads {prompt.interlocutor} as {format_emotions(emotion)}, "
            f"feels {format_emotions(own)}; R1 {best['r1']:.2f}): {best['reply']}"
        )
        if prompt.lineage.parent is None:
            break
        prompt = store.prompt(prompt.lineage.parent)
    lines = [f"# {prompt.conversation_id}" + (f": {prompt.scenario}" if prompt.scenario else "")]
    for u in prompt.history:
        gold = f" [{format_emotions(u.emotion)}]" if u.emotion else ""
        lines.append(f"  {u.speaker}{gold}: {u.text}")
    return "\n".join([*lines, *reversed(played)])
