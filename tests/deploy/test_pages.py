"""What the pages name exists."""

from __future__ import annotations

import re

import cnclip_client
import cnclip_server
import pytest
import yaml
from cnclip_client import CnclipError
from cnclip_pixels import _FORMATS

from tests.conftest import ROOT

PAGES = ("faults", "serving", "security", "observability")


@pytest.mark.parametrize("page", PAGES)
def test_names_are_those_of_the_packages(page: str) -> None:
    """Such as an error that a client gets: a CamelCase word in backticks is one of ours, or Triton's, or an alert."""
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    named = {name.partition(".")[0] for name in re.findall(r"`((?:[A-Z][a-z]+){2,}(?:\.\w+)?)`", text)}
    assert named or page != "faults"
    theirs = {"SupportPrefetching"}  # a function of Triton's core
    groups = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]
    theirs |= {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    ours = set(cnclip_client.__all__) | set(cnclip_server.__all__)
    assert named <= ours | theirs, named - ours - theirs


@pytest.mark.parametrize("page", ["client", "client.zh"])
def test_all_errors_of_the_client_are_told(page: str) -> None:
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    exported = {name: getattr(cnclip_client, name) for name in cnclip_client.__all__}
    errors = {name for name, one in exported.items() if isinstance(one, type) and issubclass(one, CnclipError)}
    assert len(errors) > 10
    assert errors <= set(re.findall(r"`(\w+)`", text))


def test_the_tests_of_faults_exist() -> None:
    text = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:client|server|integration|templates|deploy)/test_\w+\.py)`", text)
    assert len(set(named)) > 10
    for name in named:
        assert (ROOT / "tests" / name).is_file(), name


def test_the_formats_are_those_that_are_decoded() -> None:
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    rows = text.partition("| formats | decoder |")[2].partition("\n\n")[0].splitlines()[2:]
    decoded = {
        word for row in rows if "| none:" not in row for word in re.findall(r"\b[A-Z][A-Z0-9]+\b", row.split("|")[1])
    }
    assert decoded - {"MPO"} == _FORMATS
    refused = {
        word for row in rows if "| none:" in row for word in re.findall(r"\b[A-Z][A-Z0-9]+\b", row.split("|")[1])
    }
    assert {"EPS", "IPTC"} <= refused
    assert not refused & _FORMATS
