"""A key that there is not is refused with keys that a config can give."""

from __future__ import annotations

import pytest

from genlab.config.check import check, unknown
from genlab.errors import ConfigError


def test_where_no_key_is_known_none_is_listed() -> None:
    assert unknown("width", []) == "there is no such key; none is known here"
    assert unknown("width", ["self"]) == "there is no such key; none is known here"
    assert unknown("widht", ["width"]) == "there is no such key; did you mean width?"


def test_what_an_optimizer_is_called_with_is_no_key_of_its_config() -> None:
    node = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "amount": 3}
    with pytest.raises(ConfigError, match="known are .*lr.*momentum") as raised:
        check(node, "model.optimizer")
    assert "params" not in str(raised.value)
