"""SELF-GRPO inside verl itself: its configuration, registries, loaders and Ray workers, without a GPU."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfemo.config import load, shipped
from selfemo.method.prompts import fit
from selfemo.method.rewards import consensus, weighted_iou
from selfemo.method.self_grpo import advantages
from selfemo.method.types import LABEL_SETS, Completion
from selfemo.models.references import READER_FILE
from selfemo.models.tokenizers import load_tokenizer
from selfemo.training.expression import Ears
from selfemo.training.protocol import RlSpan
from selfemo.training.verl.exchange import Task, measures_of, prompt_rows, read_dump, sft_rows, write_parquet
from selfemo.training.verl.listening import Listening
from selfemo.training.verl.settings import PLUGIN, rl_overrides, sft_overrides
from selfemo.training.whole_replies import reply_columns
from tests.conftest import dist, make_prompt
from tests.support.readers import Known

# Ray's workers are nice by 15 unless told: beside any other work these tests would wait for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")

pytest.importorskip("verl", reason="verl has an environment of its own: make test-cluster")
torch = pytest.importorskip("torch")

MELD = LABEL_SETS["meld"]
PAPER = [path for name, path in shipped().items() if name.startswith("paper_")]


def compose(name: str, overrides: Sequence[str]) -> Any:
    """verl's own configuration with overrides; a key that does not exist is an error of Hydra's."""
    import verl
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    folder = Path(verl.__file__).parent / "trainer" / "config"
    with initialize_config_dir(str(folder), version_base=None):
        return hydra_compose(name, overrides=[o for o in overrides if not o.startswith("hydra.")])


def rl_config(config: Any, model: str = "Qwen/Qwen3-4B", folder: Path = Path("/r/stage")) -> Any:
    made = rl_overrides(
        config, model, folder, train=folder / "t.parquet", held=folder / "h.parquet", last_step=10,
        rounds=40, span=RlSpan(),
    )  # fmt: skip
    return compose("ppo_trainer", made)


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.name)
def test_hydra_composes_the_trainer_of_the_papers_configuration(path: Path) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = load([path])
    made = rl_config(config)
    assert made.algorithm.adv_estimator == "self_grpo"
    assert made.actor_rollout_ref.rollout.response_length == 8192
    assert need_reference_policy(made) and not need_critic(made)
    validate_config(made, use_reference_policy=True, use_critic=False)
    sft = compose(
        "sft_trainer_engine",
        sft_overrides(config, "m", Path("/r"), train=Path("/r/s.parquet"), sft=config.sft, epochs=3),
    )
    assert (sft.data.train_batch_size, sft.trainer.total_epochs) == (64, 3)
    assert (sft.optim.lr, sft.optim.lr_scheduler_type) == (1e-5, "cosine")


def test_a_key_that_verl_does_not_have_is_an_error() -> None:
    with pytest.raises(Exception, match="no_such_key"):
        compose("ppo_trainer", ["trainer.no_such_key=1"])


# -- data sets --------


def test_verls_data_sets_read_what_is_written(tiny_model: Path, tmp_path: Path) -> None:
    """RL: the prompt ids of the local engine. SFT: the loss is on the completion and its end token alone."""
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
    from verl.utils.dataset.rl_dataset import RLHFDataset

    config = load([PAPER[0]], [f'model.id="{tiny_model}"'])
    reader = load_tokenizer(str(tiny_model))
    tokenizer, fitted = reader.tokenizer, fit(make_prompt(), reader.encode, 4096)
    assert fitted is not None
    prompts, samples = tmp_path / "p.parquet", tmp_path / "s.parquet"
    write_parquet(prompts, prompt_rows([fitted], reader, "none"))
    made = rl_config(config, str(tiny_model))
    item = RLHFDataset([str(prompts)], tokenizer, made.data)[0]
    ids = tokenizer.apply_chat_template(
        item["raw_prompt"], add_generation_prompt=True, tokenize=True, return_dict=False,
        **made.data.apply_chat_template_kwargs,
    )  # fmt: skip
    assert tuple(ids) == fitted.ids
    assert Task.from_json(item["reward_model"]["ground_truth"]).prompt == fitted.prompt.id

    completion = "E: joy\nS: joy\nR: We won!"
    write_parquet(samples, sft_rows([(fitted.prompt, completion)], reader, "none"))
    sft = compose(
        "sft_trainer_engine",
        sft_overrides(config, str(tiny_model), tmp_path, train=samples, sft=config.sft, epochs=1),
    )
    row = MultiTurnSFTDataset([str(samples)], tokenizer, sft.data)[0]
    seen = row["input_ids"].tolist()
    assert tuple(seen[: len(fitted.ids)]) == fitted.ids
    learned = [t for t, m in zip(seen, row["loss_mask"].tolist(), strict=True) if m]
    assert tokenizer.decode(learned).rstrip("\n") == completion + tokenizer.eos_token


# -- estimator ------------------------------------------------------------------------------------


def through_verl(
    r1: Sequence[float], r2: Sequence[float], groups: Sequence[str], lengths: Sequence[int], **own: Any
) -> np.ndarray:
    """(b, s) advantages that verl's own function gives on verl's own data object."""
    from omegaconf import OmegaConf
    from tensordict import TensorDict
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    from selfemo.training.verl.plugin import put_rewards

    width = max(lengths)
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    data = DataProto(
        batch=TensorDict(
            {"token_level_rewards": put_rewards(r1, r2, mask), "response_mask": mask}, batch_size=len(groups)
        ),
        non_tensor_batch={"uid": np.array(list(groups), dtype=object)},
    )
    config = OmegaConf.create({"self_grpo": own})
    done = compute_advantage(data, adv_estimator="self_grpo", config=config)
    assert torch.equal(done.batch["advantages"], done.batch["returns"])
    return done.batch["advantages"].numpy()


def test_the_worked_group_of_the_specification() -> None:
    found = through_verl((1, 0, 0, 1), (1 / 3, 1 / 3, 2 / 3, 2 / 3), "gggg", (3, 2, 4, 2), lam=0.5, eps=0.0)
    assert found[:, 0] == pytest.approx([0, -1, 0, 1], abs=1e-6)
    assert found[2].tolist() == [0, 0, 0, 0] and found[3].tolist() == pytest.approx([1, 1, 0, 0])


def test_interleaved_groups_singletons_and_flat_ones() -> None:
    groups = ["a", "b", "a", "single", "b", "flat", "a", "flat"]
    r1 = [1.0, 0.2, 0.0, 0.9, 0.7, 0.4, 0.5, 0.4]
    r2 = [1 / 3, 1, 2 / 3, 1, 0, 2 / 3, 1, 2 / 3]
    found = through_verl(r1, r2, groups, [3] * 8, lam=0.3)
    for group in "ab":
        rows = [i for i, g in enumerate(groups) if g == group]
        ours = advantages([r1[i] for i in rows], [r2[i] for i in rows], 0.3)
        assert found[rows, 0] == pytest.approx(ours, abs=1e-5)
    assert not found[3].any(), "verl's own estimators give a group of one its raw reward"
    assert not found[[5, 7]].any()


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.sampled_from([0.0, 1 / 3, 0.5, 1.0]),
            st.sampled_from([0.0, 1 / 3, 2 / 3, 1.0]),
            st.integers(2, 5),
        ),
        min_size=1,
        max_size=24,
    ),
    lam=st.floats(0, 1),
    ddof=st.sampled_from([0, 1]),
)
def test_equals_self_grpo_for_any_batch(rows: list[tuple], lam: float, ddof: int) -> None:
    groups, r1, r2, lengths = (list(c) for c in zip(*rows, strict=True))
    found = through_verl(r1, r2, groups, lengths, lam=lam, ddof=ddof)
    for group in set(groups):
        at = [i for i, g in enumerate(groups) if g == group]
        ours = advantages([r1[i] for i in at], [r2[i] for i in at], lam, ddof=ddof)
        assert found[at, 0] == pytest.approx(ours, abs=2e-5)
    for i, n in enumerate(lengths):
        assert (found[i, :n] == found[i, 0]).all() and not found[i, n:].any()


def test_vanilla_with_the_sample_deviation_is_verls_grpo() -> None:
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    generator = np.random.default_rng(0)
    r1 = generator.random(24)
    groups = np.array([f"g{i % 3}" for i in range(24)], dtype=object)
    mask = torch.ones(24, 2, dtype=torch.long)
    rewards = torch.zeros(24, 2)
    rewards[:, 1] = torch.as_tensor(r1, dtype=torch.float32)
    theirs, _ = get_adv_estimator_fn("grpo")(token_level_rewards=rewards, response_mask=mask, index=groups)
    ours = through_verl(r1, np.zeros(24), groups, [2] * 24, lam=0.0, ddof=1)
    assert ours == pytest.approx(theirs.numpy(), abs=1e-5)


# -- rewards --------------------------------------------------------------------------------------


TEXTS = [
    "E: joy 6, surprise 4\nS: joy\nR: We made it!",
    "E: joy\nS: joy\nR: Yes.",
    "E: neutral\nS: neutral\nR: Fine.",
    "E: anger 6, disgust 4\nS: fear\nR: Stop it.",
    "E: rage\nS: joy\nR: No such emotion.",
    "no format at all",
]


def score(text: str, **more: Any) -> dict[str, Any]:
    from selfemo.training.verl.plugin import compute_score

    task = Task("c/1", MELD, dist(joy=1))
    return compute_score("toy", text, task.to_json(), **more)


def test_the_reward_is_loaded_by_verls_loader() -> None:
    from verl.trainer.ppo.reward import get_custom_reward_fn, resolve_reward_manager_cls

    from selfemo.training.verl.plugin import EmotionRewardManager

    made = rl_config(load([PAPER[0]]))
    assert resolve_reward_manager_cls(made) is EmotionRewardManager
    loaded = get_custom_reward_fn(made)
    truth = Task("c/1", MELD, dist(joy=1)).to_json()
    found = loaded(data_source="toy", solution_str=TEXTS[0], ground_truth=truth, extra_info={})
    assert found["score"] == pytest.approx(0.6 / 1.4) and found["acc"] == 1.0
    exact = get_custom_reward_fn(rl_config(load([PAPER[0]], ["reward.primary=exact"])))
    assert exact(data_source="t", solution_str=TEXTS[0], ground_truth=truth)["score"] == 1.0


def test_scores_and_failures() -> None:
    found = [score(t) for t in TEXTS]
    assert [f["score"] for f in found] == [pytest.approx(0.6 / 1.4), 1.0, 0.0, 0.0, 0.0, 0.0]
    assert [f["failure"] for f in found[4:]] == ["unknown_emotion", "extra_text"]
    assert score(TEXTS[1], extra_info={"finished": False})["failure"] == "truncated"
    assert {type(v) for f in found for v in f.values()} <= {float, str}


def test_r2_of_the_worked_group() -> None:
    from selfemo.training.verl.plugin import secondary_rewards

    texts = ["E: joy 5, surprise 5\nS: joy\nR: A.", *TEXTS[1:4]]
    infos = [score(t) for t in texts] + [score(TEXTS[5])]
    tasks = [Task("c/1", MELD, dist(joy=1))] * 5
    found = secondary_rewards(infos, list("ggggh"), tasks, "count")
    assert found == pytest.approx([1 / 3] * 4 + [0])


# -- Ray ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_processes() -> Any:
    ray = pytest.importorskip("ray")
    root = str(Path(__file__).parents[2])
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {
            "PYTHONPATH": f"{root}:{root}/src", "OMP_NUM_THREADS": "1",
            "VERL_USE_EXTERNAL_MODULES": PLUGIN,
        }},
    )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_verls_reward_workers_give_what_one_process_gives(ray_processes: Any, tiny_model: Path) -> None:
    """verl's RewardLoopManager, four of its workers, on its own data object."""
    from tensordict import TensorDict
    from verl import DataProto
    from verl.experimental.reward_loop import RewardLoopManager

    reader = load_tokenizer(str(tiny_model))
    config = load([PAPER[0]], ["cluster.reward_workers=4"])
    made = rl_config(config, str(tiny_model))
    targets = [dist(joy=1), dist(anger=0.5, joy=0.5)]
    rows = [(TEXTS[i % 6], targets[i % 2], i % 5 != 4) for i in range(24)]
    end = reader.tokenizer.eos_token_id
    ids = [
        [*reader.tokenizer(t, add_special_tokens=False).input_ids, *([end] if done else [])]
        for t, _, done in rows
    ]
    width = max(map(len, ids))
    responses = torch.tensor([[*r, *[end] * (width - len(r))] for r in ids])
    seen = torch.tensor([[1, 1, *[1] * len(r), *[0] * (width - len(r))] for r in ids])
    tasks = [Task(f"c/{i}", MELD, y).to_json() for i, (_, y, _) in enumerate(rows)]
    data = DataProto(
        batch=TensorDict(
            {"prompts": torch.ones(24, 2, dtype=torch.long), "responses": responses,
             "attention_mask": seen}, batch_size=24,
        ),
        non_tensor_batch={
            "data_source": np.array(["toy"] * 24, dtype=object),
            "reward_model": np.array([{"ground_truth": t} for t in tasks], dtype=object),
        },
    )  # fmt: skip
    manager = RewardLoopManager(made)
    assert len(manager.reward_loop_workers) == 4
    found = manager.compute_rm_score(data)
    from selfemo.training.verl.plugin import compute_score

    alone = [
        compute_score("toy", t, task, {"finished": done})
        for (t, _, done), task in zip(rows, tasks, strict=True)
    ]
    scores = found.batch["rm_scores"].sum(-1).tolist()
    assert scores == pytest.approx([a["score"] for a in alone])
    assert found.non_tensor_batch["failure"].tolist() == [a["failure"] for a in alone]
    assert {"truncated", "unknown_emotion", ""} <= set(found.non_tensor_batch["failure"].tolist())


