from __future__ import annotations

import pytest

from broker.domain.errors import UsageError
from broker.settings import Settings, load_settings


@pytest.mark.parametrize("value", ["", "0", "-1", "ten", "1.5", "²"])
def test_a_wrong_limit_is_named_with_its_variable_and_value(value):
    with pytest.raises(UsageError) as caught:
        load_settings({"BROKER_BATCH_LINES_MAX": value})
    assert str(caught.value) == f"BROKER_BATCH_LINES_MAX is {value!r}; it must be a whole number above 0"


def test_a_wrong_level_is_named_with_the_right_ones():
    with pytest.raises(UsageError, match="BROKER_LOG_LEVEL is 'loud'; it must be one of debug, info, warning, error"):
        load_settings({"BROKER_LOG_LEVEL": "loud"})


def test_an_empty_folder_or_catalog_is_the_default():
    assert load_settings({"BROKER_DATA": "", "BROKER_CATALOG": ""}) == load_settings({})


def test_settings_have_defaults_and_follow_the_environment(tmp_path):
    assert load_settings({}) == Settings()
    read = load_settings({"BROKER_DATA": str(tmp_path), "BROKER_BATCH_LINES_MAX": "7", "BROKER_LOG_LEVEL": "DEBUG"})
    assert (read.data, read.batch_lines_max, read.log_level) == (tmp_path, 7, "debug")
    with pytest.raises(AttributeError):
        read.catalog = "other"
