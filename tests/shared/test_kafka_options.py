"""Options of Kafka's clients whose values are in files, and what is said of those that cannot be used."""

import json
import logging
import os
import tempfile
from pathlib import Path

import pytest

from shared import kafka, secrets, settings
from shared.errors import SettingsError
from shared.settings import KafkaSettings

PASSWORD = "pw-31c7a9f2e5"


def test_the_value_is_the_content_of_the_file_without_the_space_around_it(tmp_path):
    file = tmp_path / "password"
    file.write_text(f"  {PASSWORD}\n")
    found = KafkaSettings(servers="b:1", options={"sasl.username": "u"}, option_files={"sasl.password": file})
    assert found.client_options() == {"sasl.username": "u", "sasl.password": PASSWORD}
    assert kafka.reader(found, "test")["sasl.password"] == PASSWORD
    assert secrets.redact(f"with {PASSWORD}") == f"with {secrets.MASK}"


def test_each_new_client_gets_what_the_file_holds_then(tmp_path):
    file = tmp_path / "password"
    file.write_text("the-first-1")
    found = KafkaSettings(servers="b:1", option_files={"sasl.password": file})
    assert found.client_options()["sasl.password"] == "the-first-1"
    file.write_text("the-second-2")
    assert found.client_options()["sasl.password"] == "the-second-2"
    assert secrets.redact("the-first-1 the-second-2") == f"{secrets.MASK} {secrets.MASK}"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file or directory"), (b" \n", "is empty"), (b"\xff\xfe", "is no text")],
)
def test_a_file_that_is_of_no_use_is_named(tmp_path, content, words):
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    found = KafkaSettings(servers="b:1", option_files={"sasl.password": file})
    with pytest.raises(SettingsError, match=rf"^kafka\.option_files: sasl\.password: {file}:? {words}$"):
        found.client_options()


def test_a_folder_is_no_file(tmp_path):
    found = KafkaSettings(servers="b:1", option_files={"sasl.password": tmp_path})
    with pytest.raises(SettingsError, match="Is a directory"):
        found.client_options()


def test_an_option_that_stands_in_both_is_refused_without_its_value(tmp_path, monkeypatch):
    monkeypatch.setenv("ARB_KAFKA_OPTIONS", json.dumps({"sasl.password": PASSWORD}))
    monkeypatch.setenv("ARB_KAFKA_OPTION_FILES", json.dumps({"sasl.password": str(tmp_path / "p")}))
    with pytest.raises(SettingsError) as caught:
        settings.load()
    assert str(caught.value) == "kafka: sasl.password: in options and in option_files; one of them only"


@pytest.mark.parametrize("name", ["sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"])
def test_a_secret_that_stands_in_the_settings_is_blacked_out_of_what_is_logged(name):
    secret = f"in-the-open-{len(name)}-{name}"
    found = KafkaSettings(servers="b:1", options={name: secret})
    assert secret not in repr(found)
    record = logging.LogRecord("other", logging.WARNING, "", 1, f"said {secret}", None, None)
    assert secret not in secrets.RedactingFormatter().format(record)


def test_a_user_name_stays_readable(tmp_path):
    file = tmp_path / "name"
    file.write_text("collector-kraken-7")
    KafkaSettings(servers="b:1", option_files={"sasl.username": file}).client_options()
    assert secrets.redact("collector-kraken-7") == "collector-kraken-7"


def test_a_certificate_that_is_not_there_is_named(tmp_path):
    found = KafkaSettings(servers="b:1", options={"ssl.ca.location": str(tmp_path / "ca.pem")})
    with pytest.raises(SettingsError, match=r"kafka\.options: ssl\.ca\.location: there is no .*ca\.pem"):
        found.client_options()
    assert KafkaSettings(servers="b:1", options={"ssl.ca.location": "probe"}).client_options()
    for place in (tmp_path, Path(__file__)):
        assert KafkaSettings(servers="b:1", options={"ssl.ca.location": str(place)}).client_options()


def test_a_certificate_that_we_may_not_read_is_one_line_with_the_reason():
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "closed", "ca.pem")
        place.parent.mkdir()
        place.write_text("")
        place.parent.chmod(0)
        found = KafkaSettings(servers="b:1", options={"ssl.ca.location": str(place)})
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(SettingsError, match=r"^kafka\.options: ssl\.ca\.location: .*: Permission denied$"):
                found.client_options()
        finally:
            if root:
                os.seteuid(0)
            place.parent.chmod(0o700)
    found = KafkaSettings(servers="b:1", options={"ssl.key.location": "x" * 5000})
    with pytest.raises(SettingsError, match=r"x: File name too long$"):
        found.client_options()


@pytest.mark.parametrize("where", ["options", "option_files"])
def test_nobody_takes_away_what_readiness_rests_on(where):
    with pytest.raises(SettingsError, match=r"^statistics\.interval\.ms: is ours, .* take it out$"):
        KafkaSettings.of("b:1", {"statistics.interval.ms": 0})
    with pytest.raises(ValueError, match=r"statistics\.interval\.ms: is ours"):
        KafkaSettings.model_validate({"servers": "b:1", where: {"statistics.interval.ms": "60000"}})


def test_a_password_that_is_a_word_is_blacked_out_unless_it_is_too_short(tmp_path):
    file = tmp_path / "password"
    file.write_text("Quetzalcoatl\n")
    KafkaSettings(servers="b:1", option_files={"ssl.key.password": file}).client_options()
    KafkaSettings(servers="b:1", options={"sasl.password": "Xipetotec"})
    assert secrets.redact("Quetzalcoatl, Xipetotec") == f"{secrets.MASK}, {secrets.MASK}"
    file.write_text("Chaac")
    KafkaSettings(servers="b:1", option_files={"sasl.password": file}).client_options()
    assert secrets.redact("Chaac") == "Chaac"
