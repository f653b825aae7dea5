"""Commands that take a trained recommender: `semid predict`, `semid serve` and `semid push`."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from semid_lib.cli.options import Model, Queries, Revision, Scale, TopK, app


@app.command(epilog="Example: semid predict --model FOLDER --input histories.txt --output answers.csv --topk 10")
def predict(
    model: Model,
    input_path: Annotated[
        str | None, typer.Option("--input", "--input-path", metavar="FILE", help="Histories, or queries.")
    ] = None,
    output_path: Annotated[
        str | None,
        typer.Option("--output", "--output-path", metavar="FILE", help="CSV, JSONL or Parquet; else printed."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="A data set whose histories are the input.")
    ] = None,
    user: Annotated[list[str] | None, typer.Option(metavar="ID", help="With --data: only these; repeat it.")] = None,
    topk: TopK = 10,
    queries: Queries = False,
    revision: Revision = None,
    workers: Annotated[int | None, typer.Option(help="Processes that share the work; SEMID_WORKERS.")] = None,
    ray_address: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Of a Ray cluster, or auto.")] = None,
) -> None:
    """Answer a file of histories or queries, or the customers of a data set.

    The answers are saved block by block, and the same command resumes an interrupted run. Records that cannot be
    answered are in OUTPUT.rejected with line and reason. Exit codes: 0 all were answered, 2 some were rejected, 1 the
    run failed.
    """
    if data is None and user:
        raise typer.BadParameter("--user selects customers of a data set: expected --data as well")
    if data is not None and queries:
        raise typer.BadParameter("--data gives histories: expected --input with --queries")
    if (input_path is None) == (data is None):
        raise typer.BadParameter("expected one of --input and --data")
    from semid_lib.serving import batch_io
    from semid_lib.serving import predict as batch
    from semid_lib.workbench.workers import chosen

    with tempfile.TemporaryDirectory() as folder:
        source = str(input_path)
        if data is not None:
            source = f"{folder}/histories.jsonl"
            batch_io.write_histories(data, user or [], Path(source))
        if output_path is None:
            recommender = batch.Recommender.from_pretrained(model, revision=revision)
            answers = Path(folder, "answers.jsonl")
            outcome = batch.predict(recommender, "", source, answers, topk, queries)
            _print(answers, recommender)
            raise typer.Exit(2 if outcome.rejected else 0)
        try:
            how = {"k": topk, "queries": queries, "progress": True, "run": chosen(workers, ray_address)}
            outcome = batch.predict_folder(model, source, output_path, {"revision": revision}, **how)
        except (Exception, KeyboardInterrupt) as error:
            of_the_same_work = not isinstance(error, ValueError | ImportError | BlockingIOError)
            if of_the_same_work and batch.can_resume(output_path):
                print("Finished blocks are kept: fix the cause and run the same command to resume.", file=sys.stderr)
            raise
    print(f"{outcome}: {output_path}", file=sys.stderr)
    raise typer.Exit(2 if outcome.rejected else 0)


def _print(answers: Path, recommender: Any) -> None:
    """Print answers with titles to stdout, and rejected records to stderr."""
    titles = recommender.items["title"].tolist() if "title" in recommender.items else [None] * len(recommender.items)
    with open(answers, encoding="utf-8") as lines:
        for answer in map(json.loads, lines):
            answer["titles"] = [titles[row] for row in recommender.item_ids.rows(answer["item_ids"])]
            sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode("utf-8") + b"\n")  # in any locale
    sys.stdout.buffer.flush()
    rejected = answers.with_name(f"{answers.name}.rejected")
    if rejected.exists():
        with open(rejected, encoding="utf-8") as lines:
            for line in lines:
                print("line {line}: {reason}".format(**json.loads(line)), file=sys.stderr)


@app.command(epilog="Example: SEMID_TOKEN=secret semid serve --model FOLDER --host 0.0.0.0 --port 8080")
def serve(
    model: Model,
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    host: Annotated[str, typer.Option(help="Loopback by default; 0.0.0.0 for every network.")] = "127.0.0.1",
    revision: Revision = None,
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON of rules that hold for every answer.")
    ] = None,
    check_seconds: Annotated[float, typer.Option(min=0.1, help="Between two looks for a new version.")] = 5.0,
) -> None:
    """Serve a recommender over HTTP, with a page to try it, until SIGTERM or Ctrl-C.

    If the folder or the file of rules is replaced, the service follows without an outage. If the environment variable
    SEMID_TOKEN is set, requests about items need it as a bearer token.
    """
    import gc

    gc.disable()  # imports leave almost no garbage, and looking for it takes a tenth of a cold start
    from semid_lib.serving.http import web

    web.serve(model, host, port, revision, rules, check_seconds)


@app.command(epilog="Example: semid push --model FOLDER --repo org/name --licence apache-2.0")
def push(
    model: Model,
    repo: Annotated[str, typer.Option(metavar="ORG/NAME", help="A repository on the Hugging Face Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    licence: Annotated[str | None, typer.Option(help="As the Hub calls it, such as apache-2.0.")] = None,
    data: Annotated[str | None, typer.Option(metavar="FOLDER", help="Data set whose rows the card shows.")] = None,
    scale: Scale = "laptop",
) -> None:
    """Push a recommender to the Hugging Face Hub, with a model card.

    The token is HF_TOKEN, or that of `hf auth login`.
    """
    from semid_lib.data.folder import open_store
    from semid_lib.serving.recommender import Recommender

    rows = open_store(data, scale).rows() if data else []
    print(Recommender.from_pretrained(model).push_to_hub(repo, not public, rows, licence=licence))
