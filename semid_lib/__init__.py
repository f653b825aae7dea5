"""Generative recommendation with semantic IDs.

The names that most users need are here; each is imported when it is first used. All others are in the rooms `data`,
`ids`, `queries`, `decoding`, `evaluation`, `next_item`, `search`, `llm`, `serving`, `studies`, `chapters` and
`workbench`.

Examples
--------
>>> import semid_lib
>>> semid_lib.load_data("demo").items.columns[0]
'item_id'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semid_lib.data.dataset import load as load_data
    from semid_lib.data.folder import open_store
    from semid_lib.decoding.beam_search import constrained_beam_search
    from semid_lib.decoding.trie import PrefixTrie
    from semid_lib.evaluation.evaluate import evaluate
    from semid_lib.ids.semantic_ids import SemanticIDs
    from semid_lib.serving.recommender import Recommender

_PLACES = {
    "PrefixTrie": "decoding.trie",
    "Recommender": "serving.recommender",
    "SemanticIDs": "ids.semantic_ids",
    "constrained_beam_search": "decoding.beam_search",
    "evaluate": "evaluation.evaluate",
    "load_data": "data.dataset",
    "open_store": "data.folder",
}
__all__ = [
    "PrefixTrie",
    "Recommender",
    "SemanticIDs",
    "constrained_beam_search",
    "evaluate",
    "load_data",
    "open_store",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"semid_lib has no {name!r}")
    return getattr(import_module(f"semid_lib.{_PLACES[name]}"), {"load_data": "load"}.get(name, name))


def __dir__() -> list[str]:
    return __all__
