"""What a hundred million devices a day need: computed from what this machine measures.

Measured are the server's processor time for a check-in that gets nothing and for a contribution of
three sizes, what the latter cost the database, and TLS; then it is arithmetic.

    python benchmarks/capacity.py [--quick] [--devices 100000000] [--write docs/capacity.md]
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import math
import os
import secrets
import ssl
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from own_server import own_server

from fcp_core.bench.load import drive
from fcp_core.bench.settings import Load

SOURCE = str(Path(__file__).resolve().parents[1] / "plugins" / "storage_postgres" / "src")
sys.path.insert(0, SOURCE)

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
DAY = 86400.0
#: By how much the busiest hour is above the mean. Bonawitz et al. 2019 (arXiv 1902.01046) report a
#: swing of four between the most and the fewest devices of a day.
PEAK = 2.5
#: How often a device comes in vain for each time that it contributes: a window of six hours.
IN_VAIN = 3
#: How much of a processor is planned to be used at the peak.
BUSY = 0.6
#: How many contributions there are in a round, and how long its result is kept, in days.
ROUND, KEPT = 1000, 30
MB = 1e6


@dataclass(frozen=True)
class Update:
    """A contribution of some size.

    :param elements: float32 in it.
    :param clients: how many are measured.
    """

    name: str
    elements: int
    gzip: bool
    clients: int

    @property
    def bytes(self) -> int:
        """How large it is, uncompressed."""
        return 4 * self.elements


UPDATES = (
    Update("4 B", 1, False, 1500),
    Update("50 kB", 12_500, False, 600),
    Update("4 MB", 1_000_000, False, 60),
    Update("4 MB, gzip", 1_000_000, True, 30),
)


@dataclass(frozen=True)
class Cost:
    """What one contribution costs.

    :param seconds: processor time of the server.
    :param commits: transactions of the database.
    :param written: bytes of its log.
    """

    seconds: float
    commits: float
    written: float


def check_in_seconds(clients: int) -> float:
    """Return the server's processor time for a check-in that gets nothing."""
    with own_server(server__populations="bench") as target:
        server = target._server
        before = server.usage().cpu_seconds
        asyncio.run(drive(server.url, Load(clients, [b""], keep=True)))
        return (server.usage().cpu_seconds - before) / clients


