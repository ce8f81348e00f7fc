"""Runs of the tiny model with a stage that ends worse: rolled back, told, the same run when resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from selfemo.config import Config
from selfemo.data.splits import held_out
from selfemo.errors import DataError
from selfemo.evaluation.changes import belief_changes
from selfemo.evaluation.experiments.ablate import ablate
from selfemo.evaluation.predictions import distributions, evaluate_checkpoint
from selfemo.evaluation.summary import finish
from selfemo.evaluation.tempered import best_temperature
from selfemo.models.references import ModelReference
from selfemo.reports.ablation import write_tables
from selfemo.reports.report import build
from selfemo.runs.evolve import evolve as run_evolve
from selfemo.runs.folder import CONFIG_FILE, RunFolder, save_config, stage_names
from selfemo.runs.inputs import load_conversations
from selfemo.runs.store import Store
from selfemo.training.local import LocalTrainer
from tests.conftest import MELD, toy_conversations, write_jsonl
from tests.support.runs import SETTINGS, Silent, Watcher, assert_same_run, evolve, settings

pytestmark = pytest.mark.slow

ROLLS_BACK = (
    "flywheel.if_worse=rollback", "data.eval_split=dev", "model.threads=1", "guard.kl=warn", "seed=1",
    "selfplay.synthetic_share=0.1",
)  # fmt: skip
BAD_RL, BAD_REFIT = "grpo.lr=0.3", "flywheel.refit_lr=3"
"""Learning rates that no model survives."""


@pytest.fixture(scope="module")
def dev(built_once) -> Path:
    """Ten conversations to train on, six held out as dev: three are judged on."""
    everything = [*toy_conversations(10), *toy_conversations(6, "dev")]
    return built_once("toydev", lambda f: write_jsonl(f / "toy.jsonl", everything)) / "toy.jsonl"


@pytest.fixture(scope="module")
def bad_rl(tiny_model: Path, dev: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose RL breaks the model in both iterations; beside it what each stage began with."""
    home = tmp_path_factory.mktemp("bad_rl")
    config = settings(tiny_model, dev, *ROLLS_BACK, BAD_RL)
    watcher = Watcher(lambda stage: shutil.copytree(home / "whole", home / stage))
    begun_from: list[tuple[str, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        for begin in ("begin_sft", "begin_rl"):
            whole = getattr(LocalTrainer, begin)

            def noted(self, stage, weights, *rest, whole=whole):
                begun_from.append((stage, Path(weights).name))
                return whole(self, stage, weights, *rest)

            patch.setattr(LocalTrainer, begin, noted)
        with evolve(home / "whole", config, watcher) as run:
            finish(run)
    (home / "said.json").write_text(json.dumps([watcher.said, begun_from]))
    return home / "whole"


def records(run: Path) -> dict[str, dict]:
    with Store(run / "store.sqlite", read_only=True) as store:
        return {r["name"]: json.loads(r["info"]) for r in store.stages()}


def weights(run: Path, checkpoint: str) -> bytes:
    return (run / "checkpoints" / checkpoint / "model.safetensors").read_bytes()


def test_rl_that_ends_worse_is_rolled_back(bad_rl: Path, tiny_model: Path) -> None:
    found = records(bad_rl)
    said, begun_from = json.loads((bad_rl.parent / "said.json").read_text())
    for i, before in ((1, "cold-start"), (2, "iteration-1")):
        choice = found[f"keep-iteration-{i}-rl"]
        assert choice["rolled_back"] and choice["kept"] == choice["before"] == before
        assert choice["nll_at_t"][1] > choice["nll_at_t"][0] and choice["judged_on"] == 3
        a, b = choice["nll_at_t"]
        assert f"iteration-{i}-rl rolled back to {before}: NLL at T {a:.3f} -> {b:.3f}" in said
        assert weights(bad_rl, f"iteration-{i}-rl") != weights(bad_rl, before)
        kept = found[f"keep-iteration-{i}"]["kept"]
        assert weights(bad_rl, f"iteration-{i}") == weights(bad_rl, kept)
        assert found[f"evaluate-iteration-{i}"]["taken_from"] == kept
    assert begun_from == [
        ["cold-start", tiny_model.name],
        ["iteration-1-rl", "cold-start"], ["iteration-1-refit", "cold-start"],
        ["iteration-2-rl", "iteration-1"], ["iteration-2-refit", "iteration-1"],
    ]  # fmt: skip
    assert ModelReference.parse(str(bad_rl)).checkpoint == "iteration-2"
    with RunFolder(bad_rl) as run:
        every = stage_names(run.config)
    done = [name for name in every if name in found]
    assert list(found) == done and f"stage {len(every)} of {len(every)}: {done[-1]}" in said


def test_the_choice_is_of_the_stored_beliefs_on_the_tuning_half(bad_rl: Path, dev: Path) -> None:
    config = settings(dev, dev, *ROLLS_BACK)
    mine = {c.id for c in held_out(load_conversations(config.data), "dev", 0, 0, "tuning")}
    nll = []
    with Store(bad_rl / "store.sqlite", read_only=True) as store:
        for c in ("cold-start", "iteration-1-rl"):
            rows = [r for r in store.predictions(f"evaluate-{c}") if r["conversation"] in mine]
            assert len(rows) == 15 and len(store.predictions(f"evaluate-{c}")) == 30
            nll.append(best_temperature(*distributions(rows, {"jsonl": MELD}, believed=True))[1])
    assert records(bad_rl)["keep-iteration-1-rl"]["nll_at_t"] == pytest.approx(nll, abs=1e-9)


def test_samples_of_rolled_back_rl_join_its_refit_and_its_prompts_are_dropped(bad_rl: Path) -> None:
    found = records(bad_rl)
    with Store(bad_rl / "store.sqlite", read_only=True) as store:
        own = [r for r, _ in store.samples() if r["stage"] == "iteration-1-rl"]
        made = {i for (i,) in store.stream("SELECT id FROM prompts WHERE stage = 'iteration-1-rl'")}
        skipped = {i for (i,) in store.stream("SELECT id FROM prompts WHERE skipped = 1")}
        drawn = {i for (i,) in store.stream("SELECT prompt FROM rollouts WHERE stage = 'iteration-2-rl'")}
        left = [p for p in store.pending()[0] if p.iteration == 1]
    assert len(own) == found["iteration-1-refit"]["used"] > 0, "the case needs samples"
    assert not made & drawn and not left
    assert len(made & skipped) == found["keep-iteration-1-rl"]["prompts_dropped"] > 0, (
        "the case needs prompts"
    )


def test_summary_and_report_say_it(bad_rl: Path, tmp_path: Path) -> None:
    summary = json.loads((bad_rl / "summary.json").read_text())
    line = summary["choices_said"][0]
    assert line.startswith("iteration-1-rl rolled back to cold-start: NLL at T ")
    assert [c["trained"] for c in summary["choices"]] == [
        f"iteration-{i}-{s}" for i in (1, 2) for s in ("rl", "refit")
    ]
    assert list(summary["scores"])[-1] == "iteration-2"
    rl = next(c for c in summary["changes"] if c["stage"] == "RL 1")
    assert rl["rolled_back"] and rl["from"] == "cold-start"
    refit = next(c for c in summary["changes"] if c["stage"] == "refit 1")
    assert refit["from"] == "cold-start" and refit["to"] == "iteration-1-refit"
    assert not any(s["name"].startswith("keep-") for s in summary["stages"])
    assert line in (bad_rl / "summary.md").read_text()
    build(bad_rl, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "iteration-1-rl rolled back to cold-start" in html and "; rolled back" in html


def same_records(folder: Path, reference: Path) -> None:
    assert_same_run(folder, reference)  # its prompts say which are dropped
    ours, theirs = records(folder), records(reference)
    assert ours == theirs and list(ours) == list(theirs)


@pytest.mark.parametrize("stage", ["iteration-1-refit", "evaluate-iteration-1-refit", "iteration-2-rl"])
def test_killed_at_a_stage_it_goes_on_as_the_same_run(bad_rl: Path, tmp_path: Path, stage: str) -> None:
    folder = Path(shutil.copytree(bad_rl.parent / stage, tmp_path / "run"))
    evolve(folder, None, Silent()).close()
    same_records(folder, bad_rl)


@pytest.mark.parametrize("choice", ["iteration-1-rl", "iteration-1-refit"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_between_evaluation_and_next_stage_it_chooses_the_same(
    bad_rl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, when: str
) -> None:
    """Before the choice is recorded, and when it is, but before anything followed from it."""
    folder = Path(shutil.copytree(bad_rl.parent / f"evaluate-{choice}", tmp_path / "run"))
    name = f"keep-{choice}" if choice.endswith("-rl") else "keep-iteration-1"
    set_stage = Store.set_stage

    def killed(self, stage, *rest, **more):
        if stage == name and when == "before":
            raise KeyboardInterrupt
        set_stage(self, stage, *rest, **more)
        if stage == name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "set_stage", killed)
        with pytest.raises(KeyboardInterrupt):
            evolve(folder, None, Silent())
    assert (name in records(folder)) == (when == "after")

    def asked_again(*args):
        raise AssertionError("a choice that is recorded is not made again")

    judged = belief_changes
    if when == "after":
        # The cold start with itself at the beginning, then the three choices that are left, or two.
        left = iter([belief_changes] * (4 if choice.endswith("-rl") else 3) + [asked_again])
        judged = lambda *args: next(left)(*args)  # noqa: E731
    run_evolve(folder, None, evaluate_checkpoint, Silent(), compare=judged).close()
    same_records(folder, bad_rl)


@pytest.mark.parametrize("kept", ["cold-start", "iteration-1-rl"])
def test_without_a_refit_the_iteration_is_what_was_kept(
    bad_rl: Path, tiny_model: Path, dev: Path, tmp_path: Path, kept: str
) -> None:
    more = [BAD_RL] if kept == "cold-start" else [BAD_RL, "flywheel.worse_margin=100"]
    config = settings(tiny_model, dev, *ROLLS_BACK, *more, "flywheel.refit=none", "flywheel.iterations=1")
    folder = forked(bad_rl, tmp_path, config)
    with evolve(folder, None, Silent()) as run:
        summary = finish(run)
    found = records(folder)
    assert found["keep-iteration-1-rl"]["kept"] == kept
    assert found["keep-iteration-1"] == {"copy_of": kept}
    assert found["iteration-1-refit"]["refit"] == f"none: {kept} is kept"
    assert weights(folder, "iteration-1") == weights(folder, kept)
    assert summary["scores"]["iteration-1"] == summary["scores"][kept]
    assert "iteration-1-refit" not in summary["scores"] and "evaluate-iteration-1-refit" not in found


def forked(run: Path, tmp_path: Path, config: Config) -> Path:
    """A run with other settings from the first RL stage on."""
    folder = Path(shutil.copytree(run.parent / "iteration-1-rl", tmp_path / "run"))
    save_config(folder / CONFIG_FILE, config)
    return folder


def test_a_refit_that_ends_worse_leaves_neither_weights_nor_samples(
    bad_rl: Path, tiny_model: Path, dev: Path, tmp_path: Path
) -> None:
    config = settings(
        tiny_model,
        dev,
        *ROLLS_BACK,
        BAD_REFIT,
        "save.keep_stage_checkpoints=false",
        "flywheel.worse_margin=0.3",
    )
    folder = forked(bad_rl, tmp_path, config)
    said = Watcher()
    with evolve(folder, None, said) as run:
        kept_samples = [r for r, _ in run.store.samples() if r["iteration"] == 1]
        finish(run)
    found = records(folder)
    assert not found["keep-iteration-1-rl"]["rolled_back"], "a small learning rate"
    assert found["keep-iteration-1"]["rolled_back"]
    assert found["keep-iteration-1"]["copy_of"] == found["keep-iteration-1"]["before"] == "iteration-1-rl"
    assert len(kept_samples) == found["iteration-2-refit"]["left_out_as_rolled_back"] > 0
    assert "left_out_as_rolled_back" not in found["iteration-1-refit"]
    there = {p.name for p in (folder / "checkpoints").iterdir()}
    assert there == {"cold-start", "iteration-1", "iteration-2"}, "what was kept has its iteration's name"


@pytest.mark.parametrize("damaged", ["iteration-1", "iteration-1 -refit", "iteration-1 -refit -rl"])
def test_a_damaged_checkpoint_of_the_last_iteration_is_made_again(
    bad_rl: Path, tmp_path: Path, damaged: str
) -> None:
    """Alone, it is copied again; with its source that is trained again, and with what the source needs."""
    folder = Path(shutil.copytree(bad_rl.parent / "iteration-2-rl", tmp_path / "run"))  # copies, no links
    name, *more = damaged.split()
    for tail in ("", *more):
        with (folder / "checkpoints" / f"{name}{tail}" / "model.safetensors").open("r+b") as f:
            f.seek(200)
            f.write(b"damaged!")
    began: list[str] = []
    said = Watcher(began.append)
    evolve(folder, None, said).close()
    assert "stage keep-iteration-1 is done again" in said.said[0]
    assert began[:2] == {
        0: ["iteration-2-rl", "evaluate-iteration-2-rl"], 1: ["iteration-1-refit", "iteration-2-rl"],
        2: ["iteration-1-rl", "iteration-1-refit"],
    }[len(more)]  # fmt: skip
    same_records(folder, bad_rl)


def test_a_policy_that_was_damaged_with_its_copy_is_trained_again(
    bad_rl: Path, tiny_model: Path, dev: Path, tmp_path: Path
) -> None:
    """Without rollback or refit too: the iteration's checkpoint is a hard link of the policy's."""
    more = ("flywheel.refit=none", "flywheel.iterations=1", "flywheel.if_worse=go_on")
    folder = forked(bad_rl, tmp_path, settings(tiny_model, dev, *ROLLS_BACK, *more))
    evolve(folder, None, Silent()).close()
    assert not any(name.startswith("keep-") for name in records(folder))
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    with (folder / "checkpoints/iteration-1/model.safetensors").open("r+b") as f:
        f.seek(200)
        f.write(b"damaged!")
    assert weights(folder, "iteration-1-rl") != weights(whole, "iteration-1-rl"), "the case needs hard links"
    evolve(folder, None, Silent()).close()
    assert_same_run(folder, whole)


def test_an_ablation_tells_what_its_arms_rolled_back(tiny_model: Path, dev: Path, tmp_path: Path) -> None:
    own = [f'model.id="{tiny_model}"', f'data.sources=["{dev}"]', "flywheel.iterations=1", "sft.epochs=4"]
    overrides = [*SETTINGS.split(), *ROLLS_BACK, BAD_RL, *own, "sft.epochs=4"]
    out = tmp_path / "ablation"
    result = ablate([], overrides, out, 1, Silent(), only=["vanilla-grpo"], present=write_tables)
    for arm in result["arms"]:
        assert arm["runs"][0]["choices"][0].startswith("iteration-1-rl ")
    assert "- full, seed 0: iteration-1-rl " in (out / "ablation.md").read_text()
    assert {p.name for p in (out / "full/seed-0/checkpoints").iterdir()} == {"iteration-1"}


def test_too_few_held_out_conversations_are_told_before_training(tiny_model: Path, tmp_path: Path) -> None:
    """Of six data.eval_conversations draws one, of the claim half in one of these data sets."""
    for n in range(2, 12):
        file = tmp_path / f"toy{n}.jsonl"
        write_jsonl(file, [*toy_conversations(4), *toy_conversations(n, "dev")])
        config = settings(tiny_model, file, *ROLLS_BACK, "data.eval_conversations=1")
        loaded = load_conversations(config.data)
        if held_out(loaded, "dev", 1, 0)[0] in held_out(loaded, "dev", 0, 0, "claim"):
            break
    with pytest.raises(DataError, match=r"^jsonl: .*raise data\.eval_conversations"):
        evolve(tmp_path / "run", config)
    assert not (tmp_path / "run" / "checkpoints").exists()
