"""The table of search options: types, command line, HTTP and page agree with it."""

import click
import pytest

from simsearch.cli import search_options as cli_options
from simsearch.cli.query import query_command
from simsearch.errors import UsageError
from simsearch.search import options
from simsearch.search.options import OPTIONS, PictureOptions, SearchOption, SearchOptions, check_names, split

TYPES = {
    "integer": "int",
    "number": "float | None",
    "flag": "bool",
    "conditions": "Where | None",
    "box": "Box | None",
    "images": "Sequence[Picture | int | tuple[Picture | int, float]]",
}


def annotations(options_type):
    return {name: hint.__forward_arg__ for name, hint in options_type.__annotations__.items()}


def test_typed_dicts_agree_with_the_table():
    """Each option but k is in one of the two, of the type that its kind means."""
    every = {o.name: TYPES[o.kind] for o in OPTIONS if o.name != "k" and not o.changes_query}
    pictures = {o.name: TYPES[o.kind] for o in OPTIONS if o.changes_query}
    assert annotations(SearchOptions) == every
    assert annotations(PictureOptions) == every | pictures


def test_docstrings_name_every_option():
    for option in OPTIONS:
        if option.name != "k":
            described = PictureOptions if option.changes_query else SearchOptions
            assert option.name in (described.__doc__ or ""), option.name


def test_names_and_spellings_are_unique():
    for of in (lambda o: [o.name], lambda o: [o.http_field], lambda o: list(o.command_line)):
        found = [name for option in OPTIONS for name in of(option)]
        assert len(found) == len(set(found))


def test_lists_are_bounded_over_http():
    for option in OPTIONS:
        if option.kind in options.LISTS:
            assert option.most, option.name
        assert not option.checkbox or option.kind == "flag", option.name


def test_every_option_is_on_the_command_line():
    found = {parameter.name: parameter for parameter in query_command.params}
    for option in OPTIONS:
        assert tuple(found[option.name].opts) == option.command_line


def test_check_names():
    check_names({"where": None, "crop": None})
    check_names({"where": None}, by_vector=True)
    for given, by_vector in (({"wher": 1}, False), ({"k": 6}, False), ({"crop": None}, True)):
        with pytest.raises(UsageError, match="has no option"):
            check_names(given, by_vector=by_vector)


def test_split():
    assert split({"where": [], "flip": True, "expand": 2}) == ({"where": [], "expand": 2}, {"flip": True})
    with pytest.raises(UsageError, match="no option 'flp'"):
        split({"flp": True})


NEW = (
    SearchOption("grey", "flag", "Colours do not count.", checkbox="Ignore <colours>"),
    SearchOption("min_distance", "number", "Only matches at least this far.", minimum=0, metavar="D"),
)


def test_declared_option_reaches_all_interfaces(monkeypatch):
    pytest.importorskip("fastapi", reason="the [test] extra is not installed")
    from simsearch.server import openapi, request_body, schemas
    from simsearch.server import page as server_page
    from simsearch.server.settings import Settings

    for module in (options, cli_options, schemas, request_body, server_page):
        monkeypatch.setattr(module, "OPTIONS", (*OPTIONS, *NEW))

    @click.command()
    @cli_options.search_options
    def command(**given):
        assert cli_options.search_arguments(given) == (6, {**plain, "grey": True, "min_distance": 2.0})

    plain = {o.name: {"flag": False, "images": [], "conditions": []}.get(o.kind) for o in OPTIONS if o.name != "k"}
    command.main(["--grey", "--min-distance", "2"], standalone_mode=False)
    assert split({"grey": True}) == ({"grey": True}, {})
    model = schemas.search_request(Settings())
    assert model.read({"id": 1, "grey": True, "min_distance": 2}).search_options() == {"grey": True, "min_distance": 2}
    assert request_body._option_value("min_distance", ["2.5"]) == 2.5
    fields = openapi.search_body(model, False)["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert fields["grey"] == {"type": "boolean", "description": "Colours do not count."}
    page = server_page.render()
    assert '<input id="grey" type="checkbox" data-option>Ignore &lt;colours&gt;' in page


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("filter", "where"),
        ("fliter", "where"),
        ("wher", "where"),
        ("max_dist", "max_distance"),
        ("no_selfs", "no_self"),
        ("top_k", "k"),
    ],
)
def test_unknown_option_names_the_nearest(given, meant):
    with pytest.raises(UsageError) as raised:
        check_names({given: 1})
    assert raised.value.hint == f"did you mean {meant}?"


def test_all_options_are_listed_where_none_is_near():
    with pytest.raises(UsageError) as raised:
        check_names({"zzz": 1})
    assert raised.value.hint is not None and raised.value.hint.startswith(
        "one of k, max_distance, min_similarity, where"
    )