def test_scores_agree_with_the_parts_they_are_made_of() -> None:
    from selfemo.method.parsing import parse

    parsed = [parse(t, MELD) for t in TEXTS]
    predicted = [p.emotion if isinstance(p, Completion) else None for p in parsed]
    assert [score(t)["score"] for t in TEXTS] == [weighted_iou(p, dist(joy=1)) for p in predicted]
    assert json.loads(score(TEXTS[0])["emotions"]) == pytest.approx({"joy": 0.6, "surprise": 0.4})
    assert consensus(predicted, MELD)[5] == 0


# -- replies --------------------------------------------------------------------------------------


class Queue:
    """The fields of one batch in the words of TransferQueue, which needs Ray."""

    def __init__(self, **fields: Any):
        self.fields = fields
        self.batch: Any = None

    def get(self, keys: Sequence[str], partition_id: str, select_fields: Sequence[str]) -> Any:
        from tensordict import TensorDict

        found = {f: self.fields[f] for f in select_fields if f in self.fields}
        return TensorDict(found, batch_size=len(keys))

    def put(self, keys: Sequence[str], partition_id: str, fields: Any) -> Any:
        self.fields |= dict(fields.items())
        return self.batch


SAID = [
    ("g", "E: joy\nS: joy\nR: Hooray!"),
    ("h", "E: joy\nS: joy\nR: Hm, well."),
    ("g", "E: joy\nS: fear\nR: Hooray!"),
    ("g", "no format at all"),
    ("h", "E: fear\nS: sadness\nR: I am so angry."),
    ("g", "E: fear\nS: joy\nR: Hm, well."),
]
"""Completions of two groups in turn, whose targets are joy."""


