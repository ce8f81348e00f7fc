"""Adapters that verl trained, merged into the weights below them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfemo.errors import EngineError
from selfemo.training.verl.adapters import merge_adapters


@pytest.fixture
def exported(tiny_model: Path, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """What verl exports of a tiny model with adapters of scale 2, in two files; and its merged weights."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    core = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(core, settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    state = {n: t.clone() for n, t in model.state_dict().items() if "lm_head" not in n}
    names = sorted(state, reverse=True)  # an adapter is not always in the file of what it is over
    halves = [names[::2], names[1::2]]
    for k, half in enumerate(halves):
        save_file({n: state[n] for n in half}, tmp_path / f"model-0000{k + 1}-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"metadata": {"total_size": 1}, "weight_map": {}}'
    )
    core.config.save_pretrained(tmp_path)
    return tmp_path, model.merge_and_unload().state_dict()


def test_the_weights_are_those_of_peft_and_load_by_their_own_names(
    exported: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    from transformers import AutoModelForCausalLM

    folder, merged = exported
    merge_adapters(folder, scale=2)
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert found.keys() == merged.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("lost", ["lora_A", "lora_", "q_proj.base_layer"])
def test_what_is_not_whole_is_refused(exported: tuple[Path, dict[str, torch.Tensor]], lost: str) -> None:
    folder, _ = exported
    for file in folder.glob("*.safetensors"):
        save_file({n: t for n, t in load_file(file).items() if lost not in n}, file)
    with pytest.raises(EngineError, match="not here"):
        merge_adapters(folder, scale=2)
