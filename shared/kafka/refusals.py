"""Why Kafka does not answer or does not let us, in one line each."""

import re
from collections.abc import Sequence

from confluent_kafka import KafkaError

from shared.errors import AccessRefused, ArbiterError, BrokerUnavailable, TopicMismatch
from shared.settings import KafkaSettings

_REFUSED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)

_CHECK = {
    KafkaError._AUTHENTICATION: "sasl.username, sasl.mechanism and the password (kafka.options, kafka.option_files)",
    KafkaError._SSL: "that ssl.ca.location (kafka.options) has signed the broker's certificate, that this has not "
    "expired and names the host as kafka.servers does",
}


class Complaints:
    """An `error_cb` that keeps what a client could not do, for the one line that ends a command."""

    def __init__(self) -> None:
        self._last: dict[int, str] = {}

    def __call__(self, error: KafkaError) -> None:
        self._last[error.code()] = _in_words(error)

    def failure(self, settings: KafkaSettings, words: str) -> BrokerUnavailable:
        """The error for a cluster that did not answer: `words`, and why, as far as it is known."""
        for code, check in _CHECK.items():
            if code in self._last:
                return AccessRefused(f"Kafka does not let us in: {self._last[code]}. Check {check}")
        reasons = [said for code, said in self._last.items() if code != KafkaError._ALL_BROKERS_DOWN]
        if self._last and not reasons:  # librdkafka says no more of a connection that is closed before it is of use
            protocol = settings.options.get("security.protocol", "PLAINTEXT")
            reasons.append(
                "it takes connections and closes them: it is starting, or it wants another security.protocol "
                f"(kafka.options) than {protocol}"
            )
        return BrokerUnavailable(no_broker(f"{words} ({reasons[-1]})" if reasons else words))


def _in_words(error: KafkaError) -> str:
    """librdkafka's words without its notes for developers: `(after 5ms in state SSL_HANDSHAKE)`, error numbers."""
    return re.sub(r" \(after \d+ms in state \w+\)|, verify that .*|error:[0-9A-F]+:[\w ]*:\w*:", "", error.str())


_NO_RULE = "no rule allows this to our user (sasl.username): `arb topics acls` shows who may do what"


def is_refusal(error: KafkaError) -> bool:
    """Whether Kafka says that no rule allows what was asked."""
    return error.code() in _REFUSED


def refused(error: KafkaError, topic: str = "") -> AccessRefused:
    """For an operation that no rule allows."""
    words = KafkaError(error.code()).str()  # the broker's own may be a dump of the whole request
    return AccessRefused(f"{topic}{': ' if topic else ''}{words}; {_NO_RULE}")


def no_topics(missing: Sequence[str], hidden: Sequence[str]) -> ArbiterError:
    """For topics that are not in the metadata: they may only be hidden from us."""
    if hidden:
        return AccessRefused(f"Kafka does not show us {', '.join(hidden)}; {_NO_RULE}")
    return TopicMismatch(f"no topic {', '.join(missing)}; create the topics with `arb topics apply`")


WHERE = "`docker compose up -d` brings one to 127.0.0.1:29092; `make demo` names its own"


def no_broker(words: str) -> str:
    """The line for a broker that does not answer, with the next step."""
    return f"no Kafka answers: {words}. Start one or name another with ARB_KAFKA_SERVERS ({WHERE})"
