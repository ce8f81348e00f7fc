"""The counts of a stage in words, as commands print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfemo.counting import singular

_COUNTS = {
    "samples": "{} samples",
    "steps": "{} steps",
    "duplicates": "{} duplicates left out",
    "seen_before": "{} samples of the model's earlier cold start",
    "left_out_as_overlap": "{} samples left out, since their conversations overlap with held-out ones",
    "left_out_as_rolled_back": "{} samples left out, since their refit was rolled back",
    "replayed": "{} samples of the cold start",
    "in_place_of_selfplay": "{} of them in place of self-play",
    "repeated": "{} repeated",
    "selfplay_samples": "{} samples of self-play",
    "used": "{} used",
    "left_out": "{} left out",
    "over_share": "{} over the largest share of one emotion",
    # verdicts of the gate (stages/gate.py) on the best completion of each prompt
    "pass": "{} replies passed the gate",
    "unparsed": "{} completions did not parse",
    "low_reward": "{} read the emotion wrong",
    "no_reply_sampled": "{} needed no reply",
    "empty_reply": "{} empty replies",
    "reply_length": "{} replies too short or too long",
    "label_tag": "{} replies with nothing but a label",
    "label_word": "{} replies that name an emotion",
    "markup": "{} replies with markup",
    "repetition": "{} replies with repetition",
    "copy": "{} replies copied from the history",
    "channel_disagrees": "{} replies in which the declared emotion is not heard",
    "channel_too_long": "{} replies too long to be read back",
    # replies that R3 compares (training/expression.py), and those of them that earned nothing
    "replies_compared": "{} replies drawn for the listener",
    "unrewarded_unparsed": "{} of them did not parse",
    "unrewarded_empty_reply": "{} were empty",
    "unrewarded_reply_length": "{} were too short or too long",
    "unrewarded_label_tag": "{} had nothing but a label",
    "unrewarded_label_word": "{} named an emotion",
    "unrewarded_markup": "{} had markup",
    "unrewarded_repetition": "{} had repetition",
    "unrewarded_copy": "{} were copied from the history",
    "unrewarded_unread": "{} could not be read",
    # prompts
    "too_long": "{} prompts over the length limit",
    "shortened": "{} prompts shortened",
    "turns_dropped": "{} of their oldest turns dropped",
    "too_old": "{} prompts of self-play too old",
    "originals_too_long": "{} original prompts over the length limit",
    "originals_taught": "{} original prompts left out, since samples taught their labels",
    "prompts_of_no_whole_batch": "{} prompts left over from whole batches",
    "labels": "{} labels drawn",
    "labelled_prompts": "{} different labelled prompts",
}
_PLURALS = {"samples", "steps", "duplicates", "replies", "completions", "prompts", "labels"}
_SILENT = {"labels_digest"}
"""For programs alone."""


def value_in_words(value: Any) -> str:
    """A value of a record as text: no braces, quotes or `None` of Python."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(k)} {value_in_words(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple | set):
        pair = len(value) == 2 and all(isinstance(v, int | float) for v in value)
        return (" to " if pair else ", ").join(map(value_in_words, value)) or "none"
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_words(record: Mapping[str, Any]) -> str:
    """The record of a stage as one line: "4 replies passed the gate, 2 prompts shortened"."""
    parts = []
    for key, value in record.items():
        if key in _COUNTS and isinstance(value, int):
            parts.append(_counted(value, _COUNTS[key]))
        elif key not in _SILENT:
            parts.append(f"{_plain(key)}: {value_in_words(value)}")
    return ", ".join(parts) or "nothing was counted"


def _counted(n: int, text: str) -> str:
    """The text with its number; of one thing its first plural noun is made a singular."""
    if n != 1:
        return text.format(n)
    words = text.split(" ")
    for i, word in enumerate(words):
        if word in _PLURALS:
            words[i] = singular(word)
            break
    return " ".join(words).format(n)


def _plain(key: object) -> str:
    return str(key).replace("_", " ")


def expression_line(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Whether replies came to show their emotion over the rounds of an RL stage: R3 in its first and last
    quarter, by the listener and by the reader that nothing learns from."""
    told = [r for r in rounds if r.get("expression") is not None]
    if not told:
        return (
            "no reply was rewarded, since none could be read and scored; a longer cold start "
            "(sft.epochs, sft.max_samples) teaches the format"
        )
    n = max(1, len(told) // 4)

    def change(key: str, form: str) -> str:
        taken = [[r[key] for r in part if r.get(key) is not None] for part in (told[:n], told[-n:])]
        return " to ".join(format(sum(v) / len(v), form) for v in taken if v)

    found = [f"R3 by the listener {change('expression', '+.2f')} nats"]
    if judged := change("expression_reader", "+.2f"):
        found.append(f"by the reader {judged}")
    found.append(f"the declared emotion is the one most heard in {change('expressed', '.0%')} of the replies")
    part = "quarter of its" if n > 1 else "of its"
    return f"{', '.join(found)} (first to last {part} {len(told)} rounds)"