def contribution_costs(quick: bool) -> dict[str, Cost]:
    """Return what a contribution costs, by its name: PostgreSQL, answered once it is stored."""
    from fcp_postgres.testing import PostgresServer

    found = {}
    with PostgresServer({"fsync": "on"}) as database:
        os.environ["PYTHONPATH"] = SOURCE
        os.environ["FCP_TOKEN_KEYS"] = f"deployment {'1' * 32},01 {secrets.token_hex(32)}"
        os.environ["FCP_STORAGE_POSTGRES__URL"] = database.url
        settings = {"storage": "postgres", "plugins": "fcp_postgres.plugin", "lease_seconds": "60s"}
        counters = (
            "SELECT xact_commit || ' ' || pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') "
            "FROM pg_stat_database WHERE datname = 'postgres'"
        )
        with own_server(**settings) as target:
            for update in UPDATES:
                clients = max(20, update.clients // 5) if quick else update.clients
                # What the database counts is a second old.
                time.sleep(1.5)
                before = [float(number) for number in database.sql(counters).split()]
                report = target.load(
                    clients, connections=16, elements=update.elements, gzip=update.gzip
                )
                time.sleep(1.5)
                after = [float(number) for number in database.sql(counters).split()]
                assert report.server is not None  # it is our own
                found[update.name] = Cost(
                    report.server.cpu_seconds / clients,
                    (after[0] - before[0]) / clients,
                    (after[1] - before[1]) / clients,
                )
    return found


def tls_costs(handshakes: int) -> tuple[float, float]:
    """Return the processor time of a server's handshake, and that of a byte that it receives."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    theirs.check_hostname, theirs.verify_mode = False, ssl.CERT_NONE
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate.public_bytes(serialization.Encoding.PEM))
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        file.flush()
        ours.load_cert_chain(file.name)
    spent = 0.0
    for _ in range(handshakes):
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = theirs.wrap_bio(down, up)
        server = ours.wrap_bio(up, down, server_side=True)
        done = [False, False]
        while not all(done):
            for side, end in enumerate((client, server)):
                began = time.process_time()
                try:
                    end.do_handshake()
                    done[side] = True
                except ssl.SSLWantReadError:
                    pass
                spent += (time.process_time() - began) * side
    data, received, reading = os.urandom(1 << 20), 0, 0.0
    while received < 64 << 20:
        client.write(data)
        began = time.process_time()
        try:
            while True:
                received += len(server.read(1 << 18))
        except ssl.SSLWantReadError:
            pass
        reading += time.process_time() - began
    return spent / handshakes, reading / received


def rows(devices: int, quick: bool) -> list[tuple[str, ...]]:
    """Return the table."""
    check_in = check_in_seconds(500 if quick else 3000)
    handshake, byte = tls_costs(100 if quick else 500)
    costs = contribution_costs(quick)
    mean = devices / DAY
    table: list[tuple[str, ...]] = [("each device, once a day", "measured", "mean", "peak")]

    def add(what: str, measured: str, at_mean: float, unit: str) -> None:
        shown = [f"{_plain(number)} {unit}".rstrip() for number in (at_mean, PEAK * at_mean)]
        table.append((what, measured, *shown))

    add("contributions a second", "", mean, "")
    add(f"check-ins in vain a second, {IN_VAIN} a day", "", IN_VAIN * mean, "")
    cores = IN_VAIN * mean * check_in
    add("their processors", f"{1000 * check_in:.3f} ms each", cores, "cores")
    shaken = (IN_VAIN + 1) * mean * handshake
    add("TLS handshakes, none resumed", f"{1000 * handshake:.3f} ms each", shaken, "cores")
    for update in UPDATES:
        cost = costs[update.name]
        name = f"an update of {update.name}"
        sent = update.bytes
        add(f"{name}: processors", f"{1000 * cost.seconds:.2f} ms", mean * cost.seconds, "cores")
        if sent > 1000:
            add(f"{name}: TLS", f"{1e9 * byte:.2f} ns a byte", mean * sent * byte, "cores")
            add(f"{name}: network, in", "", 8 * mean * sent / 1e9, "Gbit/s")
        add(f"{name}: transactions a second", f"{cost.commits:.3f} each", mean * cost.commits, "")
        add(
            f"{name}: written to the database's log",
            f"{cost.written / 1000:,.1f} kB each",
            mean * cost.written / MB,
            "MB/s",
        )
        kept = devices / ROUND * KEPT * (sent + 2000) / 1e12
        table.append(
            (f"{name}: results of {KEPT} days", f"rounds of {ROUND}", f"{kept:.3g} TB", "")
        )
        whole = PEAK * (
            cores + shaken + mean * (cost.seconds + (sent * byte if sent > 1000 else 0))
        )
        count = math.ceil(whole / BUSY)
        table.append(
            (
                f"{name}: members of one processor, {BUSY:.0%} busy",
                "",
                "",
                f"{count:,} ({math.ceil(count / 16):,} hosts of 16)",
            )
        )
    one = BUSY / (IN_VAIN * check_in + costs["4 B"].seconds)
    table.append(
        (
            "devices a day that one population, so one owner, takes (4 B, TLS done by a proxy)",
            f"{BUSY:.0%} of a processor at the peak",
            f"{one * DAY / PEAK / MB:,.3g} million",
            "",
        )
    )
    return table


def _plain(number: float) -> str:
    """Return a number with three digits, or all that are before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def written(table: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in table]
    lines.insert(1, "|" + "---|" * len(table[0]))
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer contributions")
    parser.add_argument("--devices", type=int, default=100_000_000, help="a day")
    parser.add_argument("--write", type=Path, help="a page that has room for it")
    arguments = parser.parse_args()
    table = written(rows(arguments.devices, arguments.quick))
    print(table)
    if arguments.write is not None:
        text = arguments.write.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        arguments.write.write_text(f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
