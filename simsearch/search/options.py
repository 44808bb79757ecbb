"""The options of a search in one table, which the command line, Python, HTTP and the web page all use.

To add an option, declare it in `OPTIONS` and give it a type in `SearchOptions` or `PictureOptions` (a test compares
them). Implement it in `searcher` if it selects items, and in `query_vectors` if it changes the query's vectors.
This module imports nothing heavy, since `simsearch query --help` uses the table too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from simsearch.common import suggestions
from simsearch.errors import UsageError

if TYPE_CHECKING:
    from simsearch.images.boxes import Box
    from simsearch.search.queries import Picture
    from simsearch.storage.filters import Where

Kind = Literal["integer", "number", "flag", "conditions", "box", "images"]
"""The type of an option's value.

conditions: conditions on items, such as label=cat.
box: x, y, width, height in pixels or percent; see `boxes`.
images: pictures or items with weights; in HTTP requests, ids of items.
"""

LISTS = ("conditions", "images")
"""The types of the options that may be given several times."""

MOST_FEEDBACK = 64
"""In an HTTP request, the largest number of items in `plus` and in `minus`, and the largest value of `expand`."""


@dataclass(frozen=True)
class SearchOption:
    """A search option, as declared for Python, the command line, HTTP and the web page.

    name: the keyword in Python.
    help: one sentence for the command line, and for HTTP unless `http_help` is given.
    minimum, maximum: the smallest and the largest valid value.
    most: a further limit, which only HTTP has: the largest value or, for an option that takes a list, the largest
    number of values.
    changes_query: True if the option changes the query's vectors; `Engine.search_by_vectors` does not take such
    options.
    flags: the spellings on the command line; by default `--` and the name.
    metavar: the name of the value in the command line's help.
    field: the name in HTTP requests; by default `name`.
    checkbox: the label of the option's checkbox on the web page; empty for no checkbox.
    """

    name: str
    kind: Kind
    help: str
    default: int | None = None
    minimum: int | None = None
    maximum: int | None = None
    most: int | None = None
    changes_query: bool = False
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    field: str = ""
    http_help: str = ""
    checkbox: str = ""

    @property
    def command_line(self) -> tuple[str, ...]:
        """The option's spellings on the command line, for example ("-k", "--top-k")."""
        return self.flags or ("--" + self.name.replace("_", "-"),)

    @property
    def http_field(self) -> str:
        """The option's name in the JSON or form of an HTTP request."""
        return self.field or self.name


OPTIONS = (
    SearchOption(
        "k",
        "integer",
        "Number of matches per query.",
        default=6,
        minimum=1,
        flags=("-k", "--top-k"),
    ),
    SearchOption(
        "max_distance",
        "number",
        "Only matches at most this far.",
        minimum=0,
        metavar="D",
    ),
    SearchOption(
        "min_similarity",
        "number",
        "Only matches at least this similar: 0.5 for close ones, 0.75 for copies.",
        minimum=0,
        maximum=1,
        metavar="S",
    ),
    SearchOption(
        "where",
        "conditions",
        "Only items that meet a condition: label=cat, path~GLOB, year>2000.",
        most=32,
        flags=("--filter",),
        metavar="COND",
        field="filter",
        http_help="Only items that meet all of these conditions (one or a list), each written as on the command line.",
    ),
    SearchOption(
        "crop",
        "box",
        "Search by this part of the query: pixels, or percent as in 0,50%,50%,50%; X and Y count from the upper left.",
        changes_query=True,
        metavar="X,Y,W,H",
        http_help="Search by this part of the upright query: x, y, width, height, in pixels or as"
        ' texts in percent, such as "50%"; x and y count from the upper left.',
    ),
    SearchOption(
        "plus",
        "images",
        "Also find images similar to IMAGE (weight W).",
        most=MOST_FEEDBACK,
        changes_query=True,
        metavar="IMAGE[=W]",
        http_help="Ids of items: also find images similar to these.",
    ),
    SearchOption(
        "minus",
        "images",
        "Avoid images similar to IMAGE (weight W).",
        most=MOST_FEEDBACK,
        changes_query=True,
        metavar="IMAGE[=W]",
        http_help="Ids of items: avoid images similar to these.",
    ),
    SearchOption(
        "exact",
        "flag",
        "Search exactly, even if the index has an approximate search.",
    ),
    SearchOption(
        "dedup",
        "flag",
        "One match for each group of near-identical ones.",
        checkbox="Hide near-identical ones",
    ),
    SearchOption(
        "expand",
        "integer",
        "Search again by the mean of the query and its N first matches.",
        minimum=1,
        most=MOST_FEEDBACK,
        metavar="N",
    ),
    SearchOption(
        "flip",
        "flag",
        "Also find images similar to the query's mirror image.",
        changes_query=True,
        checkbox="Mirrored ones too",
    ),
    SearchOption(
        "no_self",
        "flag",
        "Leave out the query's own file and exact copies of it.",
        changes_query=True,
    ),
)
"""All options, in the order of `simsearch query --help`."""


