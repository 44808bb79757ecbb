"""Shell completion of the names of models, presets and features, and of the fields, values and ids in an index.

Any error, for example an index that cannot be opened, results in no completions.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, add_completion_class, split_arg_string

from simsearch.common.item_ids import ID_PREFIX
from simsearch.common.lazy import LazyModule
from simsearch.common.milvus_address import is_address
from simsearch.errors import SimsearchError

if TYPE_CHECKING:
    from simsearch.images import perturb
    from simsearch.models import descriptors, registry
    from simsearch.storage import filters
    from simsearch.storage import index as storage
    from simsearch.storage.reader import Item
    from simsearch.training import config as training_config
else:  # these imports would slow down every other start
    perturb = LazyModule("simsearch.images.perturb")
    descriptors = LazyModule("simsearch.models.descriptors")
    registry = LazyModule("simsearch.models.registry")
    filters = LazyModule("simsearch.storage.filters")
    storage = LazyModule("simsearch.storage.index")
    training_config = LazyModule("simsearch.training.config")

SEEN = 20_000
"""Number of items that are read to collect the values of fields."""

SHOWN = 60
"""Largest number of completions that are offered."""

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def starting(incomplete: str, known: Iterable[str], help: str | None = None) -> list[CompletionItem]:
    """Returns a completion for each known word that starts with the text `incomplete`."""
    return [CompletionItem(word, help=help) for word in known if word.startswith(incomplete)]


def files(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Tells the shell to complete file names."""
    return [CompletionItem(incomplete, type="file")]


def words(*known: str) -> Complete:
    """Returns a completion function that offers the given words."""
    return lambda context, parameter, incomplete: starting(incomplete, known)


def models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the names of built-in models and the prefix torchvision/; if none matches, file names."""
    known = [*registry.BUILTIN, registry.TORCHVISION]
    return starting(incomplete, known) or files(context, parameter, incomplete)


def features(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the names of features; if none matches, file names, since the folder of an index may be given too."""
    known = [descriptors.REFERENCE, *descriptors.DESCRIPTORS]
    return starting(incomplete, known) or files(context, parameter, incomplete)


def presets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the training presets of the network in --model, or of all networks if it is not given."""
    architecture = context.params.get("architecture")
    chosen = training_config.PRESETS.get(architecture or "")
    known = chosen or dict.fromkeys(name for each in training_config.PRESETS.values() for name in each)
    return starting(incomplete, known)


def settings(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the names of a training's settings, with = after each name."""
    return starting(incomplete, [f"{field.name}=" for field in fields(training_config.TrainConfig)])


def changes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the names of the changes to images that `eval robustness` makes."""
    return starting(incomplete, perturb.CHANGES)


def pictures(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes id:N with the ids in the index, and other words with file names."""
    if not incomplete or not ID_PREFIX.startswith(incomplete[: len(ID_PREFIX)]):
        return files(context, parameter, incomplete)
    found = ((f"{ID_PREFIX}{item.id}", item.path) for item in _items(context))
    matching = (CompletionItem(name, help=path) for name, path in found if name.startswith(incomplete))
    return list(itertools.islice(matching, SHOWN)) or files(context, parameter, incomplete)


def conditions(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes a filter condition: first the name of a field; after `=` or `!=`, a value of the field.

    The most frequent values come first.
    """
    field, operator, value = incomplete.partition("=")
    items = list(_items(context))
    if not operator:
        metadata = dict.fromkeys(name for item in items for name in item.metadata)
        return starting(incomplete, [f"{name}=" for name in dict.fromkeys((*filters.FIELDS, *metadata))])
    name = field.removesuffix("!")
    counted = Counter(str(found) for item in items if (found := _value(item, name)) is not None)
    matching = [(text, count) for text, count in counted.most_common() if text.startswith(value)]
    return [CompletionItem(f"{field}={text}", help=f"{count:,} items") for text, count in matching[:SHOWN]]


def _value(item: Item, field: str) -> Any:
    """Returns the value of an item's field; None if it is not offered as a completion.

    Paths are not offered, because an index has too many of them. Sizes in bytes and lists are not offered either.
    """
    if field in {"label", "id", "width", "height"}:
        return getattr(item, field)
    metadata: Mapping[str, Any] = item.metadata
    value = metadata.get(field.removeprefix("metadata."))
    return value if isinstance(value, str | int | float) else None


def _items(context: click.Context) -> Iterator[Item]:
    """Yields the first SEEN items of the index named on the command line; nothing if the index cannot be read."""
    path = context.params.get("index_path")
    if not path or is_address(path):
        return
    with contextlib.suppress(SimsearchError, OSError), storage.Index(path) as index, index.reading() as reader:
        yield from itertools.islice(reader.items(), SEEN)


class Bash(BashComplete):
    """Completion in bash. It works for words with : or = too, although bash splits words at these characters.

    When bash completes a word such as `label=ca`, it replaces only the part after the last : or =. Therefore only that
    part of a completion is printed. Completions that end in =, : or / get no space behind them. Special characters are
    escaped by backslashes, except inside quotation marks.
    """

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' response completion type value
    response=$(env COMP_WORDS="${COMP_LINE:0:$COMP_POINT}" COMP_CURRENT="$2" %(complete_var)s=bash_complete $1)
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            [[ $value == *[=:/] ]] && compopt -o nospace
            COMPREPLY+=("$value")
        fi
    done
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Returns the complete words of the command line, without the program's name, and the incomplete last word."""
        line = os.environ["COMP_WORDS"]
        given = split_arg_string(line)
        incomplete = "" if line[-1:].isspace() or not given else given.pop()
        current = os.environ.get("COMP_CURRENT", incomplete).lstrip("'\"")
        self._known = len(incomplete) - len(current) if incomplete.endswith(current) else 0
        self._quoted = _in_quotes(line)
        return given[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """Returns a completion as a line for the shell script: its type, a comma and its text."""
        if item.type != "plain":
            return f"{item.type},{item.value}"
        value = item.value[self._known :]
        return "plain," + (value if self._quoted else re.sub(r"([^\w@%+=:,./-])", r"\\\1", value))


def _in_quotes(line: str) -> bool:
    """Returns True if a command line ends within quotes."""
    quote = ""
    for character in re.sub(r"\\.", "", line):
        if character in ("'", '"') and quote in ("", character):
            quote = "" if quote else character
    return bool(quote)


class Zsh(ZshComplete):
    """Completion in zsh. Completions that end in =, : or / get no space behind them."""

    source_template = """\
#compdef %(prog_name)s

%(complete_func)s() {
    (( $+commands[%(prog_name)s] )) || return 1
    local kind word note
    local -a asked lines plain open noted
    asked=(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) %(complete_var)s=zsh_complete)
    lines=("${(@f)$(env $asked %(prog_name)s)}")
    for kind word note in ${lines}; do
        case $kind:$note in
            dir:*) _path_files -/ ;;
            file:*) _path_files -f ;;
            plain:_) [[ $word == *[=:/] ]] && open+=("$word") || plain+=("$word") ;;
            plain:*) noted+=("$word:$note") ;;
        esac
    done
    (( $#noted )) && _describe -V unsorted noted -U
    (( $#plain )) && compadd -U -V unsorted -a plain
    (( $#open )) && compadd -U -V unsorted -S '' -a open
    return 0
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


add_completion_class(Bash)
add_completion_class(Zsh)