@pytest.fixture
def trainer(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plugin's trainer before its first step, on the completions SAID and one that pads the batch."""
    import transfer_queue as tq
    from tensordict import NonTensorStack
    from transfer_queue import KVBatchMeta

    from selfemo.training.verl.plugin import SelfGrpoTrainer

    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / READER_FILE).touch()
    more = ["reward.expression=listener", f'reward.listener="{tmp_path}/kept"', "reward.contrast=false",
            "reward.expression_weight=0.5", f'model.id="{tiny_model}"']  # fmt: skip
    reader = load_tokenizer(str(tiny_model))
    made = object.__new__(SelfGrpoTrainer)
    made.config, made.tokenizer, made.global_steps = rl_config(load([PAPER[0]], more)), reader.tokenizer, 1
    made.config.actor_rollout_ref.model.path = str(tiny_model)
    rows = [*SAID, ("pad0", SAID[0][1])]
    ids = [torch.tensor([*reader.plain_ids(text), reader.end_id]) for _, text in rows]
    ids[-1] = ids[-1][:1]  # as verl pads a batch
    tasks = [Task(f"{g}/1", MELD, dist(joy=1), reply_columns(make_prompt())).to_json() for g, _ in rows]
    infos = [score(text) for _, text in rows]

    def nested(values: list[Any]) -> Any:
        return torch.nested.as_nested_tensor(values, layout=torch.jagged)

    scores = [torch.zeros(len(i)) for i in ids]
    for row, info in zip(scores, infos, strict=True):
        row[-1] = info["score"]
    queue = Queue(
        uid=NonTensorStack(*(g for g, _ in rows)),
        responses=nested(ids),
        response_mask=nested([torch.ones(len(i), dtype=torch.long) for i in ids]),
        rm_scores=nested(scores),
        old_log_probs=nested([torch.full((len(i),), -0.5) for i in ids]),
        entropy=nested([torch.full((len(i),), 0.25) for i in ids]),
        extra_fields=NonTensorStack(*({"reward_extra_info": i} for i in infos)),
        reward_model=NonTensorStack(*({"ground_truth": t} for t in tasks)),
    )
    members = {"g": iter(range(9)), "h": iter(range(9))}
    keys = [f"{g}_{next(members[g])}_0" for g, _ in SAID]
    tags = [{}] * len(SAID) + [{"is_padding": True}]
    queue.batch = KVBatchMeta(keys=[*keys, "pad0_0_0"], tags=tags, partition_id="train")
    monkeypatch.setattr(tq, "kv_batch_get", queue.get)
    monkeypatch.setattr(tq, "kv_batch_put", queue.put)
    made.queue, made.reader = queue, reader
    return made