class SearchOptions(TypedDict, total=False):
    """The options of every search, besides the query and k.

    where: conditions that items must meet; None for no conditions.
    max_distance: the largest distance of a match.
    min_similarity: the smallest similarity of a match, from 0 to 1.
    dedup: True to return one match for each group of near-identical matches.
    exact: True to never search approximately.
    expand: the number of first matches to average with the query for a second search; see `feedback.expanded`.
    """

    where: Where | None
    max_distance: float | None
    min_similarity: float | None
    dedup: bool
    exact: bool
    expand: int


class PictureOptions(SearchOptions, total=False):
    """The options of a search by pictures or items: those of `SearchOptions`, and the following.

    crop: (x, y, width, height), the part of the upright picture to search by, in pixels or in percent ("50%"). x and y
    are counted from the picture's upper left corner.
    flip: True to also find items that look like the mirror image.
    plus, minus: more pictures that matches should resemble, or not resemble. Each is a picture or the id of an item,
    alone or in a tuple (picture, weight).
    no_self: True to leave out items whose file has the same content as the query.
    """

    no_self: bool
    crop: Box | None
    flip: bool
    plus: Sequence[Picture | int | tuple[Picture | int, float]]
    minus: Sequence[Picture | int | tuple[Picture | int, float]]


def _spellings(option: SearchOption) -> list[str]:
    """Returns an option's names in Python, in HTTP and on the command line, with underscores and without dashes."""
    return [option.name, option.http_field, *(flag.lstrip("-").replace("-", "_") for flag in option.command_line)]


def hint(name: str, known: Sequence[str], *, http: bool = False) -> str:
    """Returns the hint for an unknown name: the most similar known name or, if none is similar, all known names.

    The name is compared with the spellings of the options in Python, in HTTP requests and on the command line.
    known: the names that are allowed in Python or, if `http` is True, the fields that are allowed in HTTP requests.
    """
    own = {option: option.http_field if http else option.name for option in OPTIONS}
    names = {text: called for option, called in own.items() if called in known for text in _spellings(option)}
    near = suggestions.nearest(name, [*known, *names])
    return f"did you mean {names.get(near, near)}?" if near else f"one of {', '.join(known)}"


def check_names(given: Mapping[str, Any], *, by_vector: bool = False) -> None:
    """Raises UsageError for an unknown option, and for a text as the value of a flag (an option that is True or False).

    by_vector: True to treat the options that change the query's vectors as unknown.
    """
    known = [option.name for option in OPTIONS if option.name != "k" and not (by_vector and option.changes_query)]
    if unknown := sorted(set(given) - set(known)):
        search = "a search by vectors" if by_vector else "a search"
        raise UsageError(f"{search} has no option {unknown[0]!r}", hint=hint(unknown[0], ["k", *known]))
    for option in OPTIONS:
        value = given.get(option.name)
        if option.kind == "flag" and isinstance(value, str | bytes):  # "no" would count as true
            raise UsageError(f"{option.name} is {value!r}, not True or False")


def split(given: Mapping[str, Any]) -> tuple[SearchOptions, dict[str, Any]]:
    """Splits options into those of `SearchOptions` and those that change the query's vectors.

    Raises the errors of `check_names`.
    """
    check_names(given)
    changing = {option.name for option in OPTIONS if option.changes_query}
    search = {name: value for name, value in given.items() if name not in changing}
    return cast(SearchOptions, search), {name: value for name, value in given.items() if name in changing}
