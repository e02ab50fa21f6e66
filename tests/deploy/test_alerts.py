"""Prometheus' own tool takes the rules, and each alert fires when it should, and only then."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "compose"
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
PROMTOOL = shutil.which(
    "promtool", path=f"{ROOT / '.venv-lint' / 'bin'}:{os.environ.get('PATH', '')}"
)

_T = '{population="p",task="t"}'
_COMMIT = 'fcp_commit_seconds_bucket{instance="a",population="p",task="t",le="%s"}'
_LAG = 'fcp_loop_lag_seconds_bucket{instance="a",le="%s"}'
#: Of each alert: what a minute adds to each series while all is well, and while it is not.
#: ``a+bxn`` is Prometheus' way to say: begin at a, then n times b more.
CASES = {
    "FcpMemberDown": {'up{job="fcp",instance="a"}': ("1x120", "0x120")},
    "FcpStorageSilent": {'fcp_heartbeat_age_seconds{instance="a"}': ("2x120", "0+60x120")},
    "FcpNoContributions": {
        f"fcp_offers_total{_T}": ("0+60x120", "0+60x120"),
        # A counter that has counted nothing is not there.
        f"fcp_contributions_total{_T}": ("0+9x120", "_x120"),
    },
    "FcpManyDrops": {
        f"fcp_assignments_total{_T}": ("0+100x120", "0+100x120"),
        f"fcp_drops_total{_T}": ("0+25x120", "0+35x120"),
    },
    "FcpTasksFail": {
        'fcp_rounds_closed_total{population="p",task="t",code="OK"}': ("0+1x120", "0+1x120"),
        'fcp_rounds_closed_total{population="p",task="t",code="CANCELLED"}': ("0+1x120", "0x120"),
        'fcp_rounds_closed_total{population="p",task="t",code="DEADLINE_EXCEEDED"}': (
            "0x119 1",
            "0+1x120",
        ),
    },
    "FcpServerErrors": {
        'fcp_requests_total{instance="a",route="upload",status="200"}': ("0+900x120", "0+900x120"),
        'fcp_requests_total{instance="a",route="upload",status="500"}': ("0+1x120", "0+60x120"),
    },
    "FcpLoopBehind": {
        _LAG % "0.1": ("0+1200x120", "0+1100x120"),
        _LAG % "0.5": ("0+1200x120", "0+1200x120"),
        _LAG % "+Inf": ("0+1200x120", "0+1200x120"),
    },
    "FcpBudgetNearlySpent": {
        'fcp_ledger{instance="a",population="p",figure="privacy_spent"}': ("7x120", "7.5x120"),
        'fcp_ledger{instance="a",population="p",figure="privacy_budget"}': ("8x120", "8x120"),
    },
    "FcpCommitsSlow": {
        _COMMIT % "1": ("0+600x120", "0+500x120"),
        _COMMIT % "3": ("0+600x120", "0+600x120"),
        _COMMIT % "+Inf": ("0+600x120", "0+600x120"),
    },
}


def cases(name):
    """Return a test of an alert while all is well, and one while it is not, for promtool."""
    for place, fires in enumerate((False, True)):
        firing = f'ALERTS{{alertname="{name}",alertstate="firing"}}'
        yield {
            "interval": "1m",
            "input_series": [
                {"series": series, "values": values[place]}
                for series, values in CASES[name].items()
            ],
            "promql_expr_test": [
                {
                    # An alert that fires counts once, whatever its labels are.
                    "expr": f"count({firing})",
                    "eval_time": "119m",
                    "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                }
            ],
        }


def promtool(*arguments):
    assert PROMTOOL is not None, "there is no promtool: 'make test' fetches it (prometheus)"
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration():
    promtool("check", "config", "--syntax-only", str(FOLDER / "prometheus.yml"))
    promtool("check", "rules", str(FOLDER / "alerts.yml"))


@pytest.mark.slow
def test_each_alert_fires_when_it_should(tmp_path):
    names = [rule["alert"] for rule in RULES]
    assert sorted(names) == sorted(CASES)
    shutil.copy(FOLDER / "alerts.yml", tmp_path)
    (tmp_path / "test.yml").write_text(
        yaml.safe_dump(
            {
                "rule_files": ["alerts.yml"],
                "evaluation_interval": "1m",
                "tests": [case for name in names for case in cases(name)],
            }
        )
    )
    promtool("test", "rules", str(tmp_path / "test.yml"))
