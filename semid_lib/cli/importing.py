"""`semid import`: other people's files to a data folder."""

from typing import Annotated

import typer

from semid_lib.cli.options import app, group

imports = group(help="Write a data folder from other people's files.")
app.add_typer(imports, name="import")


Column = Annotated[str | None, typer.Option(metavar="COLUMN")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the files of a folder that is not empty.")]
Output = Annotated[str, typer.Option(metavar="FOLDER", help="The data folder to write.")]


@imports.command(
    "table",
    epilog="Example: semid import table --items products.csv --item-id sku --interactions orders.csv --output shop",
)
def import_table(
    items: Annotated[str, typer.Option(metavar="FILE", help="The catalogue: CSV, JSON lines, Parquet or Arrow.")],
    output: Output,
    item_id: Column = None,
    title: Column = None,
    brand: Column = None,
    description: Column = None,
    categories: Column = None,
    price: Column = None,
    category_separator: Annotated[str, typer.Option(help="Between the names of a category path.")] = ">",
    interactions: Annotated[str | None, typer.Option(metavar="FILE", help="Who bought what, and when.")] = None,
    user_id: Column = None,
    interaction_item_id: Column = None,
    timestamp: Column = None,
    time_unit: Annotated[str, typer.Option(help="Of times: auto, s, ms, us, ns, excel or date.")] = "auto",
    separator: Annotated[str | None, typer.Option(help="Between columns; found out by default.")] = None,
    decimal: Annotated[str | None, typer.Option(help="The sign in prices, . or ,; found out by default.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of text files, such as latin-1.")] = None,
    escape: Annotated[str | None, typer.Option(help="The sign before a quote inside quotes.")] = None,
    item_columns: Annotated[str | None, typer.Option(help="Names, with commas, if the file has no header.")] = None,
    interaction_columns: Annotated[str | None, typer.Option(help="The same for the interactions.")] = None,
    unknown_items: Annotated[str, typer.Option(help="Interactions with an unknown item: error or drop.")] = "error",
    k_core: Annotated[int, typer.Option(help="Keep users and items with at least so many interactions.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Import a catalogue, and interactions if there are any, from files with named columns.

    COLUMN options name columns of your files. Without one, a column with a usual name, such as sku or brand, is taken
    and reported; '' leaves the field out.
    """
    asked = dict(locals())
    from semid_lib.data import importers

    print(importers.import_table(**asked))


@imports.command(
    "amazon",
    epilog="Example: semid import amazon --metadata meta.json.gz --reviews reviews.json.gz --output beauty",
)
def import_amazon(
    metadata: Annotated[str, typer.Option(metavar="FILE", help="Items: JSON lines, also with .gz.")],
    reviews: Annotated[str, typer.Option(metavar="FILE", help="Interactions: JSON lines, also with .gz.")],
    output: Output,
    k_core: Annotated[int, typer.Option(help="Keep users and items with at least so many reviews; 0 keeps all.")] = 5,
    min_rating: Annotated[float, typer.Option(help="Leave out reviews with fewer stars.")] = 0.0,
    overwrite: Overwrite = False,
    progress: Annotated[bool, typer.Option(help="Show progress.")] = True,
) -> None:
    """Import a raw Amazon dump of 2014, 2018 or 2023."""
    asked = dict(locals())
    from semid_lib.data import importers

    print(importers.import_amazon(**asked))
