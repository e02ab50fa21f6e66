"""What is wrong with the database, and with how it is configured, is said in words."""

import asyncio
import socket
import subprocess
import sys

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.testing.storage import Item
from fcp_postgres import settings
from fcp_postgres.faults import Place
from fcp_postgres.storage import PostgresStorage
from fcp_postgres.testing import PostgresServer
from fcp_postgres.testing_proxy import CuttingProxy


def start_and_stop(url, **options):
    async def main():
        storage = PostgresStorage(url, **{"patience": 0.0, **options})
        await storage.start()
        try:
            await storage.transact(lambda tx: tx.put(Item("a")))
        finally:
            await storage.stop()

    asyncio.run(main())


@pytest.fixture(scope="module")
def guarded():
    """A server that listens on loopback and asks for passwords."""
    with PostgresServer(loopback=True) as server:
        server.sql("CREATE ROLE someone LOGIN PASSWORD 'right'")
        server.sql("CREATE DATABASE theirs")
        server.sql("REVOKE ALL ON SCHEMA public FROM public", "theirs")
        (server.data / "pg_hba.conf").write_text(
            "local all all trust\nhost all someone 127.0.0.1/32 scram-sha-256\n"
        )
        server.sql("SELECT pg_reload_conf()")
        yield (
            lambda user="someone:right", database="theirs": (
                f"postgresql://{user}@127.0.0.1:{server.port}/{database}"
            )
        )


@pytest.mark.parametrize(
    ("user", "database", "words"),
    [
        ("someone:wrong", "theirs", "password of the user 'someone' is wrong"),
        ("nobody:right", "theirs", "does not let the user 'nobody' in"),
        ("someone:right", "none", r"no database 'none'; make it with 'createdb -O someone none'"),
        ("someone:right", "theirs", r"lacks rights.*GRANT CREATE ON DATABASE theirs TO someone"),
    ],
)
def test_who_may_not_is_told_why(guarded, user, database, words):
    with pytest.raises(UsageError, match=words) as caught:
        start_and_stop(guarded(user, database))
    assert "right" not in str(caught.value).replace("rights", "")
    assert "wrong@" not in str(caught.value)


def test_a_server_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="nobody listens there; see whether the server is running"):
        start_and_stop(f"postgresql://fcp@/fcp?host={tmp_path}")
    with pytest.raises(UsageError, match=r"nobody\.invalid.*host is not known"):
        start_and_stop("postgresql://fcp:secret@nobody.invalid/fcp")


@pytest.mark.parametrize("url", ["sqlite:///x", "host=db password=secret", "postgresql:[/", ""])
def test_a_url_that_is_none_is_refused_and_not_shown(url):
    with pytest.raises(UsageError, match="not of the form") as caught:
        Place(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "place", ["host:99999/d", "a:1,host:0/d", "[::1]:secret/d", "host/d?port=-1", "/d?port=1,x"]
)
def test_a_port_that_is_none_is_refused(place):
    with pytest.raises(UsageError, match="a port that is no number from 1 to 65535") as caught:
        start_and_stop(f"postgresql://me@{place}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "hosts"),
    [
        ("[::1]:5432,[::2]/d", [{"host": "::1", "port": 5432}, {"host": "::2"}]),
        ("a,b:65535/d", [{"host": "a"}, {"host": "b", "port": 65535}]),
        ("/d?host=/x,b&port=1,2", [{"host": "/x", "port": 1}, {"host": "b", "port": 2}]),
        ("/d?host=/run/pg&port=1,2", [{}]),
        ("%2Frun%2Fpg/d", [{}]),
    ],
)
def test_ports_that_are_some_are_taken(place, hosts):
    found = Place(f"postgresql://me@{place}")
    assert (found.database, found.hosts) == ("d", hosts)


@pytest.mark.parametrize("password", ["se/cret", "se#cret", "se?cret"])
def test_a_password_that_ends_too_early_is_not_shown(password):
    with pytest.raises(UsageError, match="write %2F for /") as caught:
        Place(f"postgresql://me:{password}@host/data")
    assert "cret" not in str(caught.value)
    assert "se" not in str(caught.value).split()


def test_the_address_is_not_in_what_is_printed():
    storage = PostgresStorage("postgresql://me:secret@host/data")
    assert "secret" not in f"{storage!r} {storage._settings!r} {storage._settings.place.name}"


def test_a_name_for_messages_has_no_password():
    place = Place("postgresql://me:se%40cret@a:1,b:2/data?password=other")
    assert place.name == "PostgreSQL at a:1,b:2, database 'data'"


