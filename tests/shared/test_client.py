"""Programs of users: what they are told before Kafka is asked."""

import pytest

from shared import client
from shared.errors import SettingsError


@pytest.mark.parametrize(
    ("servers", "options", "words"),
    [
        ("", None, r"^servers: String should have at least 1 character$"),
        ("b:1", {"statistics.interval.ms": 0}, r"^statistics\.interval\.ms: is ours"),
    ],
)
async def test_an_impossible_setting_is_one_line(servers, options, words):
    with pytest.raises(SettingsError, match=words):
        await anext(client.decisions(servers, options=options))
