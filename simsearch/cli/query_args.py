"""Reads query images as they are named on the command line: a path, id:N, a URL, or - for standard input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from simsearch.cli.console import BAD_INPUT, report_error
from simsearch.common.item_ids import ID_PREFIX, parse_id
from simsearch.common.lazy import LazyModule
from simsearch.errors import ImageError, ItemNotFoundError, SimsearchError, UsageError
from simsearch.images.sources.remote import addresses

if TYPE_CHECKING:
    from simsearch.images import urls
    from simsearch.images.sources import resolve
    from simsearch.search.queries import Picture
else:  # their libraries take as long to import as all of click
    urls = LazyModule("simsearch.images.urls")
    resolve = LazyModule("simsearch.images.sources.resolve")

T = TypeVar("T")

AT_ONCE = 64
"""Number of query images that are processed at once."""

_LARGEST_DOWNLOAD = 64 << 20  # bytes
_TIMEOUT = 120.0  # seconds


class Named(bytes):
    """The bytes of an image, with the name of their origin for error messages."""

    name: str

    @classmethod
    def of(cls, data: bytes, name: str) -> Named:
        """Returns the bytes `data`, with `name` as the name of their origin."""
        named = cls(data)
        named.name = name
        return named


def _pictures_of(text: str) -> list[str]:
    """Returns the paths of the pictures in the folder `text` and its subfolders, sorted; [text] if it is not a folder.

    Raises UsageError for a folder without pictures.
    """
    if not os.path.isdir(text):
        return [text]
    paths = [entry.path for entry in resolve.resolve(text).listing().entries if not entry.problem]
    if not paths:
        raise UsageError(f"the folder {text} has no pictures")
    return [os.path.join(text, path) for path in paths]


def _looks_like_words(text: str) -> bool:
    """Returns True if a text is unlikely to be a path: no file has this path, and it has no / and no suffix."""
    return not os.path.lexists(text) and os.sep not in text and not os.path.splitext(text)[1]


def read_image(text: str) -> Picture | int:
    """Returns a query image: bytes for - (standard input) and for URLs, an int for id:N, the text itself for a path.

    Raises UsageError, and ImageError if the image cannot be read.
    """
    if text == "-":
        data = sys.stdin.buffer.read()
        if not data:
            raise ImageError("standard input is empty or closed", hint="cat photo.jpg | simsearch query -")
        return Named.of(data, "standard input")
    if text.startswith(ID_PREFIX):
        return item_id(text)
    if is_url(text):
        return _fetch(text)
    if addresses.is_remote(text):
        return Named.of(resolve.read_remote(text), text)
    if _looks_like_words(text):
        raise ImageError(
            f"there is no picture {text!r}, and simsearch cannot search by words",
            hint="give a picture to search by: a path, a folder, id:N, a URL, or - for standard input",
        )
    return text


@dataclass
class Answers(Generic[T]):
    """The usable query images and their answers.

    names, pictures, answers: for each image its name, the result of `read_image`, and the answer.
    failed: the number of images that could not be used.
    """

    names: list[str] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)
    answers: list[T] = field(default_factory=list)
    failed: int = 0

    def exit_if_failed(self) -> None:
        """Ends the command with exit code 2 if an image could not be used."""
        if self.failed:
            raise click.exceptions.Exit(BAD_INPUT)


def ask_each(ask: Callable[[Sequence[str], Sequence[Any]], Iterable[T]], texts: Sequence[str]) -> Answers[T]:
    """Returns the answers for all query images. An image that cannot be used does not stop the others.

    ask: returns the answers for several images; called with their names and the results of `read_image`.
    texts: the query images as named on the command line; a folder means all pictures in it.
    Each ImageError and ItemNotFoundError is printed, and so is any error in listing one of these folders. All other
    errors are raised.
    """
    found: Answers[T] = Answers()
    for text in texts:
        try:
            names = _pictures_of(text)
        except SimsearchError as error:
            found.failed += 1
            report_error(error)
            continue
        for name in names:
            try:
                found.pictures.append(read_image(name))
                found.names.append(name)
            except ImageError as error:
                found.failed += 1
                report_error(error)
    _ask(ask, found.names, found.pictures, found)
    return found


def _ask(
    ask: Callable[[Sequence[str], Sequence[Any]], Iterable[T]], names: list[str], pictures: list[Any], found: Answers[T]
) -> None:
    usable: tuple[list[str], list[Any]] = [], []
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE], pictures[start : start + AT_ONCE]
        try:
            groups = [(some, list(ask(*some)))]
        except (ImageError, ItemNotFoundError):
            groups = []
            for name, picture in zip(*some, strict=True):
                try:
                    groups.append((([name], [picture]), list(ask([name], [picture]))))
                except (ImageError, ItemNotFoundError) as error:
                    found.failed += 1
                    report_error(error)
        for (some_names, some_pictures), answers in groups:
            usable[0].extend(some_names)
            usable[1].extend(some_pictures)
            found.answers += answers
    found.names, found.pictures = usable


def item_id(text: str) -> int:
    """Returns the number N in the text `id:N`. Raises UsageError."""
    number = parse_id(text)
    if number is None:
        raise UsageError(f"{text!r} is not the id of an item", hint="id:N with a whole number N")
    return number


def is_url(text: str) -> bool:
    """Returns True for the http or https URL of a picture; False for an archive's member, whose URL has !/."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None and "!/" not in text


def _fetch(url: str) -> bytes:
    """Returns the bytes of the image at a URL. Raises ImageError."""
    try:
        return Named.of(urls.fetch(url, _LARGEST_DOWNLOAD, _TIMEOUT, public_only=False), url)
    except ImageError as error:
        raise ImageError(f"{url}: {error}") from error