def test_an_option_of_the_url_that_does_not_do_is_an_error_in_words(fcp_postgres_server):
    with pytest.raises(UsageError, match="no_such_setting"):
        start_and_stop(f"{fcp_postgres_server.url}&no_such_setting=1")
    with pytest.raises(UsageError, match="sslmode"):
        start_and_stop(f"{fcp_postgres_server.url}&sslmode=perhaps")


def test_a_standby_is_refused(fcp_postgres_server, fcp_postgres_schema):
    url = f"{fcp_postgres_server.url}&default_transaction_read_only=on"
    with pytest.raises(UsageError, match="it only reads: it is a standby"):
        start_and_stop(url, schema=fcp_postgres_schema())


def test_a_server_that_is_too_old_is_refused(fcp_postgres_server, fcp_postgres_schema, monkeypatch):
    monkeypatch.setattr("fcp_postgres.storage.OLDEST_SERVER", 99)
    with pytest.raises(UsageError, match="needs PostgreSQL 99 or newer"):
        start_and_stop(fcp_postgres_server.url, schema=fcp_postgres_schema())


def test_a_server_that_starts_is_waited_for(fcp_postgres_server, fcp_postgres_schema, caplog):
    async def main():
        storage = PostgresStorage(
            fcp_postgres_server.url, schema=fcp_postgres_schema(), patience=120
        )
        starting = asyncio.create_task(storage.start())
        while "trying again" not in caplog.text:
            await asyncio.sleep(0.01)
        assert not starting.done()
        await asyncio.to_thread(fcp_postgres_server.start)
        await starting
        await storage.stop()

    fcp_postgres_server.stop()
    try:
        asyncio.run(main())
    except BaseException:
        fcp_postgres_server.start()
        raise


def test_a_host_that_says_nothing_does_not_keep_us_from_the_next(
    fcp_postgres_server, fcp_postgres_schema, monkeypatch
):
    monkeypatch.setattr(settings, "CONNECTING", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent, CuttingProxy(fcp_postgres_server) as two:
        one = silent.getsockname()[1]
        hosts = f"127.0.0.1:{one},127.0.0.1:{two.port}"
        start_and_stop(
            f"postgresql://fcp@{hosts}/postgres?sslmode=disable",
            schema=fcp_postgres_schema(),
            patience=60,
        )


def test_a_server_without_a_connection_left_is_waited_for():
    """Many start at the same moment; those that find no connection get one a little later."""
    with PostgresServer({"max_connections": "6"}) as server:

        async def too_many():
            storages = [PostgresStorage(server.url, connections=1, patience=0) for _ in range(9)]
            try:
                for storage in storages:
                    await storage.start()
                    await storage.transact(lambda tx: tx.put(Item("a")))
            finally:
                for storage in storages:
                    await storage.stop()

        async def storm():
            storages = [PostgresStorage(server.url, connections=1, patience=120) for _ in range(12)]

            async def use(number, storage):
                await storage.start()
                await storage.transact(lambda tx: tx.put(Item(str(number))))
                await storage.stop()

            await asyncio.gather(*(use(*pair) for pair in enumerate(storages)))

        with pytest.raises(UsageError, match="no connection left: raise max_connections there"):
            asyncio.run(too_many())
        asyncio.run(storm())
        assert server.sql("SELECT count(*) FROM fcp.r_kit_item WHERE key <> 'a'") == "12"


def test_the_configuration_names_it(fcp_postgres_server, fcp_postgres_schema, tmp_path):
    (tmp_path / "setup.cfg").write_text(
        f"[fcp]\nstorage = postgres\n[fcp:storage.postgres]\nschema = {fcp_postgres_schema()}\n"
    )
    url = {"FCP_STORAGE_POSTGRES__URL": fcp_postgres_server.url}
    plugins = Plugins.load(working_folder=tmp_path, environ=url, modules=["fcp_postgres.plugin"])
    shown = {value.option.key: value.shown for value in plugins.config.options()}
    assert shown["storage.postgres.url"] == "***"
    storage = plugins.make_storage()

    async def main():
        await storage.start()
        await storage.transact(lambda tx: tx.put(Item("a")))
        await storage.stop()

    asyncio.run(main())
    assert storage.durable
    assert storage.shared
    assert storage.path is None


def test_without_a_url_it_says_where_one_goes(tmp_path):
    (tmp_path / "setup.cfg").write_text("[fcp]\nstorage = postgres\n")
    plugins = Plugins.load(working_folder=tmp_path, environ={}, modules=["fcp_postgres.plugin"])
    with pytest.raises(UsageError, match="FCP_STORAGE_POSTGRES__URL"):
        plugins.make_storage()


def test_the_driver_is_imported_only_when_it_is_used():
    assert "asyncpg" in sys.modules
    code = "import sys, fcp_postgres.plugin; sys.exit('asyncpg' in sys.modules)"
    path = ":".join(filter(None, sys.path))
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path})
