"""MELD and EmoryNLP as their authors publish them, where they are at hand."""

from __future__ import annotations

import re

import pytest

from selfemo.data import load, resolve
from selfemo.data.checks import check_lines
from selfemo.data.personas_plain import describe_speakers
from tests.support.files import ROOT


@pytest.mark.parametrize(
    ("name", "counts"), [("meld", {"train": 9989, "dev": 1109}), ("emorynlp", {"train": 7551, "dev": 954})]
)
def test_official_counts_and_clean_text(name: str, counts: dict[str, int]) -> None:
    folder = ROOT / name
    if not folder.exists():
        pytest.skip(f"{name} is not at hand: set SELFEMO_DATA to the folder that holds {name}/")
    adapter, path = resolve(str(folder))
    assert adapter.name == name
    result = adapter.load(path)
    assert result.report.utterances == counts
    assert sum("ok)" in line for line in check_lines(result, adapter)) == 2
    assert all(c.turns for c in result.conversations)
    text = "".join(t.text + t.speaker for c in result.conversations for t in c.turns)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", text)
    personas = describe_speakers(result.conversations, adapter.label_set)
    main = [s for s in personas if re.match(r"(Ross|Monica|Joey|Rachel|Phoebe|Chandler)\b", s)]
    assert len(main) >= 6
    assert len({personas[s].description for s in main}) >= 4, "descriptions tell speakers apart"


def test_the_wrong_adapter_is_named() -> None:
    if not (ROOT / "emorynlp").exists():
        pytest.skip("emorynlp is not at hand: set SELFEMO_DATA")
    from selfemo.errors import DataError

    with pytest.raises(DataError, match="it looks like emorynlp"):
        load(f"meld:{ROOT / 'emorynlp'}")
