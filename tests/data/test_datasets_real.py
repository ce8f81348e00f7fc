"""What the published files of MELD and EmoryNLP are known to need, where they are at hand."""

from __future__ import annotations

from collections import Counter

import pytest

from selfemo.data import load
from selfemo.data.personas_plain import describe_speakers
from tests.support.files import ROOT


@pytest.mark.parametrize(
    ("name", "conversations", "blemishes"),
    [
        ("meld", {"train": 1038, "dev": 114}, {"gap in utterance numbers": 71, "Windows line ends": 2}),
        (
            "emorynlp",
            {"train": 659, "dev": 89},
            {"gap in utterance numbers": 1407, "several speakers in a list": 54},
        ),
    ],
)
def test_known_blemishes_and_nothing_else(
    name: str, conversations: dict[str, int], blemishes: dict[str, int]
) -> None:
    if not (ROOT / name).exists():
        pytest.skip(f"{name} is not at hand: set SELFEMO_DATA to the folder that holds {name}/")
    result = load(str(ROOT / name))
    report = result.report
    assert report.conversations == conversations
    # The held-out test files need not have the same blemishes, so only these splits are pinned.
    if set(report.conversations) == {"train", "dev"}:
        assert report.blemishes == blemishes
    assert not report.skipped
    for c in result.conversations:
        assert c.turns and all(t.text and t.speaker and t.emotion for t in c.turns), c.id
    assert len({c.id for c in result.conversations}) == len(result.conversations)


@pytest.mark.parametrize("name", ["meld", "emorynlp"])
def test_main_speakers_are_described_and_dev_changes_nothing(name: str) -> None:
    if not (ROOT / name).exists():
        pytest.skip(f"{name} is not at hand: set SELFEMO_DATA to the folder that holds {name}/")
    conversations = load(str(ROOT / name)).conversations
    labels = conversations[0].label_set
    personas = describe_speakers(conversations, labels)
    train = [c for c in conversations if c.split == "train"]
    assert describe_speakers(train, labels) == personas
    said = Counter(t.speaker for c in train for t in c.turns)
    main = [personas[s].description for s, _ in said.most_common(6)]
    assert all(len(d.split()) >= 5 for d in main), main
    assert len(set(main)) >= 4, "descriptions tell the main speakers apart"
