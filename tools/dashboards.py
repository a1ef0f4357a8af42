"""Grafana's dashboards, as code: `python tools/dashboards.py` writes deploy/grafana/dashboards, a test compares.

A dashboard is rows of panels; a panel is a title, a sentence that says what to see in it, a unit and its queries.
Where it stands and its number follow from the order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "dashboards"
WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

GREEN, YELLOW, RED, BLUE = "green", "orange", "red", "blue"

Json = dict[str, Any]
Query = tuple[str, str]
"""PromQL, and the legend: labels in double braces."""


@dataclass(frozen=True)
class Panel:
    """One panel. `steps`: colours from a value on, the first from the bottom; `rest` is merged into the JSON."""

    title: str
    about: str
    kind: str
    queries: Sequence[Query]
    unit: str = "short"
    width: int = 8
    height: int = 7
    steps: Sequence[tuple[float | None, str]] = ((None, GREEN),)
    custom: Json = field(default_factory=dict)
    defaults: Json = field(default_factory=dict)
    options: Json = field(default_factory=dict)
    instant: bool = False
    rest: Json = field(default_factory=dict)

    def json(self, number: int, x: int, y: int) -> Json:
        target: Json = {"datasource": SOURCE, "editorMode": "code"}
        if self.kind in ("table", "bargauge") or self.instant:
            target |= {"instant": True, "range": False}
        if self.kind == "table":
            target["format"] = "table"
        if self.kind == "heatmap":
            target["format"] = "heatmap"
        return {
            "id": number,
            "title": self.title,
            "description": self.about,
            "type": self.kind,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [
                {**target, "refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend or "__auto"}
                for place, (expression, legend) in enumerate(self.queries)
            ],
            "fieldConfig": {
                "defaults": {
                    "unit": self.unit,
                    "color": {
                        "mode": "thresholds" if self.kind in ("stat", "gauge", "bargauge") else "palette-classic"
                    },
                    "thresholds": {
                        "mode": "absolute",
                        "steps": [{"value": value, "color": colour} for value, colour in self.steps],
                    },
                    "custom": self.custom,
                    **self.defaults,
                },
                "overrides": [],
            },
            "options": self.options,
            **self.rest,
        }


def stat(
    title: str, about: str, *queries: Query, unit: str = "short", steps: Any = ((None, GREEN),), **more: Any
) -> Panel:
    """One number, coloured."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "textMode": "auto",
    }
    return Panel(
        title, about, "stat", queries, unit, **{"width": 4, "height": 4, "steps": steps, "options": options, **more}
    )


def lines(
    title: str,
    about: str,
    *queries: Query,
    unit: str = "short",
    limit: float | None = None,
    stacked: bool = False,
    bars: bool = False,
    **more: Any,
) -> Panel:
    """Curves over time. `limit`: of the alert, drawn as a line; `stacked`: areas on top of each other."""
    custom: Json = {"fillOpacity": 8, "lineWidth": 1, "showPoints": "never", "spanNulls": False}
    steps: list[tuple[float | None, str]] = [(None, GREEN)]
    if stacked or bars:
        custom |= {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40}
    if bars:
        custom |= {"drawStyle": "bars", "fillOpacity": 80, "lineWidth": 0}
    if limit is not None:
        steps.append((limit, RED))
        custom["thresholdsStyle"] = {"mode": "dashed"}
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    settings = {"steps": steps, "custom": custom, "defaults": {"min": 0}, "options": options, **more}
    return Panel(title, about, "timeseries", queries, unit, **settings)


def states(title: str, about: str, *queries: Query, words: dict[str, tuple[str, str]], **more: Any) -> Panel:
    """A band for each series, coloured by what its value means."""
    mapping = {
        value: {"text": text, "color": colour, "index": i} for i, (value, (text, colour)) in enumerate(words.items())
    }
    settings: Json = {
        "custom": {"fillOpacity": 70, "lineWidth": 0},
        "defaults": {"mappings": [{"type": "value", "options": mapping}]},
        "options": {"mergeValues": True, "showValue": "never", "rowHeight": 0.8, "legend": {"showLegend": False}},
        **more,
    }
    return Panel(title, about, "state-timeline", queries, **settings)


def bars(title: str, about: str, query: Query, *, unit: str = "short", **more: Any) -> Panel:
    """The largest first, over the chosen time."""
    options = {
        "orientation": "horizontal",
        "displayMode": "gradient",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showUnfilled": True,
    }
    return Panel(title, about, "bargauge", [query], unit, **{"options": options, "steps": ((None, BLUE),), **more})


def table(title: str, about: str, query: Query, *, hide: Iterable[str] = (), **more: Any) -> Panel:
    """Labels as columns."""
    hidden = dict.fromkeys(("Time", "__name__", *hide), True)
    return Panel(
        title,
        about,
        "table",
        [query],
        rest={"transformations": [{"id": "organize", "options": {"excludeByName": hidden}}]},
        options={"showHeader": True, "cellHeight": "sm"},
        **more,
    )


