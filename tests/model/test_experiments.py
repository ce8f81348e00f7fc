"""The ablation of table 2 end to end on a tiny model, and the statistics over seeds."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sqlite3
import threading
import time
import tomllib
from collections import Counter, defaultdict
from contextlib import closing, contextmanager
from html import escape
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from selfemo.config import load
from selfemo.errors import ConfigError, SelfEmoError, StoreError
from selfemo.evaluation.experiments import runs as experiment_runs
from selfemo.evaluation.experiments.ablate import ablate
from selfemo.evaluation.experiments.arms import arms_for, read_arm, shipped_arms
from selfemo.evaluation.experiments.runs import PlannedRun, complete_run
from selfemo.evaluation.experiments.statistics import over_seeds, paired_over_seeds
from selfemo.evaluation.parallel import Job, side_by_side
from selfemo.evaluation.summary import read_summary
from selfemo.progress import Quiet, Stopped, StopRequest
from selfemo.reports.ablation import ablation_table, share_table, signal_table, write_tables
from selfemo.reports.figures import draw
from selfemo.reports.report import build
from selfemo.reports.tables import cross, measured
from selfemo.runs.folder import fork
from tests.conftest import Built, toy_conversations, write_jsonl
from tests.support.runs import SETTINGS

SMALL = ("flywheel.iterations=1", "flywheel.prompts=18", "evaluation.resamples=50")


@pytest.fixture(scope="module")
def config(tiny_model: Path, built_once: Built) -> list[str]:
    everything = [*toy_conversations(8), *toy_conversations(3, "test")]
    data = built_once("toy8", lambda f: write_jsonl(f / "toy.jsonl", everything)) / "toy.jsonl"
    return [*SETTINGS.split(), f'model.id="{tiny_model}"', f'data.sources=["{data}"]', *SMALL]


@pytest.fixture(scope="module")
def ablated(config: list[str], built_once: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in the middle of its second run, then gone on with."""
    whole = built_once("ablated", lambda folder: stopped_and_gone_on(config, folder / "a"))
    return Path(shutil.copytree(whole / "a", tmp_path_factory.mktemp("ablation") / "a"))


def stopped_and_gone_on(config: list[str], out: Path) -> None:
    stop = StopRequest()

    class Asking(Quiet):
        def bar(self, label: str, total: int):
            @contextmanager
            def bar():
                def advance(n: int = 1, note: str = "") -> None:
                    begun = (out / "vanilla-grpo" / "seed-0" / "store.sqlite").exists()
                    stop.asked = stop.asked or (begun and label == "iteration-1-rl")

                yield advance

            return bar()

    with pytest.raises(Stopped):
        ablate([], config, out, 2, Asking(), stop=stop)
    assert (out / "full" / "seed-0" / "summary.json").exists()
    assert not (out / "ablation.json").exists()
    ablate([], config, out, 2, Quiet(), present=write_tables)


@pytest.mark.extended
@pytest.mark.slow
def test_runs_side_by_side_equal_runs_one_after_the_other(
    ablated: Path, config: list[str], tmp_path: Path
) -> None:
    ablate([], config, tmp_path, 1, Quiet(), only=["sft-only"], jobs=2, draw=draw)
    summary = json.loads((tmp_path / "sft-only" / "seed-0" / "summary.json").read_text())
    drawn = {f.stem for f in (tmp_path / "sft-only" / "seed-0" / "figures").iterdir()}
    assert drawn == set(summary["figures"]) == {"scores_jsonl", "emotions_jsonl"}
    alone, beside = (
        json.loads((out / "full" / "seed-0" / "summary.json").read_text())["scores"]
        for out in (ablated, tmp_path)
    )
    assert alone == beside


def _fails(*args: object) -> None:
    raise StoreError("nothing here")


def _breaks(*args: object) -> None:
    raise ValueError("a mistake of ours")


def _touches(path: Path, *args: object) -> None:
    path.touch()


def _waits(path: Path, reporter: object, stop: StopRequest) -> None:
    path.touch()
    while not stop.asked:
        time.sleep(0.01)
    stop.check()


@pytest.mark.slow
def test_a_job_that_fails_does_not_end_the_others(tmp_path: Path, capfd) -> None:
    jobs = [
        Job("first", _fails, ()),
        Job("second", _breaks, ()),
        Job("third", _touches, (tmp_path / "done",)),
    ]
    with pytest.raises(SelfEmoError, match=r"^first: nothing here$"):
        side_by_side(jobs, 1, Quiet())
    assert (tmp_path / "done").exists()
    assert "a mistake of ours" in capfd.readouterr().err


