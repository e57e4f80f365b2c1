"""What requests may name."""

import pytest

from sparsight.errors import ConfigError
from sparsight.runtime import Budget
from sparsight.serve import Methods
from sparsight.serve.errors import ApiError
from sparsight.tokens.pretrained import save_pretrained


def test_predictors_given_and_methods_without_weights(model, ready_selector, tmp_path):
    save_pretrained(tmp_path / "mine", ready_selector("lowrank", model), model)
    methods = Methods(model, [f"lowrank={tmp_path / 'mine'}", "quest:page_size=4"], Budget.parse(64))
    assert methods.names == ["dense", "lowrank", "quest", "streaming"] and methods.default == "lowrank"
    assert methods.plan(None, None).budget == Budget(64) and methods.plan(None, "1/4").selector.name == "lowrank"
    assert methods.plan("quest", 50).selector.config.page_size == 4
    assert methods.plan("dense", None) is None and Methods(model, [], Budget.parse(64)).plan(None, None) is None


def test_what_cannot_be_served_is_refused(model):
    for name in ("h2o", "oracle", "random"):
        with pytest.raises(ConfigError, match=f"{name!r} cannot"):
            Methods(model, [name], Budget.parse("1/8"))
        with pytest.raises(ApiError, match="not served here"):
            Methods(model, [], Budget.parse("1/8")).plan(name, None)
