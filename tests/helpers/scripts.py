"""Running the scripts."""

from tests.helpers.data import ROOT

SCRIPTS = ROOT / "scripts" / "reproduce"
