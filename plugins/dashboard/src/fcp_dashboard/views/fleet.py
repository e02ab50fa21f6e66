"""Pages about devices: populations, the shapes of their sessions, their errors, and the feed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from types import SimpleNamespace

from fcp_core.plugins.config import Config
from fcp_dashboard import formats, marks
from fcp_dashboard.facts import PopulationSeen
from fcp_dashboard.shapes import SIGNS
from fcp_dashboard.snapshot import Snapshot
from fcp_dashboard.views.overview import population_rows
from fcp_dashboard.views.tables import Cell, Plain, Section, cut

#: How many versions have a column, and how many shapes, errors and events a row.
_VERSIONS, _ROWS = 6, 100

_WHY = {
    "no_task": "there was no task with room for it",
    "not_selected": "the selection policy sent it away",
    "refused": "a policy refused it at check-in",
    "eligibility_failed": "it could not evaluate its eligibility",
    "silent": "others of its sender are silent",
    "busy": "the server had no room",
    "stopping": "the server stopped",
    "restarted": "the server was restarted",
    "expired": "it waited until its session ended",
    "cancelled": "it went away",
}


_POPULATIONS = [
    ("Population", "name"),
    ("Check-ins", ""),
    ("a second", "n"),
    ("Target", "n"),
    ("In all", "n"),
    ("Devices (estimate)", "n"),
    ("Waiting", "n"),
    ("At work", "n"),
    ("Open tasks", "n"),
    ("Back with a task", "nowrap"),
    ("Back without", "nowrap"),
]


def populations(snapshot: Snapshot, config: Config) -> Plain:
    """Return the page of all populations."""
    rows = population_rows(snapshot, config)
    return Plain(
        "Populations",
        [
            Section(
                "",
                "Check-ins of the last ten minutes; the dashed line is the target.",
                _POPULATIONS,
                [
                    [
                        (row.name, f"tasks?population={marks.quoted(row.name)}"),
                        row.course.encode(),
                        formats.rate(row.rate),
                        row.target,
                        formats.number(row.seen.total),
                        formats.number(row.size),
                        formats.number(row.waiting),
                        formats.number(row.at_work),
                        formats.number(row.open_tasks),
                        formats.window(row.window_accepted),
                        formats.window(row.window),
                    ]
                    for row in rows
                ],
                "No population yet: a task brings its population with it.",
            ),
            *_sent_away(rows),
        ],
        lead="When devices are asked back, and who was sent away.",
    )


def _sent_away(rows: list[SimpleNamespace]) -> list[Section]:
    """Return who got no task, and who fell silent with one."""
    away = []
    for row in rows:
        total = row.seen.total
        for reason, count in row.seen.turned_away.items():
            away.append(
                [
                    row.name,
                    reason,
                    _WHY.get(reason, ""),
                    formats.number(count),
                    formats.share(count, total),
                ]
            )
    silent = [
        [row.name, version, formats.number(count)]
        for row in rows
        for version, count in row.silent.items()
    ]
    return [
        Section(
            "Turned away",
            "Devices that got no task, by reason; the share is that of all check-ins.",
            [
                ("Population", "name"),
                ("Reason", "mono"),
                ("What it says", "long"),
                ("Devices", "n"),
                ("Share", "n"),
            ],
            away,
            "Nobody was turned away.",
        ),
        Section(
            "Silent",
            "Devices with a task of which there is no sign for too long.",
            [("Population", "name"), ("Client version", "mono"), ("Devices", "n")],
            silent,
            "Of all devices with a task there is a sign of life, or it is early.",
        ),
    ]


def sessions(snapshot: Snapshot, query: Mapping[str, str]) -> Plain:
    """Return the page of session shapes, counted by client version."""
    wanted = query.get("population", "")
    names = sorted({shape.population for shape in snapshot.shapes()})
    counts: Counter[tuple[str, str]] = Counter()
    for shape in snapshot.shapes():
        if wanted in ("", shape.population):
            counts[shape.shape, shape.version] += shape.count
    shapes: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    for (shape_text, version), count in counts.items():
        shapes[shape_text] += count
        versions[version] += count
    shown = [version for version, _ in versions.most_common(_VERSIONS)]
    total = sum(shapes.values())
    rows: list[list[Cell]] = [
        [
            f'<code class="shape">{escape(shape_text)}</code>'.encode(),
            formats.number(count),
            formats.share(count, total),
            marks.bar([("done" if shape_text.endswith("^") else "work", count)], total).encode(),
            *(formats.share(counts[shape_text, version], versions[version]) for version in shown),
        ]
        for shape_text, count in shapes.most_common(_ROWS)
    ]
    columns = [("Shape", ""), ("Sessions", "n"), ("Share", "n"), ("Of all", "wide")]
    columns += [(f"of {version}", "n") for version in shown]
    return Plain(
        "Sessions",
        [
            Section(
                "",
                cut(
                    f"{formats.of(total, 'session')} that ended since "
                    f"{formats.day(snapshot.since)}; the last columns are shares of a client "
                    "version.",
                    len(shapes),
                    _ROWS,
                ),
                columns,
                rows,
                "No session has ended yet.",
            ),
            Section(
                "What the signs say",
                "In the order in which they happen.",
                [("Sign", ""), ("What it says", "long")],
                [[f'<code class="shape">{sign}</code>'.encode(), text] for sign, text in SIGNS],
            ),
        ],
        lead="The way of each device session as a string: a new kind, or a kind that grows in one "
        "version only, is a fault of that version.",
        fields=[_chooser("population", "Population", names, wanted)] if len(names) > 1 else [],
    )


def errors(snapshot: Snapshot) -> Plain:
    """Return the page of devices' errors."""
    groups = snapshot.errors()
    rows = []
    for group in groups[:_ROWS]:
        versions = sorted(group.versions.items(), key=lambda pair: -pair[1])
        rows.append(
            [
                formats.number(group.count),
                group.phase,
                group.code,
                group.sample,
                group.task,
                ", ".join(f"{version} ({formats.number(n)})" for version, n in versions[:5]),
                formats.ago(snapshot.at - group.first),
                formats.ago(snapshot.at - group.last),
            ]
        )
    return Plain(
        "Errors",
        [
            Section(
                "",
                cut(
                    "Alike are those of one task, phase, code and form of message.",
                    len(groups),
                    _ROWS,
                ),
                [
                    ("Devices", "n"),
                    ("Phase", "mono"),
                    ("Code", "mono"),
                    ("A sample", "long"),
                    ("Task", "name"),
                    ("Client versions", "name"),
                    ("First", "n"),
                    ("Last", "n"),
                ],
                rows,
                "No device has failed since the server began.",
            )
        ],
        lead=f"{formats.of(sum(group.count for group in groups), 'device')} with a task did not "
        f"contribute, in {formats.of(len(groups), 'way')}."
        if groups
        else "",
    )


