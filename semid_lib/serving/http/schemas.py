"""Requests and answers of the HTTP service: fields and limits, from which its OpenAPI description is made."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetPydanticSchema, model_validator
from pydantic_core import PydanticCustomError, core_schema

MAX_K = 256  # items in one answer: a beam is at least as wide
MAX_HISTORY = 1000
MAX_INSTANCES = 64
MAX_BLOCKED = 1000
MAX_NAMES = 50  # categories, and brands
MAX_TEXT = 200  # characters of a query, the words of a title, a user id
MAX_BRANDS = 200  # that /catalogue lists


def _integer_or_text(message: str, text: core_schema.StringSchema) -> GetPydanticSchema:
    union = core_schema.union_schema(
        [core_schema.int_schema(strict=True, ge=-(2**63), lt=2**63), text],
        custom_error_type="id",
        custom_error_message=message,
    )
    return GetPydanticSchema(lambda *_: union)


def _not_blank(query: str) -> str:
    if not query.strip():
        raise PydanticCustomError("blank", "A query should be some text, not only spaces")
    return query


_ITEM_ID = "An item id should be an integer of at most 64 bits, or text"
_USER_ID = f"A user id should be an integer of at most 64 bits, or text of at most {MAX_TEXT} characters"
ItemId = Annotated[int | str, _integer_or_text(_ITEM_ID, core_schema.str_schema(min_length=1))]
UserId = Annotated[int | str, _integer_or_text(_USER_ID, core_schema.str_schema(max_length=MAX_TEXT))]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Name = Annotated[str, Field(min_length=1)]  # as long as the catalogue's own are
# fail_fast: the first mistake in a list is told, not a thousand
History = Annotated[list[ItemId], Field(max_length=MAX_HISTORY, fail_fast=True, description="item ids, oldest first")]
Names = Annotated[list[Name], Field(max_length=MAX_NAMES, fail_fast=True)]


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid")

    k: int = Field(10, strict=True, ge=1, le=MAX_K, description="how many items")
    allowed_categories: Names = Field([], description="items of one of them; none: all items")
    allowed_brands: Names = Field([], description="items of one of them; none: all items")
    blocked_items: list[ItemId] = Field([], max_length=MAX_BLOCKED, fail_fast=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, question: Any) -> Any:
        """Refuse the first unknown field: pydantic would build an error for each, and a body holds 100,000."""
        known = cls.model_fields
        unknown = next((name for name in question if name not in known), None) if isinstance(question, dict) else None
        if unknown is not None:
            message = f"Unknown field {{name}}, expected some of {', '.join(known)}"
            raise PydanticCustomError("unknown_field", message, {"name": repr(unknown[:50])})
        return question


class NewItems(BaseModel):
    """How many items of a list are without training signal: those that came after the model was trained."""

    model_config = ConfigDict(extra="forbid")

    at_least: int = Field(0, strict=True, ge=0, le=MAX_K, description="fewer only if there are no more")
    at_most: int = Field(MAX_K, strict=True, ge=0, le=MAX_K, description="0: none")

    @model_validator(mode="after")
    def _ordered(self) -> "NewItems":
        if self.at_least > self.at_most:
            raise PydanticCustomError("new_items", "at_least should not be above at_most")
        return self


class RecommendQuestion(_Question):
    """What comes after a history."""

    item_ids: History
    new_items: NewItems | None = Field(None, description="a floor and a ceiling; by default as the model finds")
    exclude_seen: bool | None = Field(
        None, strict=True, description="leave out items of the history; by default as the recommender was made"
    )


class SearchQuestion(_Question):
    """Items that a text asks for."""

    query: Annotated[Text, AfterValidator(_not_blank)] = Field(description="some text, not only spaces")


class Rules(BaseModel):
    """What holds for every answer, such as a stock list: a file of the service, not a request."""

    model_config = ConfigDict(extra="forbid")

    allowed_items: list[ItemId] | None = Field(None, fail_fast=True, description="items of this list; null: all")
    blocked_items: list[ItemId] = Field([], fail_fast=True)
    allowed_categories: list[Name] = Field([], fail_fast=True, description="items of one of them; none: all items")
    allowed_brands: list[Name] = Field([], fail_fast=True, description="items of one of them; none: all items")


class Item(BaseModel):
    item_id: int | str
    title: str
    brand: str | None
    categories: list[list[str]] = Field(description="paths, from the root")
    price: float | None
    semantic_id: list[int] = Field(description="codes, coarse to fine")


class Why(BaseModel):
    """The item of the history whose semantic ID begins with the same codes for longest."""

    item_id: int | str
    title: str
    shared_codes: int


class Hit(Item):
    score: float = Field(description="greater is better; a log-probability where a model generates the ID")
    why: Why | None = Field(None, description="of a history; null for a query")
    matched_words: list[str] = Field([], description="words of the query in the title, the brand or a category")


class Answer(BaseModel):
    items: list[Hit] = Field(description="best first; fewer than k where no more are allowed")
    any_word_found: bool | None = Field(
        None, description="whether any item has a word of the query; a search answers in any case. Null for a history"
    )
    skipped: int = Field(0, description="items of the history that were left out: removed from the catalogue")


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


class NameCount(BaseModel):
    """A category or a brand."""

    name: str
    n_items: int


class Version(BaseModel):
    """Of a catalogue."""

    name: str = Field(description="the number and the first 12 digits of the SHA-256 of config.json")
    number: int
    parent: str | None = Field(description="SHA-256 of the config.json of the version that it was made from")
    change: str = Field(description="what was changed")
    written: str = Field(description="when, in UTC")


class CatalogueFacts(BaseModel):
    n_items: int
    n_levels: int
    can_recommend: bool
    can_search: bool
    exclude_seen: bool = Field(description="whether items of a history are left out, unless a request chooses")
    max_k: int
    source: str | None  # org/name@commit on the Hub; of a folder, null
    version: Version | None  # of a recommender in memory, null
    categories: list[NameCount] = Field(description="largest first")
    brands: list[NameCount] = Field(description=f"the {MAX_BRANDS} largest, largest first")
    n_brands: int = Field(description="of all brands")
    example_queries: list[str] = Field(description="to try; none if there is no model of search")


class Instance(BaseModel):
    user_id: UserId
    item_ids: History


class PredictQuestion(BaseModel):
    """TorchServe's contract: histories of several users."""

    topk: int = Field(10, strict=True, ge=1, le=MAX_K)
    instances: list[Instance] = Field(min_length=1, max_length=MAX_INSTANCES, fail_fast=True)


class Prediction(BaseModel):
    user_id: str | int
    predictions: list[int | str] = Field(description="item ids, best first")


class Predictions(BaseModel):
    predictions: list[Prediction]


class Problem(BaseModel):
    detail: str


class State(BaseModel):
    status: str


class Ready(State):
    version: str | None = Field(description="what is served; null for a recommender in memory")
    loading: bool = Field(description="whether another version is looked for or loaded beside it")
    refused: str | None = Field(description="what is wrong with the last version, which is not served")