def test_how_far_the_sampler_is_from_the_trainer_is_measured(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On each token 0.3 nats, which is outside the clip; the row that pads the batch counts for nothing."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    far = [
        v + (0.3 if k < len(SAID) else 9)
        for k, v in enumerate(trainer.queue.fields["old_log_probs"].unbind())
    ]
    fields = {"rollout_log_probs": torch.nested.as_nested_tensor(far, layout=torch.jagged)}
    trainer.queue.put([], "train", fields)
    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", lambda self, batch, metrics: batch)
    metrics: dict[str, Any] = {}
    assert trainer._compute_old_log_prob(trainer.queue.batch, metrics) is trainer.queue.batch
    assert measures_of(metrics) == pytest.approx(
        {"mismatch": 0.3, "mismatch_p99": 0.3, "mismatch_clipped": 1.0}, abs=1e-6
    )


def test_what_replies_learn_is_added_on_their_tokens(trainer: Any, tmp_path: Path) -> None:
    """Group g: R1 = 1, 1, 0, 0 makes A = 1, 1, -1, -1. The listener hears joy in "Hooray!" and nothing else,
    so that R3 is up, down and, of the last, 0; their mean is (up + down) / 3, and down is more than 3 below.
    Group h: A = 1, -1; the second names an emotion, one nat under 0: R3 is 0, -1."""
    from omegaconf import OmegaConf

    told = OmegaConf.to_container(trainer.config.algorithm.self_grpo.expression, resolve=True)
    listener = Known({"Hooray!": dist(joy=1)})
    trainer.listening = Listening(told, trainer.reader.decode, Ears(listener))
    metrics: dict[str, Any] = {}
    trainer._compute_advantage(trainer.queue.batch, metrics)
    up, down = math.log(0.99 + 0.01 / 7) - math.log(1 / 7), math.log(0.01)
    mean = (up + down) / 3
    expected = [(1, up - mean), (1, 0.5), (1, -3), (-1, None), (-1, -0.5), (-1, -mean)]
    values = trainer.queue.fields["advantages"].unbind()
    for row, ids, (_, text), (a, gained) in zip(
        values, trainer.queue.fields["responses"].unbind(), SAID, expected, strict=False
    ):
        assert len(row) == len(ids)
        for k, value in enumerate(row.tolist()):
            # A token is of the reply where all that stands before it holds all before the R line.
            before = trainer.reader.decode(ids[:k].tolist())
            behind = gained is not None and len(before) >= text.find("R: ")
            assert value == pytest.approx(a + 0.5 * gained if behind else a, abs=1e-5)
        assert row[-1] != a or gained is None
    assert [v.tolist() for v in trainer.queue.fields["returns"].unbind()] == [v.tolist() for v in values]
    assert values[-1].tolist() == [0], "what pads the batch has no reply"
    assert listener.asked == 3, '"Hooray!" once for both of its group'
    assert metrics["self_grpo/expression"] == pytest.approx((up - 3 + 0 + 0) / 4)
    assert metrics["self_grpo/refused"] == pytest.approx(1 / 5)

    trainer._log_rollout_data(trainer.queue.batch, {}, str(tmp_path / "rollouts"))
    rows = {r["text"]: r for g in read_dump(tmp_path / "rollouts" / "1.jsonl") for r in g}
    assert len(rows) == 6 and "reply" not in rows["no format at all"]
    even = {e: pytest.approx(1 / 7) for e in MELD.labels}
    first, named = rows[SAID[0][1]], rows[SAID[4][1]]
    assert first["advantage"] == pytest.approx(1, abs=1e-5) and set(first["entropies"]) == {0.25}
    assert first["reply"]["advantage"] == pytest.approx(1 + 0.5 * (up - mean), abs=1e-5)
    assert first["reply"]["listener"] == {"heard": {"joy": 1.0}, "expected": even}
    assert first["reply"]["text"] == "Hooray!" and first["reply"]["reader"] is None
    assert trainer.reader.decode(first["token_ids"][: first["reply"]["lead"]]).startswith("E: joy\nS: joy\n")
    assert named["reply"]["listener"] is None, "nobody was asked about it"
    assert named["reply"]["advantage"] == pytest.approx(-1 - 0.25, abs=1e-5)