def events(snapshot: Snapshot, query: Mapping[str, str]) -> Plain:
    """Return the feed of events."""
    kind, population = query.get("kind", ""), query.get("population", "")
    found = snapshot.events()
    kinds = sorted({event.kind for event in found})
    names = sorted({event.population for event in found})
    rows = [
        [formats.clock(event.at), event.kind, event.population, event.task, event.text]
        for event in found
        if kind in ("", event.kind) and population in ("", event.population)
    ]
    return Plain(
        "Events",
        [
            Section(
                "",
                cut(
                    "The last of each kind, the latest first; none says which device it was.",
                    len(rows),
                    _ROWS,
                ),
                [
                    ("Time", "nowrap"),
                    ("Event", ""),
                    ("Population", "name"),
                    ("Task", "name"),
                    ("What happened", "long"),
                ],
                rows[:_ROWS],
                "Nothing has happened yet.",
            )
        ],
        fields=[
            _chooser("kind", "Event", kinds, kind),
            _chooser("population", "Population", names, population),
        ],
    )


def _chooser(
    name: str, label: str, values: list[str], chosen: str
) -> tuple[str, str, list[tuple[str, str]], str]:
    return (name, label, [("", "all"), *((value, value) for value in values)], chosen)


def privacy(snapshot: Snapshot) -> Plain:
    """Return the page of results with noise, and what ledgers say of them."""
    noise = _noise(snapshot)
    return Plain(
        "Privacy",
        [
            Section(
                "Spent",
                "In the measure of each population's policy, as of its last release; "
                "'fcp privacy show' says the same, and for how many more results it lasts.",
                [
                    ("Population", "name"),
                    ("Spent", "n"),
                    ("Budget", "n"),
                    ("Left", "n"),
                    ("Of the budget", "wide"),
                    ("Releases", "n"),
                    ("Last", "nowrap"),
                ],
                [_account(seen) for seen in snapshot.populations_seen().values() if seen.releases],
                "Nothing was released with noise.",
            ),
            Section(
                "Results with noise",
                cut("The latest first.", len(noise), _ROWS),
                [
                    ("Task", "name"),
                    ("Population", "name"),
                    ("Output", "mono"),
                    ("Noise", ""),
                    ("Standard deviation", "n"),
                    ("Ended", "nowrap"),
                ],
                noise[:_ROWS],
                "No result has noise.",
            ),
        ],
        lead="What differential privacy has cost, and the noise of results.",
    )


def _account(seen: PopulationSeen) -> list[Cell]:
    spent, budget = seen.figures.get("privacy_spent"), seen.figures.get("privacy_budget")
    left = None if spent is None or budget is None else max(0.0, budget - spent)
    return [
        seen.name,
        formats.DASH if spent is None else formats.figure(spent),
        "none" if budget is None else formats.figure(budget),
        formats.DASH if left is None or not budget else formats.share(left, budget),
        marks.bar([("work", spent or 0.0)], budget or spent or 1.0).encode(),
        formats.number(seen.releases),
        formats.day(seen.last),
    ]


def _noise(snapshot: Snapshot) -> list[list[Cell]]:
    return [
        [
            (task.name, f"tasks/{marks.quoted(task.task_id)}"),
            task.population,
            str(noise.get("output", "")),
            str(noise.get("mechanism", "")),
            formats.figure(float(noise.get("stddev", 0.0))),
            formats.day(task.finished),
        ]
        for task in sorted(snapshot.tasks, key=lambda task: -task.created)
        for noise in (task.release or {}).get("noise", ())
    ]
