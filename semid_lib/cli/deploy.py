"""`semid deploy`: models, batches and chapters on Modal. Its endpoint is deployed by Modal's own command."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from semid_lib.cli.options import Data, Queries, Scale, TopK, app, group

modal = group(
    help="Use Modal: send a model, answer files, run chapters, measure an endpoint. The endpoint itself is deployed by "
    "`modal deploy -m semid_lib.serving.modal_app`; settings are environment variables (SEMID_MODEL, SEMID_GPU, ...)."
)
app.add_typer(modal, name="deploy")


@modal.command(epilog="Example: semid deploy upload --folder artefacts/demo/laptop/recommender")
def upload(
    folder: Annotated[Path, typer.Option(help="What Recommender.save_pretrained wrote.")],
    name: Annotated[str | None, typer.Option(help="In the Volume; by default SEMID_MODEL.")] = None,
) -> None:
    """Check a recommender and send it to the Volume."""
    from semid_lib.serving import modal_app

    name = modal_app.upload(folder, name)
    print(f"{folder} is in the Volume as {name!r}. Next: modal deploy -m semid_lib.serving.modal_app")


@modal.command(epilog="Example: semid deploy predict --input histories.txt --output answers.csv")
def predict(
    input_path: Annotated[Path, typer.Option("--input", "--input-path", metavar="FILE")],
    output_path: Annotated[Path, typer.Option("--output", "--output-path", metavar="FILE")],
    topk: TopK = 10,
    queries: Queries = False,
) -> None:
    """Answer a file of histories or queries on Modal, as `semid predict` does."""
    from semid_lib.serving import modal_app

    outcome = modal_app.predict_file(input_path, output_path, topk, queries)
    print(f"{outcome}: {output_path}", file=sys.stderr)
    raise typer.Exit(2 if outcome.rejected else 0)


@modal.command(epilog="Example: SEMID_GPU=L40S semid deploy train --data shop --scale full --chapters 01,02,07")
def train(
    data: Data = "demo",
    scale: Scale = "full",
    chapters: Annotated[str, typer.Option(help="By number, with commas.")] = "01,02,07",
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait; fetch the results later.")] = False,
) -> None:
    """Run chapters on Modal, on the GPU that SEMID_GPU names, and fetch what they wrote."""
    from semid_lib.serving import modal_app

    modal_app.run_training(data, scale, chapters, detach)


@modal.command(epilog="Example: semid deploy fetch --data shop --scale full --everything")
def fetch(
    data: Data = "demo",
    scale: Scale = "full",
    everything: Annotated[bool, typer.Option("--everything", help="Models, vectors and checkpoints too.")] = False,
) -> None:
    """Fetch executed chapters and result rows from the Volume."""
    from semid_lib.serving import modal_app

    print(*modal_app.fetch(data, scale, everything), sep="\n")


@modal.command(epilog="Example: semid deploy measure --url https://ADDRESS --cold 3 --warm 100")
def measure(
    url: Annotated[str, typer.Option(help="The address that `modal deploy` printed.")],
    data: Data = "demo",
    scale: Scale = "laptop",
    cold: Annotated[int, typer.Option(min=0, help="Cold answers to wait for.")] = 1,
    warm: Annotated[int, typer.Option(min=0, help="Warm answers.")] = 20,
    wait: Annotated[float | None, typer.Option(min=0, help="Idle seconds before a cold answer.")] = None,
) -> None:
    """Measure cold and warm answers of an endpoint, and keep them as result rows of the data and scale."""
    from semid_lib.serving import deployment

    answers, rows, path = deployment.measure_endpoint(url, data, scale, cold, warm, wait)
    for row in rows:
        print(f"{row['key']:40}{row['value']:10}  of {row['n']}")
    if answers.missed:
        print(f"{answers.missed} of {cold} were not cold: a container was awake; set a longer --wait")
    print(f"rows: {path}" if path else "nothing was measured")
    raise typer.Exit(0 if path else 1)