def test_without_a_listener_all_is_as_it_was(trainer: Any, tmp_path: Path) -> None:
    trainer._compute_advantage(trainer.queue.batch, {})
    assert all(v.unique().numel() == 1 for v in trainer.queue.fields["advantages"].unbind())
    trainer._log_rollout_data(trainer.queue.batch, {}, str(tmp_path))
    for row in (r for g in read_dump(tmp_path / "1.jsonl") for r in g):
        assert not {"reply", "entropies"} & row.keys()


@pytest.mark.parametrize("name", ["kept", "it's, {odd}: 1"])
def test_the_listener_is_opened_once_as_hydra_tells_of_it(
    trainer: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / READER_FILE).touch()
    more = ["reward.expression=listener", f"reward.listener={json.dumps(str(folder))}", "model.device=cpu"]
    config = load([PAPER[0]], more)
    trainer.config.algorithm = rl_config(config).algorithm
    opened: list[Any] = []

    def load_reader(folder: Path, device: str) -> Any:
        opened.append((folder, device))
        return object()

    monkeypatch.setattr("selfemo.models.classifiers.reader.TurnReader.load", load_reader)
    trainer.on_train_begin()
    assert opened == [(folder, "cpu")]
    told = trainer.listening.config
    assert (told.reward, told.prompt) == (config.reward, config.prompt)
    assert told.gate.max_reply_chars == config.gate.max_reply_chars
    trainer.config.algorithm = rl_config(load([PAPER[0]])).algorithm
    trainer.listening = None
    trainer.on_train_begin()
    assert trainer.listening is None and len(opened) == 1
