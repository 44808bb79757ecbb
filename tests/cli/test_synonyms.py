"""Words of other tools, and conditions that nothing meets, are answered with what to write."""

import pytest

from simsearch.cli import synonyms
from simsearch.cli.main import COMMANDS, main


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (["query", "x.png", "--label", "cat"], "--filter label=NAME"),
        (["query", "x.png", "-o", "out"], "--html FILE, --montage FILE, or > FILE"),
        (["query", "id:1", "--filter", "cat"], "for example label=cat; operators"),
        (["duplicates", "--threshold", "3"], "--max-distance D"),
        (["build", "x", "-o", "out"], "-i FOLDER"),
        (["search", "x.png"], "did you mean query?"),
        (["index", "photos"], "did you mean build?"),
        (["merge", "x", "--filter", "a=b"], "merge --help"),
        (["nothing"], "--help"),
    ],
)
def test_hints_name_our_words(run, given, hint):
    done = run(*given)
    assert done.code == 2
    assert hint in done.err.splitlines()[-1]
    assert "'--help'" not in done.err


@pytest.mark.parametrize(("value", "what"), [("-k", "a whole number"), ("--max-distance", "a number")])
def test_numbers_are_asked_for_plainly(run, value, what):
    assert run("query", "id:1", value, "x").err.splitlines()[0].endswith(f"'x' is not {what}.")


def test_synonyms_lead_to_what_exists():
    assert set(synonyms.OTHER_VERBS.values()) <= set(COMMANDS)
    assert not set(synonyms.OTHER_VERBS) & set(COMMANDS)
    for verb, words in synonyms.OTHER_OPTIONS.items():
        command = main.commands[verb]
        known = {name for parameter in command.params for name in parameter.opts}
        assert not set(words) & known
        for advice in words.values():
            assert {word.strip(",") for word in advice.split() if word.startswith("-")} <= known


def test_condition_that_no_item_meets_is_named(run):
    done = run("query", "id:1", "--filter", "label=reds", "--filter", "width>1")
    assert (done.code, done.err) == (1, "note: no item meets label=reds; did you mean label=red?\n")
    done = run("query", "id:1", "--filter", "label=moose", "--format", "json")
    assert done.code == 1
    assert done.err == "note: no item meets label=moose; the labels are blue, green, red\n"
    done = run("query", "id:1", "--max-distance", "0", "--filter", "label=red")
    assert (done.code, done.err) == (1, "")
