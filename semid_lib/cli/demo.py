"""`semid demo`: a recommender of the demo shop, trained in two minutes, and its page in a browser."""

import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from semid_lib.cli.options import app


@app.command(epilog="Example: semid demo --port 8080")
def demo(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
    folder: Annotated[Path | None, typer.Option(help="Of the recommender; by default artefacts/semid-demo.")] = None,
) -> None:
    """Train a recommender on the demo shop, serve it, and open its page; a second call reuses it."""
    from semid_lib.workbench.store import default_root

    folder = folder or Path(default_root()) / "semid-demo"
    if not (folder / "config.json").is_file():
        from semid_lib.data import dataset

        train(dataset.load("demo"), folder)
    page = f"http://127.0.0.1:{port}/"
    _say(f"the recommender is in {folder}; its page is {page}, and Ctrl-C ends it")
    _say(f"more to try: semid predict --model {folder} --data demo --user 1")
    if browser:
        threading.Thread(target=_open_when_ready, args=(page,), daemon=True).start()
    from semid_lib.serving.http import web

    web.serve(folder, port=port)


def train(shop, folder: Path, n_epochs: int = 6, progress: bool = True) -> None:
    """Embed a shop, make semantic IDs, train a small timeline model, and save it with a search that needs no training.

    Parameters
    ----------
    shop : dataset.Dataset
        With histories.
    folder : Path
        Where `save_pretrained` writes.
    n_epochs : int
    progress : bool
    """
    from semid_lib.data import dataset
    from semid_lib.ids import assignment, embed, quantize
    from semid_lib.ids.tokenizer import ItemTokenizer
    from semid_lib.next_item import recipes
    from semid_lib.next_item.timeline import Timeline
    from semid_lib.search import hybrid_ranker, retrieval
    from semid_lib.serving.recommender import Recommender
    from semid_lib.workbench import scale

    _say(f"1 of 3: embed the titles of {len(shop.items):,} items")
    texts = embed.item_texts(shop.items)
    vectors = embed.normalize(embed.embed(texts, progress=progress))
    _say("2 of 3: semantic IDs by residual k-means")
    quantizer = quantize.fit_residual_kmeans(vectors, 3, quantize.suggest_codebook_size(len(vectors)))
    ids, _ = assignment.resolve_collisions(quantizer.codes, vectors, quantizer)
    _say(f"3 of 3: train a timeline model on {len(shop.histories):,} histories")
    sizes = scale.get("laptop", dim=64, n_layers=1, n_epochs=n_epochs, min_steps=0)
    split = dataset.leave_one_out(shop.histories)
    task = recipes.Task(split.train, recipes.sample(split.validation, 500), sizes)
    trained = recipes.train_timeline(task, ids, vectors, progress=progress)
    # untrained, the hybrid ranker ranks by cosine and BM25 together
    words, some = retrieval.BM25(texts), range(0, len(texts), max(1, len(texts) // 100))
    cosines, matches = vectors[some] @ vectors.T, words.scores([texts[row] for row in some])
    config = hybrid_ranker.HybridRankerConfig(
        ids.sizes, vectors.shape[1], word_weight=hybrid_ranker.balanced_weight(cosines, matches)
    )
    search = hybrid_ranker.HybridSearch(hybrid_ranker.HybridRanker(config, ids.unique, vectors), words)
    assert isinstance(trained.model, Timeline)
    tokenizer = ItemTokenizer(quantizer, len(ids))
    Recommender(trained.model, ids, shop.items, search, tokenizer=tokenizer).save_pretrained(folder)
    _say(f"Recall@10 on validation: {trained.best.validation:.3f}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _open_when_ready(page: str) -> None:
    """Open the page as soon as the service answers."""
    for _ in range(240):
        try:
            with urllib.request.urlopen(f"{page}readyz", timeout=5):
                webbrowser.open(page)
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
