"""What the HTTP service is asked and what it answers: shapes and limits, from which its OpenAPI description is made."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_K = 256  # items in one answer: a beam is at least as wide
MAX_HISTORY = 1000
MAX_INSTANCES = 64
MAX_BLOCKED = 1000
MAX_CATEGORIES = 50
MAX_TEXT = 200  # characters of a query, a category, a user id

ItemId = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
# fail_fast: the first mistake in a list is told, not a thousand
History = Annotated[list[ItemId], Field(max_length=MAX_HISTORY, fail_fast=True, description="item ids, oldest first")]


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid")

    k: int = Field(10, strict=True, ge=1, le=MAX_K, description="how many items")
    allowed_categories: list[Text] = Field(
        [], max_length=MAX_CATEGORIES, fail_fast=True, description="none: all of them"
    )
    blocked_items: list[ItemId] = Field([], max_length=MAX_BLOCKED, fail_fast=True)


class RecommendQuestion(_Question):
    """What comes after a history."""

    item_ids: History
    exclude_seen: bool | None = Field(
        None, strict=True, description="leave out items of the history; by default as the recommender was made"
    )


class SearchQuestion(_Question):
    """Items that a text asks for."""

    # \s of the validator is narrower than Python's idea of a space
    query: Text = Field(pattern=r"[^\s\x1c-\x1f]", description="some text, not only spaces")


class Item(BaseModel):
    item_id: int
    title: str
    brand: str | None
    categories: list[list[str]] = Field(description="paths, from the root")
    semantic_id: list[int] = Field(description="codes, coarse to fine")


class Why(BaseModel):
    """The item of the history whose semantic ID begins with the same codes for longest."""

    item_id: int
    title: str
    shared_codes: int


class Hit(Item):
    score: float = Field(description="greater is better; a log-probability where a model generates the ID")
    why: Why | None = None


class Answer(BaseModel):
    items: list[Hit] = Field(description="best first; fewer than k where no more are allowed")


class Items(BaseModel):
    items: list[Item]


class PrefixGroup(BaseModel):
    """Items whose semantic IDs begin with the same codes."""

    prefix: list[int]
    n_items: int
    items: list[Item] = Field(description="some of them")


class Neighbours(BaseModel):
    item: Item
    prefixes: list[PrefixGroup] = Field(description="from the longest shared prefix to a single code")


class Category(BaseModel):
    name: str
    n_items: int


class CatalogueFacts(BaseModel):
    n_items: int
    n_levels: int
    can_recommend: bool
    can_search: bool
    max_k: int
    source: str | None  # org/name@commit on the Hub; of a folder, null
    categories: list[Category]


class Instance(BaseModel):
    user_id: Annotated[str, Field(max_length=MAX_TEXT)] | ItemId
    item_ids: History


class PredictQuestion(BaseModel):
    """TorchServe's contract: histories of several users."""

    topk: int = Field(10, strict=True, ge=1, le=MAX_K)
    instances: list[Instance] = Field(min_length=1, max_length=MAX_INSTANCES, fail_fast=True)


class Prediction(BaseModel):
    user_id: str | int
    predictions: list[int] = Field(description="item ids, best first")


class Predictions(BaseModel):
    predictions: list[Prediction]


class Problem(BaseModel):
    detail: str


class State(BaseModel):
    status: str
