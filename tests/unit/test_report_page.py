"""Parts of the report's page: turns, tables, colours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfemo.method.prompts import conversation_prompts
from selfemo.method.types import Conversation, EmotionDistribution, LabelSet, Prompt, Utterance
from selfemo.reports import figures
from selfemo.reports.page import Head, Section, Table, headed, inline_svg, render
from selfemo.reports.palette import emotion_colours
from selfemo.reports.sections import table1
from selfemo.reports.turns import examples, spread, weights
from tests.unit.test_figures import scores

LABELS = LabelSet("toy", ("neutral", "joy", "anger"))


def row(conversation: str, n: int, r1: float, **more: Any) -> Any:
    return {
        "prompt": f"{conversation}/{n}", "conversation": conversation, "dataset": "toy", "r1": r1,
        "gold": '{"joy": 1.0}', "predicted": json.dumps({"neutral": 0.875, "anger": 0.125}),
        "failure": None, "text": "E: neutral", **more,
    }  # fmt: skip


def test_worst_turns_are_of_different_conversations() -> None:
    ranked = [row("a", 0, 0.0), row("a", 1, 0.0), row("a", 2, 0.1), row("b", 0, 0.2), row("c", 0, 0.3)]
    assert [r["prompt"] for r in spread(ranked, 3)] == ["a/0", "b/0", "c/0"]
    assert [r["prompt"] for r in spread(ranked, 4)] == ["a/0", "a/1", "b/0", "c/0"]
    assert len(spread(ranked, 9)) == 5


def test_examples_have_their_text_gold_and_weights() -> None:
    rows = [row(c, n, k / 10) for k, (c, n) in enumerate([("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0)])]
    said = (
        Utterance("Ann", "Before."),
        Utterance("Bo", "A parcel for me?", EmotionDistribution({"joy": 1.0})),
    )
    prompts = {r["prompt"]: _prompt(r["prompt"], r["conversation"], said) for r in rows}
    found = examples(rows, prompts, {"toy": LABELS}, 2, written=False)
    assert [(e["which"], e["name"]) for e in found] == [
        ("worst", "a/0"), ("worst", "b/0"), ("best", "c/0"), ("best", "b/1"),
    ]  # fmt: skip
    html = render("run", [], [Section("examples", "Examples", examples=found)])
    assert html.count("A parcel for me?") == 4 and html.count("Before.") == 4
    colours = emotion_colours(LABELS.labels)
    assert f'style="--emotion:{colours["joy"]};width:100%"' in html
    assert f'style="--emotion:{colours["neutral"]};width:88%"' in html
    assert "<bdi>neutral</bdi> 88%" in html and "<bdi>anger</bdi> 12%" in html
    assert "E: neutral" not in html, "what stands there was made of the probabilities"
    failed = examples(
        [row("a", 0, 0.0, predicted=None, failure="no E", text="Hm")], {}, {"toy": LABELS}, 1, written=True
    )
    page = render("run", [], [Section("examples", "Examples", examples=failed)])
    assert "failed: no E" in page and "Hm</pre>" in page


def _prompt(name: str, conversation: str, history: tuple[Utterance, ...]) -> Prompt:
    told = Conversation(conversation, "toy", "dev", history, LABELS)
    return replace(conversation_prompts(told)[-1], id=name)


def test_emotions_have_the_palettes_colours(tmp_path: Path) -> None:
    colours = emotion_colours(["joy", "anger"])
    figures.draw(tmp_path, [], {"start": {"toy": scores(0.2, 0.5)}})
    svg = (tmp_path / "emotions_toy.svg").read_text()
    shown = str(inline_svg(tmp_path / "emotions_toy.svg", "Emotions"))
    for colour in colours.values():
        assert f"fill: {colour}" in svg and f"fill: {colour}" in shown
    assert [w[:2] for w in weights({"anger": 0.25, "joy": 0.75}, LABELS)] == [
        ("joy", colours["joy"]), ("anger", colours["anger"]),
    ]  # fmt: skip
    assert weights({"joy": 0.999, "anger": 0.001}, LABELS)[0][2] == 100
    assert len(weights({"joy": 0.999, "anger": 0.001}, LABELS)) == 1


def test_drawings_follow_the_page(tmp_path: Path) -> None:
    figures.reward_curves(tmp_path, {"toy": {"start": (0.1, 0.2)}}, [])
    shown = str(inline_svg(tmp_path / "fig5_held_out.svg", 'a "b"'))
    for colour in ("#ffffff", "#000000", "#0072b2"):
        assert colour not in shown
    assert "var(--blue)" in shown and "currentColor" in shown and 'aria-label="a &#34;b&#34;"' in shown


def test_rows_keep_their_data_split_and_n_in_view() -> None:
    header = ["checkpoint", "data", "n", "accuracy"]
    table = headed("Scores", header, [["start", "toy", "56", "0.143 [0.111, 0.172]"]], "dev")
    assert table.header == ["checkpoint", "accuracy"]
    assert table.rows[0][0] == Head("start", "toy dev, n=56")
    ((_, cells),) = table.shown
    assert cells == [("", "start", ["toy dev, n=56"]), ("s", "0.143", [" [0.111, 0.172]"])]
    counted = headed(
        "Changes",
        ["stage", "data", "accuracy"],
        [["RL 1", "toy", "-"], ["refit 1", "", "-"]],
        "dev",
        {"toy": 7},
    )
    assert [r[0].note for r in counted.rows] == ["toy dev, n=7", "dev"]
    assert Table("", ["a", "b"], [["x", "+0.1 [+0.0, +0.2] p=0.5"]]).shown[0][1][1][2] == [
        " [+0.0, +0.2]",
        " p=0.5",
    ]


def test_measured_rows_are_marked_with_their_split(tmp_path: Path) -> None:
    both = {
        "accuracy": [0.5, 0.4, 0.6],
        "weighted_f1": [0.5, 0.4, 0.6],
        "utterances": 56,
        "parse_rate": [1, 1, 1],
    }
    content = {"model": "mine", "split": "dev", "trained_on": [], "scores": {"meld": both}}
    (tmp_path / "scores.json").write_text(json.dumps(content))
    (table,) = table1([tmp_path]).tables
    first, second = table.shown[:2]
    assert first[0] == "marked" and first[1][0][1:] == ("mine", ["measured on dev, n=56"])
    assert second[0] == "" and second[1][0][2] == ["published, test"]
