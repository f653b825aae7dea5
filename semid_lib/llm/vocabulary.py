"""Add semantic-ID tokens to a language model's vocabulary, with rows that start near the words of their items.

A new token has no meaning until it has rows in the input embedding and the output head. Random rows would make the
first steps of training noise.
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
    seed: int = 0,
) -> tuple[np.ndarray, ...]:
    """Add one special token per (level, code) to model and tokenizer, in place.

    The new rows of embedding and output head are `initial_rows`. Spare rows of a model (Qwen3 has 267) are used first.
    If the tokenizer has these tokens and the model rows for them, nothing changes.

    Parameters
    ----------
    texts : sequence of str
        One per item, in row order (`embed.item_texts`).
    noise : float
        See `initial_rows`.

    Returns
    -------
    tuple of (size,) int64 arrays
        Token of each code per level (`token_layout`), as `CausalScorer` takes them.

    Raises
    ------
    ValueError
        If texts and items differ in number, or the tokenizer has semantic-ID tokens of another layout.
    """
    if len(texts) != len(ids):
        raise ValueError(f"{len(texts)} texts for {len(ids)} semantic IDs: expected one each, in row order")
    tokens, n_rows = token_layout(tokenizer, ids.sizes), model.get_input_embeddings().weight.shape[0]
    if tokens is not None and len(tokenizer) <= n_rows:
        return tokens
    if tokens is None:
        from tokenizers import AddedToken

        # not normalized: never lower-cased, and spaces next to them stay
        new = [AddedToken(token, special=True, normalized=False) for level in sid_tokens(ids.sizes) for token in level]
        tokenizer.add_tokens(new, special_tokens=True)
        tokens = token_layout(tokenizer, ids.sizes)
        assert tokens is not None
    if len(tokenizer) > n_rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
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
    """Rows for the codes of each level, from the rows of the words of their items (chapter 05, eq-new-rows).

    An item's vector is the mean row of its text's tokens; a code's vector is the mean over its items, scaled to the
    median length of the ordinary rows. Codes without items get the mean over all items. Normal noise of about `noise`
    times that length separates equal codes.

    Parameters
    ----------
    weight : (n_tokens, dim) tensor
        The ordinary rows.
    token_ids : sequence of sequences of int
        Tokens of each item's text.
    codes : (n_items, n_levels) int array

    Returns
    -------
    list of (size, dim) float32 tensors

    Raises
    ------
    ValueError
        If no item has a token.

    Examples
    --------
    >>> rows = initial_rows(torch.eye(2), [[0], [1], [1, 1]], np.array([[0], [1], [1]]), (3,), 0.0, torch.Generator())
    >>> rows[0].round(decimals=2)  # the third code has no item: the mean of (1, 0), (0, 1) and (0, 1)
    tensor([[1.0000, 0.0000],
            [0.0000, 1.0000],
            [0.4500, 0.8900]])
    """
    lengths = torch.tensor([len(tokens) for tokens in token_ids])
    known = lengths > 0
    if not known.any():
        raise ValueError("no item has a text to initialize the new rows from")
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
def _set_rows(model, tokenizer, tokens, codes: np.ndarray, texts: Sequence[str], noise: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    token_ids: list[list[int]] = []
    for at in range(0, len(texts), _TEXTS_AT_ONCE):
        part = list(texts[at : at + _TEXTS_AT_ONCE])
        token_ids += tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    old = min(level.min() for level in tokens)  # added tokens come last
    sizes = [len(level) for level in tokens]
    for weight in [table] if head is table else [table, head]:
        rows = initial_rows(weight[:old], token_ids, codes, sizes, noise, generator)
        for level, values in zip(tokens, rows, strict=True):
            weight[torch.from_numpy(level).to(weight.device)] = values.to(weight)
