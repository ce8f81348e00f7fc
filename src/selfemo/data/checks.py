"""The report of `selfemo data check` on one source: for readers, and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from selfemo.counting import counted
from selfemo.data.base import Adapter, LoadResult
from selfemo.errors import DataError
from selfemo.method.types import SPLITS, UNION, Conversation, LabelSet


def check_names(conversations: Sequence[Conversation]) -> None:
    """Check that each data set has one label set, since scores are by data set, and no reserved name.

    Raises: DataError: labels differ, whatever their order, or a data set has the name of all together.
    """
    own = 'lines of JSON name theirs by the key "dataset", tables by name in their description'
    sets: dict[str, LabelSet] = {}
    for c in conversations:
        if c.dataset == UNION:
            raise DataError(f"no data set may be called {UNION!r}, as all of them together are; {own}")
        if set(sets.setdefault(c.dataset, c.label_set)) != set(c.label_set):
            both = " and ".join(", ".join(s) for s in (sets[c.dataset], c.label_set))
            raise DataError(
                f"conversations of data set {c.dataset!r} have different labels ({both}), and scores are by "
                f"data set: give each label set a name of its own; {own}"
            )


def check_lines(result: LoadResult, adapter: Adapter) -> list[str]:
    """The lines of `selfemo data check`: counts, comparison with the official ones, blemishes."""
    report = result.report
    sets = dict.fromkeys(", ".join(c.label_set.labels) for c in result.conversations)
    unsplit, count = len(report.without_split), sum(report.conversations.values())
    lines = [f"data set: {report.dataset} (labels: {'; or '.join(sets)})"]
    names = Counter(c.dataset for c in result.conversations)
    if set(names) - {report.dataset}:
        each = (f"{name} ({counted(n, 'conversations')})" for name, n in names.items())
        lines.append(f"data sets by name: {', '.join(each)}")
    try:
        check_names(result.conversations)
    except DataError as e:
        lines.append(f"to mend: {e}")
    for split in SPLITS:
        if not report.conversations[split]:
            if adapter.official and unsplit < count:
                lines.append(f"{split}: absent")
            continue
        counts = report.utterances[split]
        whole = counted(report.conversations[split], "conversations")
        name = "no split" if unsplit == count else split
        line = f"{name}: {whole}, {counted(counts, 'utterances')}"
        official = report.official.get(split, (adapter.official or {}).get(split))
        if official is not None:
            off = counts - official
            line += f" (official {official}: {'ok' if off == 0 else f'differs by {off:+d}'})"
        lines.append(line)
        labels = report.labels.get(split, Counter()).most_common()
        lines.append("  " + ", ".join(f"{e} {n}" for e, n in labels))
    if unsplit:
        use = (
            "training holds a fifth of them out (data.hold_out), which evaluating its run takes; any other "
            "model is evaluated on them all"
        )
        if unsplit < count:
            use = "others do, so these are split test, and nothing is trained on them"
        lines.append(f"conversations that name no split: {unsplit}; {use}")
    for kind, n in report.blemishes.most_common():
        lines.append(f"noted: {n} x {kind} (for example {', '.join(report.examples[kind])})")
    for path, at, reason in report.skipped[:20]:
        lines.append(f"skipped: {path}{'' if at is None else f':{at}'}: {reason}")
    if len(report.skipped) > 20:
        lines.append(f"skipped: {counted(len(report.skipped) - 20, 'more rows')}")
    return lines


def check_record(result: LoadResult, adapter: Adapter) -> dict[str, Any]:
    """The facts of `check_lines` for programs."""
    report = result.report
    splits = {
        split: {
            "conversations": report.conversations[split],
            "utterances": report.utterances[split],
            "official_utterances": report.official.get(split, (adapter.official or {}).get(split)),
            "emotions": dict(report.labels.get(split, Counter()).most_common()),
        }
        for split in SPLITS
        if report.conversations[split]
    }
    return {
        "data_set": report.dataset,
        "labels": list(dict.fromkeys(c.label_set.labels for c in result.conversations)),
        "names": dict(Counter(c.dataset for c in result.conversations)),
        "splits": splits,
        "without_split": len(report.without_split),
        "noted": dict(report.blemishes.most_common()),
        "skipped": [{"path": path, "line": at, "reason": reason} for path, at, reason in report.skipped],
    }