@pytest.mark.slow
def test_a_stop_reaches_the_jobs_that_run_and_no_other_begins(tmp_path: Path, capfd) -> None:
    stop = StopRequest()
    jobs = [Job(n, _waits, (tmp_path / n,)) for n in ("a", "b", "c")]

    def ask() -> None:
        while not ((tmp_path / "a").exists() and (tmp_path / "b").exists()):
            time.sleep(0.05)
        stop.asked = True

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Stopped):
        side_by_side(jobs, 2, Quiet(), stop)
    assert not (tmp_path / "c").exists()
    assert "[a] stopping after this step" in capfd.readouterr().err


@pytest.mark.slow
def test_each_arm_is_what_it_says(ablated: Path) -> None:
    result = json.loads((ablated / "ablation.json").read_text())
    assert [a["name"] for a in result["arms"]] == ["full", "vanilla-grpo", "original-only"]
    stores = {a: sqlite3.connect(ablated / a / "seed-1" / "store.sqlite") for a in
              ("full", "vanilla-grpo", "original-only")}  # fmt: skip

    def one(arm: str, query: str) -> int:
        return stores[arm].execute(query).fetchone()[0]

    for arm in stores:  # the same budget, data and seed
        assert one(arm, "SELECT count(DISTINCT step || prompt) FROM rollouts") == 18
        assert one(arm, "SELECT count(*) FROM predictions") == 4 * 15  # start, cold start, RL, refit
        settings = tomllib.loads((ablated / arm / "seed-1" / "config.toml").read_text())
        assert settings["seed"] == 1
    cold = "SELECT group_concat(prompt || text) FROM predictions WHERE evaluation='evaluate-cold-start'"
    assert one("full", cold) == one("vanilla-grpo", cold) == one("original-only", cold)
    assert one("full", "SELECT count(*) FROM prompts WHERE parent IS NOT NULL") > 0
    assert one("original-only", "SELECT count(*) FROM prompts WHERE parent IS NOT NULL") == 0
    after = "SELECT count(*) FROM metrics WHERE stage = 'iteration-1-refit'"
    assert one("original-only", after) == 0 < one("full", after)
    lambdas = [
        {json.loads(r)["lambda"] for (r,) in db.execute(
            "SELECT record FROM metrics WHERE stage = 'iteration-1-rl'")}
        for db in stores.values()
    ]  # fmt: skip
    assert max(lambdas[0]) > 0 and lambdas[1] == lambdas[2] == {0.0}


@pytest.mark.slow
def test_its_figures_follow_from_its_runs(ablated: Path) -> None:
    result = json.loads((ablated / "ablation.json").read_text())
    values = {}
    for arm in result["arms"]:
        found = []
        for run in arm["runs"]:
            summary = json.loads((ablated / run["folder"] / "summary.json").read_text())
            assert run["scores"]["jsonl"]["mean_r1"] == summary["scores"]["iteration-1"]["jsonl"]["mean_r1"]
            found.append(run["scores"]["jsonl"]["mean_r1"][0])
        values[arm["name"]] = found
        assert arm["scores"]["jsonl"]["mean_r1"]["mean"] == pytest.approx(np.mean(found))
    for arm in result["arms"][1:]:
        against = arm["against_full"]["jsonl"]["mean_r1"]
        delta = np.subtract(values[arm["name"]], values["full"])
        assert against["mean"] == pytest.approx(delta.mean())
        for run, d in zip(arm["runs"], delta, strict=True):
            within = run["against_full"]["jsonl"]
            assert within["prompts"] == 15 and within["mean_r1"]["difference"][0] == pytest.approx(d)
    rows = list(csv.DictReader((ablated / "ablation.csv").open()))
    assert len(rows) == 3 * 2 * 4
    assert {float(r["value"]) for r in rows if r["arm"] == "full" and r["measure"] == "mean_r1"} == set(
        values["full"]
    )
    dots = list(csv.DictReader((ablated / "figures" / "arms_mean_r1.csv").open()))
    assert {(r["arm"], r["data"], int(r["seed"])): float(r["mean_r1"]) for r in dots} == {
        (arm, "jsonl", s): v for arm, found in values.items() for s, v in enumerate(found)
    }
    svg = (ablated / "figures" / "arms_mean_r1.svg").read_text()
    assert all(f">{arm}</text>" in svg for arm in values)
    text = (ablated / "ablation.md").read_text()
    assert "w/o SELF-GRPO" in text and "54.11" in text and "original-only" in text


