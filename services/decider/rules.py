"""What must hold before any model is asked, and again right before a decision is published. Pure."""

from enum import StrEnum

from shared.messages import Opportunity, Rules
from shared.settings import Settings


class Code(StrEnum):
    """Why the rules say no; the setting that moves it."""

    NO_PROFIT = "no_profit"  # nothing executable, or no profit at that size
    NET = "net"  # net edge below decider.min_net_bps
    SANITY = "sanity"  # net edge above detector.sanity_cap_bps: bad data more often than profit
    SILENT = "silent"  # a leg's proof of life is older than decider.max_silence_ms
    SKEW = "skew"  # the legs' proofs of life differ by more than decider.max_skew_ms
    AGE = "age"  # a leg's book has not changed for detector.max_book_age_ms
    LIMIT = "limit"  # notional above detector.max_notional_usd


PASS = Rules(result="pass", codes=[])
_IN_ORDER = tuple(Code)  # a lookup in the class is a call in Python each
_REJECTING = (Code.NO_PROFIT, Code.SANITY, Code.LIMIT)


def check(opportunity: Opportunity, settings: Settings) -> Rules:
    """`reject` where the numbers cannot be right, `hold` where they are not good enough now, else `pass`."""
    decider, detector = settings.decider, settings.detector
    net_bps = opportunity.net_bps
    buy_ms, sell_ms = opportunity.buy.alive_age_ms, opportunity.sell.alive_age_ms
    broken = (  # in the order of `Code`
        opportunity.size <= 0 or opportunity.profit_usd <= 0,
        net_bps < decider.min_net_bps,
        net_bps > detector.sanity_cap_bps,
        max(buy_ms, sell_ms) > decider.max_silence_ms,
        abs(buy_ms - sell_ms) > decider.max_skew_ms,
        max(opportunity.buy.book_age_ms, opportunity.sell.book_age_ms) > detector.max_book_age_ms,
        opportunity.notional_usd > detector.max_notional_usd,
    )
    if not any(broken):
        return PASS
    codes = [code for code, is_broken in zip(_IN_ORDER, broken, strict=True) if is_broken]
    rejecting = any(code in _REJECTING for code in codes)
    return Rules.trusted(result="reject" if rejecting else "hold", codes=[code.value for code in codes])
