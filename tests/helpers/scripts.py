"""The folder of the scripts."""

from tests.helpers.data import ROOT

SCRIPTS = ROOT / "scripts"