@pytest.mark.slow
def test_what_rl_had_to_learn_from_follows_from_its_rollouts(ablated: Path) -> None:
    result = json.loads((ablated / "ablation.json").read_text())
    for arm in result["arms"]:
        groups, predicted = [], Counter()
        for run in arm["runs"]:
            with closing(sqlite3.connect(ablated / run["folder"] / "store.sqlite")) as db:
                by_prompt = defaultdict(list)
                for key, *values in db.execute(
                    "SELECT step || prompt, r1, r2, advantage FROM rollouts WHERE stage = 'iteration-1-rl'"
                ):
                    by_prompt[key].append(values)
                groups += by_prompt.values()
                rows = db.execute(
                    "SELECT predicted FROM predictions WHERE evaluation = 'evaluate-iteration-1'"
                )
                tops = [max(json.loads(r), key=json.loads(r).get) for (r,) in rows if r]
                predicted.update({e: n / 15 / len(arm["runs"]) for e, n in Counter(tops).items()})
        for i, key in enumerate(("r1_flat", "r2_flat", "silent")):
            flat = [np.ptp([member[i] for member in g]) < 1e-9 for g in groups]
            assert arm["signal"][key] == pytest.approx(np.mean(flat)), (arm["name"], key)
        fits = [
            json.loads((ablated / r["folder"] / "summary.json").read_text())["scores"]["iteration-1"]
            for r in arm["runs"]
        ]
        for key in ("nll", "temperature", "nll_tempered"):
            mine = [f["jsonl"]["calibration"][key] for f in fits]
            assert arm["fit"]["jsonl"][key] == pytest.approx(np.mean(mine))
        assert {e: v for e, v in arm["predicted_share"]["jsonl"].items() if v} == pytest.approx(
            dict(predicted)
        )
    assert max(a["signal"]["r1_flat"] for a in result["arms"]) > 0
    text = (ablated / "ablation.md").read_text()
    assert "| gold | jsonl |" in text and "| no advantage |" in text


@pytest.mark.slow
def test_the_report_shows_its_tables(ablated: Path, tmp_path: Path) -> None:
    build(ablated / "full" / "seed-0", tmp_path / "r.html", ablation=ablated)
    page = (tmp_path / "r.html").read_text()
    section = page[page.index('id="ablation"') : page.index('id="judge"')]
    shown = [
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in section.split("<tr")[1:]
    ]
    result = json.loads((ablated / "ablation.json").read_text())
    for table in (ablation_table, share_table, signal_table):
        header, rows = table(result)
        for row in (header, *rows):
            assert [escape(str(c)) for c in row] in shown, row


@pytest.mark.slow
def test_what_is_done_is_not_run_again_and_other_settings_are_refused(
    ablated: Path, config: list[str], monkeypatch
) -> None:
    before = (ablated / "ablation.json").read_text()

    def never(*args, **kwargs):
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr(experiment_runs, "evolve", never)
    ablate([], config, ablated, 2, Quiet(), present=write_tables)
    assert (ablated / "ablation.json").read_text() == before
    one = ablate([], config, ablated, 1, Quiet(), only=["vanilla-grpo"])
    assert [a["name"] for a in one["arms"]] == ["full", "vanilla-grpo"]
    assert one["arms"][1]["against_full"]["jsonl"]["accuracy"]["p_value"] is None
    ablate([], config, ablated, 2, Quiet())
    with pytest.raises(StoreError, match=r"other settings \(grpo.lr\)"):
        ablate([], [*config, "grpo.lr=0.5"], ablated, 2, Quiet())
    kept = sorted(p.name for p in (ablated / "full" / "seed-0" / "checkpoints").iterdir())
    assert kept == ["iteration-1"]


