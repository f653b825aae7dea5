"""`semid catalogue FOLDER ...`: the items of a recommender's folder come, change and go."""

from typing import Annotated, Any

import typer

from semid_lib.cli.options import app, group

catalogue = group(
    help="Change the items of a recommender's folder. Each change writes a new version; published semantic IDs stay."
)
app.add_typer(catalogue, name="catalogue")


@catalogue.callback()
def _of(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="What Recommender.save_pretrained wrote.")],
) -> None:
    context.obj = folder


Items = Annotated[str, typer.Argument(metavar="ITEMS", help="An item table: .jsonl, .csv, .parquet or .arrow.")]
Encoder = Annotated[str | None, typer.Option(help="Refuse a folder whose items another encoder encoded.")]


@catalogue.command(epilog="Example: semid catalogue shop status")
def status(context: typer.Context) -> None:
    """Show version, drift, room for new items, items without training signal, and what is due."""
    from semid_lib.serving.catalogue import versions

    print(versions.status(context.obj))


@catalogue.command(epilog="Example: semid catalogue shop add new.jsonl")
def add(context: typer.Context, items: Items, encoder: Encoder = None) -> None:
    """Add items: the folder's encoder and codebooks give them semantic IDs."""
    _change(context.obj, "add_items", _table(items), encoder)


@catalogue.command(epilog="Example: semid catalogue shop remove A-17 A-18")
def remove(context: typer.Context, ids: Annotated[list[str], typer.Argument(metavar="IDS", help="Item ids.")]) -> None:
    """Remove items; histories may still hold them."""
    _change(context.obj, "remove_items", ids)


@catalogue.command(epilog="Example: semid catalogue shop update changed.csv")
def update(context: typer.Context, items: Items, encoder: Encoder = None) -> None:
    """Replace facts of items, such as title or price; their semantic IDs stay."""
    _change(context.obj, "update_items", _table(items), encoder)


@catalogue.command(epilog="Example: semid catalogue shop sales last_weeks.csv")
def sales(
    context: typer.Context,
    sold: Annotated[
        str | None,
        typer.Argument(metavar="[SALES]", help="A table with item_id and sales, each item once; none: forget sales."),
    ] = None,
    smoothing: Annotated[float, typer.Option(help="In sales: the larger, the less a few sales move.")] = 0.3,
) -> None:
    """Let recommendations follow what sold in the last weeks, without training."""
    from semid_lib.data import item_ids, readers

    ids, numbers = [], []
    if sold is not None:
        found = readers.read(sold, ["item_id", "sales"], only=True)
        ids = item_ids.read_ids(found.frame["item_id"], found.fail, found.typed)
        numbers = readers.each(found.frame["sales"], _number, lambda at, why: found.fail(at, f"sales is {why}"))
    from semid_lib.serving.catalogue import versions

    print(versions.change(context.obj, lambda recommender: recommender.follow_sales(ids, numbers, smoothing)))


@catalogue.command(epilog="Example: semid catalogue shop room 1.5")
def room(
    context: typer.Context,
    rate: Annotated[float, typer.Argument(metavar="RATE", help="Purchases of a new item for each of another one.")],
) -> None:
    """Choose how much of the recommendations new items get: their average rate of sale; 0: what their scores say."""
    _change(context.obj, "set_new_item_rate", rate)


@catalogue.command(epilog="Example: semid catalogue shop refit --drop-models")
def refit(
    context: typer.Context,
    drop_models: Annotated[bool, typer.Option("--drop-models", help="The models have to be trained again.")] = False,
    seed: Annotated[int, typer.Option(help="Of the codebooks.")] = 0,
) -> None:
    """Fit new codebooks and give all items new semantic IDs; the models have to be trained again."""
    from semid_lib.serving.catalogue import versions

    print(versions.refit(context.obj, drop_models, seed))


@catalogue.command(epilog="Example: semid catalogue shop rollback --to 3")
def rollback(
    context: typer.Context,
    to: Annotated[int | None, typer.Option(help="A kept version; by default the one before.")] = None,
) -> None:
    """Make an earlier version the present one, as a new version."""
    from semid_lib.serving.catalogue import versions

    version = versions.rollback(context.obj, to)
    print(f"version {version.number}: {version.change}")


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ValueError("expected a number of at least 0")
    return number


def _table(path: str) -> Any:
    from semid_lib.data import table

    return table.read(path)


def _change(folder: str, what: str, items: Any, encoder: str | None = None) -> None:
    from semid_lib.serving.catalogue import versions

    def make(recommender: Any) -> Any:
        used = recommender.tokenizer.encoder if recommender.tokenizer else None
        if encoder not in (None, used):
            raise ValueError(f"the items of {folder} were encoded by {used}, expected {encoder}")
        return getattr(recommender, what)(items)

    print(versions.change(folder, make))
