"""Configuration: merging, every mistake at once, round trip, shipped files."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from selfemo.config import Config, load, shipped, to_toml
from selfemo.errors import ConfigError


def test_defaults_are_the_papers() -> None:
    c = Config()
    assert (c.sampling.group_size, c.sampling.max_new_tokens, c.prompt.max_tokens) == (8, 8192, 4096)
    assert (c.grpo.prompts_per_step, c.grpo.mini_batch, c.grpo.lr) == (64, 32, 1e-6)
    assert (c.grpo.kl_coef, c.grpo.entropy_coef, c.grpo.clip_low, c.grpo.clip_high) == (
        0.001, 0, 0.2, 0.2,
    )  # fmt: skip
    assert (c.grpo.lam_max, c.flywheel.refit) == (1.0, "base")
    assert c.selfplay.synthetic_share == pytest.approx(8 / (15 + 8))


@pytest.mark.parametrize("name", shipped())
def test_shipped_files_load_by_name(name: str) -> None:
    assert load([name]) == load([shipped()[name]])


def test_a_name_that_is_no_file_is_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # a folder is no configuration
    assert load(["quickstart"], ["seed=3"]).flywheel.prompts == 216
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("[flywheel]\nprompts = 5\n")
    assert load(["quickstart"]).flywheel.prompts == 5, "a file goes before a shipped name"


@pytest.mark.parametrize(
    ("name", "near"),
    [("quickstrat", "quickstart"), ("configs/quickstart.toml", "quickstart"), ("qwen3_4b", "paper_qwen3_4b")],
)
def test_an_unknown_name_gets_the_nearest_and_all(
    name: str, near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as e:
        load([name])
    assert str(e.value) == (
        f"{name}: no such configuration file; did you mean -c {near}? shipped with the package: "
        "meld, paper_qwen3_4b, paper_qwen3_8b, quickstart, unified"
    )


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "\ufeff", "[grpo]\n"])
def test_a_file_without_settings_changes_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    assert load([tmp_path / "a.toml"]) == load()


def test_an_empty_section_changes_nothing_of_the_file_before(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text('[data]\neval_split = "dev"\n[model.lora]\nrank = 4\n')
    second.write_text('[data]\n# eval_split = "test"\n[model.lora]\n')
    assert load([first, second]) == load([first])
    assert load([second]).model.lora == load([], ["model.lora={}"]).model.lora is not None


def test_files_and_overrides_merge_in_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a.toml", tmp_path / "b.toml"
    a.write_text("seed = 1\n[grpo]\nlr = 1e-4\nlam_max = 0.5\n")
    b.write_text("[grpo]\nlr = 2e-4\n")
    c = load([a, b], ["grpo.lr=3e-4", "data.eval_split=dev", 'data.sources=["sample", "x.jsonl"]'])
    assert (c.seed, c.grpo.lam_max, c.grpo.lr, c.data.eval_split) == (1, 0.5, 3e-4, "dev")
    assert c.data.sources == ("sample", "x.jsonl")


def test_round_trip() -> None:
    c = load([], ["model.lora.rank=4", "flywheel.refit=policy", "flywheel.replay=0.3", "seed=7"])
    assert Config.model_validate(tomllib.loads(to_toml(c))) == c


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    f = tmp_path / "mine.toml"
    f.write_text("[grpo]\nlam_maxx = 0.5\nlr = -1\n")
    with pytest.raises(ConfigError) as e:
        load([f], ["sampling.group_siz=4", "seed=x"])
    text = str(e.value)
    assert f"{f}: grpo.lam_maxx: unknown key; did you mean grpo.lam_max?" in text
    assert f"{f}: grpo.lr: Input should be greater than 0 (got -1)" in text
    assert "--set sampling.group_siz=4: " in text and "sampling.group_size?" in text
    assert "--set seed=x: seed:" in text


@pytest.mark.parametrize(
    ("settings", "origin"),
    [
        (["reward.contrast=false", "reward.length_weight=1"], "--set reward.length_weight=1: reward: "),
        (["reward.expression=listener", "reward.replies=1"], "--set reward.replies=1: reward: "),
        (
            ["reward.contrast=false", "reward.listener=a", "reward.reader=a", "reward.expression=listener"],
            "--set reward.listener=a, --set reward.reader=a: reward: ",
        ),
        (["seed=3", "grpo.self_anchor=1"], "--set grpo.self_anchor=1: grpo.self_anchor draws S"),
        (["grpo.mini_batch=9", "grpo.prompts_per_step=8", "grpo.lr=1e-3"],
         "--set grpo.mini_batch=9, --set grpo.prompts_per_step=8: grpo.mini_batch (9) is larger"),
        (["seed=3", "sampling.group_size=1"], "--set sampling.group_size=1: sampling.group_size is 1"),
    ],
)  # fmt: skip
def test_a_fault_comes_from_the_settings_that_it_names(settings: list[str], origin: str) -> None:
    with pytest.raises(ConfigError) as e:
        load([], settings)
    assert str(e.value).startswith(origin)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("grpo.mini_batch=100", "larger than grpo.prompts_per_step"),
        ("sampling.group_size=1", "a group of one has no advantage"),
        ("flywheel.replay=0.5", 'refit = "base"'),
        ("nonsense", "section.key=value"),
        ("=3", "section.key=value"),
    ],
)
def test_impossible_settings_say_why(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        load([], [override])


def test_probabilities_are_not_read_before_reasoning() -> None:
    asked = ["evaluation.span=probabilities"]
    assert load([], asked).evaluation.span == "probabilities"
    with pytest.raises(ConfigError, match="has the model reason first"):
        load([], [*asked, "prompt.reasoning=brief"])
    with pytest.raises(ConfigError, match="reads labels right behind the prompt"):
        load([], ["flywheel.unlabelled=channel", "prompt.reasoning=brief"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], r'samples whole completions at once; set grpo\.credit = "causal"'),
        (["grpo.credit=causal", "selfplay.max_turns=1", "flywheel.refit=none"], "no S to balance"),
    ],
)
def test_self_emotions_are_given_where_replies_are_sampled_alone(more: list[str], says: str) -> None:
    asked = ["selfplay.self_emotion=balanced"]
    assert load([], [*asked, "grpo.credit=causal"]).selfplay.self_emotion == "balanced"
    with pytest.raises(ConfigError, match=says):
        load([], [*asked, *more])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["gate.channel=1.5"], r"gate\.channel"),
        (["gate.channel=-0.1"], r"gate\.channel"),
        (["gate.channel=true"], r"gate\.channel"),
        (["gate.channel=first"], r"gate\.channel"),
        (["gate.channel=top", "prompt.reasoning=brief"], "gate.channel and selfplay.targets.*reason first"),
        (
            ["selfplay.targets=channel", "prompt.reasoning=full"],
            "gate.channel and selfplay.targets.*reason first",
        ),
        (["gate.channel=0.5", "selfplay.max_turns=1", "flywheel.refit=none"], "nothing uses a reply"),
        (
            ["selfplay.targets=channel", "selfplay.max_turns=1"],
            "no next prompts whose targets could be heard",
        ),
        (["selfplay.targets=channel", "selfplay.synthetic_share=0"], "targets could be heard"),
        (["selfplay.targets=shuffled", "selfplay.synthetic_share=0"], "targets could be shuffled"),
    ],
)
def test_a_teacher_has_something_to_read(settings: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load([], settings)


def test_the_teacher_may_ask_for_the_top_or_for_a_probability() -> None:
    assert [load([], [f"gate.channel={v}"]).gate.channel for v in ("top", "0.25", "1")] == ["top", 0.25, 1]
    assert not load([], []).reads_replies and load([], ["gate.channel=top"]).reads_replies
    assert load([], ["selfplay.targets=channel"]).reads_replies


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        load([tmp_path / "none.toml"])
    broken = tmp_path / "broken.toml"
    broken.write_text("[grpo\n")
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        load([broken])