class Saying(Quiet):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.slow
def test_a_run_with_a_cut_summary_is_not_taken_as_done(ablated: Path, config: list[str]) -> None:
    arms = json.loads((ablated / "ablation.json").read_text())["arms"]
    path, old = ablated / "full" / "seed-1" / "summary.json", ablated / "old.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    old.hardlink_to(path)
    reporter = Saying()
    result = ablate([], config, ablated, 2, reporter)
    assert path.read_text() == whole and result["arms"] == arms
    (said,) = [text for text in reporter.said if "it is made again" in text]
    assert said.startswith(f"{path}: cannot be read (")
    assert old.read_text() == whole[: len(whole) // 2], "a new file took the place of the old one"


@pytest.mark.parametrize(
    ("content", "fault"), [('{"scores": {"st', "Unterminated string"), ("[]", "it holds no scores")]
)
def test_what_is_no_summary_is_said(tmp_path: Path, content: str, fault: str) -> None:
    said: list[str] = []
    assert read_summary(tmp_path, said.append) is None and said == []
    (tmp_path / "summary.json").write_text(content)
    assert read_summary(tmp_path, said.append) is None
    assert said[0].startswith(f"{tmp_path / 'summary.json'}: cannot be read ({fault}")


@pytest.mark.slow
def test_its_runs_are_rows_of_the_tables(ablated: Path) -> None:
    found = measured(ablated / "full" / "seed-0")
    assert found.name == "seed-0 iteration-1" and found.trained_on == ["jsonl"]
    _, rows = cross([ablated / "full" / "seed-0"])
    assert rows[0][0] == "jsonl" and "/" in rows[0][2]


def test_arms_of_a_configuration() -> None:
    assert [a.name for a in arms_for(load())] == ["full", "vanilla-grpo", "original-only"]
    with_experts = arms_for(load([], ["sft.samples=x.parquet", "prompt.reasoning=brief"]))
    assert [a.name for a in with_experts][:2] == ["full", "gold-cold-start"]
    gold = load([], ["sft.samples=x.parquet", "prompt.reasoning=brief", *with_experts[1].overrides])
    assert gold.sft.samples == "" and gold.prompt.reasoning == "none"
    for spoiled in ("grpo.lam_max=0", "selfplay.max_turns=1", "selfplay.synthetic_share=0"):
        with pytest.raises(ConfigError, match="full arm"):
            arms_for(load([], [spoiled]))
    with pytest.raises(ConfigError, match="has lambda 0 throughout"):
        arms_for(load([], ["flywheel.prompts=64"]))
    arms_for(load([], ["flywheel.prompts=64", "flywheel.iterations=2"]))  # the second round has lambda 1/2
    with pytest.raises(ConfigError, match="has lambda 0 throughout"):
        arms_for(load([], ["flywheel.prompts=64", "flywheel.iterations=2", "grpo.lam_span=stage"]))
    with pytest.raises(ConfigError, match=r"gold-cold-start: sft\.samples is empty"):
        ablate([], [], Path("nowhere"), 1, Quiet(), only=["gold-cold-start"])


def test_statistics_over_seeds_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 8):
        a, b = rng.random(n), rng.random(n)
        found = paired_over_seeds(a.tolist(), b.tolist())
        theirs = stats.ttest_rel(b, a)
        assert found["p_value"] == pytest.approx(theirs.pvalue)
        assert found["interval"] == pytest.approx(list(theirs.confidence_interval(0.95)))
        assert over_seeds(a.tolist())["sd"] == pytest.approx(a.std(ddof=1))
    assert over_seeds([0.5]) == {"mean": 0.5, "sd": None, "interval": None}
    assert paired_over_seeds([0.1, 0.2], [0.1, 0.2])["p_value"] == 1.0


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("more", "same"), [([], "refit"), (["rl-alone.toml"], "no-refit")])
def test_the_shipped_experiments_are_whole(more: list[str], same: str) -> None:
    base = [ROOT / "experiments" / "base.toml"]
    changes = sorted(map(str, (ROOT / "experiments" / "changes").glob("*.toml")))
    assert changes
    for budget in sorted((ROOT / "experiments" / "budgets").glob("*.toml")):
        files = [*base, budget, *(ROOT / "experiments" / f for f in more)]
        config = load(files)
        # Without a refit there is none to control, which the arm refuses.
        none = {"replay-only"} if config.flywheel.refit == "none" else set()
        everyone = [n for n in shipped_arms() if n not in {"full", "gold-cold-start"} | none]
        for arm in arms_for(config, [*everyone, *changes]):
            changed = load(files, arm.overrides)
            # An arm that changes nothing would be the full one under another name.
            assert (changed == config) == (arm.name in ("full", "backbone", "cold-start", same))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("what = 3", "what: an arm has"),
        ("colour = 'red'", "colour: an arm has"),
        ("checkpoint = 'middle'", "checkpoint: valid are"),
        ("checkpoint = 'start'\n[set]\nseed = 3", "sets nothing"),
        ("checkpoint = 'start'\nsame_labels_as = 'full'", "draws no labels"),
        ("same_labels_as = 3", "same_labels_as: an arm has"),
        ("[", "cannot be read as an arm"),
    ],
)
def test_a_broken_arm_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as raised:
        read_arm(str(file))
    assert str(file) in str(raised.value)
    with pytest.raises(ConfigError, match="no arm 'nobody'; there are: backbone"):
        read_arm("nobody")


