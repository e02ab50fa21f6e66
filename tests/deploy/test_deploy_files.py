"""What stands in ``deploy/`` fits the server. Schemas are checked by ``make lint``."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fcp_core.plugins.manager import Plugins
from fcp_core.protocol import routes
from fcp_core.server.http.passing import DOWNLOAD, UPLOAD
from fcp_core.server.keys import read_file
from fcp_dashboard.plugin import DashboardPlugin
from fcp_postgres import plugin as postgres

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
#: Where devices call.
CALLED = {f"/{route.template.lstrip('/').split('/')[0]}/" for route in routes.ROUTES} | {
    UPLOAD,
    DOWNLOAD,
}


def kubernetes(kind):
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] == kind:
                return document
    raise LookupError(kind)


def seconds(text):
    return float(re.fullmatch(r"([\d.]+)s", text)[1])


def test_the_image_is_pinned_and_runs_as_nobody_in_particular():
    stages = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    tag = re.search(r"^ARG PYTHON=(\S+)", DOCKERFILE, re.M)[1]
    assert set(stages) == {"python:${PYTHON}"}
    assert re.match(r"3\.\d+-", tag)
    last = DOCKERFILE.split("FROM")[-1]
    assert re.search(r"^USER 10001", last, re.M)
    assert "HEALTHCHECK" in last
    assert "apt-get" not in last
    images = [service["image"] for service in COMPOSE["services"].values()]
    assert all(re.search(r":v?\d+\.\d+", image) for image in images)


def test_the_image_has_the_version_as_its_tag():
    # 'make version' sets both.
    version = re.search(r"^version = (.+)$", (ROOT / "setup.cfg").read_text(), re.M)[1]
    overlay = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    assert COMPOSE["services"]["server"]["image"] == f"fcp-server:{version}"
    assert overlay["images"][0]["newTag"] == version


def test_what_the_image_is_made_of_is_here():
    lines = (ROOT / "requirements" / "image.in").read_text().splitlines()
    folders = [line for line in lines if not line.startswith("#")]
    assert all((ROOT / folder / "pyproject.toml").exists() for folder in folders)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n")
    needed = {"README.md", "setup.cfg", "fcp_core", "platform", "aggregators", "plugins"}
    assert not needed & set(ignored)
    assert "deploy" in ignored  # its secrets, above all
    pins = (ROOT / "requirements" / "image.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    wanted = set()
    for folder in folders:
        metadata = configparser.ConfigParser(interpolation=None)
        metadata.read(ROOT / folder / "setup.cfg")
        lines = metadata["options"].get("install_requires", "").strip().splitlines()
        wanted |= {re.match(r"[\w.-]+", line)[0] for line in lines if '< "3.11"' not in line}
    # 'make requirements' resolves them anew.
    assert wanted - {"fcp-server"} <= {pin.partition("==")[0] for pin in pins}


def load(tmp_path, config_file=None, **environ):
    # The distributions that the image has.
    return Plugins.load(
        config_file=config_file,
        environ=environ,
        working_folder=tmp_path,
        extra=[postgres, DashboardPlugin()],
    ).config


def test_compose_sets_options_that_there_are(tmp_path):
    server = COMPOSE["services"]["server"]
    environ = {
        name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
        for name, value in server["environment"].items()
    }
    config = load(tmp_path, **environ)
    assert config.section("server")["populations"] == ("phones/all",)
    assert config.get("log_format") == "json"
    assert seconds(server["stop_grace_period"]) > config.get("drain_timeout")
    files = set(COMPOSE["secrets"])
    assert all(set(service.get("secrets", ())) <= files for service in COMPOSE["services"].values())
    named = re.findall(r"/run/secrets/([\w-]+)", str(server["environment"]))
    assert sorted(named) == sorted(server["secrets"])
    scraped = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())
    (target,) = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"server:{config.get('metrics_address').rpartition(':')[2]}"


def test_panels_and_alerts_ask_for_metrics_that_there_are():
    page = (ROOT / "docs" / "metrics.md").read_text()
    kinds = dict(re.findall(r"^\| `(fcp_\w+)` \| (\w+) \|", page, re.M))
    known = {name for name, kind in kinds.items() if kind != "histogram"}
    known |= {f"{name}_bucket" for name, kind in kinds.items() if kind == "histogram"}
    board = json.loads((DEPLOY / "compose" / "grafana.json").read_text())
    panels = {panel["title"]: panel["targets"] for panel in board["panels"]}
    expressions = [target["expr"] for targets in panels.values() for target in targets]
    assert len(panels) == len(board["panels"])
    alerts = yaml.safe_load((DEPLOY / "compose" / "alerts.yml").read_text())["groups"][0]["rules"]
    expressions += [alert["expr"] for alert in alerts]
    named = set(re.findall(r"\bfcp_\w+", " ".join(expressions)))
    assert named <= known
    # Each says what to do.
    assert all(alert["annotations"]["action"].endswith(".") for alert in alerts)
    mounted = " ".join(str(service.get("volumes")) for service in COMPOSE["services"].values())
    files = {path.name for path in (DEPLOY / "compose").iterdir() if path.is_file()}
    assert files - {"secrets.sh"} == set(re.findall(r"\./compose/([\w.]+)", mounted))


def test_the_secrets_of_compose_are_made_once_and_can_be_used(tmp_path):
    shutil.copy(DEPLOY / "compose" / "secrets.sh", tmp_path)
    made = []
    for _ in range(2):
        subprocess.run(["sh", "secrets.sh"], cwd=tmp_path, check=True)
        made.append({path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()})
    assert made[0] == made[1]
    assert set(made[0]) == set(COMPOSE["secrets"])
    assert made[0]["pgpass"] == f"*:*:*:*:{made[0]['db-password']}"
    assert len(set(made[0].values())) == len(made[0])
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "secrets").iterdir())
    assert read_file(tmp_path / "secrets" / "token-keys")
    assert load(tmp_path, FCP_ADMIN__TOKEN_FILE=str(tmp_path / "secrets" / "admin-token"))


def test_kubernetes_gives_the_server_what_it_wants(tmp_path):
    pod = kubernetes("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    config = load(tmp_path, DEPLOY / "kubernetes" / "fcp.cfg")
    assert pod["terminationGracePeriodSeconds"] > config.get("drain_timeout")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["http"] == config.section("server")["port"]
    assert ports["metrics"] == int(config.get("metrics_address").rpartition(":")[2])
    set_ = {one["name"]: one.get("value", "") for one in container["env"]}
    assert set_["FCP_SERVER__MEMBER_ADDRESS"].endswith(f":{ports['members']}")
    assert "FCP_STORAGE_POSTGRES__URL" in set_
    probes = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness")
    }
    assert probes == {"startup": "/healthz", "liveness": "/healthz"}
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    # A pod has left the ingress before the server ends.
    probe = container["readinessProbe"]
    assert config.get("drain_notice") > probe["periodSeconds"] * probe["failureThreshold"]
    secrets = {item["path"] for item in pod["volumes"][1]["secret"]["items"]}
    given = [config.get("token_keys_file"), config.section("admin")["token_file"]]
    assert {Path(path).name for path in given} == secrets
    labels = kubernetes("Deployment")["spec"]["template"]["metadata"]["labels"]
    for kind in ("PodDisruptionBudget", "Deployment"):
        assert kubernetes(kind)["spec"]["selector"]["matchLabels"] == labels
    assert kubernetes("Service")["spec"]["selector"] == labels
    assert kubernetes("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    listed = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["resources"]
    there = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")}
    assert {*listed, "kustomization.yaml"} == there


def test_proxies_let_devices_through_and_nothing_else():
    envoy = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text())
    manager = envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    (host,) = manager["typed_config"]["route_config"]["virtual_hosts"]
    passed = host["routes"][0]["match"]["safe_regex"]["regex"]
    nginx = re.search(r"location ~ (\S+) \{", (DEPLOY / "nginx" / "fcp.conf").read_text())[1]
    (rule,) = kubernetes("Ingress")["spec"]["rules"]
    ingress = tuple(f"{path['path']}/" for path in rule["http"]["paths"])
    for path in CALLED:
        assert re.fullmatch(passed, f"/fcp{path}a%2Fb:request")
        assert re.search(nginx, f"/fcp{path}a%2Fb:request")
        assert path.startswith(ingress)
    for path in ("/admin/v1/tasks", "/metrics", "/healthz", "/readyz"):
        assert not re.fullmatch(passed, f"/fcp{path}")
        assert not re.search(nginx, f"/fcp{path}")
        assert not path.startswith(ingress)


def test_systemd_takes_the_unit(tmp_path):
    unit = (DEPLOY / "systemd" / "fcp.service").read_text()
    command = re.search(r"^ExecStart=(\S+) (.*)$", unit, re.M)
    # The program is here, not where the unit has it.
    here = tmp_path / "fcp"
    here.write_text("#!/bin/sh\n")
    here.chmod(0o755)
    (tmp_path / "fcp.service").write_text(unit.replace(command[1], str(here)))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "fcp.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    (tmp_path / "fcp.cfg").write_text("[fcp]\n")
    (tmp_path / "admin-token").write_text("0123456789abcdef\n")
    arguments = command[2].replace("${CREDENTIALS_DIRECTORY}", str(tmp_path))
    arguments = arguments.replace("/etc/fcp", str(tmp_path))
    helped = subprocess.run(
        [sys.executable, "-m", "fcp_core", *arguments.split(), "--help"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
    )
    assert helped.returncode == 0
    # On a full disk it cannot start, for as long as that is so.
    assert re.search(r"^Restart=on-failure$", unit, re.M)
    assert re.search(r"^StartLimitIntervalSec=0$", unit, re.M)
    assert int(re.search(r"^TimeoutStopSec=(\d+)", unit, re.M)[1]) > load(tmp_path).get(
        "drain_timeout"
    )


def test_the_least_configuration_of_the_page_loads(tmp_path):
    page = (ROOT / "docs" / "deployment.md").read_text()
    (tmp_path / "fcp.cfg").write_text(re.search(r"```ini title=fcp.cfg\n(.*?)```", page, re.S)[1])
    config = load(tmp_path, tmp_path / "fcp.cfg")
    assert config.section("server")["external_url"].endswith("/fcp/")


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.y*ml")), ids=lambda path: path.name)
def test_no_secret_and_no_latest(path):
    text = path.read_text()
    assert ":latest" not in text
    assert not re.search(r"(?i)(password|token|secret): ['\"]?[0-9a-zA-Z]{8,}['\"]?$", text)
