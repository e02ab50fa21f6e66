"""Pages about the server itself: members, processes, plugins and configuration."""

from __future__ import annotations

from typing import Any

from fcp_core.admin.messages import MemberList
from fcp_core.plugins.pages import Site
from fcp_dashboard import formats
from fcp_dashboard.facts import MemberSeen
from fcp_dashboard.snapshot import Snapshot
from fcp_dashboard.views.tables import Plain, Section

_MEMBERS = [
    ("Member", "mono"),
    ("State", ""),
    ("Host", "name"),
    ("Process", "n"),
    ("Devices reach it at", "long"),
    ("Since", "nowrap"),
    ("Last sign", "n"),
    ("Owns", "n"),
]


_LEASES = [
    ("Population", "name"),
    ("Owner", "mono"),
    ("Host", "name"),
    ("Process", "n"),
    ("Epoch", "n"),
    ("Since", "nowrap"),
    ("Left", "n"),
]


def members(found: MemberList) -> Plain:
    """Return the page of members and their leases."""
    return Plain(
        "Members",
        [
            Section(
                "",
                "The processes that share the storage, the longest first.",
                _MEMBERS,
                [
                    [
                        each.member_id or "alone",
                        _state(each.lives, each.draining),
                        each.host,
                        str(each.pid),
                        each.url,
                        formats.day(each.started),
                        formats.ago(each.behind),
                        formats.number(each.owns),
                    ]
                    for each in found.members
                ],
                "There is none.",
            ),
            Section(
                "Leases",
                "Who owns which population; the epoch grows when it changes hands.",
                _LEASES,
                [
                    [
                        each.population,
                        each.member_id or ("nobody" if each.epoch else "alone"),
                        each.host,
                        str(each.pid or ""),
                        str(each.epoch),
                        formats.day(each.since),
                        formats.seconds(each.left) if each.epoch else formats.DASH,
                    ]
                    for each in found.leases
                ],
                "No population yet.",
            ),
        ],
    )


def _state(lives: bool, draining: bool) -> bytes:
    kind, text = ("gives", "gives back") if draining else ("serves", "serves")
    if not lives:
        kind = text = "gone"
    return f'<span class="state {kind}">{text}</span>'.encode()


_PROCESSES = [
    ("Host", "name"),
    ("Process", "n"),
    ("Up for", "n"),
    ("Memory", "n"),
    ("Processor", "n"),
    ("Lag, median", "n"),
    ("Lag, 99 of 100", "n"),
    ("Connections", "n"),
    ("Bodies in flight", "n"),
    ("Sessions", "n"),
    ("Storage heard", "n"),
]


def server(snapshot: Snapshot, status: Any) -> Plain:
    """Return the page of the server's processes."""
    rows = [_process(member) for member in snapshot.members]
    routes: dict[str, list[float]] = {}
    for member in snapshot.members:
        for route, values in member.requests.items():
            entry = routes.setdefault(route, [0.0, 0.0, 0.0])
            for place, value in enumerate(values):
                entry[place] += value
    return Plain(
        "Server",
        [
            Section(
                "Processes that decide",
                "Loop lag is how late the event loop is at a timer; the figures of worker "
                "processes are in their member's.",
                _PROCESSES,
                rows,
                "There is none.",
            ),
            Section(
                "Requests",
                "Since the server began; failed are those answered with 5xx.",
                [("Route", "name"), ("Requests", "n"), ("Mean time", "n"), ("Failed", "n")],
                [
                    [
                        route,
                        formats.number(count),
                        formats.seconds(spent / count if count else None),
                        formats.number(failed),
                    ]
                    for route, (count, spent, failed) in sorted(
                        routes.items(), key=lambda item: -item[1][0]
                    )
                ],
                "The server measures none: [fcp] metrics = yes has it do so.",
            ),
        ],
        cards=[
            ("Version", status.version, ""),
            ("Storage", status.storage, ""),
            ("Tasks", formats.number(sum(status.tasks.values())), _states(status.tasks)),
        ],
        crumbs=[(f"Devices reach it at {status.url}", "")],
    )


def _states(tasks: dict[str, int]) -> str:
    return ", ".join(f"{formats.number(count)} {state}" for state, count in tasks.items())


def _process(member: MemberSeen) -> list[str]:
    up = max(1e-9, member.at - member.started)
    gauges = member.gauges
    return [
        member.host,
        str(member.pid),
        formats.seconds(up),
        formats.size(member.memory),
        formats.share(member.cpu, up),
        _lag(member.lag, 0.5),
        _lag(member.lag, 0.99),
        formats.number(gauges["connections"]) if "connections" in gauges else formats.DASH,
        formats.size(gauges["in_flight_bytes"]) if "in_flight_bytes" in gauges else formats.DASH,
        formats.number(gauges["sessions"]) if "sessions" in gauges else formats.DASH,
        formats.ago(gauges["heartbeat_age_seconds"])
        if gauges.get("heartbeat_age_seconds")
        else formats.DASH,
    ]


def _lag(buckets: list[tuple[float, float]], below: float) -> str:
    """Return the bucket's bound that such a share of measurements is below."""
    total = sum(count for _, count in buckets)
    so_far = 0.0
    for bound, count in buckets:
        so_far += count
        if total and so_far >= below * total:
            return f"\N{LESS-THAN OR EQUAL TO} {formats.seconds(bound)}" if bound < 1e9 else "more"
    return formats.DASH


def configuration(site: Site) -> Plain:
    """Return the page of plugins, what they offer, and every option with its origin."""
    offers = [
        [offer.kind, offer.name, "in use" if offer.active else "", offer.summary, str(offer.plugin)]
        for offer in site.offers()
    ]
    return Plain(
        "Configuration",
        [
            Section(
                "Plugins",
                "In the order in which they are asked.",
                [("Plugin", "name"), ("Implements", "long")],
                [[str(item.source), ", ".join(item.hooks)] for item in site.plugins],
                "None is in use.",
            ),
            Section(
                "What they offer",
                "",
                [
                    ("Kind", ""),
                    ("Name", "mono"),
                    ("Used", ""),
                    ("Summary", "long"),
                    ("Plugin", "name"),
                ],
                offers,
            ),
            Section(
                "Options",
                f"Configuration file: {site.config.file or 'none'}. Secrets are not shown.",
                [
                    ("Option", "mono"),
                    ("Value", "name"),
                    ("From", "name"),
                    ("Declared by", "name"),
                ],
                [
                    [item.label, item.shown, item.origin, item.option.declared_by]
                    for item in site.config.options()
                ],
            ),
        ],
    )
