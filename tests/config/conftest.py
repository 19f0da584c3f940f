import copy
from collections.abc import Callable

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from lighttoken.config.schema import config_dir, register


@pytest.fixture
def compose() -> Callable[..., DictConfig]:
    """Composes a config as a command does, without running it."""

    def call(*overrides: str, name: str = "train") -> DictConfig:
        register()
        with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
            config = hydra.compose(name, list(overrides), return_hydra_config=True)
        OmegaConf.set_readonly(config.hydra, False)
        config.hydra.runtime.output_dir = "run"
        HydraConfig.instance().set_config(config)
        config = copy.deepcopy(config)
        with open_dict(config):
            del config["hydra"]
        return config

    return call