def heat(title: str, about: str, query: Query, **more: Any) -> Panel:
    """How often each bucket of a histogram was hit."""
    options = {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "yAxis": {"unit": "ms"},
        "tooltip": {"mode": "single", "yHistogram": True},
        "cellGap": 1,
    }
    return Panel(title, about, "heatmap", [query], "ms", **{"options": options, **more})


def quantile(q: float, metric: str, by: str, where: str = "", window: str = "$__rate_interval") -> str:
    """A quantile of a histogram, by labels."""
    grouped = ", ".join(filter(None, (by, "le")))
    return f"histogram_quantile({q}, sum by ({grouped}) (rate({metric}_bucket{{{where}}}[{window}])))"


def variable(name: str, label: str, metric: str, of: str, where: str = "") -> Json:
    """A choice of a label's values, all at first."""
    query = f"label_values({metric}{{{where}}}, {of})" if where else f"label_values({metric}, {of})"
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "query": {"query": query, "refId": "variable"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


Row = tuple[str, Sequence[Panel]]


def dashboard(uid: str, title: str, about: str, rows: Sequence[Row], variables: Sequence[Json] = ()) -> Json:
    """Panels from left to right, row by row."""
    panels: list[Json] = []
    y = 0
    for name, row in rows:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": name,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        y += 1
        x = tallest = 0
        for panel in row:
            if x + panel.width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            panels.append(panel.json(len(panels) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    source = {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "current": {"text": "Prometheus", "value": "prometheus"},
    }
    links = {
        "type": "dashboards",
        "title": "Arbiter",
        "tags": ["arbiter"],
        "asDropdown": False,
        "includeVars": False,
        "keepTime": True,
    }
    alerts = {
        "name": "Alerts",
        "enable": True,
        "iconColor": RED,
        "datasource": SOURCE,
        "expr": 'ALERTS{alertstate="firing", severity="critical"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{exchange}}{{instance}}{{topic}}",
        "useValueForTime": False,
    }
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["arbiter"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "utc",
        "templating": {"list": [source, *variables]},
        "annotations": {"list": [alerts]},
        "links": [links],
        "panels": panels,
    }


SERVICES = 'job=~"collector|detector|decider|simulator"'
YES_NO = {"1": ("yes", GREEN), "0": ("no", RED)}
ZERO_IS_GOOD = ((None, GREEN), (1, RED))
ONE_IS_GOOD = ((None, RED), (1, GREEN))


def overview() -> Json:
    return dashboard(
        "arb-overview",
        "Arbiter: overview",
        "Is it working, and if nothing happens, why?",
        [
            (
                "Is it working?",
                [
                    stat(
                        "Alerts firing",
                        "All that Prometheus' rules complain about now; each has a section in docs/monitoring.md.",
                        ('count(ALERTS{alertstate="firing"}) or vector(0)', ""),
                        steps=ZERO_IS_GOOD,
                    ),
                    stat(
                        "Books live",
                        "Books that can be trusted, of all that are watched.",
                        ("sum(arb_book_live)", "live"),
                        ("count(arb_book_live)", "watched"),
                        steps=ONE_IS_GOOD,
                    ),
                    stat(
                        "Opportunities open",
                        "Gaps that pass every gate at this moment.",
                        ('sum(arb_gaps_open{job="detector", kind="opportunity"})', ""),
                        steps=((None, BLUE),),
                    ),
                    stat(
                        "Decisions, last hour",
                        "What the decider answered, whatever the answer was.",
                        ("sum(increase(arb_decisions_total[1h]))", ""),
                        steps=((None, BLUE),),
                    ),
                    stat(
                        "Frame to opportunity, p99",
                        "From the frame that made a gap pay to its opportunity, less persistence. Aim: below 100 ms.",
                        ("job:arb_frame_to_opportunity_ms:p99_10m", ""),
                        unit="ms",
                        steps=((None, GREEN), (100, YELLOW), (200, RED)),
                    ),
                    stat(
                        "Left for models today",
                        "Of the day's cap (UTC). Deciders of one host share one purse.",
                        ('min(arb_budget_left_usd{cap="day"})', ""),
                        unit="currencyUSD",
                        steps=((None, RED), (0.02, YELLOW), (2, GREEN)),
                    ),
                    stat(
                        "Kill switch",
                        "On: no model is asked and nothing is executed.",
                        ('max(arb_kill_switch{job="decider"})', ""),
                        steps=((None, GREEN), (1, RED)),
                    ),
                    states(
                        "Ready",
                        "Whether each instance does its job: the worst of its checks. Which one failed: next panel.",
                        (f"min by (instance) (arb_ready{{{SERVICES}}})", "{{instance}}"),
                        words={"1": ("ready", GREEN), "0": ("not ready", RED)},
                        width=12,
                        height=8,
                    ),
                    table(
                        "What is wrong now",
                        "Alerts that fire. The description of each is in Prometheus, what to do in docs/monitoring.md.",
                        ('ALERTS{alertstate="firing"}', ""),
                        hide=("Value", "alertstate", "job", "host"),
                        width=12,
                        height=8,
                    ),
                ],
            ),
            (
                "From ticks to decisions",
                [
                    lines(
                        "Ticks published",
                        "Books, trades and proofs of life, by exchange. A curve at zero is an exchange that is silent.",
                        ("sum by (exchange) (rate(arb_ticks_total[$__rate_interval]))", "{{exchange}}"),
                        unit="cps",
                    ),
                    lines(
                        "Crossings",
                        "Gross crossings that are over: accepted once (an opportunity), or never.",
                        ("sum by (outcome) (rate(arb_crossings_total[5m])) * 60", "{{outcome}}"),
                        unit="cpm",
                        stacked=True,
                    ),
                    lines(
                        "Opportunities and decisions",
                        "Each opened opportunity is decided once: the two curves belong together.",
                        ('sum(rate(arb_opportunities_total{phase="opened"}[5m])) * 60', "opened"),
                        ("sum(rate(arb_decisions_total[5m])) * 60", "decided"),
                        unit="cpm",
                    ),
                    lines(
                        "Books live, by exchange",
                        "An exchange at zero is left out of every gap.",
                        ("exchange:arb_book_live:sum", "{{exchange}}"),
                    ),
                    lines(
                        "Age of a tick at the detector, p99",
                        "From its receipt at the collector. At 2 s every book is stale.",
                        ("instance:arb_tick_age_ms:p99_1m", "{{instance}}"),
                        unit="ms",
                        limit=1000,
                    ),
                    lines(
                        "Time of a decision",
                        "From the opportunity read to the decision handed to Kafka's client: the models' time, mostly.",
                        ("job:arb_decision_ms:p50_5m", "half"),
                        ("job:arb_decision_ms:p99_5m", "99 %"),
                        unit="ms",
                        limit=2000,
                    ),
                ],
            ),
            (
                "Why did nothing happen?",
                [
                    lines(
                        "Gaps open now",
                        "Every gross crossing is one of the two. Nothing at all: no bid is above another's ask.",
                        ('sum by (kind) (arb_gaps_open{job="detector"})', "{{kind}}"),
                        stacked=True,
                    ),
                    bars(
                        "Why crossings were refused",
                        "First reasons of the rejections opened in the chosen time: docs/reasons.md.",
                        ("sort_desc(sum by (reason) (increase(arb_rejections_total[$__range])) > 0)", "{{reason}}"),
                    ),
                    bars(
                        "What was decided, and how",
                        "Decisions in the chosen time. rules_only: no model was asked (no key, no time, no money).",
                        (
                            "sort_desc(sum by (outcome, mode) (increase(arb_decisions_total[$__range])) > 0)",
                            "{{outcome}}, {{mode}}",
                        ),
                    ),
                    lines(
                        "Books of the detectors, by state",
                        "Only live ones can make an opportunity.",
                        ('sum by (state) (arb_books{job="detector"})', "{{state}}"),
                        stacked=True,
                    ),
                    lines(
                        "Model calls without an answer",
                        "Share of the calls sent. Without answers roles abstain, and nothing is executed.",
                        ("provider:arb_model_calls_failed:ratio10m", "{{provider}}"),
                        unit="percentunit",
                        limit=0.3,
                    ),
                    lines(
                        "Opportunities that wait",
                        "Not yet worked off by the deciders: their own account, and Kafka's.",
                        ('sum(arb_consumer_lag_messages{job="decider"})', "deciders"),
                        ('sum(kminion_kafka_consumer_group_topic_lag{group_id="decider"})', "Kafka"),
                        limit=50,
                    ),
                ],
            ),
        ],
    )


def feeds() -> Json:
    of = 'exchange=~"$exchange"'

    def each(metric: str, by: str) -> str:
        return f"sum by ({by}) (rate({metric}{{{of}}}[$__rate_interval]))"

    def counted(metric: str, by: str) -> str:
        return f"sum by ({by}) (increase({metric}{{{of}}}[$__rate_interval])) > 0"

    return dashboard(
        "arb-feeds",
        "Arbiter: feeds",
        "Collectors: connections, books, clocks, and what they publish.",
        [
            (
                "Books",
                [
                    states(
                        "Live",
                        "Each book. What is not live is in no gap; the log of its collector says why.",
                        (f"max by (exchange, symbol) (arb_book_live{{{of}}})", "{{exchange}} {{symbol}}"),
                        words={"1": ("live", GREEN), "0": ("not live", RED)},
                        width=12,
                        height=12,
                    ),
                    lines(
                        "Changes of state",
                        "Into which state books went.",
                        (counted("arb_book_state_changes_total", "exchange, state"), "{{exchange}} {{state}}"),
                        bars=True,
                        width=12,
                        height=6,
                    ),
                    lines(
                        "Doubts",
                        "Signs that a book was wrong: each drops it until it is verified again.",
                        (counted("arb_book_doubts_total", "exchange, kind"), "{{exchange}} {{kind}}"),
                        bars=True,
                        width=12,
                        height=6,
                    ),
                ],
            ),
            (
                "Connections",
                [
                    lines(
                        "Open connections",
                        "By protocol: Coinbase's second source has its own. Two of one: one replaces the other.",
                        (f"sum by (exchange, protocol) (arb_connections{{{of}}})", "{{exchange}} {{protocol}}"),
                    ),
                    lines(
                        "Connections made again",
                        "By what ended the last one; replaced is planned.",
                        (counted("arb_reconnects_total", "exchange, reason"), "{{exchange}} {{reason}}"),
                        bars=True,
                    ),
                    lines(
                        "REST requests",
                        "Snapshots, metadata, clocks; rate_limited means the exchange's limit was met.",
                        (counted("arb_rest_requests_total", "exchange, outcome"), "{{exchange}} {{outcome}}"),
                        bars=True,
                    ),
                    lines(
                        "Frames received",
                        "From the sockets.",
                        (each("arb_frames_total", "exchange"), "{{exchange}}"),
                        unit="cps",
                    ),
                    lines(
                        "Published",
                        "By kind: books, trades, proofs of life, rates.",
                        (each("arb_ticks_total", "exchange, kind"), "{{exchange}} {{kind}}"),
                        unit="cps",
                    ),
                    lines(
                        "Ticks given up",
                        "Because Kafka was slow: they are dropped, never queued for long.",
                        (
                            "sum by (topic, reason) (rate(arb_ticks_dropped_total[$__rate_interval]))",
                            "{{topic}} {{reason}}",
                        ),
                        unit="cps",
                        limit=1,
                    ),
                ],
            ),
            (
                "Time",
                [
                    lines(
                        "Frame to tick, p99",
                        "In our process: parsing, checking, building the message.",
                        ('exchange:arb_frame_to_tick_ms:p99_1m{exchange=~"$exchange"}', "{{exchange}}"),
                        unit="ms",
                    ),
                    lines(
                        "Frame to tick, median",
                        "Half of the frames are quicker.",
                        (quantile(0.5, "arb_frame_to_tick_ms", "exchange", of), "{{exchange}}"),
                        unit="ms",
                    ),
                    lines(
                        "Feed behind",
                        "Delay of the newest frame over the least of five minutes. At 2 s the books are stale.",
                        (f"arb_feed_lag_ms{{{of}}}", "{{exchange}}"),
                        unit="ms",
                        limit=1000,
                    ),
                    lines(
                        "Exchange's clock minus ours",
                        "If all are off in the same direction, ours is wrong.",
                        (f"arb_clock_offset_ms{{{of}}}", "{{exchange}}"),
                        unit="ms",
                        defaults={},
                    ),
                    lines(
                        "Bound of that offset's error",
                        "Half the round trip of the best question.",
                        (f"arb_clock_error_ms{{{of}}}", "{{exchange}}"),
                        unit="ms",
                    ),
                    lines(
                        "Frames from the future",
                        "Received before they were sent, by both clocks.",
                        (each("arb_frames_early_total", "exchange"), "{{exchange}}"),
                        unit="cps",
                    ),
                    lines(
                        "Age of metadata",
                        "Symbols, lot steps and least orders; asked anew every five minutes.",
                        (f"arb_instruments_age_s{{{of}}}", "{{exchange}}"),
                        unit="s",
                        limit=3600,
                    ),
                    lines(
                        "Lateness of the loop, p99",
                        "How late its heartbeat came: too little CPU, or too much to do.",
                        ('instance:arb_loop_lag_ms:p99_5m{job="collector"}', "{{instance}}"),
                        unit="ms",
                        limit=200,
                    ),
                    lines(
                        "Memory",
                        "Resident.",
                        ('process_resident_memory_bytes{job="collector"}', "{{instance}}"),
                        unit="bytes",
                    ),
                ],
            ),
        ],
        [variable("exchange", "Exchange", "arb_book_live", "exchange")],
    )


def detector() -> Json:
    own = 'job="detector", instance=~"$instance"'

    def each(metric: str, by: str, window: str = "$__rate_interval") -> str:
        return f"sum by ({by}) (rate({metric}{{{own}}}[{window}]))"

    return dashboard(
        "arb-detector",
        "Arbiter: detector",
        "What the detectors hold, find and refuse, and how quickly.",
        [
            (
                "What it holds",
                [
                    stat(
                        "Co-partitioned",
                        "Whether the assignment puts a coin's topics together; a detector refuses to run without.",
                        ('min(arb_co_partitioned{job="detector"})', ""),
                        steps=ONE_IS_GOOD,
                        defaults={
                            "mappings": [{"type": "value", "options": {"1": {"text": "yes"}, "0": {"text": "no"}}}]
                        },
                    ),
                    stat(
                        "Detectors",
                        "That answer Prometheus.",
                        ('count(up{job="detector"} == 1) or vector(0)', ""),
                        steps=ONE_IS_GOOD,
                    ),
                    stat(
                        "Live books",
                        "In all detectors.",
                        ('sum(arb_books{job="detector", state="live"})', ""),
                        steps=ONE_IS_GOOD,
                    ),
                    stat(
                        "Opportunities open",
                        "At this moment.",
                        ('sum(arb_gaps_open{job="detector", kind="opportunity"})', ""),
                        steps=((None, BLUE),),
                    ),
                    stat(
                        "Frame to opportunity, median",
                        "Less persistence, over ten minutes.",
                        ("job:arb_frame_to_opportunity_ms:p50_10m", ""),
                        unit="ms",
                        steps=((None, GREEN), (100, RED)),
                    ),
                    stat(
                        "Frame to opportunity, p99",
                        "Less persistence, over ten minutes. Aim: below 100 ms.",
                        ("job:arb_frame_to_opportunity_ms:p99_10m", ""),
                        unit="ms",
                        steps=((None, GREEN), (100, YELLOW), (200, RED)),
                    ),
                    lines(
                        "Books by exchange and state",
                        "Only live ones can make an opportunity.",
                        (f"sum by (exchange, state) (arb_books{{{own}}})", "{{exchange}} {{state}}"),
                        stacked=True,
                    ),
                    lines(
                        "Gaps open",
                        "Verdicts open now.",
                        (f"sum by (kind) (arb_gaps_open{{{own}}})", "{{kind}}"),
                        stacked=True,
                    ),
                    lines(
                        "Partitions",
                        "Of each tick topic, by detector: 16 in all. All topics must look the same.",
                        (
                            f'sum by (instance, topic) (arb_consumer_partitions{{{own}, topic=~"tick-data-.*"}})',
                            "{{instance}} {{topic}}",
                        ),
                    ),
                ],
            ),
            (
                "What it finds",
                [
                    lines(
                        "Opportunities",
                        "Opened, updated, closed.",
                        (each("arb_opportunities_total", "phase", "5m") + " * 60", "{{phase}}"),
                        unit="cpm",
                    ),
                    lines(
                        "Rejections",
                        "Opened, by first reason: docs/reasons.md.",
                        (each("arb_rejections_total", "reason", "5m") + " * 60", "{{reason}}"),
                        unit="cpm",
                        stacked=True,
                    ),
                    lines(
                        "Crossings that are over",
                        "Accepted once, or never: together every gross crossing.",
                        (each("arb_crossings_total", "outcome", "5m") + " * 60", "{{outcome}}"),
                        unit="cpm",
                        stacked=True,
                    ),
                    lines(
                        "Edges after a delay",
                        "What was left of each opening 50 ms to 5 s later: computed, or missed.",
                        (each("arb_outcomes_total", "seen", "5m") + " * 60", "{{seen}}"),
                        unit="cpm",
                    ),
                    heat(
                        "Frame to opportunity",
                        "How often each bucket was hit. Between messages the clock moves every 50 ms.",
                        (
                            f"sum by (le) (increase(arb_frame_to_opportunity_ms_bucket{{{own}}}[$__rate_interval]))",
                            "{{le}}",
                        ),
                        width=16,
                    ),
                ],
            ),
            (
                "What it reads",
                [
                    lines("Ticks read", "By kind.", (each("arb_ticks_read_total", "kind"), "{{kind}}"), unit="cps"),
                    lines(
                        "Age of a tick",
                        "When it is taken in, of the last of each batch.",
                        (quantile(0.5, "arb_tick_age_ms", "instance", own), "{{instance}} half"),
                        ('instance:arb_tick_age_ms:p99_1m{instance=~"$instance"}', "{{instance}} 99 %"),
                        unit="ms",
                        limit=1000,
                    ),
                    lines(
                        "Ticks left out",
                        "Old: not newer than the one held. Early: from the future. Unreadable: a level that is none.",
                        (each("arb_ticks_old_total", "exchange"), "{{exchange}} old"),
                        (each("arb_ticks_early_total", "exchange"), "{{exchange}} early"),
                        (each("arb_ticks_unreadable_total", "exchange"), "{{exchange}} unreadable"),
                        unit="cps",
                    ),
                    lines(
                        "Lateness of the loop, p99",
                        "How late its heartbeat came.",
                        ('instance:arb_loop_lag_ms:p99_5m{job="detector"}', "{{instance}}"),
                        unit="ms",
                        limit=200,
                    ),
                    lines(
                        "CPU",
                        "Of one core. A detector is one thread: at 1 it is full, and another detector helps.",
                        (f"rate(process_cpu_seconds_total{{{own}}}[1m])", "{{instance}}"),
                        unit="percentunit",
                        limit=0.9,
                    ),
                    lines(
                        "Memory", "Resident.", (f"process_resident_memory_bytes{{{own}}}", "{{instance}}"), unit="bytes"
                    ),
                ],
            ),
        ],
        [variable("instance", "Detector", "up", "instance", 'job="detector"')],
    )


def models() -> Json:
    of = 'provider=~"$provider"'
    spent = "sum(increase(arb_model_cost_usd_total[$__range]))"
    return dashboard(
        "arb-models",
        "Arbiter: decisions, models and cost",
        "What is decided, by whom, how quickly and at what price.",
        [
            (
                "Decisions",
                [
                    lines(
                        "Decisions",
                        "By outcome.",
                        ("sum by (outcome) (rate(arb_decisions_total[5m])) * 60", "{{outcome}}"),
                        unit="cpm",
                        stacked=True,
                    ),
                    lines(
                        "How they were made",
                        "full: every role answered; partial: some; cached: a moment ago; rules_only: nobody was asked.",
                        ("sum by (mode) (rate(arb_decisions_total[5m])) * 60", "{{mode}}"),
                        unit="cpm",
                        stacked=True,
                    ),
                    lines(
                        "Opportunities in work",
                        "Read, and not decided yet.",
                        ('arb_decider_in_flight{job="decider"}', "{{instance}}"),
                    ),
                    lines(
                        "Age of an opportunity when it is read",
                        "From its detection. From 3 s on no model is asked.",
                        ("job:arb_opportunity_age_ms:p95_5m", "95 %"),
                        unit="ms",
                        limit=1000,
                    ),
                    lines(
                        "Time of a decision",
                        "From the opportunity read to the decision handed to Kafka's client.",
                        ("job:arb_decision_ms:p50_5m", "half"),
                        ("job:arb_decision_ms:p99_5m", "99 %"),
                        unit="ms",
                        limit=2000,
                    ),
                    lines(
                        "Time of a panel",
                        "All roles together, under one deadline (1.5 s).",
                        (quantile(0.5, "arb_panel_ms", "", 'job="decider"', "5m"), "half"),
                        (quantile(0.99, "arb_panel_ms", "", 'job="decider"', "5m"), "99 %"),
                        unit="ms",
                        limit=1500,
                    ),
                ],
            ),
            (
                "Models",
                [
                    lines(
                        "Calls",
                        "By outcome: ok and slow are answers, unneeded was cut off by us, skipped was not sent.",
                        (
                            f"sum by (provider, outcome) (rate(arb_model_calls_total{{{of}}}[5m])) * 60",
                            "{{provider}} {{outcome}}",
                        ),
                        unit="cpm",
                        bars=True,
                        width=16,
                    ),
                    lines(
                        "Calls without an answer",
                        "Share of those sent, over ten minutes.",
                        ('provider:arb_model_calls_failed:ratio10m{provider=~"$provider"}', "{{provider}}"),
                        unit="percentunit",
                        limit=0.3,
                    ),
                    lines(
                        "Calls by role",
                        "Each role asks its own model.",
                        (f"sum by (role) (rate(arb_model_calls_total{{{of}}}[5m])) * 60", "{{role}}"),
                        unit="cpm",
                    ),
                    lines(
                        "Time of a call",
                        "Median and 95 %.",
                        (quantile(0.5, "arb_model_latency_ms", "provider", of, "10m"), "{{provider}} half"),
                        ('provider:arb_model_latency_ms:p95_10m{provider=~"$provider"}', "{{provider}} 95 %"),
                        unit="ms",
                        limit=1500,
                    ),
                    states(
                        "Guards closed",
                        "Closed is good: the model is asked. Else it failed too often, waits, or is refused.",
                        (
                            f'max by (provider, model) (arb_model_guard{{{of}, state="closed"}})',
                            "{{provider}} {{model}}",
                        ),
                        words=YES_NO,
                    ),
                    lines(
                        "Brier score",
                        "By the weights file: 0 is perfect, 0.25 a coin.",
                        ("arb_brier", "{{role}} {{model}}"),
                        limit=0.25,
                    ),
                    lines(
                        "Candidates rolled back",
                        "Worse than the model in place.",
                        ("sum by (role, model) (arb_candidate_rollbacks_total)", "{{role}} {{model}}"),
                    ),
                    lines(
                        "Tokens",
                        "In, of those cached, and out.",
                        (
                            f"sum by (provider, kind) (rate(arb_model_tokens_total{{{of}}}[5m])) * 60",
                            "{{provider}} {{kind}}",
                        ),
                        unit="cpm",
                    ),
                ],
            ),
            (
                "Money",
                [
                    stat(
                        "Spent in the chosen time",
                        "By our own account of tokens and list prices.",
                        (spent, ""),
                        unit="currencyUSD",
                        steps=((None, BLUE),),
                        width=6,
                    ),
                    stat(
                        "Per decision",
                        "Cost of models over decisions, in the chosen time.",
                        (f"{spent} / sum(increase(arb_decisions_total[$__range]))", ""),
                        unit="currencyUSD",
                        steps=((None, BLUE),),
                        width=6,
                    ),
                    stat(
                        "Left today",
                        "Of the day's cap (UTC).",
                        ('min(arb_budget_left_usd{cap="day"})', ""),
                        unit="currencyUSD",
                        steps=((None, RED), (0.02, YELLOW), (2, GREEN)),
                        width=6,
                    ),
                    stat(
                        "Needed until midnight (UTC)",
                        "At the pace of the last hour.",
                        ("sum(rate(arb_model_cost_usd_total[1h])) * (86400 - time() % 86400)", ""),
                        unit="currencyUSD",
                        steps=((None, BLUE),),
                        width=6,
                    ),
                    lines(
                        "Cost per hour",
                        "By provider.",
                        (f"sum by (provider) (rate(arb_model_cost_usd_total{{{of}}}[10m])) * 3600", "{{provider}}"),
                        unit="currencyUSD",
                        stacked=True,
                        width=12,
                    ),
                    lines(
                        "Left under each cap",
                        "Of the minute, the day, and the day's share for candidates in shadow.",
                        ("min by (cap) (arb_budget_left_usd)", "{{cap}}"),
                        unit="currencyUSD",
                        width=12,
                    ),
                ],
            ),
        ],
        [variable("provider", "Provider", "arb_model_calls_total", "provider")],
    )


def kafka() -> Json:
    return dashboard(
        "arb-kafka",
        "Arbiter: Kafka and lag",
        "The brokers, the groups, and how our clients fare.",
        [
            (
                "Cluster",
                [
                    stat(
                        "Brokers",
                        "In the cluster, by KMinion.",
                        ("count(count by (broker_id) (kminion_kafka_broker_info))", ""),
                        steps=((None, RED), (3, GREEN)),
                    ),
                    stat(
                        "KMinion can ask",
                        "Whether the last questions had an answer.",
                        ("min(kminion_exporter_up)", ""),
                        steps=ONE_IS_GOOD,
                        defaults={
                            "mappings": [{"type": "value", "options": {"1": {"text": "yes"}, "0": {"text": "no"}}}]
                        },
                    ),
                    stat(
                        "Detectors in their group",
                        "Members, by Kafka's account.",
                        ('kminion_kafka_consumer_group_members{group_id="detector"}', ""),
                        steps=ONE_IS_GOOD,
                    ),
                    stat(
                        "Deciders in their group",
                        "Members, by Kafka's account.",
                        ('kminion_kafka_consumer_group_members{group_id="decider"}', ""),
                        steps=ONE_IS_GOOD,
                    ),
                    stat(
                        "Events lost",
                        "That Kafka did not take in time, within ten minutes.",
                        ("sum(topic:arb_events_lost:new10m) or vector(0)", ""),
                        steps=ZERO_IS_GOOD,
                    ),
                    stat(
                        "Put aside",
                        "Records on dead-letter topics, within 15 minutes: arb dlq list.",
                        ("sum(topic:arb_dead_letters:new15m) or vector(0)", ""),
                        steps=ZERO_IS_GOOD,
                    ),
                    lines(
                        "Records written",
                        "By topic: how quickly its end moves.",
                        ("sum by (topic_name) (rate(kminion_kafka_topic_high_water_mark_sum[1m]))", "{{topic_name}}"),
                        unit="cps",
                    ),
                    lines(
                        "Disk, by broker",
                        "All log folders.",
                        ("sum by (broker_id) (kminion_kafka_broker_log_dir_size_total_bytes)", "broker {{broker_id}}"),
                        unit="bytes",
                    ),
                    lines(
                        "Disk, by topic",
                        "All copies. Ticks are kept for an hour and 512 MiB a partition.",
                        ("sum by (topic_name) (kminion_kafka_topic_log_dir_size_total_bytes)", "{{topic_name}}"),
                        unit="bytes",
                    ),
                ],
            ),
            (
                "Groups",
                [
                    lines(
                        "Lag of the deciders",
                        "By Kafka's account (committed), and their own (worked off).",
                        ('kminion_kafka_consumer_group_topic_lag{group_id="decider"}', "Kafka {{topic_name}}"),
                        ('sum by (topic) (arb_consumer_lag_messages{job="decider"})', "deciders {{topic}}"),
                        limit=50,
                    ),
                    lines(
                        "Lag of the detectors",
                        "Their own account. What a new owner leaves out of the past is no fault.",
                        ('sum by (topic) (arb_consumer_lag_messages{job="detector"})', "{{topic}}"),
                    ),
                    lines(
                        "Partitions",
                        "By member: opportunities 8, each tick topic 16 in all.",
                        ('sum by (instance) (arb_consumer_partitions{job=~"detector|decider"})', "{{instance}}"),
                        stacked=True,
                    ),
                    lines(
                        "Rebalances",
                        "In which each member took part.",
                        (
                            "sum by (instance, client) (increase(arb_consumer_rebalances_total[$__rate_interval]))",
                            "{{instance}} {{client}}",
                        ),
                        bars=True,
                    ),
                    lines(
                        "Records put aside",
                        "On dead-letter topics, by where they failed.",
                        ("sum by (topic, stage) (arb_dead_letters_total)", "{{topic}} {{stage}}"),
                    ),
                    lines(
                        "Events lost",
                        "Since each process began.",
                        ("sum by (topic) (arb_events_lost_total)", "{{topic}}"),
                    ),
                ],
            ),
            (
                "Our clients",
                [
                    lines(
                        "Brokers connected",
                        "By client. Zero is a service that is cut off.",
                        (
                            'min by (instance, client) (arb_kafka_brokers_up{instance=~"$instance"})',
                            "{{instance}} {{client}}",
                        ),
                    ),
                    lines(
                        "Round trip, 99 %",
                        "To the slowest broker. A consumer's request waits for records up to 50 ms by itself.",
                        ('arb_kafka_rtt_ms{quantile="0.99", instance=~"$instance"}', "{{instance}} {{client}}"),
                        unit="ms",
                        limit=500,
                    ),
                    lines(
                        "Producer's queue",
                        "Share of what it can hold. Full, it drops ticks and holds up events.",
                        (
                            'arb_kafka_queue_messages{instance=~"$instance"} / (arb_kafka_queue_max_messages > 0)',
                            "{{instance}} {{client}}",
                        ),
                        unit="percentunit",
                        limit=0.5,
                    ),
                    lines(
                        "Bytes waiting",
                        "In the producers.",
                        ('arb_kafka_queue_bytes{instance=~"$instance"}', "{{instance}} {{client}}"),
                        unit="bytes",
                    ),
                    lines(
                        "Requests that failed",
                        "Or timed out.",
                        (
                            'rate(arb_kafka_request_errors_total{instance=~"$instance"}[$__rate_interval])',
                            "{{instance}} {{client}}",
                        ),
                        unit="cps",
                        limit=0.2,
                    ),
                    lines(
                        "Ticks given up",
                        "queue_full: the producer could hold no more; else Kafka's own error.",
                        (
                            "sum by (topic, reason) (rate(arb_ticks_dropped_total[$__rate_interval]))",
                            "{{topic}} {{reason}}",
                        ),
                        unit="cps",
                        limit=1,
                    ),
                ],
            ),
            (
                "Processes",
                [
                    table(
                        "What runs",
                        "Service and version, by instance.",
                        (f"arb_service_info{{{SERVICES}}}", ""),
                        hide=("Value", "host", "job"),
                        width=12,
                    ),
                    lines(
                        "CPU",
                        "Of one core.",
                        (f'rate(process_cpu_seconds_total{{{SERVICES}, instance=~"$instance"}}[1m])', "{{instance}}"),
                        unit="percentunit",
                        width=12,
                    ),
                    lines(
                        "Memory",
                        "Resident.",
                        (f'process_resident_memory_bytes{{{SERVICES}, instance=~"$instance"}}', "{{instance}}"),
                        unit="bytes",
                        width=12,
                    ),
                    lines(
                        "Lateness of the loop, p99",
                        "How late each heartbeat came.",
                        ('instance:arb_loop_lag_ms:p99_5m{instance=~"$instance"}', "{{instance}}"),
                        unit="ms",
                        limit=200,
                        width=12,
                    ),
                ],
            ),
        ],
        [variable("instance", "Instance", "up", "instance", SERVICES)],
    )


def dashboards() -> dict[str, bytes]:
    """Name of the file -> its content."""
    built = {"overview": overview(), "feeds": feeds(), "detector": detector(), "models": models(), "kafka": kafka()}
    return {
        f"{name}.json": orjson.dumps(made, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        for name, made in built.items()
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in dashboards().items():
        (FOLDER / name).write_bytes(content)


if __name__ == "__main__":
    main()
