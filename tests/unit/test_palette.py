"""One colour an emotion: told apart in grey, the same in every label set."""

from itertools import combinations

import pytest

from selfemo.method.types import LABEL_SETS
from selfemo.reports.palette import emotion_colours


def lightness(colour: str) -> float:
    """CIELAB L* of #rrggbb (sRGB)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * y ** (1 / 3) - 16


def test_lightness_of_white_and_middle_grey() -> None:
    assert lightness("#ffffff") == pytest.approx(100)
    assert lightness("#777777") == pytest.approx(50, abs=0.5)


@pytest.mark.parametrize("name", [name for name, labels in LABEL_SETS.items() if len(labels) <= 7])
def test_the_colours_of_a_set_differ_in_grey(name: str) -> None:
    values = [lightness(c) for c in emotion_colours(LABEL_SETS[name]).values()]
    assert min(abs(a - b) for a, b in combinations(values, 2)) > 7.5


def test_an_emotion_has_one_colour_in_every_set() -> None:
    meld, emory = emotion_colours(LABEL_SETS["meld"]), emotion_colours(LABEL_SETS["emorynlp"])
    assert (meld["joy"], meld["neutral"], meld["anger"]) == (emory["joyful"], emory["neutral"], emory["mad"])


def test_labels_of_an_own_set_take_what_is_left() -> None:
    got = emotion_colours(["Joy", "grumpy", "sleepy"])
    assert got["Joy"] == emotion_colours(["joy"])["joy"]
    assert len(set(got.values())) == 3
    many = emotion_colours([f"mood {n}" for n in range(25)])
    assert len(many) == 25 and len(set(many.values())) == 10


def test_two_names_of_one_emotion_differ() -> None:
    got = emotion_colours(["sad", "sadness", "neutral"])
    assert len(set(got.values())) == 3
