"""What independent readers found, as the rows of the console's and the report's tables.

`result` is the content of RUN/analysis.json, `reading` what one reader found (`result["readers"]`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfemo.data.splits import drawn
from selfemo.evaluation.readers import GIVEN, REAL
from selfemo.evaluation.rendering import cell
from selfemo.method.types import Prompt

READING_HEADER = [
    "replies of", "read", "kappa", "MI, nats", "agreement", "by chance", "H(S)", "S", "read as",
]  # fmt: skip
READING_NOTE = (
    "What an independent reader finds in the replies, against the emotion that they declare. 0 is chance, in "
    "kappa as in MI (both are corrected for it, so a little below 0 is chance too): replies that always "
    "declare one S have 0, whatever is read in them. The real next turns, with their gold emotion as S, are "
    "what this reader finds where people speak. Where S was given, each emotion equally often and whatever "
    "was said before, nothing but the reply tells it; and of two checkpoints whose replies have the same S, "
    "the better one is that in which the reader, who is told neither, finds it more probable. Where fewer "
    "than ten replies were read nothing is said."
)
EMOTION_HEADER = ["declared", "replies", "read as it", "read elsewhere", "kappa, one against the rest"]
CLUSTER_HEADER = ["personas", "replies", "kappa"]
BLIND_HEADER = ["prompts", "the later better", "the earlier better", "equal", "P(S), later - earlier", "p"]
EXAMPLES = 5


def read_data(reading: Mapping[str, Any]) -> list[str]:
    """The data sets that a reader has read replies of."""
    return list(dict.fromkeys(d for by in reading["expression"].values() for d in by))


def read_of_last(result: Mapping[str, Any], reading: Mapping[str, Any], dataset: str) -> list[str]:
    """Of the last checkpoint with replies of a data set that were read, the name and, where S was given too,
    what stands for that; empty where there is none."""
    by = reading["expression"]

    def read(name: str) -> bool:
        return "kappa" in by.get(name, {}).get(dataset, {})

    last = [c for c in result["checkpoints"] if read(c) or read(c + GIVEN)][-1:]
    return [name for c in last for name in (c, c + GIVEN) if read(name)]


def reading_rows(result: Mapping[str, Any], reading: Mapping[str, Any], dataset: str) -> list[list[str]]:
    """Rows under READING_HEADER: one or two per checkpoint (GIVEN), then the real next turns."""
    rows = []
    for name in (*(c + end for c in result["checkpoints"] for end in ("", GIVEN)), REAL):
        if name not in reading["expression"]:
            continue
        c = reading["expression"][name].get(dataset, {"replies": 0, "unread": 0})
        declared, read = c.get("declared", {}), c.get("read", {})
        rows.append(
            [
                name, f"{c['replies'] - c['unread']}/{c['replies']}", cell(c.get("kappa")),
                cell(c.get("mutual_information")), cell(c.get("agreement")), cell(c.get("by_chance")),
                cell(declared.get("entropy")), _largest(declared.get("share", {})),
                _largest(read.get("share", {})),
            ]
        )  # fmt: skip
    return rows


def _largest(shares: Mapping[str, float], most: int = 3) -> str:
    """The largest of some weights: "neutral 62%, joy 20%, anger 9%"."""
    largest = sorted(((e, s) for e, s in shares.items() if s >= 0.005), key=lambda x: -x[1])
    return ", ".join(f"{e} {s:.0%}" for e, s in largest[:most]) or "-"


def emotion_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Rows under EMOTION_HEADER, of the replies in one `expression_record`."""
    return [
        [e, str(c["n"]), cell(c["recall"]), cell(c["elsewhere"]), cell(c["kappa"])]
        for e, c in record.get("by_emotion", {}).items()
    ]


def cluster_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Rows under CLUSTER_HEADER, of the replies in one `expression_record`; none without clusters."""
    return [[name, str(c["n"]), cell(c["kappa"])] for name, c in record.get("by_cluster", {}).items()]


def blind_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The row under BLIND_HEADER of a record of `blind.compare_blind`."""
    shares = (f"{record[k]} ({record[k] / record['pairs']:.0%})" for k in ("late", "early", "ties"))
    value, low, high = record["difference"]
    change = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    return [[str(record["pairs"]), *shares, change, f"{record['p_value']:.3f}"]]


def blind_tables(reading: Mapping[str, Any], dataset: str) -> list[tuple[str, list[list[str]]]]:
    """(caption, rows under BLIND_HEADER) of a data set, of each pair of checkpoints that was compared."""
    return [
        (
            f"Which reply shows the given S better? {b['late']} against {b['early']}".replace(GIVEN, ""),
            blind_rows(b["by_data"][dataset]),
        )
        for b in reading.get("blind", [])
        if dataset in b["by_data"]
    ]


def example_rows(
    result: Mapping[str, Any],
    reading: Mapping[str, Any],
    prompts: Mapping[str, Prompt],
    checkpoints: Sequence[str],
    seed: int,
) -> list[list[str]]:
    """The replies of some checkpoints to the same EXAMPLES prompts, drawn by the seed: what is answered, then
    of each checkpoint the reply, its S, and what the reader found in it.

    Args:
        prompts: by id; the text of one that is missing is left out.
    """
    rows = []
    for i in drawn(result["prompts"], EXAMPLES, seed, "analysis examples"):
        last = prompts[i].history[-1] if i in prompts else None
        row = [f"{last.speaker}: {last.text}" if last else i]
        for name in checkpoints:
            reply = result["replies"].get(name, {}).get(i)
            if reply is None:
                row += ["(no reply: it did not parse, or the prompt was too long)", "-", "-"]
            else:
                found = reading["found"].get(name, {}).get(i) or {}
                row += [reply["reply"], _largest(reply["self_emotion"]), _largest(found, 2)]
        rows.append(row)
    return rows


def example_header(checkpoints: Sequence[str]) -> list[str]:
    """The header above `example_rows`."""
    return ["answered is", *(f"{c}: {what}" for c in checkpoints for what in ("reply", "S", "read as"))]
