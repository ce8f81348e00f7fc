"""IEMOCAP: the release's folders (dialog/transcriptions, dialog/EmoEvaluation), six classes.

The release has no development split. As is usual, session 5 is the test split; of the dialogues of
sessions 1 to 4, in sorted order, every tenth is the development split [ours].

The annotators' categorical lines (C-E*) give the vote distribution over the six classes; the actors'
self reports (C-F*, C-M*) and votes for other classes are left out. Where no vote falls inside the six,
the consensus label alone counts. Turns with another consensus stay as context without gold.

The class of a turn is the release's consensus label, as in every published benchmark: where votes tie, or put
another class above it (noted as a blemish), `voted` makes it the top of the distribution.

The official counts are the benchmark's. They add up to 7,433 utterances, while the release's own
consensus labels of the six classes are reported as 7,380 (595 of them happy), so expect a few to differ.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from selfemo.data.base import Adapter, LoadReport, LoadResult, SourceFile, must_exist, must_stay_inside, voted
from selfemo.errors import DataError
from selfemo.method.types import LABEL_SETS, Conversation, EmotionDistribution, Split, Utterance

_CODES = {
    "hap": "happy", "sad": "sad", "neu": "neutral", "ang": "angry", "exc": "excited",
    "fru": "frustrated",
}  # fmt: skip
_OTHER_CODES = {"xxx", "oth", "sur", "fea", "dis"}
_VOTES = {
    "happiness": "happy", "sadness": "sad", "neutral": "neutral", "neutral state": "neutral",
    "anger": "angry", "excited": "excited", "frustration": "frustrated",
}  # fmt: skip
_SECONDS = r"(\d+(?:\.\d+)?)"
# Some turns are named FXX0 in place of F000.
_TURN = re.compile(rf"^(Ses\d\d[FM]_\S+_([FM])\w+)\s+\[{_SECONDS}-{_SECONDS}\]:\s*(.*)$")
# Remarks of the operators and asides carry no time: "F: [LAUGHTER]".
_UNTIMED = re.compile(r"^(Ses\d\d\S*|[FM])\s*:")
_HEADER = re.compile(rf"^\[{_SECONDS} - {_SECONDS}\]\s+(\S+)\s+(\w+)\s+\[")
_VOTE = re.compile(r"^C-E\d+:([^(]*)")


class Iemocap(Adapter):
    """The release's folder; a speaker is the gender within the session, such as Ses01_F."""

    name = "iemocap"
    label_set = LABEL_SETS["iemocap"]
    official: dict[Split, int] | None = {"train": 5163, "dev": 647, "test": 1623}
    looks_for = "folders SessionN/dialog/transcriptions and SessionN/dialog/EmoEvaluation"
    # The actors play another role in each dialogue: no `recurring_speakers`.

    def matches(self, path: Path) -> bool:
        return os.path.isdir(path) and any(path.glob("Session*/dialog/transcriptions"))

    def load(self, path: Path, lenient: bool = False) -> LoadResult:
        must_exist(path)
        if not self.matches(path):
            raise DataError(f"is not the IEMOCAP release; looked for {self.looks_for}", path)
        report = LoadReport(self.name)
        files = sorted(path.glob("Session*/dialog/transcriptions/Ses*.txt"))
        labels_of = {f: f.parents[1] / "EmoEvaluation" / f.name for f in files}
        must_stay_inside(path, [*files, *labels_of.values()])
        conversations = []
        for k, transcript in enumerate(files):
            session = transcript.parts[-4]
            split: Split = "test" if session == "Session5" else "dev" if k % 10 == 9 else "train"
            try:
                labels = self._labels(SourceFile(report, labels_of[transcript], lenient))
                turns = self._turns(SourceFile(report, transcript, lenient), labels)
                if not turns:
                    raise DataError("has no turn", transcript)
            except DataError as e:
                # One dialogue of 151: with `lenient` the others are still of use.
                if not lenient:
                    raise
                report.skipped.append((str(e.path), e.line, e.reason))
                continue
            conversations.append(
                Conversation(f"{self.name}-{transcript.stem}", self.name, split, turns, self.label_set)
            )
        if not conversations:
            raise DataError("holds no dialogue", path)
        report.count(conversations)
        # The official counts are of utterances with one of the six labels.
        for name in report.utterances:
            report.utterances[name] -= report.labels[name]["(none)"]
        return LoadResult(tuple(conversations), report)

    def _labels(self, source: SourceFile) -> dict[str, EmotionDistribution | None]:
        found: dict[str, tuple[str, int, Counter[str]]] = {}
        votes: Counter[str] | None = None
        for line, text in enumerate(source.text().split("\n"), 1):
            if header := _HEADER.match(text):
                code, votes = header[4].lower(), Counter()
                if code in _CODES or code in _OTHER_CODES:
                    found[header[3]] = (code, line, votes)
                else:
                    valid = f"{', '.join(_CODES)} and {', '.join(sorted(_OTHER_CODES))}"
                    source.fail(line, f"unknown label {code!r}; valid are {valid}")
            elif text.startswith("["):
                source.fail(line, "is neither a turn's header nor an annotator's line")
                votes = None
            elif votes is not None and (vote := _VOTE.match(text)):
                named = (_VOTES.get(name.strip().lower()) for name in vote[1].split(";"))
                votes.update(filter(None, named))
        labels: dict[str, EmotionDistribution | None] = {}
        for turn, (code, line, votes) in found.items():
            if code in _OTHER_CODES:
                labels[turn] = None
                continue
            consensus = _CODES[code]
            labels[turn] = voted(votes, consensus)
            if votes and max(votes.values()) > votes[consensus]:
                source.blemish("votes put another class above the consensus, which is taken", line)
        return labels

    def _turns(
        self, source: SourceFile, labels: dict[str, EmotionDistribution | None]
    ) -> tuple[Utterance, ...]:
        found: list[tuple[float, int, Utterance]] = []
        for line, raw in enumerate(source.text().split("\n"), 1):
            match = _TURN.match(raw)
            if match is None:
                if _UNTIMED.match(raw):
                    source.blemish("line without a time", line)
                elif raw.strip():
                    source.fail(line, f"is not 'TURN [start-end]: text' but {raw[:60]!r}")
                continue
            text = source.clean(match[5], line)
            if not text:
                source.fail(line, "the utterance is empty")
                continue
            if match[1] not in labels:
                source.blemish("turn without evaluation", line)
            speaker = f"{match[1][:5]}_{match[2]}"
            found.append((float(match[3]), line, Utterance(speaker, text, labels.get(match[1]))))
        return tuple(u for _, _, u in sorted(found, key=lambda f: f[:2]))
