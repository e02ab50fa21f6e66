"""A disk that fills up while a task is open: devices wait or are sent away, and nothing is lost."""

import threading

import pytest


@pytest.mark.slow
def test_a_full_disk_costs_time_and_nothing_else(make_host, disk, spec, rows, until):
    host = make_host("retry_min=0s", "retry_max=0s", folder=disk.folder)
    host.start()
    until(lambda: host.ready()[0] == 200, "the server")
    with host.admin() as admin:
        task = admin.submit(spec(3, late_contributions="refuse")).task_id
        assert host.device("before") == "CONTRIBUTED"
        disk.fill(host.process)
        outcomes = []
        waiting = threading.Thread(target=lambda: outcomes.append(host.device("meanwhile")))
        waiting.start()
        until(lambda: host.ready()[0] == 503, "the server to say that it is not ready")
        assert "contributions to task launches cannot be stored" in host.ready()[1]
        status = admin.get(task)
        assert (status.state, status.contributed) == ("open", 1)
        assert "cannot be stored" in status.problem
        # Whoever comes now is turned away, and told when to come back: never with an error.
        assert host.device("turned away") == "REJECTED"
        assert waiting.is_alive()
        disk.empty(host.process)
        waiting.join()
        assert outcomes == ["CONTRIBUTED"]
        until(lambda: host.ready() == (200, "ok\n"), "the server to be ready")
        assert admin.get(task).problem == ""
        assert host.device("after") == "CONTRIBUTED"
        assert admin.wait(task).state == "completed"
        assert rows(admin.result(task)) == {"before": 1, "meanwhile": 1, "after": 1}
    assert host.terminate() == 0
    assert "contributions to task launches: stored at last" in host.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["kill", "terminate"])
def test_a_server_that_ends_while_its_disk_is_full_has_what_it_answered(
    make_host, disk, spec, rows, until, signal
):
    host = make_host(
        "retry_min=0s",
        "retry_max=0s",
        "drain_timeout=1s",
        "assignment_timeout=1s",
        folder=disk.folder,
    )
    host.start()
    until(lambda: host.ready()[0] == 200, "the server")
    with host.admin() as admin:
        task = admin.submit(spec(2, late_contributions="refuse")).task_id
        # A device that takes more than a second on a busy machine has lost its place.
        until(lambda: host.device("before") == "CONTRIBUTED", "the first one")
        disk.fill(host.process)
        outcomes, ended = [], threading.Event()

        def come():
            while not ended.is_set():
                outcomes.append(host.device("meanwhile"))

        waiting = threading.Thread(target=come)
        waiting.start()
        until(lambda: host.ready()[0] == 503, "the server to say that it is not ready")
        ended.set()
        getattr(host, signal)()
        waiting.join()
        assert outcomes
        assert "CONTRIBUTED" not in outcomes
        disk.empty(host.process)
        host.start()
        until(lambda: host.ready()[0] == 200, "the server")
        assert admin.get(task).contributed == 1
        until(lambda: host.device("after") == "CONTRIBUTED", "a place")
        assert admin.wait(task).state == "completed"
        assert rows(admin.result(task)) == {"before": 1, "after": 1}
