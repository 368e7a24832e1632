"""Configs, compile targets and names of the README, docs/start/nequip.md and allegro.md exist."""

import re

import pytest
import yaml
from hydra.utils import get_method
from nequip.scripts._compile_utils import COMPILE_TARGET_DICT
from pages import blocks, text_of

from sog_longrange import SOGConfig
from sog_nequip.model import SOGModel
from sog_nequip.train import WarmUp

PAGES = ("README.md", "docs/start/nequip.md", "docs/start/allegro.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_config_of_a_page_names_what_exists(page):
    (text,) = blocks(page, "yaml")
    config = yaml.safe_load(text)
    model = config["training_module"]["model"]
    assert get_method(model["_target_"]) is SOGModel
    for base in {model["base"], *re.findall(r"or ([\w.]+Model)", text)}:
        assert callable(get_method(base))
    assert SOGConfig(**model["sog"]).kernel == "coulomb"
    for callback in config.get("trainer", {}).get("callbacks", []):
        assert get_method(callback["_target_"]) is WarmUp


def test_compile_targets_and_modifiers_exist():
    text = text_of("docs/start/nequip.md") + text_of("docs/start/ase.md")
    targets = set(re.findall(r"`(sog_(?:ase|batch)\w*)`|--target (\w+)", text))
    named = {name for pair in targets for name in pair if name}
    assert len(named) >= 9
    assert named <= COMPILE_TARGET_DICT.keys()