@pytest.mark.slow
def test_arms_share_a_cold_start_and_sft_only_has_the_samples_in_its_place(
    config: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "a"
    found = ablate(
        [],
        [*config, "sft.max_samples=8", "sft.epochs=4"],
        out,
        1,
        Quiet(),
        only=["backbone", "cold-start", "sft-only"],
    )
    scores = {a["name"]: a["scores"]["jsonl"] for a in found["arms"]}
    runs = {a["name"]: a["runs"][0] for a in found["arms"]}
    assert runs["backbone"]["folder"] == runs["cold-start"]["folder"] == "trunk/seed-0"
    assert (runs["backbone"]["checkpoint"], runs["cold-start"]["checkpoint"]) == (
        "start", "cold-start",
    )  # fmt: skip

    def cold(folder: str) -> list:
        db = sqlite3.connect(out / folder / "store.sqlite")
        query = "SELECT record FROM metrics WHERE stage = 'cold-start' ORDER BY step"
        return db.execute(query).fetchall()

    assert cold("full/seed-0") == cold("trunk/seed-0") != cold("sft-only/seed-0")

    def seconds(folder: str) -> float:
        db = sqlite3.connect(out / folder / "store.sqlite")
        query = "SELECT seconds FROM stages WHERE name = 'evaluate-start'"
        return db.execute(query).fetchone()[0]

    # The untouched model is evaluated once, whatever comes after it.
    assert seconds("trunk/seed-0") == seconds("full/seed-0") == seconds("sft-only/seed-0")
    sft = tomllib.loads((out / "sft-only" / "seed-0" / "config.toml").read_text())
    group = tomllib.loads((out / "full" / "seed-0" / "config.toml").read_text())["sampling"]
    assert sft["sft"]["max_samples"] == 8 + 18 * group["group_size"]
    assert sft["flywheel"]["iterations"] == 0
    summary = json.loads((out / "full" / "seed-0" / "summary.json").read_text())
    for m in ("accuracy", "mean_r1"):
        assert scores["cold-start"][m]["mean"] == summary["scores"]["cold-start"]["jsonl"][m][0]
        assert scores["backbone"][m]["mean"] == summary["scores"]["start"]["jsonl"][m][0]


def _cold_samples(run: Path) -> list:
    db = sqlite3.connect(run / "store.sqlite")
    return db.execute("SELECT fingerprint FROM samples WHERE stage = 'cold-start'").fetchall()


@pytest.mark.slow
def test_a_forked_run_equals_one_of_its_own(config: list[str], tmp_path: Path) -> None:
    whole = load([], [*config, "seed=5"])
    trunk = load([], [*config, "seed=5", "flywheel.iterations=0"])
    for planned in (
        PlannedRun(tmp_path / "alone", whole),
        PlannedRun(tmp_path / "trunk", trunk),
        PlannedRun(tmp_path / "forked", whole, trunk=tmp_path / "trunk"),
    ):
        complete_run(planned, Quiet())
    last = "checkpoints/iteration-1/model.safetensors"
    assert (tmp_path / "alone" / last).read_bytes() == (tmp_path / "forked" / last).read_bytes()
    more = ["seed=6", "sft.epochs=4", "flywheel.iterations=0"]
    other = load([], [*config, *more])
    for planned in (
        PlannedRun(tmp_path / "other", other, trunk=tmp_path / "alone", at="start"),
        PlannedRun(tmp_path / "other-alone", other),
    ):
        complete_run(planned, Quiet())
    scores = [
        json.loads((tmp_path / n / "summary.json").read_text())["scores"] for n in ("other", "other-alone")
    ]
    assert scores[0] == scores[1]
    assert sqlite3.connect(tmp_path / "other" / "store.sqlite").execute(
        "SELECT count(*) FROM samples WHERE stage = 'cold-start'"
    ).fetchone() == (len(_cold_samples(tmp_path / "other-alone")),)
    with pytest.raises(StoreError, match="already holds a run"):
        fork(tmp_path / "trunk", tmp_path / "forked", whole)
    with pytest.raises(StoreError, match="goes on after its cold start"):
        fork(tmp_path / "alone", tmp_path / "new", whole)
    with pytest.raises(ConfigError, match=r"a cold-start with other settings \(seed\)"):
        fork(tmp_path / "trunk", tmp_path / "new", load([], config))
