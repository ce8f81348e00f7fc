"""Figures: the CSV file beside each holds the values that were drawn, the SVG has its series."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from types import SimpleNamespace

from selfemo.evaluation.metrics import Interval
from selfemo.reports import figures


def rows_of(folder: Path, name: str) -> list[list[str]]:
    """The CSV of a figure, header first; its SVG and PNG must be there too."""
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (folder / f"{name}.csv").open(newline="") as f:
        return list(csv.reader(f))


def words_of(folder: Path, name: str) -> list[str]:
    """The texts in an SVG; ticks, titles and legend entries are text."""
    svg = (folder / f"{name}.svg").read_text()
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def scores(accuracy: float, joy: float) -> SimpleNamespace:
    """Scores of two classes, with intervals of 0.1 on each side."""
    return SimpleNamespace(
        **{
            m: Interval(v, v - 0.1, v + 0.1)
            for m, v in (
                ("accuracy", accuracy), ("weighted_f1", 0.5), ("mean_r1", 0.4), ("parse_rate", 0.9),
            )
        },
        predicted_share={"joy": joy, "anger": 0.25},
        gold_share={"joy": 0.5, "anger": 0.5},
    )  # fmt: skip


def test_a_run(tmp_path: Path) -> None:
    rounds = [
        {"iteration": 1, "r1": 0.25, "r1_original": None, "r2": 0.5, "sampling_entropy": 2.0,
         "parse_rate": 0.875, "pass_rate": None},
        {"iteration": 2, "r1": 0.75, "r1_original": 0.5, "r2": 0.5, "sampling_entropy": 1.0,
         "parse_rate": 1.0, "pass_rate": 0.5},
    ]  # fmt: skip
    by = {
        "start": {"toy": scores(0.2, 0.5), "all": scores(0.2, 0.5)},
        "cold-start": {"toy": scores(0.6, 0.25)},
    }
    names = figures.draw(tmp_path, rounds, by)
    assert names == ["reward", "entropy", "parse_rate", "scores_toy", "emotions_toy"]
    assert rows_of(tmp_path, "reward") == [
        ["round", "iteration", "r1", "r1_original", "r2"],
        ["1", "1", "0.25", "", "0.5"],
        ["2", "2", "0.75", "0.5", "0.5"],
    ]
    assert {"R1, all prompts", "R1, original prompts", "R2"} <= set(words_of(tmp_path, "reward"))
    assert rows_of(tmp_path, "entropy")[1:] == [["1", "1", "2.0"], ["2", "2", "1.0"]]
    assert rows_of(tmp_path, "parse_rate")[1:] == [["1", "1", "0.875", ""], ["2", "2", "1.0", "0.5"]]
    assert rows_of(tmp_path, "scores_toy")[:3] == [
        ["checkpoint", "measure", "value", "low", "high"],
        ["start", "accuracy", "0.2", "0.1", "0.30000000000000004"],
        ["cold-start", "accuracy", "0.6", "0.5", "0.7"],
    ]
    assert rows_of(tmp_path, "emotions_toy")[1:] == [
        ["gold", "joy", "0.5"], ["gold", "anger", "0.5"], ["start", "joy", "0.5"],
        ["start", "anger", "0.25"], ["cold-start", "joy", "0.25"], ["cold-start", "anger", "0.25"],
    ]  # fmt: skip
    shown = words_of(tmp_path, "emotions_toy")
    assert {"gold", "start", "cold-start", "joy", "anger", "failed to parse"} <= set(shown)
    assert figures.draw(tmp_path / "none", [], {}) == []


def test_rewards_and_entropies_of_checkpoints(tmp_path: Path) -> None:
    held = {"toy": {"start": (0.1, 0.2), "cold-start": (0.5, 0.6)}}
    assert figures.reward_curves(tmp_path, held, []) == ["fig5_held_out"]
    assert rows_of(tmp_path, "fig5_held_out")[1:] == [
        ["toy", "start", "accuracy-based", "0.1"], ["toy", "cold-start", "accuracy-based", "0.5"],
        ["toy", "start", "IoU-based", "0.2"], ["toy", "cold-start", "IoU-based", "0.6"],
    ]  # fmt: skip
    assert {"toy, accuracy-based", "toy, IoU-based"} <= set(words_of(tmp_path, "fig5_held_out"))
    spans = {"emotion": [1.0, 0.5, 1.5], "self_emotion": None, "reply": [3.0, 2.0, 4.0]}
    assert figures.span_entropy(tmp_path, {"start": {"entropy": spans}}) == "fig6_spans"
    assert rows_of(tmp_path, "fig6_spans")[1:] == [
        ["start", "emotion", "1.0", "0.5", "1.5"], ["start", "reply", "3.0", "2.0", "4.0"],
    ]  # fmt: skip


def test_arms(tmp_path: Path) -> None:
    def arm(name: str, *values: float) -> dict:
        return {
            "name": name,
            "scores": {"toy": {"mean_r1": {"mean": sum(values) / len(values)}}},
            "runs": [{"seed": s, "scores": {"toy": {"mean_r1": [v]}}} for s, v in enumerate(values)],
        }

    name = figures.arm_dots(tmp_path, [arm("full", 0.5, 0.75), arm("less", 0.25)], "mean_r1")
    assert name == "arms_mean_r1" and rows_of(tmp_path, name) == [
        ["arm", "data", "seed", "mean_r1"],
        ["full", "toy", "0", "0.5"], ["full", "toy", "1", "0.75"], ["less", "toy", "0", "0.25"],
    ]  # fmt: skip
    assert {"full", "less", "toy", "mean R1: seeds (bars) and their mean"} <= set(words_of(tmp_path, name))
    name = figures.arm_curves(tmp_path, "R1", "mean", {"full": [[0.5, 0.75], [0.25, None]]})
    assert rows_of(tmp_path, name)[1:] == [
        ["full", "0", "1", "0.5"], ["full", "1", "1", "0.25"],
        ["full", "0", "2", "0.75"], ["full", "1", "2", ""],
    ]  # fmt: skip


def test_comparisons_confusions_and_calibration(tmp_path: Path) -> None:
    name = figures.judge_bars(tmp_path, {"a against b": {"wins": 3, "ties": 2, "losses": 11}})
    assert rows_of(tmp_path, name)[1:] == [["a against b", "3", "2", "11"]]
    assert {"3", "2", "11", "wins", "ties", "losses"} <= set(words_of(tmp_path, name))
    counts = {"labels": ["joy", "anger"], "rows": [[21, 22, 23], [31, 32, 33]]}
    name = figures.confusion_map(tmp_path, "confusion", counts)
    assert rows_of(tmp_path, name) == [
        ["gold", "joy", "anger", "failed"], ["joy", "21", "22", "23"], ["anger", "31", "32", "33"],
    ]  # fmt: skip
    assert {"21", "22", "23", "31", "32", "33"} <= set(words_of(tmp_path, name))
    bins = [
        {"lower": 0.0, "upper": 0.5, "n": 0},
        {"lower": 0.5, "upper": 1.0, "n": 4, "weight": 0.75, "accuracy": 0.5},
    ]
    name = figures.reliability(tmp_path, "reliability", {"bins": bins})
    assert rows_of(tmp_path, name)[1:] == [["0.5", "1.0", "4", "0.75", "0.5"]]
    assert "n=4" in words_of(tmp_path, name)


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        figures.reward_curves(tmp_path / folder, {"toy": {"start": (0.1, 0.2)}}, [])
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
