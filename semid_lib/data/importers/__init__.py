"""Importers: write a data folder from other people's files.

`import_table` takes a catalogue and interactions as CSV, JSON lines, Parquet or Arrow with columns of any name,
`import_amazon` the raw Amazon dumps of 2014, 2018 and 2023. The report counts what was left out. The commands are
`semid import table` and `semid import amazon`.
"""

from semid_lib.data.importers.amazon import import_amazon
from semid_lib.data.importers.tables import import_table
from semid_lib.data.importers.writing import ImportReport

__all__ = ["ImportReport", "import_amazon", "import_table"]
