"""Settings of a run: `load()` reads them from TOML files; `Config` holds them, a model a section."""

from selfemo.config.kept import JournalMode, SaveConfig, StoreConfig
from selfemo.config.loading import load, shipped, to_toml
from selfemo.config.sections import (
    ClusterConfig,
    Config,
    DataConfig,
    EvalConfig,
    FlywheelConfig,
    GateConfig,
    GrpoConfig,
    GuardAction,
    GuardConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    PromptConfig,
    RewardConfig,
    SamplingConfig,
    SelfPlayConfig,
    SftConfig,
)
from selfemo.config.tables import TableConfig, load_table

__all__ = [
    "ClusterConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "FlywheelConfig",
    "GateConfig",
    "GrpoConfig",
    "GuardAction",
    "GuardConfig",
    "JournalMode",
    "LoraConfig",
    "ModelConfig",
    "OptimConfig",
    "PromptConfig",
    "RewardConfig",
    "SamplingConfig",
    "SaveConfig",
    "SelfPlayConfig",
    "SftConfig",
    "StoreConfig",
    "TableConfig",
    "load",
    "load_table",
    "shipped",
    "to_toml",
]
