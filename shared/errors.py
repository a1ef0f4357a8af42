"""Every error that Arbiter raises on purpose.

    ArbiterError                 exit code, and a text that says what was wrong and what to do next
    ├── UsageError         (2)   the person who started it can mend it
    │   ├── SettingsError          a setting is unknown or impossible
    │   ├── UnknownExchange        not in the table of exchanges
    │   ├── UnknownSymbol          the exchange does not list it
    │   ├── SubscriptionRefused    the exchange said no, in its own words
    │   ├── InputError             a file or a case that cannot be read (with its line)
    │   └── TopicMismatch          the cluster's topics are not what `shared/topics.py` says
    ├── DependencyMissing  (3)   a program or a server that is needed is not there
    │   └── BrokerUnavailable      Kafka cannot be reached, or gave up on a message
    │       └── AccessRefused  (2)     Kafka is there and does not let us in, or not do this
    ├── FeedError          (1)   the link to an exchange is in doubt: reconnect, take a new snapshot
    │   ├── BadFrame               a frame that its protocol does not allow
    │   ├── LinkLost               closed, silent or refused by the network
    │   └── RateLimited            the exchange asked us to wait (`retry_after_s`)
    └── UndecodableRecord  (1)   a Kafka record that is not one of our messages: dead-letter topic

A failed language model is not an error but a value: see `services/decider/llm.py`.
"""


class ArbiterError(Exception):
    """Base of all; `exit_code` is what a command ends with when it is not handled."""

    exit_code = 1


class UsageError(ArbiterError):
    """Wrong usage, setting or input: one clear line, exit 2, no retry."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is unknown or has an impossible value."""


class UnknownExchange(UsageError):
    """Names the exchange and those that exist."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"unknown exchange {name!r}; known: {', '.join(known)}")


class UnknownSymbol(UsageError):
    """The exchange does not list the symbol."""

    def __init__(self, exchange: str, symbol: str, words: str = "") -> None:
        said = f" ({words})" if words else ""
        super().__init__(
            f"{exchange} does not list {symbol}{said}; correct exchanges.{exchange}.symbols in the settings"
        )


class SubscriptionRefused(UsageError):
    """The exchange refused a subscription; carries its words."""

    def __init__(self, exchange: str, words: str) -> None:
        super().__init__(f"{exchange} refused the subscription: {words}")


class InputError(UsageError):
    """A file, a line of it or a case on standard input cannot be read."""

    def __init__(self, source: str, problem: str, line: int | None = None) -> None:
        self.line = line
        where = f"{source}, line {line}" if line is not None else source
        super().__init__(f"{where}: {problem}")


class TopicMismatch(UsageError):
    """A topic of the cluster differs from the table in a way that we must not mend ourselves."""


class DependencyMissing(ArbiterError):
    """Something outside this program is needed and not there."""

    exit_code = 3


class BrokerUnavailable(DependencyMissing):
    """Kafka cannot be reached, or did not take a message in time."""


class AccessRefused(BrokerUnavailable):
    """Kafka is there, but the login, the certificate or the rules (ACLs) do not fit: a setting, here or there."""

    exit_code = 2


class FeedError(ArbiterError):
    """The link to an exchange cannot be trusted any more; the caller reconnects. `label` counts it in the metrics."""

    label = "lost"


class BadFrame(FeedError):
    """A frame that its protocol does not allow; the first bytes are kept for the log."""

    label = "bad_frame"

    def __init__(self, exchange: str, frame: bytes | str, problem: object) -> None:
        self.frame = frame[:200]
        super().__init__(f"{exchange}: {repr(problem)[:200]} in frame {self.frame!r}")


class LinkLost(FeedError):
    """The connection closed, fell silent or could not be made."""

    def __init__(self, words: str, label: str = "lost") -> None:
        self.label = label
        super().__init__(words)


class RateLimited(FeedError):
    """The exchange asked us to wait; `said` is its HTTP status or its words."""

    label = "rate_limited"

    def __init__(self, exchange: str, said: int | str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        words = f"HTTP {said}" if isinstance(said, int) else said
        super().__init__(f"{exchange}: {words}, waiting {retry_after_s:g} s as told")


class UndecodableRecord(ArbiterError):
    """A Kafka record that is not one of our messages."""
