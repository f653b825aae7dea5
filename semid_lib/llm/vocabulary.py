"""Semantic-ID tokens in a language model's vocabulary: added to any tokenizer, with rows that begin near their items.

A new token has no meaning until its row of the input embedding and of the output head has one. Random rows make the
first steps of training noise; here each row begins as the mean of the model's own rows for the words of the items
under the code, at the length of an ordinary row.
"""

from collections.abc import Sequence

import numpy as np
import torch

from semid_lib.ids.semantic_ids import SemanticIDs, sid_tokens, token_layout

_TEXTS_AT_ONCE = 4096


def extend_vocabulary(
    model,
    tokenizer,
    ids: SemanticIDs,
    texts: Sequence[str],
    noise: float = 0.02,
    initialize: bool | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, ...]:
    """Give model and tokenizer one special token per (level, code), in place; returns the layout of the tokens.

    The new rows of the input embedding, and of the output head if it is a matrix of its own, are `initial_rows`. A
    tokenizer that already holds exactly these tokens keeps them, and the model its rows, unless the model has no rows
    for them yet. Padding rows that some models carry beyond their tokenizer (Qwen3 has 267) are used first.

    texts: one per item in row order (`embed.item_texts`). noise: see `initial_rows`. initialize: True or False to set
    rows, or keep them, whatever the model has. Returns the layout that `CausalScorer` takes (`token_layout`).
    Raises ValueError for another number of texts than items, and as `token_layout` does.
    """
    if len(texts) != len(ids):
        raise ValueError(f"{len(texts)} texts for {len(ids)} semantic IDs: expected one each, in row order")
    tokens = token_layout(tokenizer, ids.sizes)
    n_rows = model.get_input_embeddings().weight.shape[0]
    if initialize is None:
        initialize = tokens is None or len(tokenizer) > n_rows
    if tokens is None:
        from tokenizers import AddedToken

        # as they stand: never lower-cased, and no space beside them swallowed
        new = [AddedToken(token, special=True, normalized=False) for level in sid_tokens(ids.sizes) for token in level]
        tokenizer.add_tokens(new, special_tokens=True)
        tokens = token_layout(tokenizer, ids.sizes)
    if len(tokenizer) > n_rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if initialize:
        _set_rows(model, tokenizer, tokens, ids.unique, texts, noise, seed)
    return tokens


def initial_rows(
    weight: torch.Tensor,
    token_ids: Sequence[Sequence[int]],
    codes: np.ndarray,
    sizes: Sequence[int],
    noise: float,
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """Rows that stand for the codes, per level (size, dim) float32.

    An item's vector is the mean of the rows of its text's tokens, a code's the mean over the items that carry it (at
    level 0 that is the prefix' neighbourhood), scaled to the median length of the ordinary rows. Codes that no item
    with a text carries get the mean over all items. Then noise: a normal vector of about `noise` times that length,
    so that no two codes are the same.

    weight: (n_tokens, dim) the ordinary rows. token_ids: of each item's text. codes: (n_items, n_levels).
    Raises ValueError if no item has a token.

    >>> rows = initial_rows(torch.eye(2), [[0], [1], [1, 1]], np.array([[0], [1], [1]]), (3,), 0.0, torch.Generator())
    >>> rows[0].round(decimals=2)  # the third code has no item, so it gets the mean of (1, 0), (0, 1) and (0, 1)
    tensor([[1.0000, 0.0000],
            [0.0000, 1.0000],
            [0.4500, 0.8900]])
    """
    lengths = torch.tensor([len(tokens) for tokens in token_ids])
    known = lengths > 0
    if not known.any():
        raise ValueError("no item has a text, so there is nothing to begin the new rows from")
    flat = torch.tensor([token for tokens in token_ids for token in tokens])
    used, place = flat.unique(return_inverse=True)
    starts = lengths.cumsum(0) - lengths
    items = torch.nn.functional.embedding_bag(place, weight[used].detach().float().cpu(), starts, mode="mean")
    length = float(weight.detach()[: 2**16].float().norm(dim=1).median())
    everywhere = items[known].mean(dim=0)
    levels = []
    for level, size in enumerate(sizes):
        code = torch.from_numpy(codes[:, level])[known]
        total = torch.zeros((size, items.shape[1])).index_add_(0, code, items[known])
        count = torch.bincount(code, minlength=size)[:, None]
        rows = torch.where(count > 0, total / count.clamp(min=1), everywhere)
        rows *= length / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        rows += torch.randn(rows.shape, generator=generator) * noise * length / rows.shape[1] ** 0.5
        levels.append(rows)
    return levels


@torch.no_grad()
def _set_rows(model, tokenizer, tokens, codes, texts, noise, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    token_ids: list[list[int]] = []
    for at in range(0, len(texts), _TEXTS_AT_ONCE):
        part = list(texts[at : at + _TEXTS_AT_ONCE])
        token_ids += tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    old = min(level.min() for level in tokens)  # added tokens come last
    for weight in [table] if head is table else [table, head]:
        sizes = [len(level) for level in tokens]
        rows = initial_rows(weight[:old], token_ids, codes, sizes, noise, generator)
        for level, values in zip(tokens, rows, strict=True):
            weight[torch.from_numpy(level).to(weight.device)] = values.to(weight)
